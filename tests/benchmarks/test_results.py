"""`sepo results`: figures of what official tools write, against plain arithmetic, and what spoils them."""

import json

import numpy as np
import pytest

from stages import results
from stages.benchmarks.own_answers import repetition
from stages.configs import ResultsConfig
from stages.errors import SepoError
from stages.reporting import Quiet
from tests import reference
from tests.benchmarks.folders import alpaca_rows, answer, arena_rows, single_rows, write_folder, write_rows


def report_of(*paths, reporter=None, **options):
    config = ResultsConfig(paths=tuple(map(str, paths)), json=True, **options)
    return results.run(config, reporter or Quiet()).json


def shown(*paths, **options):
    """The summary as text: rows and tables."""
    found = results.run(ResultsConfig(paths=tuple(map(str, paths)), **options), Quiet())
    rows = [f"{label}: {value}" for label, value in found.rows]
    return "\n".join([*rows, *(table.markdown() for table in found.tables)])


def group(report, benchmark, part=None):
    (found,) = [
        each for each in report["benchmarks"] if each["benchmark"] == benchmark and part in (None, each["part"])
    ]
    return found


def draws(count, seed=42):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, count, count).tolist() for _ in range(1000)]


def assert_interval(found, figure, count):
    """`figure` is a function of the numbers of items."""
    low, high = reference.bootstrap(figure, draws(count))
    expected = {"value": figure(range(count)), "low": low, "high": high}
    assert found == pytest.approx(expected, abs=1e-9)


PREFERENCES = [1.0, 2.0, 1.5, 1.25, 1.0, 2.0, 1.75]


def test_alpaca_evals_win_rate_is_the_mean_preference_drawn_by_prompt(tmp_path):
    path = write_rows(tmp_path / "annotations.json", alpaca_rows("sepo", PREFERENCES))
    found = group(report_of(path), "alpaca-eval")
    model = found["models"]["sepo"]
    assert (found["judge"], found["against"], model["prompts"]) == ("gpt", "base", 7)
    assert_interval(model["figures"]["win_rate"], lambda at: 100 * sum(PREFERENCES[i] - 1 for i in at) / 7, 7)
    assert_interval(model["figures"]["characters"], lambda at: sum(i + 1 for i in at) / 7, 7)
    assert "only online" in found["notes"][0]


def test_two_models_are_compared_on_their_common_prompts(tmp_path):
    theirs = [1.0, 1.5, 1.5, 1.0, 1.0]
    write_rows(tmp_path / "a/annotations.json", alpaca_rows("sepo", PREFERENCES, glm=[x - 1 for x in PREFERENCES]))
    write_rows(tmp_path / "b/annotations.json", alpaca_rows("dpo", theirs, glm=[0.5] * 5))
    reporter = Quiet()
    found = group(report_of(tmp_path, reporter=reporter), "alpaca-eval")
    (one,) = found["comparisons"]
    sign = 1 if one["models"] == ["sepo", "dpo"] else -1
    gaps = [sign * 100 * (PREFERENCES[i] - theirs[i]) for i in range(5)]
    assert one["prompts"] == 5
    assert_interval(one["differences"]["win_rate"], lambda at: sum(gaps[i] for i in at) / 5, 5)
    assert [set(each["figures"]) >= {"lc_win_rate"} for each in found["models"].values()] == [True, True]
    assert "alpaca-eval, dpo: 5 of 805 prompts are judged" in reporter.warnings
    lc = [sign * 100 * (PREFERENCES[i] - 1.5) for i in range(5)]
    assert_interval(one["differences"]["lc_win_rate"], lambda at: sum(lc[i] for i in at) / 5, 5)


