"""`sepo pair`: what becomes a pair, by whichever ranking; what is left out and counted; and what is never lost."""

import json
from pathlib import Path

import pytest

from stages import pair
from stages.configs import PairConfig, ValidateConfig
from stages.errors import SepoError
from stages.generation.best_and_worst import best_and_worst
from stages.models.folders import load_model
from stages.reporting import Quiet
from stages.store.answers import Answer, answers_name, write_answers
from stages.store.place import place_of
from stages.store.scores import open_scores
from stages.validate import run as validate
from tests import reference
from tests.conftest import Listens, write_lines
from tests.world import run_score

TEXTS = [
    ["the quick fox", "the lazy fox jumps", "sorry, not the fox"],
    ["Paris", "Hello, Paris!"],
    ["a dog", "the dog"],
]


def answer(question, sample, text, turn=0, ended=True, problem="", prompt="what is the fox?"):
    messages = [{"role": "user", "content": f"{prompt} {question}"}]
    row = {"prompt": prompt, "wanted": len(text)}
    return Answer(question, f"q{question}", sample, turn, messages, text, ended, problem, None, None, None, row)


def answer_folder(folder, answers, models=("policy",), shard=2):
    """As `sepo generate` leaves it, with the answers to so many questions in a shard."""
    files = []
    for model in models:
        (folder / model).mkdir(parents=True)
        for start in range(0, max(each.question for each in answers) + 1, shard):
            name = answers_name(start // shard)
            held = [each for each in answers if start <= each.question < start + shard]
            write_answers(place_of(folder / model), name, held, "sha256:answers")
            files.append(f"{model}/{name}")
    manifest = {"format": 1, "stage": "generate", "fingerprint": "sha256:answers", "settings": {}, "inputs": {}}
    (folder / "manifest.json").write_text(
        json.dumps(manifest | {"models": {name: {} for name in models}, "files": files})
    )
    return folder


def plain(texts=TEXTS):
    return [answer(question, n, text) for question, some in enumerate(texts) for n, text in enumerate(some)]


@pytest.fixture
def answers(tmp_path):
    return answer_folder(tmp_path / "answers", plain())


@pytest.fixture
def rewards(tmp_path):
    """q0: 0, 3, 1; q1: 2, 2; q2: 0.5 and none."""
    given = {("q0", 0): 0, ("q0", 1): 3, ("q0", 2): 1, ("q1", 0): 2, ("q1", 1): 2, ("q2", 0): 0.5}
    rows = [{"question_id": name, "sample": n, "reward": value, "other": -value} for (name, n), value in given.items()]
    return str(write_lines(tmp_path / "rewards.jsonl", rows))


@pytest.fixture
def make(tmp_path):
    def run(answers, reporter=None, output="pairs.jsonl", **options):
        config = PairConfig(answers=str(answers), output=str(tmp_path / output), **options)
        summary = pair.run(config, reporter or Quiet())
        lines = (tmp_path / output).read_text().splitlines()
        return [json.loads(line) for line in lines], record(tmp_path), summary

    return run


def record(folder):
    return json.loads((folder / "pairs.manifest.json").read_text())


def texts_of(row):
    return row["chosen"][0]["content"], row["rejected"][0]["content"]


@pytest.mark.parametrize("per_token", [False, True])
def test_an_oracles_reward_is_the_sum_of_what_score_finds(make, answers, world, tmp_path, monkeypatch, per_token):
    """By the slow truth for every answer, and by `sepo score` of the pairs."""
    monkeypatch.setattr(pair, "ANSWERS_AT_ONCE", 4)
    rows, found, _ = make(answers, oracle=str(world / "oracle"), per_token=per_token)
    assert len(rows) == found["counts"]["kept"] == 3
    assert validate(validation(world, tmp_path), Quiet()).failure is None
    run_score(world, dataset=tmp_path / "pairs.jsonl", output_dir=str(tmp_path / "scores"))
    scored = [*open_scores(tmp_path / "scores").rows()]
    models = [load_model(world / "oracle" / name, trust_remote_code=False) for name in ("oracle", "reference")]
    for row, score in zip(rows, scored, strict=True):
        for side in ("chosen", "rejected"):
            ids, scores = getattr(score.pair, f"{side}_ids"), getattr(score.scores, side)
            oracle, ref = (sum(reference.response_logps(model, score.pair.prompt_ids, ids)) for model in models)
            count = len(scores) if per_token else 1
            assert row[f"{side}_reward"] == pytest.approx((oracle - ref) / count, abs=1e-4)
            assert row[f"{side}_reward"] == pytest.approx(float(scores.sum()) / count, abs=1e-5)
        values = {each["sample"]: each["reward"] for each in row["rewards"]}
        asked = TEXTS[int(row["question_id"][1])]
        assert [*values] == [*range(len(asked))]
        best, worst = max(values, key=values.get), min(values, key=values.get)
        assert (row["chosen_sample"], row["rejected_sample"]) == (best, worst)
        assert texts_of(row) == (asked[best], asked[worst])
        assert row["prompt"] == [{"role": "user", "content": f"what is the fox? {row['question_id'][1]}"}]


def validation(world, tmp_path):
    return ValidateConfig(model=str(world / "oracle/oracle"), dataset=str(tmp_path / "pairs.jsonl"), strict=True)


def test_options_of_the_oracle(make, answers, world):
    """Apart it is the same oracle; an answer beyond the limit has no reward."""
    together, _, _ = make(answers, oracle=str(world / "oracle"))
    models = {f"{name}_model": str(world / "oracle" / name) for name in ("oracle", "reference")}
    apart, _, _ = make(answers, output="apart.jsonl", **models)
    assert apart == together
    ears = Listens()
    with pytest.raises(SepoError, match=r"no pair is left: 3 prompts = 0 pairs \+ 3 without \(3 fewer than two"):
        make(answers, ears, output="none.jsonl", oracle=str(world / "oracle"), max_length=8)
    assert "(7 longer than 8 tokens)" in ears.said[-1]


def test_what_is_of_no_use_is_left_out_and_counted(make, tmp_path):
    given = [
        answer(0, 0, "good"), answer(0, 1, "cut", ended=False), answer(0, 2, "bad"), answer(0, 3, "good"),
        answer(0, 4, " \n"), answer(0, 5, "", problem="no room"), answer(0, 5, "later", turn=1),
        answer(1, 0, "alone"), answer(1, 1, "cut", ended=False),
    ]  # fmt: skip
    folder = answer_folder(tmp_path / "answers", given)
    rows = [
        {"question_id": f"q{each.question}", "sample": each.sample, "reward": len(each.text)}
        for each in given if not each.turn
    ]  # fmt: skip
    rewards = str(write_lines(tmp_path / "rewards.jsonl", rows))
    pairs, found, summary = make(folder, rewards=rewards)
    assert [texts_of(row) for row in pairs] == [("good", "bad")]
    assert found["counts"] == {
        "prompts": 2, "kept": 1, "dropped": {"fewer than two usable answers": 1}, "answers": 9,
        "rewards": 8, "rewards_left_out": {},
        "answers_left_out": {
            "an earlier sample has the same text": 1, "cut before its end": 2, "empty": 1,
            "no answer was generated": 1, "of a later turn": 1,
        },
    }  # fmt: skip
    assert ("left out: cut before its end", "2 answers") in summary.rows
    assert ("left out: empty", "1 answer") in summary.rows
    assert ("no pair: fewer than two usable answers", "1 prompt") in summary.rows
    assert found["results"]["chosen_reward"] == 4
    assert found["results"]["rejected_characters"] == 3
    pairs, found, _ = make(folder, rewards=rewards, keep_cut=True, overwrite=True)
    assert [texts_of(row) for row in pairs] == [("good", "cut"), ("alone", "cut")]


def test_given_rewards(make, answers, rewards):
    pairs, found, _ = make(answers, rewards=rewards)
    assert [texts_of(row) for row in pairs] == [("the lazy fox jumps", "the quick fox")]
    assert (pairs[0]["chosen_reward"], pairs[0]["rejected_reward"]) == (3, 0)
    assert found["counts"]["dropped"] == {"all rewards are equal": 1, "fewer than two usable answers": 1}
    assert found["counts"]["answers_left_out"] == {"without a reward": 1}
    [row], _, _ = make(answers, rewards=rewards, column="other", overwrite=True)
    assert texts_of(row) == ("the quick fox", "the lazy fox jumps")
    make(answers, rewards=rewards, min_gap=3.0, overwrite=True)
    with pytest.raises(SepoError, match="1 gap below min_gap"):
        make(answers, rewards=rewards, min_gap=3.5, overwrite=True)


def test_rewards_of_no_answer_are_counted(make, answers, rewards, tmp_path):
    rows = [json.loads(line) for line in Path(rewards).read_text().splitlines()]
    strays = [("q0", 3), ("q1", 7), ("q7", 0)]
    rows += [{"question_id": name, "sample": n, "reward": 9.0, "other": 0} for name, n in strays]
    write_lines(tmp_path / "rewards.jsonl", rows)
    ears = Quiet()
    pairs, found, summary = make(answers, ears, rewards=rewards)
    assert [texts_of(row) for row in pairs] == [("the lazy fox jumps", "the quick fox")]
    assert found["counts"]["rewards"] == 9
    assert found["counts"]["rewards_left_out"] == {
        "of a question that was not asked": 1, "of a sample that is not there": 2,
    }  # fmt: skip
    assert ("left out: of a question that was not asked", "1 reward") in summary.rows
    assert ears.warnings == [
        f"{rewards}: 2 of 9 rewards are of a sample that is not there",
        f"{rewards}: 1 of 9 rewards are of a question that was not asked",
    ]
    write_lines(tmp_path / "rewards.jsonl", rows[-3:])
    with pytest.raises(SepoError, match=f"^{rewards} rewards no answer of {answers}: 2 of 3 rewards are of a sample"):
        make(answers, rewards=rewards, output="none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize(
    ("rewards", "min_gap", "expected"),
    [
        ((0.2, 0.3), 0.1, 0.3),
        ((100.2, 100.3), 0.1, 100.3),
        ((0.2, 0.299999), 0.1, "gap below min_gap"),
        ((0.3, 0.1 + 0.2), 0.0, "all rewards are equal"),
        ((0.3, 0.30001), 0.0, 0.30001),
        ((0.0, 1e-12), 0.0, 1e-12),
    ],
)
def test_a_gap_is_as_wide_as_it_is_written(rewards, min_gap, expected):
    """The rounding of binary fractions makes 0.3 - 0.2 less than 0.1, and 0.1 + 0.2 more than 0.3."""
    known = [(answer(0, n, "abc"[n]), reward) for n, reward in enumerate(rewards)]
    found = best_and_worst(known, min_gap)
    assert (found if isinstance(found, str) else found.chosen_reward) == expected


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question_id": "q0", "sample": 0}, 'no column "reward"'),
        ({"question_id": "q0", "sample": 0, "reward": "much"}, '"sample" or "reward" is no number'),
        ({"question_id": "q0", "sample": 0, "reward": 1e999}, '"reward" is inf'),
        ({"question_id": "q0", "sample": 0.7, "reward": 1}, '"sample" is 0.7, no whole number'),
        ({"question_id": "q0", "sample": "1", "reward": 1}, "a second reward of question q0, sample 1"),
    ],
)
def test_rewards_that_cannot_be_used(make, answers, tmp_path, row, said):
    first = {"question_id": "q0", "sample": 1, "reward": 0}
    write_lines(tmp_path / "rewards.jsonl", [first, row])
    with pytest.raises(SepoError) as error:
        make(answers, rewards=str(tmp_path / "rewards.jsonl"))
    assert error.value.message.startswith(f"{tmp_path}/rewards.jsonl:2: {said}")
    assert not (tmp_path / "pairs.jsonl").exists()


