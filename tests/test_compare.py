"""Evaluations written by hand: what the comparison says can be figured on paper."""

import json

import pytest

from stages import compare
from stages.configs import CompareConfig
from stages.errors import SepoError
from stages.reporting import Quiet

SETTINGS = {"columns": None, "max_length": 2048, "overlong": "drop", "samples": 512, "max_new_tokens": 64, "seed": 1}
INPUTS = {"dataset": "sha256:d", "truth": "sha256:t", "reference": "sha256:r", "model 16": "sha256:m"}


def written(path, models, seed=1, settings=None, inputs=None):
    report = {"stage": "evaluate", "format": 1, "models": models}
    report["settings"] = SETTINGS | {"seed": seed} | (settings or {})
    report["inputs"] = INPUTS | (inputs or {})
    path.write_text(json.dumps(report))
    return path


def evaluation(path, points, **about):
    """Points are step -> (reward, kl); step 0 is the reference."""
    models = {
        "reference" if step == 0 else str(step): {
            "figures": {
                "true_reward": {"value": reward, "low": reward, "high": reward},
                "sample_kl_per_response": {"value": kl, "low": kl, "high": kl},
                "sample_tokens": {"value": 20.0, "low": 20.0, "high": 20.0},
            }
        }
        for step, (reward, kl) in points.items()
    }
    return written(path, models, **about)


def run(folder, *runs, **options):
    return compare.run(CompareConfig(runs=runs, output_dir=str(folder), **options), Quiet())


@pytest.fixture
def runs(tmp_path):
    """Both runs of recipe a reach KL 0.3, the run of b 4, one of c 0.25: the middle one of three is 0.3, half of it 0.15."""
    a1 = evaluation(tmp_path / "a1.json", {0: (1.0, 0.0), 8: (2.0, 0.1), 16: (4.0, 0.4)})
    a2 = evaluation(tmp_path / "a2.json", {0: (1.0, 0.0), 16: (3.0, 0.3)}, seed=2)
    b = evaluation(tmp_path / "b.json", {0: (1.0, 0.0), 16: (5.0, 4.0)})
    c1 = evaluation(tmp_path / "c1.json", {0: (1.0, 0.0), 16: (9.0, 9.0)})
    c2 = evaluation(tmp_path / "c2.json", {0: (1.0, 0.0), 16: (2.0, 0.25)}, seed=3)
    return f"a={a1}", f"a={a2}", f"b={b}", f"c={c1}", f"c={c2}"


def test_the_figures_of_recipes_at_equal_divergence(runs, tmp_path):
    table, _ = run(tmp_path / "out", *runs).tables
    report = json.loads((tmp_path / "out/compare.json").read_text())
    assert report["kl"] == [0.15, 0.3]
    assert report["recipes"]["a"]["true_reward"]["value"] == 3.5
    # sqrt(0.15) lies 0.2247 of the way from sqrt(0.1) to sqrt(0.4); the second run gets there at sqrt(0.5).
    at_half = report["recipes"]["a"]["true_reward_at_kl"][0]
    assert at_half == pytest.approx([2.0 + 2 * (0.15**0.5 - 0.1**0.5) / (0.4**0.5 - 0.1**0.5), 1.0 + 2 * 0.5**0.5])
    assert report["recipes"]["b"]["true_reward_at_kl"][1] == pytest.approx([1.0 + 4 * (0.3 / 4) ** 0.5])
    names = [row[0] for row in table.rows]
    assert names == ["reference", "a", "b", "c"]
    assert table.columns[5:] == ["gain at the end", "gain at KL 0.15", "gain at KL 0.3"]
    # The rewards above, each less the reference's 1.0.
    assert table.rows[1][5].startswith("+2.50 [")
    assert table.rows[1][-1].startswith(f"{(1.0 + 2 * (0.3**0.5 - 0.1**0.5) / (0.4**0.5 - 0.1**0.5) + 2) / 2:+.2f} [")
    assert table.rows[2][-1] == f"{4 * (0.3 / 4) ** 0.5:+.2f}"
    assert (tmp_path / "out/compare.png").read_bytes().startswith(b"\x89PNG")


def test_a_divergence_that_not_all_runs_reach_has_no_gain(runs, tmp_path):
    table, _ = run(tmp_path / "out", *runs).tables
    assert table.rows[3][-1] == "1 of 2 runs reach it"
    assert table.rows[3][-2].startswith("+")