def test_a_lead_smaller_than_its_interval_is_called_none(tmp_path):
    write_rows(tmp_path / "a/annotations.json", alpaca_rows("sepo", [1.0, 2.0] * 20))
    write_rows(tmp_path / "b/annotations.json", alpaca_rows("dpo", [1.2, 1.7] * 20))
    write_rows(tmp_path / "c/annotations.json", alpaca_rows("base2", [1.0] * 40))
    text = shown(tmp_path)
    assert (
        "AlpacaEval 2: sepo leads dpo by 5.00, but the interval [-2.50, 12.50] holds 0: not told apart (win rate"
        in text
    )
    assert "AlpacaEval 2: sepo leads base2 by 50.00 [" in text
    assert "not corrected for 3 comparisons" in text
    assert "| LLaMA2-Chat-13B | 8.4 / 7.7 | 13.72 / 13.37 |" in text
    assert "arXiv 2408.13518, Table 1" in text


@pytest.mark.parametrize(("count", "told"), [(29, False), (30, True)])
def test_a_few_prompts_give_no_lead(tmp_path, count, told):
    for name, preference in (("sepo", 1.5), ("dpo", 1.25)):
        write_rows(tmp_path / name / "annotations.json", alpaca_rows(name, [preference] * count))
    [sentence] = group(report_of(tmp_path), "alpaca-eval")["comparisons"][0]["sentences"]
    assert sentence.startswith("sepo leads dpo by 25.00 [25.00, 25.00]")
    assert ("so few prompts do not tell: not told apart" not in sentence) == told


LEADERBOARD = """,win_rate,standard_error,n_total,avg_length,length_controlled_winrate,lc_standard_error
sepo,40.0,2.0,805,1500,42.5,1.0
dpo,30.0,1.5,805,1400,,
"""


def test_a_leaderboard_has_what_annotations_lack(tmp_path):
    write_rows(tmp_path / "annotations.json", alpaca_rows("sepo", PREFERENCES))
    (tmp_path / "leaderboard.csv").write_text(LEADERBOARD)
    models = group(report_of(tmp_path), "alpaca-eval")["models"]
    assert models["sepo"]["stated"]["lc_win_rate"] == pytest.approx(
        {"value": 42.5, "low": 40.54, "high": 44.46}, abs=1e-3
    )
    assert "win_rate" not in models["sepo"]["stated"]
    assert models["dpo"]["stated"]["win_rate"]["value"] == 30.0
    # Of a long one, the published, only models that are known are shown.
    (tmp_path / "leaderboard.csv").write_text(LEADERBOARD + "".join(f"m{n},1.0,1.0,805,9,,\n" for n in range(20)))
    assert {*group(report_of(tmp_path), "alpaca-eval")["models"]} == {"sepo"}


GAMES = [("A>>B", "A=B"), ("B>A", "A>B"), ("A=B", "B>>A"), ("B>>A", "A>>B"), ("A>B", "A>B")]
POINTS = [[0.5, 0, 0, 0], [1, 1], [0, 0, 0, 0.5], [1] * 6, [1, 0]]


def test_arena_hard_counts_a_strong_verdict_three_times(tmp_path):
    rows = arena_rows("sepo", [*GAMES, (None, "A>B"), ("A>B", "?")])
    path = write_rows(tmp_path / "data/arena-hard-v0.1/model_judgment/gpt/sepo.jsonl", rows)
    reporter = Quiet()
    model = group(report_of(path, reporter=reporter), "arena-hard")["models"]["sepo"]

    def rate(at):
        games = [point for i in at for point in POINTS[i]]
        return 100 * sum(games) / len(games)

    assert_interval(model["figures"]["win_rate"], rate, 5)
    assert "arena-hard, arena-hard-v0.1, sepo: 2 without a verdict in both games" in reporter.warnings
    text = shown(path)
    assert "90% intervals" in text
    assert "Arena-Hard in the paper" in text


def test_categories_of_arena_hard_are_judged_apart(tmp_path):
    for category, games in (("hard_prompt", GAMES[:2]), ("creative_writing", GAMES[2:])):
        write_rows(tmp_path / f"{category}.jsonl", arena_rows("sepo", games, category))
    report = report_of(tmp_path)
    assert group(report, "arena-hard", "creative_writing")["models"]["sepo"]["prompts"] == 3
    assert "in the paper" not in shown(tmp_path)


