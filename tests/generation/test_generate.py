"""`sepo generate`: what is asked of whom, in which order, what is written, and what is refused."""

import itertools
from contextlib import nullcontext, suppress

import numpy as np
import pytest

from stages import generate
from stages.configs import GenerateConfig
from stages.errors import SepoError
from stages.generation import tally
from stages.generation.engine import Generated
from stages.reporting import Quiet
from stages.store.answers import open_answers
from tests.conftest import REAL, Listens, write_lines
from tests.models.test_loading import leave_room
from tests.world import manifest


class Interrupted(BaseException):
    """As a signal would end a run."""


class Parrot:
    """Says what it was asked, how and in which company: two at a time, the longest first."""

    def __init__(self):
        self.asked, self.said, self.dies_after = [], 0, None

    def together(self, requests):
        order = sorted(range(len(requests)), key=lambda index: (-len(str(requests[index].messages)), index))
        return [order[start : start + 2] for start in range(0, len(order), 2)]

    def answers(self, requests):
        self.asked.append(list(requests))
        for group in self.together(requests):
            seeds = [requests[index].seed for index in group]
            for index in reversed(group):
                if self.said == self.dies_after:
                    raise Interrupted
                self.said += 1
                yield index, self.answer(requests[index], seeds)

    def answer(self, request, seeds):
        text = " | ".join(turn["content"] for turn in request.messages)
        ids = np.array([request.seed % 97, 3], np.int32)
        return Generated(f"{text} {request[1:]} of {seeds}", True, ids[:1], ids, np.array([-0.1, -1 / 3], np.float32))


@pytest.fixture
def parrot(monkeypatch):
    engine = Parrot()

    monkeypatch.setattr(generate, "open_engine", lambda *_: nullcontext(engine))
    return engine


def run(root, model, prompts="prompts.jsonl", output="answers", reporter=None, **options):
    models = options.pop("models", (f"m={model}",))
    prompts = None if prompts is None else str(root / prompts)
    config = GenerateConfig(models=models, prompts=prompts, output_dir=str(root / output), **options)
    return generate.run(config, reporter or Quiet())


def test_every_answer_is_there_in_order_with_its_conversation(tmp_path, chat_folder, parrot):
    write_lines(
        tmp_path / "prompts.jsonl", [{"turns": [f"q{n}", "and?"][: 1 + n % 2], "uid": f"u{n}"} for n in range(5)]
    )
    run(tmp_path, chat_folder, samples=2, shard_size=2)
    answers = [*open_answers(tmp_path / "answers").answers("m")]
    keys = [(answer.question, answer.sample, answer.turn) for answer in answers]
    assert keys == sorted(keys)
    assert len(keys) == 2 * (3 + 2 * 2)
    second = next(answer for answer in answers if answer[:4] == (3, "u3", 1, 1))
    first = next(answer for answer in answers if answer[:4] == (3, "u3", 1, 0))
    assert first.text.startswith("q3 (1.0, 1.0, 1024, ")
    assert second.messages == [
        *first.messages,
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "and?"},
    ]
    assert second.row == {"turns": ["q3", "and?"], "uid": "u3"}
    assert np.allclose(second.logps, [-0.1, -1 / 3])
    assert len({answer.text for answer in answers}) == len(answers)


def contents(folder):
    """The bytes of all that must not depend on how a run went."""
    varies = ("manifest.json", "timing.jsonl")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in varies]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def tear(folder):
    """Half a line at the end of each journal, as a kill leaves it."""
    for journal in folder.glob("*/*.partial.jsonl"):
        journal.write_bytes(journal.read_bytes() + b'{"key":[0,0,')


def test_a_run_that_is_stopped_anywhere_goes_on_to_the_same_bytes(tmp_path, chat_folder, parrot):
    """Stopped again and again after three answers more: first of a batch, last of one, between turns and shards."""
    write_lines(tmp_path / "prompts.jsonl", [{"turns": ["q" * n, "and?", "so?"][: 1 + n % 3]} for n in range(1, 6)])
    options = {"samples": 2, "shard_size": 3}
    run(tmp_path, chat_folder, output="whole", **options)
    said, whole = parrot.said, contents(tmp_path / "whole")
    assert said == 2 * (2 + 3 + 1 + 2 + 3)
    for first in (1, 3):
        parrot.said, parrot.dies_after, folder = 0, first, f"stopped-{first}"
        while not (tmp_path / folder / "manifest.json").exists():
            with suppress(Interrupted):
                run(tmp_path, chat_folder, output=folder, **options)
            tear(tmp_path / folder)
            parrot.dies_after = parrot.said + 3
        assert contents(tmp_path / folder) == whole
        # Of the batch that was cut off one answer is given again, of no other.
        assert parrot.said <= said + said // 2


