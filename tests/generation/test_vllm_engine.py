"""What vLLM is told, and what is made of what it says. It needs a GPU: here stands something with its signatures."""

import importlib
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from stages import generate
from stages.configs import GenerateConfig
from stages.errors import SepoError
from stages.generation.engine import Request
from stages.models.habits import Habits
from stages.reporting import Quiet
from stages.tokens.encode import Encoder
from tests.conftest import write_lines


class LLM:
    """Of vLLM 0.33."""

    def __init__(self, model, *, trust_remote_code=False, generation_config="auto", max_model_len=None):
        self.given = (model, trust_remote_code, generation_config, max_model_len)
        self.model_config = SimpleNamespace(max_model_len=40)

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True):
        """Answers with some ids of the prompt, and the end of turn if there is room."""
        assert not use_tqdm
        self.prompts, self.params = prompts, sampling_params
        for prompt, how in zip(prompts, sampling_params, strict=True):
            ids = (prompt["prompt_token_ids"][4:8] + how["stop_token_ids"])[: how["max_tokens"]]
            reason = "stop" if ids[-1] in how["stop_token_ids"] else "length"
            logprobs = [{id_: SimpleNamespace(logprob=-id_ / 1000)} for id_ in ids]
            yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, logprobs=logprobs, finish_reason=reason)])


@pytest.fixture
def vllm_engine(monkeypatch):
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams, module.TokensPrompt = LLM, dict, dict
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.delitem(sys.modules, "stages.generation.vllm_engine", raising=False)
    yield importlib.import_module("stages.generation.vllm_engine")
    sys.modules.pop("stages.generation.vllm_engine")


def test_asked_in_the_ids_of_training_and_read_as_they_are(vllm_engine, chatml, tmp_path):
    encoder = Encoder(chatml)
    habits = Habits(temperature=0.1, top_k=20, repetition_penalty=1.05)
    engine = vllm_engine.VllmEngine(tmp_path, encoder, trust_remote_code=True, habits=habits)
    assert engine._llm.given == (str(tmp_path), True, "vllm", -1)
    texts = ["the quick brown fox", "what is the capital " * 30, "<|im_end|>", "the lazy dog"]
    requests = [
        Request([{"role": "user", "content": text}], 0.7, 0.9, 3 + index, index) for index, text in enumerate(texts)
    ]
    answers = dict(engine.answers(requests))
    ids = {index: encoder.prompt_ids(requests[index].messages) for index in (0, 3)}
    assert [prompt["prompt_token_ids"] for prompt in engine._llm.prompts] == [ids[0].tolist(), ids[3].tolist()]
    end = chatml.eos_token_id
    expected = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 6, "seed": 3, "stop_token_ids": [end], "logprobs": 0}
    expected |= {"top_k": 20, "repetition_penalty": 1.05}
    assert expected.items() <= engine._llm.params[1].items()
    assert [answers[index].problem for index in (1, 2)] == [
        "prompt leaves no room for a response in 40 tokens",
        "text spells a control token",
    ]
    cut, whole = answers[0], answers[3]
    assert (cut.ended, whole.ended) == (False, True)
    assert whole.answer_ids.tolist() == [*ids[3][4:8].tolist(), end]
    assert cut.answer_ids.tolist() == ids[0][4:7].tolist()
    assert np.allclose(whole.logps, -whole.answer_ids / 1000)
    assert whole.text == chatml.decode(ids[3][4:8], skip_special_tokens=True)
    assert cut.text == chatml.decode(ids[0][4:7])
    assert (whole.prompt_ids == ids[3]).all()


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is here")
def test_without_vllm(tmp_path, chat_folder):
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": "q"}])
    config = GenerateConfig(
        models=(str(chat_folder),),
        engine="vllm",
        prompts=str(tmp_path / "prompts.jsonl"),
        output_dir=str(tmp_path / "o"),
    )
    with pytest.raises(SepoError, match="--engine vllm needs vllm, which is not installed") as error:
        generate.run(config, Quiet())
    assert error.value.hint == "pip install 'sepo[vllm]'"