def test_mt_bench_is_the_mean_of_all_scores_that_were_read(tmp_path):
    scores = [(8, 6), (10, -1), (3, 5), (7, 9)]
    rows = [*single_rows("sepo", [(1, 6)]), *single_rows("sepo", scores)]
    path = write_rows(tmp_path / "judgements/gpt-4_single.jsonl", rows)
    (tmp_path / "result.json").write_text('{"total": 6.9, "category": {}, "num_missing": 1, "judge": "gpt-4"}')
    reporter = Quiet()
    found = group(report_of(tmp_path, reporter=reporter), "mt-bench")
    assert {*found["models"]} == {"sepo"}
    figures = found["models"]["sepo"]["figures"]
    values = [[score for score in both if score >= 0] for both in scores]

    def average(at):
        there = [score for i in at for score in values[i]]
        return sum(there) / len(there)

    assert_interval(figures["average"], average, 4)
    assert figures["first_turn"]["value"] == 7.0
    assert figures["second_turn"]["value"] == pytest.approx(20 / 3)
    assert "mt-bench, sepo: 1 without a score that could be read (-1)" in reporter.warnings
    assert "mt-bench, sepo: 2 judged more than once: the last one counts" in reporter.warnings
    path.unlink()
    alone = group(report_of(tmp_path), "mt-bench")["models"][tmp_path.name]
    assert alone["stated"]["average"] == {"value": 6.9, "low": None, "high": None}
    assert f"| {tmp_path.name} |  | 6.90 |" in shown(tmp_path)


def test_mt_bench_pairs_must_agree_to_be_won(tmp_path):
    winners = [
        ("model_1", "model_1"),
        ("model_1", "model_2"),
        ("tie", "model_2"),
        ("model_2", "model_2"),
        ("error", "tie"),
    ]
    rows = [
        {"question_id": 81 + n // 2, "model_1": "sepo", "model_2": "dpo", "g1_winner": one, "g2_winner": two,
         "judge": ["gpt-4", "pair-v2"], "turn": 1 + n % 2}
        for n, (one, two) in enumerate(winners)
    ]  # fmt: skip
    report = report_of(write_rows(tmp_path / "gpt-4_pair.jsonl", rows))
    model = group(report, "mt-bench-pairs")["models"]["sepo over dpo"]
    assert model["figures"]["win_rate"]["value"] == 50.0
    assert model["prompts"] == 2
    assert model["counts"] == {"with an error of the judge": 1}


def test_what_lm_eval_and_googles_script_write(tmp_path):
    strict, loose = [[True, False], [True], [False]], [[True, True], [True], [False]]
    for way, lists in (("strict", strict), ("loose", loose)):
        rows = [
            {
                "prompt": f"p{n}",
                "response": "r",
                "instruction_id_list": ["x"] * len(each),
                "follow_instruction_list": each,
            }
            | {"follow_all_instructions": all(each)}
            for n, each in enumerate(lists)
        ]
        write_rows(tmp_path / f"google/eval_results_{way}.jsonl", rows)
    expected = {"prompt_strict": 100 / 3, "instruction_strict": 50, "prompt_loose": 200 / 3, "instruction_loose": 75}
    found = group(report_of(tmp_path / "google"), "ifeval")["models"]["google"]
    assert {name: each["value"] for name, each in found["figures"].items()} == pytest.approx(
        {f"accuracy_{name}": value for name, value in expected.items()}
    )
    task = {"prompt_level_strict_acc,none": 0.25, "prompt_level_strict_acc_stderr,none": 0.02}
    task |= {"inst_level_strict_acc,none": 0.4, "inst_level_strict_acc_stderr,none": "N/A"}
    (tmp_path / "m").mkdir()
    (tmp_path / "m/results_2026.json").write_text(json.dumps({"results": {"ifeval": task}, "configs": {}}))
    stated = group(report_of(tmp_path / "m"), "ifeval")["models"]["m"]["stated"]
    assert stated["accuracy_prompt_strict"] == pytest.approx({"value": 25, "low": 21.08, "high": 28.92}, abs=1e-3)
    assert stated["accuracy_instruction_strict"] == {"value": 40.0, "low": None, "high": None}
    samples = [
        {"doc": {"prompt": f"p{n}"}, "prompt_level_strict_acc": all(strict[n]), "inst_level_strict_acc": strict[n],
         "inst_level_loose_acc": loose[n]}
        for n in range(3)
    ]  # fmt: skip
    write_rows(tmp_path / "m/samples_ifeval.jsonl", samples)
    model = group(report_of(tmp_path / "m"), "ifeval")["models"]["m"]
    assert model["figures"]["accuracy_prompt_loose"]["value"] == pytest.approx(200 / 3)
    assert model["stated"] == {}