def test_the_same_comparison_is_not_made_again(runs, tmp_path):
    assert run(tmp_path / "out", *runs).fresh
    assert not run(tmp_path / "out", *runs).fresh


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"late": {"figures": {}}}, "model 'late' is not named by its step"),
        ({"reference": {"figures": {}}}, "has no true_reward of model reference"),
        ({"reference": {}}, "is not what `sepo evaluate` writes: KeyError 'figures'"),
        ({}, "has no reference"),
        (None, "is no evaluation"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, models, message):
    written(tmp_path / "e.json", models)
    with pytest.raises(SepoError, match=message):
        run(tmp_path / "out", f"a={tmp_path / 'e.json'}")


def test_a_run_without_its_reference_is_refused(tmp_path):
    evaluation(tmp_path / "e.json", {8: (2.0, 0.1)})
    with pytest.raises(SepoError, match="has no reference"):
        run(tmp_path / "out", f"a={tmp_path / 'e.json'}")


@pytest.mark.parametrize("value", [True, "1.0", None, 1e16, -0.5])
def test_a_figure_that_is_no_number_is_refused(tmp_path, value):
    with pytest.raises(SepoError, match=r"no number of at most 1e|divergence of -0\.5, which is below 0"):
        run(tmp_path / "out", f"a={evaluation(tmp_path / 'e.json', {0: (1.0, 0.0), 8: (1.0, value)})}")


@pytest.mark.parametrize("seed", [0.5, True, "1"])
def test_a_seed_that_is_none_is_refused(tmp_path, seed):
    path = evaluation(tmp_path / "e.json", {0: (1.0, 0.0), 8: (1.0, 0.5)}, settings={"seed": seed})
    with pytest.raises(SepoError, match=f"is not what `sepo evaluate` writes: its seed is {seed!r}"):
        run(tmp_path / "out", f"a={path}")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SepoError, match=r"there is no evaluation .*none.json \(run a\)"):
        run(tmp_path / "out", f"a={tmp_path / 'none.json'}")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"inputs": {"reference": "sha256:x"}}, "the reference differs"),
        ({"inputs": {"truth": "sha256:x"}}, "the truth differs"),
        ({"inputs": {"dataset": "sha256:x"}}, "the dataset differs"),
        ({"settings": {"max_new_tokens": 32}}, "max_new_tokens is 64 there and 32 here"),
        ({"settings": {"samples": 64}}, "samples is 512 there and 64 here"),
        ({"settings": {"max_length": 64}}, "max_length is 2048 there and 64 here"),
        ({"settings": {"overlong": "truncate"}}, "overlong is 'drop' there and 'truncate' here"),
        ({"settings": {"columns": "chosen=good"}}, "columns is None there and 'chosen=good' here"),
    ],
)
def test_evaluations_that_are_not_of_the_same_are_refused(tmp_path, other, message):
    points = {0: (1.0, 0.0), 16: (3.0, 0.3)}
    a, b = evaluation(tmp_path / "a.json", points), evaluation(tmp_path / "b.json", points, **other)
    with pytest.raises(SepoError, match=rf"b.json cannot be compared with .*a.json: {message}"):
        run(tmp_path / "out", f"a={a}", f"b={b}")
    assert not (tmp_path / "out").exists()


def test_other_models_are_compared(tmp_path):
    points = {0: (1.0, 0.0), 16: (3.0, 0.3)}
    a = evaluation(tmp_path / "a.json", points)
    b = evaluation(tmp_path / "b.json", points, inputs={"model 16": "sha256:x", "training data t": "sha256:y"})
    assert run(tmp_path / "out", f"a={a}", f"b={b}").fresh


def test_a_run_does_not_count_twice(runs, tmp_path):
    with pytest.raises(SepoError, match=r"a1\.json is a second run of a by the seed 1"):
        run(tmp_path / "out", *runs, runs[0])


def test_the_reference_is_that_of_every_seed(tmp_path):
    """Seeds 1 and 2 of a, 2 and 3 of b: the reference has three runs, of reward 1, 2 and 6."""
    starts = {1: 1.0, 2: 2.0, 3: 6.0}
    files = [
        f"{name}="
        + str(evaluation(tmp_path / f"{name}{seed}.json", {0: (starts[seed], 0.0), 8: (7.0, 0.1)}, seed=seed))
        for name, seed in (("a", 1), ("a", 2), ("b", 2), ("b", 3))
    ]
    table = run(tmp_path / "out", *files).tables[0]
    assert table.rows[0][:2] == ["reference", "3"]
    assert table.rows[0][2].startswith("+3.00 [")


