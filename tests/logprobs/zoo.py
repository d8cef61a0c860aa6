"""Tiny random models of many families, from their configurations."""

import torch
import transformers as t
from transformers import AutoModelForCausalLM

VOCABULARY = 61

_SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "initializer_range": 0.2, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip


def _sized(config_class, **options):
    return lambda: config_class(**{**_SIZES, **options})


def _gpt2():
    return t.GPT2Config(
        vocab_size=VOCABULARY, n_positions=256, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip


def _mamba():
    return t.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=8, initializer_range=0.2,
        pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip


def _bloom():
    return t.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2, pad_token_id=None
    )


PACKED = {
    "llama": _sized(t.LlamaConfig),
    "gpt2, absolute positions": _gpt2,
    "gpt-neox": _sized(t.GPTNeoXConfig),
    "qwen2": _sized(t.Qwen2Config),
    "qwen3": _sized(t.Qwen3Config, head_dim=8),
    "gemma2, soft caps and a window of 4": _sized(
        t.Gemma2Config, head_dim=8, sliding_window=4, attn_logit_softcapping=2.0, final_logit_softcapping=3.0
    ),
    "gemma3, a window of 4": _sized(t.Gemma3TextConfig, head_dim=8, sliding_window=4, num_hidden_layers=6),
    "mistral, a window of 3": _sized(t.MistralConfig, sliding_window=3),
    "mistral, a long window": _sized(t.MistralConfig, sliding_window=4096),
    "phi, a head with biases": _sized(t.PhiConfig),
    "olmo2": _sized(t.Olmo2Config),
    "mixtral, experts": _sized(t.MixtralConfig, num_local_experts=4),
    "granite, scaled logits": _sized(t.GraniteConfig, logits_scaling=3.0),
    "cohere, scaled logits": _sized(t.CohereConfig, logit_scale=0.5),
}
PADDED = {
    "mamba, a state space": _mamba,
    "lfm2, a convolution": _sized(t.Lfm2Config, layer_types=["conv", "full_attention"]),
    "bloom, distances as biases": _bloom,
    "gpt-oss, attention sinks": _sized(
        t.GptOssConfig, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=4
    ),
}
LEAKING = {
    "lfm2, a convolution": PADDED["lfm2, a convolution"],
    "granite, a state space": _sized(
        t.GraniteMoeHybridConfig, layer_types=["mamba", "attention"], shared_intermediate_size=48,
        num_local_experts=2, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1,
    ),
    "recurrent gemma": _sized(t.RecurrentGemmaConfig, attention_window_size=64, lru_width=32),
}  # fmt: skip
"""whose state or convolution runs on from an answer into the next, by next to nothing where weights are small"""
_FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 4.0, 6.0, 8.0]}
ALONE = {
    "phi3, longrope beyond 12 positions": _sized(
        t.Phi3Config,
        original_max_position_embeddings=12,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 100.0,
            **_FACTORS,
            "original_max_position_embeddings": 12,
        },
    ),
    "llama, dynamic beyond 12 positions": _sized(
        t.LlamaConfig,
        max_position_embeddings=12,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0},
    ),
}
FAMILIES = {**PACKED, **PADDED, **LEAKING, **ALONE}


def tiny(family, seed=0, **settings):
    torch.manual_seed(seed)
    config = FAMILIES[family]()
    config.update(settings)
    model = AutoModelForCausalLM.from_config(config).eval()
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        torch.nn.init.normal_(head.bias)
    return model
