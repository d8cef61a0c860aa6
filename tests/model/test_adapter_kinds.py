"""Adapters of every kind that the installed peft offers: scored as what they are, or refused in words."""

import dataclasses

import numpy as np
import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from stages.errors import SepoError
from stages.model.scorer import How, Models, Scorer
from stages.reporting import Quiet
from tests import reference
from tests.conftest import random_pairs, tiny_llama

VOCABULARY = 60
PAIRS = random_pairs(3, VOCABULARY, seed=1)
COMMON = {
    "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "o_proj", "down_proj"], "feedforward_modules": ["down_proj"],
    "r": 4, "init_weights": False, "total_step": 10, "num_virtual_tokens": 4, "token_dim": 32, "num_layers": 2,
    "num_attention_heads": 4, "token_indices": [1, 5, 7], "adapter_layers": 1, "adapter_len": 2, "block_size": 8,
    "n_frequency": 64, "vector_length": 8, "group_size": 8, "save_projection": True,
}  # fmt: skip
OF_A_KIND = {"OFT": {"r": 0, "oft_block_size": 8}}
NOT_TRIED = {
    "ADAMSS": "needs scikit-learn",
    "XLORA": "mixes other adapters, each in a folder of its own",
    "POLY": "needs to be told the task of every row",
}
HERE = {"lora_alpha": 8, "r": 4}
VARIANTS = {
    "ranks stabilised": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "biases of the adapter": {"lora_bias": True},
    "all biases": {"bias": "all"},
    "biases of its layers": {"bias": "lora_only"},
    "PiSSA": {"init_lora_weights": "pissa"},
    "PiSSA, about": {"init_lora_weights": "pissa_niter_4"},
    "OLoRA": {"init_lora_weights": "olora"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "EVA": {"init_lora_weights": "eva"},
    "a head": {"target_modules": ["lm_head"]},
    "an embedding": {"target_modules": ["embed_tokens"]},
    "an embedding, bound to the head": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    "a head of its own": {"modules_to_save": ["lm_head"]},
    "an embedding of its own": {"modules_to_save": ["embed_tokens"]},
    "tokens of its own": {"trainable_token_indices": [1, 2, 3]},
    "a norm of its own": {"modules_to_save": ["norm"]},
}


def kind(name):
    config = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(name)]
    known = {field.name for field in dataclasses.fields(config)}
    return config(**{key: value for key, value in {**COMMON, **OF_A_KIND.get(name, {})}.items() if key in known})


CASES = {name.value: lambda name=name: kind(name.value) for name in PEFT_TYPE_TO_CONFIG_MAPPING} | {
    f"LORA, {name}": lambda options=options: peft.LoraConfig(
        **{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "o_proj"], **options}
    )
    for name, options in VARIANTS.items()
}


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    model = tiny_llama(VOCABULARY, tie_word_embeddings=request.param, attention_bias=True)
    model.save_pretrained(folder)
    return folder


def as_trained(base, config):
    model = peft.get_peft_model(peft_base(base), config).eval()
    chance = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn(weight.shape, generator=chance)
    return model


def peft_base(folder):
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder).eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", [name for name in CASES if name not in NOT_TRIED])
def test_scores_from_its_folder_are_those_of_two_models_loaded_apart(case, base, tmp_path):
    oracle = as_trained(base, CASES[case]())
    oracle.save_pretrained(tmp_path)
    scorer = Scorer(Models(tmp_path, base), How("float32", 4096, torch.device("cpu"), False), None, Quiet())
    try:
        rows = scorer.score(PAIRS, Quiet())
        exact = scorer.exact(PAIRS, Quiet())
    except SepoError as refused:
        print("REFUSED", case, refused.message)
        return
    print("SCORED", case)
    plain = peft_base(base)
    for row, again in zip(rows, exact, strict=True):
        for side in ("chosen", "rejected"):
            ids = row.pair.prompt_ids, getattr(row.pair, f"{side}_ids")
            ours, theirs = (reference.response_logps(model, *ids) for model in (oracle, plain))
            for scores in (getattr(row.scores, side), getattr(again, side)):
                np.testing.assert_allclose(scores, reference.scores(ours, theirs), atol=1e-4)
            np.testing.assert_allclose(getattr(row.reference, side), theirs, atol=1e-4)