def alpaca_folder(folder, **models):
    """A folder of answers; those of `models` are texts."""
    answers = {
        name: [answer(n, text, {"instruction": f"do {n}", "dataset": "koala"}) for n, text in enumerate(texts)]
        for name, texts in models.items()
    }
    return write_folder(folder, "alpaca-eval", answers)


def test_answers_have_lengths_and_share_what_is_amiss(tmp_path):
    row = {"prompt": "p"}
    loop = "the fox ran and " * 9
    said = [
        answer(0, "a fine answer", row, tokens=3), answer(1, loop, row, ended=False, tokens=40), answer(2, " \n", row, tokens=1),
        answer(3, "", row, problem="too long"), answer(3, "good", row, sample=1, tokens=1),
    ]  # fmt: skip
    report = report_of(write_folder(tmp_path / "g", None, {"sepo": said}))
    model = group(report, "answers", "g")["models"]["sepo"]
    values = {name: each["value"] for name, each in model["figures"].items()}
    characters = (13 + len(loop) + 2 + 4) / 4
    assert values == pytest.approx({"tokens": 11.25, "characters": characters, "cut": 25, "empty": 25, "loops": 25})
    assert model["counts"] == {"without an answer": 1}
    assert report["warnings"] == ["answers, g, sepo: 1 without an answer"]


def test_a_text_that_loops():
    assert repetition("one two three four five") == 0
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert repetition("\n" * 5) == pytest.approx(1 / 2)
    assert repetition("too short") == 0


def test_judgments_are_held_against_the_folders_answers(tmp_path):
    folder = alpaca_folder(tmp_path / "g", sepo=["x", "y", "z"], dpo=["x", "y", "z"])
    write_rows(folder / "judged/sepo/annotations.json", alpaca_rows("sepo", [1.0, 2.0], ["x", "other"]))
    write_rows(folder / "judged/dpo/annotations.json", alpaca_rows("dpo", [1.0] * 4, ["x", "y", "z", "?"]))
    write_rows(folder / "judged/ipo/annotations.json", alpaca_rows("ipo", [1.0, 2.0, 2.0]))
    reporter = Quiet()
    report_of(folder, reporter=reporter)
    assert sorted(reporter.warnings) == [
        "alpaca-eval, dpo: 1 prompts are judged that the folder has no answer to",
        "alpaca-eval, ipo: 3 of 805 prompts are judged",
        "alpaca-eval, ipo: no answers of it are here, but of sepo, dpo",
        "alpaca-eval, sepo: 1 of 2 judged answers are not those of the folder: judge again",
        "alpaca-eval, sepo: 1 of 3 prompts are not judged",
    ]


def test_each_folders_judge_is_held_against_its_own_answers(tmp_path):
    """Of two rounds of one model."""
    texts = {"one": ["a", "b", "c"], "two": ["x", "y", "z"]}
    for name, said in texts.items():
        folder = alpaca_folder(tmp_path / name, sepo=said)
        write_rows(folder / "judged/annotations.json", alpaca_rows("sepo", [1.0, 2.0, 1.5], said))
    reporter = Quiet()
    report = report_of(tmp_path, reporter=reporter)
    assert [*group(report, "alpaca-eval")["models"]] == ["one/sepo", "two/sepo"]
    assert [group(report, "answers", name)["models"]["sepo"]["prompts"] for name in texts] == [3, 3]
    assert reporter.warnings == []
    write_rows(tmp_path / "one/judged/annotations.json", alpaca_rows("sepo", [1.0, 2.0, 1.5], ["a", "b", "z"]))
    write_rows(tmp_path / "annotations.json", alpaca_rows("sepo", [1.0] * 3, texts["two"]))
    report_of(tmp_path, reporter=reporter)
    assert reporter.warnings == [
        "alpaca-eval, sepo: whether it judges one/sepo, two/sepo, its place does not tell: put the file into the folder"
        " whose answers it judges",
        "alpaca-eval, sepo: 3 of 805 prompts are judged",
        "alpaca-eval, one/sepo: 1 of 3 judged answers are not those of the folder: judge again",
    ]
    # A model of that name that answered another benchmark is none of them.
    write_folder(tmp_path / "three", None, {"sepo": [answer(0, "a", {"prompt": "p"})]})
    assert [*group(report_of(tmp_path / "two", tmp_path / "three"), "alpaca-eval")["models"]] == ["sepo"]