def test_what_another_run_wrote_into_a_journal_counts_for_nothing(tmp_path, chat_folder, parrot):
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": "hello"}, {"prompt": "there"}, {"prompt": "you"}])
    for seed in (1, 2):
        # With a batch that is whole.
        parrot.said, parrot.dies_after = 0, 2
        with pytest.raises(Interrupted):
            run(tmp_path, chat_folder, output=f"run-{seed}", seed=seed)
    one, two = (tmp_path / f"run-{seed}/m/answers-00000.partial.jsonl" for seed in (1, 2))
    two.write_bytes(one.read_bytes())
    parrot.dies_after = None
    run(tmp_path, chat_folder, output="run-2", seed=2)
    run(tmp_path, chat_folder, output="whole", seed=2)
    assert contents(tmp_path / "run-2") == contents(tmp_path / "whole")


def test_workers_divide_the_shards_and_the_last_one_finishes(tmp_path, chat_folder, parrot):
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": f"q{n}"} for n in range(7)])
    models = (f"a={chat_folder}", f"b={chat_folder}")
    options = {"models": models, "shard_size": 2, "samples": 2}
    run(tmp_path, None, output="one", **options)
    asked = parrot.said
    for worker in ("2/3", "1/3", "3/3"):
        assert not (tmp_path / "three/manifest.json").exists()
        summary = run(tmp_path, None, output="three", worker=worker, **options)
    assert parrot.said == 2 * asked
    assert summary.title == f"answers in {tmp_path / 'three'}"
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    # An answer's seed is of the prompt and the sample, not of the model.
    one, other = ([answer.text for answer in open_answers(tmp_path / "one").answers(name)] for name in "ab")
    assert one == other


def test_a_finished_run_is_not_redone_and_a_damaged_shard_is(tmp_path, chat_folder, parrot):
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": f"q{n}"} for n in range(4)])
    run(tmp_path, chat_folder, shard_size=2)
    whole, said = contents(tmp_path / "answers"), parrot.said
    assert not run(tmp_path, chat_folder, shard_size=2).fresh
    assert parrot.said == said
    shard = tmp_path / "answers/m/answers-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-30] + b"x" * 30)
    ears = Quiet()
    assert run(tmp_path, chat_folder, shard_size=2, reporter=ears).fresh
    assert any("answers-00001.parquet is not what was written" in text for text in ears.warnings)
    assert parrot.said == said + 2
    assert contents(tmp_path / "answers") == whole
    with pytest.raises(SepoError, match="holds another run: seed is 42 there and 7 here"):
        run(tmp_path, chat_folder, shard_size=2, seed=7)
    run(tmp_path, chat_folder, shard_size=2, seed=7, overwrite=True)
    assert contents(tmp_path / "answers") != whole


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({}, (1.0, 1.0, 1024)),
        ({"temperature": 0.0}, (0.0, 1.0, 1024)),
        ({"top_p": 0.5}, (1.0, 0.5, 1024)),
        ({"max_new_tokens": 9}, (1.0, 1.0, 9)),
    ],
)
def test_the_engine_is_asked_as_the_options_say(options, asked, tmp_path, chat_folder, parrot):
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": "hello"}])
    run(tmp_path, chat_folder, **options)
    [[request]] = parrot.asked
    assert request[1:4] == asked
    run(tmp_path, chat_folder, output="seed", seed=7, **options)
    assert parrot.asked[1][0].seed != request.seed


class Odd(Parrot):
    """Cut, by the model's last position too, empty, no answer, and one that is fine."""

    def answer(self, request, seeds):
        ids, more = np.arange(9, dtype=np.int32), np.arange(10, dtype=np.int32)
        odd = {"cut": ("text", False, ids, more), "full": ("text", False, ids, ids), "unknown": ("text", False)}
        odd |= {"empty": (" \n", True), "none": ("", False, None, None, None, "no room")}
        found = odd.get(request.messages[0]["content"])
        return Generated(*found) if found else super().answer(request, seeds)