def test_a_verifier_of_ones_own(make, answers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = (
        "def shortest(row, answer):\n    assert row['wanted'] == len(answer)\n    return -len(answer)\n"
        "def silent(row, answer):\n    return None\n"
        "def broken(row, answer):\n    return {'Paris': float('nan')}.get(answer, 1.0)\n"
        "def failing(row, answer):\n    return row['reference']\n"
        "def leaving(row, answer):\n    raise SystemExit(0)\n"
    )
    (tmp_path / "my_checks.py").write_text(code)
    (tmp_path / "my_program.py").write_text("import sys\nsys.exit()\n")
    pairs, _, _ = make(answers, verifier="my_checks:shortest")
    assert texts_of(pairs[0]) == ("the quick fox", "the lazy fox jumps")
    assert [row["chosen_reward"] for row in pairs] == [-13, -5, -5]
    before = (tmp_path / "pairs.jsonl").read_bytes()
    for name, said in {
        "my_checks:silent": r"no pair is left: .*7 without a reward",
        "my_checks:broken": r"--verifier my_checks:broken gives nan at question q1, sample 0",
        "my_checks:failing": r"--verifier my_checks:failing fails at question q0, sample 0: KeyError 'reference'",
        "my_checks:leaving": "fails at question q0, sample 0: it ends the program, with 0",
        "my_program:any": "my_program cannot be imported: it ends the program, with None",
        "my_checks:longest": "my_checks has no function longest",
        "no_checks:any": "no_checks cannot be imported",
        "ifevel": "there is no verifier ifevel",
    }.items():
        with pytest.raises(SepoError, match=said):
            make(answers, verifier=name, overwrite=True)
    assert (tmp_path / "pairs.jsonl").read_bytes() == before
    (tmp_path / "my_checks.py").write_text(code + "# otherwise\n")
    with pytest.raises(SepoError, match="holds other pairs: the verifier differs"):
        make(answers, verifier="my_checks:shortest")


def test_the_same_again_is_nothing_to_do_and_others_are_refused(make, answers, rewards, tmp_path):
    pairs, output = make(answers, rewards=rewards)[0], tmp_path / "pairs.jsonl"
    assert make(answers, rewards=rewards)[2].fresh is False
    with pytest.raises(SepoError, match=r"holds other pairs: min_gap is 0.0 there and 1.0 here"):
        make(answers, rewards=rewards, min_gap=1.0)
    # Killed between the record and the pairs.
    output.unlink()
    assert make(answers, rewards=rewards)[0] == pairs
    output.write_text(output.read_text() + "{}\n")
    with pytest.raises(SepoError, match="is not as it was written"):
        make(answers, rewards=rewards)
    assert make(answers, rewards=rewards, overwrite=True)[0] == pairs
    write_lines(tmp_path / "mine.jsonl", [{}])
    for name, said in {"mine.jsonl": "was not made by `sepo pair`", "rewards.jsonl": "a part of the rewards"}.items():
        with pytest.raises(SepoError, match=said):
            make(answers, rewards=rewards, output=name, overwrite=True)
    with pytest.raises(SepoError, match="a part of the answers"):
        make(answers, rewards=rewards, output="answers/pairs.jsonl")
    assert not [*tmp_path.glob(".*.tmp")]


def test_what_the_template_was_given_goes_with_the_pairs(make, answers, rewards):
    assert "chat_template_kwargs" not in make(answers, rewards=rewards)[0][0]
    manifest = json.loads((answers / "manifest.json").read_text())
    manifest["settings"]["chat_template_kwargs"] = '{"enable_thinking": false}'
    (answers / "manifest.json").write_text(json.dumps(manifest))
    [row], _, _ = make(answers, rewards=rewards, overwrite=True, min_gap=1.0)
    assert row["chat_template_kwargs"] == {"enable_thinking": False}


def test_one_of_several_models(make, rewards, tmp_path):
    folder = answer_folder(tmp_path / "several", plain(), models=("a", "b"))
    with pytest.raises(SepoError, match="has answers of a, b"):
        make(folder, rewards=rewards)
    with pytest.raises(SepoError, match="has no answers of c"):
        make(folder, rewards=rewards, model="c")
    assert make(folder, rewards=rewards, model="b")[1]["settings"]["model"] == "b"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"oracle": "o", "verifier": "ifeval"}, "oracle and verifier each rank the answers"),
        ({"oracle": "o", "oracle_model": "m"}, "oracle names both models"),
        ({"oracle_model": "m"}, "oracle_model and reference_model go together"),
        ({"verifier": "ifeval", "per_token": True}, "per_token changes nothing without an oracle"),
        ({"oracle": "o", "column": "grade"}, "column is of the file that rewards names"),
        ({"oracle": "o", "output": "pairs.json"}, "output must be a file whose name ends in .jsonl"),
        ({"verifier": "os.path"}, "verifier must be a verifier's name, or like my_module:my_function"),
    ],
)
def test_options_that_do_not_go_together(options, said):
    with pytest.raises(SepoError, match=said):
        PairConfig(**{"answers": "g", "output": "p.jsonl", **options})
