"""`sepo generate`: what is asked of whom, in which order, what is written, and what is refused."""

from contextlib import contextmanager

import numpy as np
import pytest

from stages import generate
from stages.configs import GenerateConfig
from stages.generation.engine import Generated
from stages.reporting import Quiet
from stages.store.answers import open_answers
from tests.conftest import REAL, write_lines
from tests.world import manifest


class Parrot:
    """Says what it was asked, and how; the last request first."""

    def __init__(self):
        self.asked = []

    def answers(self, requests):
        self.asked.append(list(requests))
        for index, request in reversed([*enumerate(requests)]):
            text = " | ".join(turn["content"] for turn in request.messages)
            how = (request.temperature, request.top_p, request.max_new_tokens, request.seed)
            ids = np.array([request.seed % 97, 3], np.int32)
            yield index, Generated(f"{text} {how}", True, ids[:1], ids, np.array([-0.1, -1 / 3], np.float32))


@pytest.fixture
def parrot(monkeypatch):
    engine = Parrot()

    @contextmanager
    def open_engine(*_):
        yield engine

    monkeypatch.setattr(generate, "open_engine", open_engine)
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
@pytest.mark.parametrize("benchmark", ASKED)
def test_a_benchmark_is_asked_and_its_official_files_are_listed(benchmark, tmp_path, chat_folder, parrot):
    ears = Quiet()
    run(REAL / "prompts", chat_folder, f"{ASKED[benchmark]}[:3]", tmp_path / "out", ears, benchmark=benchmark)
    found = manifest(tmp_path / "out")
    assert found["benchmark"] == benchmark
    assert found["counts"]["questions"] == 3
    official = [name for name in found["files"] if not name.startswith("m/")]
    assert [name for name in official if "/m.json" in name]
    assert all((tmp_path / "out" / name).is_file() for name in official)