def test_what_is_cut_empty_or_missing_is_counted_and_told(tmp_path, chat_folder, monkeypatch):
    engine = Odd()
    monkeypatch.setattr(generate, "open_engine", lambda *_: nullcontext(engine))
    prompts = [{"turns": [word, "more"], "id": word} for word in ("cut", "full", "unknown", "empty", "none", "fine")]
    write_lines(tmp_path / "prompts.jsonl", prompts)
    ears = Quiet()
    run(tmp_path, chat_folder, reporter=ears, max_new_tokens=10)
    counts = manifest(tmp_path / "answers")["models"]["m"]["counts"]
    assert counts == {
        "answers": 12, "tokens": None, "cut": 4, "out_of_positions": 2, "empty": 2, "problem": 2,
        "problems": {"no room": 1, "the turn before has no answer": 1},
    }  # fmt: skip
    assert ears.warnings == manifest(tmp_path / "answers")["warnings"]
    assert ears.warnings[:3] == [
        "m: 4 of 12 answers are cut at --max-new-tokens (first: question cut)",
        "m: 2 of 12 answers are cut before --max-new-tokens, where the model has no more positions (first: question full)",
        "m: 2 of 12 answers are empty (first: question empty)",
    ]
    # Of the one without an answer the second turn was not asked.
    assert [len(requests) for requests in engine.asked] == [6, 5]


def test_an_engine_that_stops_loses_nothing(tmp_path, chat_folder, monkeypatch):
    class Gone(Parrot):
        def answers(self, requests):
            yield from itertools.islice(super().answers(requests), 2)
            if len(requests) > 2:
                raise SepoError("http://x does not answer")

        def together(self, requests):
            return [[index] for index in range(len(requests))]

    engine = Gone()
    monkeypatch.setattr(generate, "open_engine", lambda *_: nullcontext(engine))
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": f"q{n}"} for n in range(6)])
    for _ in range(2):
        with pytest.raises(SepoError, match="does not answer"):
            run(tmp_path, chat_folder)
    run(tmp_path, chat_folder)
    assert [len(requests) for requests in engine.asked] == [6, 4, 2]


def test_prompts_that_change_while_they_are_asked_are_not_answered(tmp_path, chat_folder, monkeypatch):
    class Writes(Parrot):
        """Somebody writes to the prompts while the first is answered."""

        def answer(self, request, seeds):
            write_lines(tmp_path / "prompts.jsonl", [{"prompt": "q" * 9999}] * 3)
            return super().answer(request, seeds)

    rows = [{"prompt": f"q{n}" * 9999} for n in range(3)]
    for engine in (Writes(), Parrot()):
        monkeypatch.setattr(generate, "open_engine", lambda *_, engine=engine: nullcontext(engine))
        write_lines(tmp_path / "prompts.jsonl", rows)
        if isinstance(engine, Writes):
            with pytest.raises(SepoError, match="was written to while it was read"):
                run(tmp_path, chat_folder, shard_size=1)
    run(tmp_path, chat_folder, shard_size=1)
    answers = [*open_answers(tmp_path / "answers").answers("m")]
    assert [answer.messages[0]["content"] for answer in answers] == [row["prompt"] for row in rows]
    assert len(engine.asked) == 2


def test_a_journal_that_cannot_be_read_is_one_line(tmp_path, chat_folder, parrot):
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": "hello"}, {"prompt": "there"}])
    parrot.dies_after = 0
    with pytest.raises(Interrupted):
        run(tmp_path, chat_folder)
    journal = tmp_path / "answers/m/answers-00000.partial.jsonl"
    journal.unlink()
    journal.mkdir()
    with pytest.raises(SepoError, match=r"cannot read .*answers-00000.partial.jsonl: "):
        run(tmp_path, chat_folder)


class Watches(Quiet):
    """Remembers live figures."""

    def __init__(self):
        super().__init__()
        self.figures = []

    def advance(self, amount=1, figures=None):
        self.figures += [(amount, figures)] if figures else []


