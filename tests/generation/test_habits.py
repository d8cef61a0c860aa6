"""`sepo generate --use-generation-config`: what the model's folder asks for is done, told, and a part of the run."""

import json
import shutil
from contextlib import nullcontext

import pytest
import torch
from transformers import GenerationConfig

from stages import generate
from stages.configs import GenerateConfig
from stages.errors import SepoError
from stages.models.folders import load_model
from stages.reporting import Quiet
from stages.store.answers import open_answers
from tests.benchmarks.rows import MADE_UP
from tests.conftest import Listens, write_lines
from tests.generation.test_generate import Parrot
from tests.world import manifest


@pytest.fixture
def folder(tmp_path, chat_folder):
    return shutil.copytree(chat_folder, tmp_path / "model")


def say(folder, **said):
    (folder / "generation_config.json").write_text(json.dumps(said))


def run(folder, rows=None, reporter=None, **options):
    root = folder.parent
    write_lines(root / "prompts.jsonl", rows or [{"prompt": "what is" * n} for n in (1, 4, 2)])
    options = {"use_generation_config": True, "output_dir": str(root / "answers"), **options}
    config = GenerateConfig(models=(f"m={folder}",), prompts=str(root / "prompts.jsonl"), **options)
    return generate.run(config, reporter or Quiet())


def test_a_model_answers_as_transformers_lets_it(folder):
    """Of different lengths, in one batch."""
    asked = {"do_sample": False, "repetition_penalty": 1.3, "top_k": 9}
    say(folder, **asked, eos_token_id=5)
    ears = Listens()
    run(folder, max_new_tokens=40, reporter=ears)
    assert (
        "m is asked as its generation_config.json has it: temperature 0, top_k 9, repetition_penalty 1.3" in ears.said
    )
    habits = {"temperature": 0.0, "top_k": 9, "repetition_penalty": 1.3}
    assert manifest(folder.parent / "answers")["models"]["m"]["generation_config"] == habits
    model = load_model(folder, trust_remote_code=False)
    how = GenerationConfig(**asked, eos_token_id=5, pad_token_id=0, max_new_tokens=40)
    for answer in open_answers(folder.parent / "answers").answers("m"):
        ids = torch.from_numpy(answer.prompt_ids).long()[None]
        found = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=how)
        assert answer.answer_ids.tolist() == found[0, ids.shape[1] :].tolist()


def test_what_is_not_asked_for_is_no_part_of_the_run_and_ends_are(folder):
    say(folder, top_k=3)
    run(folder, use_generation_config=False, max_new_tokens=4)
    say(folder, top_k=2, eos_token_id=[])
    assert not run(folder, use_generation_config=False, max_new_tokens=4).fresh
    say(folder, top_k=2, eos_token_id=[5, 7])
    with pytest.raises(SepoError, match=r"holds another run: the generation config m differs$"):
        run(folder, use_generation_config=False, max_new_tokens=4)
    run(folder, max_new_tokens=4, overwrite=True)
    say(folder, top_k=2, eos_token_id=[7, 5])
    assert not run(folder, max_new_tokens=4).fresh
    say(folder, top_k=3, eos_token_id=[7, 5])
    with pytest.raises(SepoError, match=r"holds another run: the generation config m differs$"):
        run(folder, max_new_tokens=4)


@pytest.fixture
def parrot(monkeypatch):
    engine = Parrot()
    monkeypatch.setattr(generate, "open_engine", lambda *_: nullcontext(engine))
    return engine


def test_it_stands_above_the_benchmark_and_below_what_is_given(folder, parrot):
    say(folder, temperature=0.6, top_p=0.9)
    rows = MADE_UP["mt-bench"]
    for options in ({}, {"temperature": 0.3}, {"top_p": 0.5}, {"use_generation_config": False}):
        run(folder, rows, benchmark="mt-bench", overwrite=True, **options)
    how = [{request[1:3] for request in requests} for requests in parrot.asked[::2]]
    assert how == [{(0.6, 0.9)}, {(0.3, 0.9)}, {(0.6, 0.5)}, {(0.7, 1.0), (0.0, 1.0)}]


def test_what_an_option_stands_above_is_no_habit(folder, parrot):
    say(folder, temperature=0.6, top_k=4)
    ears = Listens()
    run(folder, temperature=0.3, reporter=ears)
    assert "m is asked as its generation_config.json has it: top_k 4" in ears.said
    assert manifest(folder.parent / "answers")["models"]["m"]["generation_config"] == {"top_k": 4}
    say(folder, temperature=0.7, top_k=4)
    assert not run(folder, temperature=0.3).fresh


def test_samples_that_would_be_alike_and_engines_that_cannot(folder, parrot):
    say(folder, do_sample=False)
    with pytest.raises(SepoError, match=r"2 samples at temperature 0, which generation_config\.json of m asks for"):
        run(folder, samples=2)
    say(folder, temperature=0.5)
    ears = Quiet()
    run(folder, MADE_UP["ifeval"], samples=2, benchmark="ifeval", reporter=ears)
    assert not [text for text in ears.warnings if "alike" in text]
    say(folder, eos_token_id=5)
    run(folder, reporter=ears, overwrite=True)
    assert ears.warnings[-1].startswith("m's generation_config.json asks for nothing")
    with pytest.raises(SepoError, match="use_generation_config is no option of engine openai; transformers, vllm have"):
        run(folder, engine="openai", base_url="http://x")
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(SepoError, match=r"generation_config\.json cannot be read"):
        run(folder)
