"""`make compare`: the command lines of its recipes, and the tables over worlds by hand."""

import importlib

import pytest
import yaml

from benchmarks import compare
from sepo_cli.run import module_of
from stages.reporting import Summary


def worth(*points):
    return [{"kl": kl, "gain": gain} for kl, gain in points]


def world(seed, base, ours, best=1.0):
    part = {"coefficient": 2.0 + seed, "standard_error": 0.1}
    denoise = {"calibration": {"type": part}, "accuracy_on_unseen_pairs": {"pooled": {"value": 0.5 + seed / 10}}}
    at = {f"{kl:g}": best for kl in (*compare.BUDGETS, *compare.DRAWN)}
    return {"seed": seed, "recipes": {"base": base, "ours": ours}, "frontier": at, "denoise": denoise}


# Straight in the square root of KL: 0.1 is half of the way to 0.4.
WORLDS = [
    world(1, worth((0.4, 0.4)), worth((0.4, 0.8)), best=2.0),
    world(2, worth((0.4, 0.8)), worth((0.4, 1.0)), best=2.0),
    world(3, worth((0.4, 0.6)), worth((0.1, 0.6)), best=2.0),
]


def test_tables_over_worlds_by_hand():
    gained, shares, less, labels = compare.tables(WORLDS, "base")
    rows = {row[0]: row[1:] for row in gained.rows}
    assert list(rows) == ["frontier", "base", "ours"]
    assert rows["frontier"][0] == "+2.00 [+2.00, +2.00]"
    assert rows["base"][0] == "+0.30 [+0.05, +0.55]"  # 0.2, 0.4, 0.3; t = 4.303
    assert rows["base"][2].startswith("+0.60")
    assert rows["ours"][0] == "+0.50 [+0.25, +0.75]"
    assert rows["ours"][2] == "+0.90 [-0.37, +2.17] (2 of 3 worlds)"
    assert [row[:2] for row in shares.rows] == [["base", "0.15 [0.03, 0.27]"], ["ours", "0.25 [0.13, 0.37]"]]
    # 0.4 - 0.2, 0.5 - 0.4, 0.6 - 0.3
    assert [row[:2] for row in less.rows] == [["ours", "+0.200 [-0.048, +0.448]"]]
    assert labels.rows[0][1].startswith("+4.00")
    assert labels.rows[1] == ["accuracy, pooled", "0.700 [0.452, 0.948]"]


def test_a_single_world_has_no_interval():
    gained, *_ = compare.tables(WORLDS[2:], "base")
    assert [row[1:] for row in gained.rows[1:]] == [["+0.30", "+0.42", "+0.60"], ["+0.60", " (0 of 1 worlds)", " (0 of 1 worlds)"]]  # fmt: skip


def test_the_picture_is_drawn(tmp_path):
    compare.draw(WORLDS, tmp_path / "compare.png")
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The configurations of all commands in their order, none of which is run."""
    seen = []
    for command in ("make-demo", "train-oracle", "score", "denoise", "train-policy"):
        stage = importlib.import_module(module_of(command))
        monkeypatch.setattr(stage, "run", lambda config, reporter: seen.append(config) or Summary("x", []))
    monkeypatch.chdir(tmp_path)
    return seen


def test_every_command_of_the_questions_is_one(asked):
    recipes = yaml.safe_load((compare.EXAMPLES / "compare.yaml").read_text())
    policies = compare.make_world(7, recipes | {"recipes": recipes["questions"]}, "")
    assert len(asked) == 7 + sum(map(len, policies.values()))
    assert recipes["against"] in policies


def test_every_command_of_the_recipes_is_one(asked):
    recipes = yaml.safe_load((compare.EXAMPLES / "compare.yaml").read_text())
    policies = compare.make_world(7, recipes, "--rewards dense --label-noise 0.2")
    assert list(policies) == list(recipes["recipes"])
    assert recipes["against"] in policies
    demo, published, _, oracle, score, denoise, counted, *trained = asked
    assert (demo.rewards, demo.label_noise) == ("dense", 0.2)
    assert {config.seed for config in (demo, published, oracle, *trained)} == {7}
    assert [config.output_dir for config in trained] == [str(path) for paths in policies.values() for path in paths]
    # The paper's method is what it is without options, the denoised recipe what stands in its files.
    assert (published.beta, published.folds, trained[0].objective, trained[0].rule) == (0.1, 1, "sepo", "oracle")
    assert (oracle.beta, oracle.kl_weight, oracle.folds) == (1.0, 0.3, 2)
    assert (score.center, denoise.calibrate, counted.pool) == (True, True, "counts")
    assert [config.scale for config in trained if config.objective == "regress"][:3] == [0.4, 1.0, 0.65]