@pytest.fixture
def paired_runs(tmp_path):
    """Rewards at the end rise with the seed by far more than recipes differ: b is better by 1, 2 and 3, c by -1 and 1."""
    rewards = {"a": {1: 10, 2: 20, 3: 30}, "b": {1: 11, 2: 22, 3: 33}, "c": {3: 29, 2: 21, 4: 99}}
    return [
        f"{name}="
        + str(evaluation(tmp_path / f"{name}{seed}.json", {0: (1.0, 0.0), 8: (float(reward), 1.0)}, seed=seed))
        for name, by_seed in rewards.items()
        for seed, reward in by_seed.items()
    ]


def test_differences_are_paired_by_seed(paired_runs, tmp_path):
    _, table = run(tmp_path / "out", *paired_runs).tables
    assert [row[:2] for row in table.rows] == [["b", "3"], ["c", "2"]]
    # 1, 2, 3: mean 2, half of the interval 4.303 / sqrt(3) = 2.484.  -1, 1: sqrt(2) / sqrt(2) * 12.706.
    assert [row[2] for row in table.rows] == ["+2.00 [-0.48, +4.48]", "+0.00 [-12.71, +12.71]"]
    assert [row[3] for row in table.rows] == ["+0.00 [+0.00, +0.00]"] * 2
    assert table.columns[-1] == "true reward at KL 1"
    assert [row[-1] for row in table.rows] == [row[2] for row in table.rows]
    assert "Differences from a, paired by seed" in (tmp_path / "out/compare.md").read_text()
    report = json.loads((tmp_path / "out/compare.json").read_text())
    assert report["against"] == "a"
    assert report["recipes"]["b"]["seeds"] == [1, 2, 3]
    assert report["recipes"]["b"]["less"]["true_reward"] == {"1": 1.0, "2": 2.0, "3": 3.0}
    assert report["recipes"]["c"]["less"]["true_reward_at_kl"][1] == {"3": -1.0, "2": 1.0}


def test_differences_are_from_the_recipe_asked_for(paired_runs, tmp_path):
    _, table = run(tmp_path / "out", *paired_runs, against="b").tables
    assert [row[0] for row in table.rows] == ["a", "c"]
    assert table.rows[0][2] == "-2.00 [-4.48, +0.48]"
    assert not run(tmp_path / "out", *paired_runs, against="b").fresh
    with pytest.raises(SepoError, match="against is 'b' there and 'a' here"):
        run(tmp_path / "out", *paired_runs)
    with pytest.raises(SepoError, match="there is no run of d to compare with"):
        run(tmp_path / "else", *paired_runs, against="d")


def test_a_difference_where_a_run_gets_not_so_far_is_left_empty(tmp_path):
    """Recipe b reaches KL 1 by one seed of two."""
    files = [
        f"{name}={evaluation(tmp_path / f'{name}{seed}.json', {0: (1.0, 0.0), 8: (3.0, kl)}, seed=seed)}"
        for name, seed, kl in (("a", 1, 1.0), ("a", 2, 1.0), ("b", 1, 9.0), ("b", 2, 0.9), ("c", 1, 2.0), ("c", 2, 2.0))
    ]
    _, table = run(tmp_path / "out", *files).tables
    assert table.columns[-1] == "true reward at KL 1"
    assert table.rows[0][-1] == "1 of 2 runs reach it"
    assert table.rows[1][-1].startswith("-")


def test_recipes_without_a_seed_in_common_have_no_difference(tmp_path):
    points = {0: (1.0, 0.0), 16: (3.0, 0.3)}
    a, b = (evaluation(tmp_path / f"{seed}.json", points, seed=seed) for seed in (1, 2))
    _, table = run(tmp_path / "out", f"a={a}", f"b={b}").tables
    assert table.rows == [["b", "0", "", "", "", "", ""]]
    assert len(run(tmp_path / "one", f"a={a}").tables) == 1


@pytest.mark.parametrize("hair", [-1e-7, -1e-3])
def test_a_divergence_a_hair_below_zero_is_zero(tmp_path, hair):
    path = evaluation(tmp_path / "a.json", {0: (1.0, hair), 8: (1.5, hair), 16: (2.0, 0.4)})
    run(tmp_path / "out", f"a={path}")
    [points] = json.loads((tmp_path / "out/compare.json").read_text())["recipes"]["a"]["runs"]
    assert [point["kl"] for point in points] == [0.0, 0.0, 0.4]


def test_any_name_can_be_drawn(tmp_path):
    names = ["$x\\y", "$", "$a$ \\frac", "_hidden", "n" * 3000, "\udcff", "\x1b[31m", "狐", "a\nb", "^_{"]
    path = evaluation(tmp_path / "a.json", {0: (1.0, 0.0), 16: (2.0, 0.4)})
    run(tmp_path / "out", *(f"{name}={path}" for name in names))
    assert list(json.loads((tmp_path / "out/compare.json").read_text())["recipes"]) == names
