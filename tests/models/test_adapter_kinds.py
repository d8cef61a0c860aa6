"""Adapters of every kind that the installed peft offers: scored as what they are, or refused in words."""

import copy
import dataclasses

import numpy as np
import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from stages.configs import ScoreConfig
from stages.errors import SepoError
from stages.logprobs.trial import trial_logps
from stages.models.folders import load_model
from stages.models.scorer import Models, Scorer
from stages.reporting import Quiet
from tests import reference
from tests.conftest import random_pairs, tiny_llama

VOCABULARY = 60
LAYERS = 1
[PAIR] = random_pairs(1, VOCABULARY, seed=1)
COMMON = {
    "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "o_proj", "down_proj"], "feedforward_modules": ["down_proj"],
    "r": 4, "init_weights": False, "total_step": 10, "num_virtual_tokens": 4, "token_dim": 32, "num_layers": LAYERS,
    "num_attention_heads": 4, "token_indices": [1, 5, 7], "adapter_layers": 1, "adapter_len": 2, "block_size": 8,
    "n_frequency": 64, "vector_length": 8, "group_size": 8, "save_projection": True,
}  # fmt: skip
OF_A_KIND = {"OFT": {"r": 0, "oft_block_size": 8}, "ADAPTION_PROMPT": {"target_modules": "self_attn"}}
NOT_TRIED = {
    "ADAMSS": "needs scikit-learn",
    "XLORA": "mixes other adapters, each in a folder of its own",
    "POLY": "needs to be told the task of every row",
}
REFUSED = {
    "ADAPTION_PROMPT", "CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "PROMPT_TUNING",
    "LILY", "SHADOW", "TINYLORA", "LORA, PiSSA, about", "LORA, waiting for a token",
}  # fmt: skip
"""they read what no base alone reads, say nothing finite, or are another model each time"""
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
    "waiting for a token": {"alora_invocation_tokens": [int(PAIR.prompt_ids[-1])]},
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


ABOUT_THE_EMBEDDING = {
    name for name, options in VARIANTS.items() if {"head", "embedding", "tokens"} & set(name.split())
}
BOTH = [
    (case, tied)
    for number, case in enumerate(case for case in CASES if case not in NOT_TRIED)
    for tied in ((False, True) if case.removeprefix("LORA, ") in ABOUT_THE_EMBEDDING else (number % 2 == 0,))
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A model whose head is its embedding, and one whose head is not, by `tied`: folder and model."""
    found = {}
    for tied in (True, False):
        folder = tmp_path_factory.mktemp("base")
        model = tiny_llama(VOCABULARY, tie_word_embeddings=tied, attention_bias=True, num_hidden_layers=LAYERS)
        model.save_pretrained(folder)
        found[tied] = folder, model
    return found


@pytest.fixture(autouse=True)
def no_cards(monkeypatch):
    """Of peft, whose template takes longer than the model."""
    monkeypatch.setattr(peft.PeftModel, "create_or_update_model_card", lambda model, folder: None)


def as_trained(folder, base, case):
    torch.manual_seed(0)
    model = peft.get_peft_model(copy.deepcopy(base), CASES[case]()).eval()
    model.active_peft_config.base_model_name_or_path = str(folder)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn(weight.shape)
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("case", "tied"), BOTH, ids=lambda value: {True: "tied", False: "untied"}.get(value, value))
def test_scores_from_its_folder_are_those_of_two_models_loaded_apart(case, tied, bases, tmp_path):
    folder, plain = bases[tied]
    oracle = as_trained(folder, plain, case)
    oracle.save_pretrained(tmp_path)
    scorer = Scorer(Models((tmp_path,), folder), ScoreConfig(oracle="o"), torch.device("cpu"), None, Quiet())
    try:
        [row] = scorer.score([PAIR], Quiet())
    except SepoError:
        assert case in REFUSED
        return
    # Parts that it never writes are whatever stood in memory, which may be finite.
    assert case not in REFUSED or case == "TINYLORA"
    for side in ("chosen", "rejected"):
        ids = PAIR.prompt_ids, getattr(PAIR, f"{side}_ids")
        ours, theirs = (reference.response_logps(model, *ids) for model in (oracle, plain))
        np.testing.assert_allclose(getattr(row.reference, side), theirs, atol=1e-4)
        np.testing.assert_allclose(getattr(row.scores, side), reference.scores(ours, theirs), atol=2e-4)
        assert np.abs(reference.scores(ours, theirs)).max() > 1e-3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ["LORA", "LORA, PiSSA", "LORA, a head", "LORA, tokens of its own"])
def test_a_model_of_an_adapter_is_what_was_trained_merged_or_not(case, bases, tmp_path):
    folder, plain = bases[True]
    oracle = as_trained(folder, plain, case)
    oracle.save_pretrained(tmp_path)
    found = load_model(tmp_path, trust_remote_code=False)
    torch.testing.assert_close(trial_logps(found), trial_logps(oracle), atol=1e-4, rtol=1e-4)
    if case == "LORA, a head":
        with pytest.raises(SepoError, match="cannot be merged"):
            load_model(tmp_path, trust_remote_code=False, ordinary=True)
    else:
        assert set(found.state_dict()) == set(plain.state_dict())