def test_how_fast_answers_are_written_shows_before_the_first_has_ended(tmp_path, chat_folder, monkeypatch):
    monkeypatch.setattr(tally, "_SECONDS_BETWEEN_FIGURES", 0.0)
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": "hello"}, {"prompt": "there"}, {"prompt": "you"}])
    ears = Watches()
    run(tmp_path, chat_folder, reporter=ears, max_new_tokens=5)
    assert {amount for amount, _ in ears.figures} == {0}
    assert [figures["answers at once"] for _, figures in ears.figures][:1] == [3]
    assert all(figures["tokens/s"] > 0 for _, figures in ears.figures)
    answers = open_answers(tmp_path / "answers").answers("m")
    assert sum(figures["answers at once"] for _, figures in ears.figures) == sum(
        len(each.answer_ids) for each in answers
    )


def test_the_names_of_benchmarks_are_those_there_are():
    from stages.benchmarks.registry import BENCHMARKS
    from stages.configs.generation import BENCHMARKS as NAMES

    assert tuple(BENCHMARKS) == NAMES


ASKED = {
    "alpaca-eval": "alpaca_eval_gpt4_baseline.json.gz",
    "arena-hard": "arena_hard_v2_question.jsonl.gz",
    "mt-bench": "mt_bench_question.jsonl.gz",
    "ifeval": "ifeval_input_data.jsonl.gz",
}


@pytest.mark.skipif(not (REAL / "prompts").is_dir(), reason="needs the benchmarks' own prompts")
@pytest.mark.parametrize(("options", "told"), [({"samples": 2}, 1), ({}, 0), ({"samples": 2, "temperature": 0.5}, 0)])
def test_samples_that_will_be_alike_are_warned_of(options, told, tmp_path, chat_folder, parrot):
    ears, prompts = Quiet(), f"{ASKED['mt-bench']}[18:21]"
    run(REAL / "prompts", chat_folder, prompts, tmp_path / "out", ears, benchmark="mt-bench", **options)
    warned = [
        text for text in ears.warnings if text.startswith("1 of 3 prompts are asked at temperature 0, as mt-bench")
    ]
    assert len(warned) == told


@pytest.mark.skipif(not (REAL / "prompts").is_dir(), reason="needs the benchmarks' own prompts")
@pytest.mark.parametrize("benchmark", ASKED)
def test_a_benchmark_is_asked_and_its_official_files_are_listed(benchmark, tmp_path, chat_folder, parrot):
    ears = Quiet()
    both = (f"m={chat_folder}", f"n={chat_folder}")
    run(REAL / "prompts", None, f"{ASKED[benchmark]}[4:7]", tmp_path / "out", ears, benchmark=benchmark, models=both)
    assert [answer.question for answer in open_answers(tmp_path / "out").answers("m") if not answer.turn] == [4, 5, 6]
    found = manifest(tmp_path / "out")
    assert found["benchmark"] == benchmark
    assert found["counts"]["questions"] == 3
    official = [name for name in found["files"] if not name.startswith(("m/", "n/"))]
    assert all([name for name in official if f"/{model}.json" in name] for model in "mn")
    assert all((tmp_path / "out" / name).is_file() for name in official)
    # As a script it stops where a command fails.
    assert (tmp_path / "out/next-steps.sh").read_text().startswith("set -e\n#")


def folder_state(folder):
    """The bytes of all that must not depend on how a run went."""
    kept = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", "timing.jsonl")
    ]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def test_a_model_is_loaded_as_the_options_say(tmp_path, chat_folder, monkeypatch):
    """Divided it answers the same, in few bits otherwise, and each is told or recorded."""
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": f"what is the fox {n}?"} for n in range(2)])

    def said(name, **how):
        ear = Listens()
        run(tmp_path, chat_folder, output=name, reporter=ear, max_new_tokens=5, **how)
        return ear.said, [answer.text for answer in open_answers(tmp_path / name).answers("m")]

    _, expected = said("whole")
    assert said("rounded", quantize="4bit")[1] != expected
    assert manifest(tmp_path / "rounded")["settings"]["quantize"] == "4bit"
    leave_room(monkeypatch, 0.05)
    lines, texts = said("divided", device_map="auto")
    assert texts == expected
    assert any("on disk" in line for line in lines)
    with pytest.raises(SepoError, match="device_map is no option of engine openai; transformers has it"):
        run(tmp_path, chat_folder, engine="openai", base_url="http://localhost:1/v1", device_map="auto")
