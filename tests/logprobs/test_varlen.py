"""The kernel of sequences is FlashAttention's and needs a GPU; what it is given is tried here on plain arithmetic."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from stages.logprobs.attention import Layout, Span, _attend_packed, packed_attention
from stages.logprobs.batches import whole
from stages.logprobs.head import kl_of_reference
from stages.logprobs.logps import Forward, Reference, WeightedLogps, attention_for, make_batch
from stages.logprobs.packing import pack
from stages.logprobs.varlen import attend_by_sequences, takes_varlen
from stages.registry import OBJECTIVES
from stages.types import PairLogps, PerToken, ReferenceSums
from tests.conftest import masked, random_pairs, tiny_llama

CPU, META = torch.device("cpu"), torch.device("meta")
CONFIG = LlamaConfig(
    vocab_size=32,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
SPANS = [Span(2, 3, 2), Span(1, 1, 4), Span(3, 2)]
TOKENS = sum(map(sum, SPANS))


def plainly(query_THD, key_SHD, value_SHD, query_ends, key_ends, most_queries, most_keys, **how):
    """`varlen_attn` as its documentation has it, a query at a time."""
    before, after = how["window_size"]
    assert after == 0
    assert (most_queries, most_keys) == (query_ends.diff().max(), key_ends.diff().max())
    groups = query_THD.shape[1] // key_SHD.shape[1]
    assert how.get("enable_gqa", False) == (groups > 1)
    rows = []
    for number in range(len(query_ends) - 1):
        queries = query_THD[query_ends[number] : query_ends[number + 1]]
        keys, values = (
            each[key_ends[number] : key_ends[number + 1]].repeat_interleave(groups, dim=1)
            for each in (key_SHD, value_SHD)
        )
        for place, query_HD in enumerate(queries):
            last = len(keys) - len(queries) + place
            seen = slice(0 if before < 0 else max(0, last - before), last + 1)
            weights_HS = torch.einsum("hd,shd->hs", query_HD, keys[seen]).mul(how["scale"]).softmax(-1)
            rows.append(torch.einsum("hs,shd->hd", weights_HS, values[seen]))
    return torch.stack(rows)


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("heads", [1, 4])
def test_sequences_are_what_the_loop_over_answers_sees(heads, window):
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(1, size, TOKENS, 8, dtype=torch.float64, requires_grad=True) for size in (4, heads, heads)
    )
    layout = Layout(SPANS, CPU)
    found = attend_by_sequences(
        query[0], key[0], value[0], layout.sequences_on(query.device), scale=0.3, window=window, kernel=plainly
    )
    with packed_attention(tiny_llama(10), layout):
        expected, _ = _attend_packed(None, query, key, value, None, scaling=0.3, sliding_window=window)
    upstream = torch.randn_like(found)
    gradients = [torch.autograd.grad(each, (query, key, value), upstream) for each in (found, expected[0])]
    for ours, theirs in zip((found, *gradients[0]), (expected[0], *gradients[1]), strict=True):
        torch.testing.assert_close(ours, theirs)


class Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def with_everything(pair):
    """An example of key tokens with all that an objective may want to know of it."""
    per_token = PerToken(*(PairLogps(*(-np.ones(len(side), np.float32) for side in pair.parts[1:])) for _ in "rs"))
    return masked(pair, [-1], [0])._replace(reference=ReferenceSums(-1.0, -2.0), per_token=per_token)


def test_a_step_of_no_objective_waits_for_a_number():
    """Tensors without numbers cannot be read: where this fails, a GPU would be waited for."""
    with META:
        model, other = LlamaForCausalLM(CONFIG), LlamaForCausalLM(CONFIG)
    forward, reference = (Forward(each, packs=True, chunked=True) for each in (model, other))
    batch = make_batch([with_everything(pair) for pair in random_pairs(3, 32)], META, packs=True)
    with attention_for(forward, batch):
        logps_RW, kl_RW = WeightedLogps(forward, Reference(reference, kl_of_reference))(batch)
        for objective in OBJECTIVES.values():
            loss = objective.load()(logps_RW, batch._replace(kl_RW=kl_RW), **objective.options)
            loss.loss_B.sum().backward(retain_graph=True)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_layer_is_as_many_kernels_for_one_pair_as_for_nine():
    with META:
        model = LlamaForCausalLM(CONFIG).to(torch.bfloat16)

    def launched(pairs):
        batch = pack([whole(pair) for pair in random_pairs(pairs, 32)], META)
        with packed_attention(model, batch.layout), Count() as count:
            states = model.model(batch.ids_T[None], position_ids=batch.positions_T[None], use_cache=False)[0]
            states.sum().backward()
        return count.names

    names = launched(9)
    assert len(names) == len(launched(1))
    assert sum("_varlen_attn.default" in name for name in names) == 2


@pytest.mark.parametrize(
    ("device", "dtype", "query", "value", "taken"),
    [
        (META, torch.bfloat16, 64, 64, True),
        (META, torch.float16, 256, 256, True),
        (META, torch.float32, 64, 64, False),
        (META, torch.bfloat16, 512, 512, False),
        # OpenLLaMA's 3B, and DeepSeek's latent attention.
        (META, torch.bfloat16, 100, 100, False),
        (META, torch.bfloat16, 192, 128, False),
        (CPU, torch.bfloat16, 64, 64, False),
    ],
)
def test_the_kernel_is_for_gpus_half_precision_and_heads_that_it_knows(device, dtype, query, value, taken):
    # Under autocast rotated queries are float32, and values are not.
    queries = torch.empty(2, 3, query, device=device)
    assert takes_varlen(queries, torch.empty(2, 3, value, device=device, dtype=dtype)) is taken