def test_a_damaged_file_is_named_and_the_others_are_read(tmp_path):
    write_rows(tmp_path / "a.jsonl", arena_rows("sepo", GAMES))
    broken = write_rows(tmp_path / "b.jsonl", arena_rows("dpo", GAMES))
    broken.write_text(broken.read_text()[:-40])
    (tmp_path / "c.json").write_text("{")
    (tmp_path / "d.csv").write_text(f"a,b\n{'x' * 200_000},1\n")
    reporter = Quiet()
    assert {*group(report_of(tmp_path, reporter=reporter), "arena-hard")["models"]} == {"sepo"}
    left_out = [warning for warning in reporter.warnings if "left out" in warning]
    assert [warning.split()[0] for warning in left_out] == [
        str(broken), str(tmp_path / "c.json"), str(tmp_path / "d.csv")
    ]  # fmt: skip
    assert "broken JSON" in left_out[0]
    with pytest.raises(SepoError, match=r"b\.jsonl:5: broken JSON"):
        report_of(broken)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"a": 1}], "no result that is known"),
        ([], "no result that is known"),
        ([*arena_rows("m", GAMES), {"uid": 1}], "judge is null, not text"),
        ([*single_rows("m", [(1, 2)]), {"question_id": 1, "model": "m"}], "not what its tool writes"),
        (single_rows(5, [(1, 2)]), "model is a number, not text"),
    ],
)
def test_a_file_of_something_else(tmp_path, rows, said):
    with pytest.raises(SepoError, match=said) as caught:
        report_of(write_rows(tmp_path / "f.jsonl", rows))
    assert caught.value.hint


def test_nothing_to_read(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, said in (("empty", "holds no answers and no judgments"), ("gone", "is not there")):
        with pytest.raises(SepoError, match=said):
            report_of(tmp_path / name)


def test_one_model_judged_twice_counts_once(tmp_path):
    for name, games in (("a", GAMES), ("b", GAMES[:2])):
        write_rows(tmp_path / name / "sepo.jsonl", arena_rows("sepo", games))
    reporter = Quiet()
    report = report_of(tmp_path, tmp_path / "b", tmp_path / "b/sepo.jsonl", reporter=reporter)
    assert group(report, "arena-hard")["models"]["sepo"]["prompts"] == 2
    assert any("sepo was judged twice by gpt" in warning for warning in reporter.warnings)


def test_the_file_of_results_is_not_written_over_others(tmp_path):
    source = write_rows(tmp_path / "annotations.json", alpaca_rows("sepo", [1 + n**2 / 400 for n in range(20)]))
    output = tmp_path / "r.json"
    first = report_of(source, output=str(output))
    assert json.loads(output.read_text())["benchmarks"] == first["benchmarks"]
    config = ResultsConfig(paths=(str(source),), output=str(output))
    assert not results.run(config, Quiet()).fresh
    with pytest.raises(SepoError, match="seed is 42 there and 1 here"):
        report_of(source, output=str(output), seed=1)
    assert report_of(source, output=str(output), seed=1, overwrite=True)["benchmarks"] != first["benchmarks"]
    with pytest.raises(SepoError, match="a part of the results"):
        report_of(source, output=str(source), overwrite=True)
