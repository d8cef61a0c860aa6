"""FlexAttention's kernel is compiled for a GPU. Tried here are its uncompiled arithmetic, which on a CPU has no gradient
and looks at no blocks, and a plain one that has and does."""

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask, flex_attention

from stages.configs import OptimizerConfig
from stages.logprobs.attention import How, Layout, Span, _attend_packed, attend_in_loop, packed_attention
from stages.logprobs.flex import compiled_flex
from stages.logprobs.flex_trial import TriedFlex
from stages.logprobs.logps import attention_for, make_batch, weighted_logps
from stages.logprobs.paths import find_paths
from stages.reporting import Quiet
from stages.training.training_mode import training_mode
from tests.conftest import Listens, masked, random_pairs, tiny_llama
from tests.logprobs.zoo import VOCABULARY, tiny

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

CPU, META = torch.device("cpu"), torch.device("meta")
ROWS = {
    "short": [Span(2, 3, 2), Span(1, 1, 4), Span(3, 2)],
    "of several blocks": [Span(150, 300, 20), Span(3, 1, 140), Span(60, 90)],
    "without rejected answers": [Span(70, 90), Span(1, 40), Span(2, 200)],
    "as long as two blocks": [Span(200, 20, 16), Span(12, 8)],
}
HOWS = [How(None, None, None), How(0.3, 1, None), How(0.3, 3, 1.5), How(0.3, 70, None), How(0.2, 200, 2.0)]


def plainly(query, key, value, *, score_mod, block_mask, scale, enable_gqa):
    """FlexAttention as its documentation has it, a block of queries at a time; what no block is listed for is not seen."""
    assert enable_gqa
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    mask = create_mask(block_mask.mask_mod, 1, 1, query.shape[2], key.shape[2], query.device)[0, 0]
    seen = torch.zeros_like(mask)
    for number, columns, partial in (
        (block_mask.kv_num_blocks, block_mask.kv_indices, True),
        (block_mask.full_kv_num_blocks, block_mask.full_kv_indices, False),
    ):
        for row, count in enumerate(number[0, 0].tolist()):
            for column in columns[0, 0, row, :count].tolist():
                here = (slice(128 * row, 128 * row + 128), slice(128 * column, 128 * column + 128))
                assert not seen[here].any(), "a block is read once"
                seen[here] = mask[here] if partial else True
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if score_mod is None else score_mod(scores, *4 * [None])
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value


def on_cpu(kernel, said=None):
    return TriedFlex("Tiny", said or Quiet(), kernel, device_type="cpu")


def uncompiled(*given, **named):
    assert all(each.is_contiguous() for each in given), "other strides are another kernel to compile"
    return flex_attention(*given, **named)


HEARD = Listens()
UNCOMPILED, PLAIN = (on_cpu(kernel, HEARD) for kernel in (uncompiled, plainly))
"""each tries a kind of call once"""


def drawn(tokens, heads=(4, 2), sizes=(8, 8), *, learns=False, device=CPU, dtype=torch.float32):
    torch.manual_seed(0)
    shapes = [(heads[0], sizes[0]), (heads[1], sizes[0]), (heads[1], sizes[1])]
    # In memory as models give them.
    given = [3 * torch.randn(1, tokens, count, size, device=device, dtype=dtype) for count, size in shapes]
    return [each.transpose(1, 2).detach().requires_grad_(learns) for each in given]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("row", ROWS)
def test_blocks_are_what_the_loop_over_answers_sees(row, how):
    layout = Layout(ROWS[row], CPU)
    given = drawn(sum(map(sum, ROWS[row])))
    found = UNCOMPILED(*given, layout, how)
    assert HEARD.said == []
    torch.testing.assert_close(found, attend_in_loop(*given, layout, how))


@pytest.mark.parametrize("how", HOWS)
def test_their_gradient_is_that_of_the_loop(how):
    layout = Layout(ROWS["of several blocks"], CPU)
    given = drawn(764, learns=True)
    found = PLAIN(*given, layout, how)
    assert HEARD.said == []
    expected = attend_in_loop(*given, layout, how)
    upstream = torch.randn_like(found)
    gradients = [torch.autograd.grad(each, given, upstream) for each in (found, expected)]
    for ours, theirs in zip((found, *gradients[0]), (expected, *gradients[1]), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("heads", "sizes"), [((4, 4), (8, 8)), ((6, 2), (24, 16)), ((4, 1), (20, 20))])
def test_heads_that_flash_attention_does_not_take(heads, sizes):
    layout, how, given = Layout(ROWS["short"], CPU), HOWS[0], drawn(18, heads, sizes)
    torch.testing.assert_close(UNCOMPILED(*given, layout, how), attend_in_loop(*given, layout, how))


@pytest.mark.parametrize("row", [*ROWS])
@pytest.mark.parametrize("window", [None, 3, 200])
def test_blocks_are_those_that_torch_finds_in_a_mask_of_queries_by_keys(row, window):
    layout = Layout(ROWS[row], CPU)
    mask = layout.block_mask_on(CPU, window)
    expected = create_block_mask(mask.mask_mod, None, None, *mask.shape[-2:], device="cpu")
    blocks = slice(expected.kv_num_blocks.shape[-1]), slice(expected.q_num_blocks.shape[-1])

    def dense(mask):
        """Which blocks are read in part, and which in full."""
        listed = (mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices)
        return [
            [set(indices[0, 0, row, :count].tolist()) for row, count in enumerate(counts[0, 0, blocks[0]].tolist())]
            for counts, indices in listed
        ]

    (partial, full), (partial_there, full_there) = dense(mask), dense(expected)
    assert full == full_there
    if window is None:
        assert partial == partial_there
    else:
        assert all(ours >= theirs for ours, theirs in zip(partial, partial_there, strict=True))


def test_a_layer_is_one_call_whatever_the_number_of_pairs():
    model, calls = tiny_llama(VOCABULARY), []

    def counted(*given, **named):
        calls.append(given[0].shape)
        return flex_attention(*given, **named)

    forward = find_paths(model, Quiet())._replace(fused=on_cpu(counted))
    counts = []
    for pairs in (1, 9, 40):
        batch = make_batch([masked(pair, [-1], [0]) for pair in random_pairs(pairs, VOCABULARY)], CPU, packs=True)
        with torch.no_grad(), attention_for(forward, batch):
            weighted_logps(forward, batch)
        counts.append(len(calls))
        calls.clear()
    layers = model.config.num_hidden_layers
    assert counts == [layers + 1, layers, layers], "and one trial"


@pytest.mark.parametrize("family", ["gemma2, soft caps and a window of 4", "llama"])
def test_it_is_tried_within_a_layer_that_is_computed_again(family):
    """What the trial keeps for its own backward pass is none of what a checkpoint counts."""
    pairs = [masked(pair, [-1], [0, -1]) for pair in random_pairs(5, VOCABULARY)]
    model, heard = tiny(family), Listens()
    plain = find_paths(model, Quiet())

    config = OptimizerConfig(gradient_checkpointing=True)

    def gradients(forward):
        model.zero_grad()
        batch = make_batch(pairs, CPU, packs=True)
        with training_mode(model, config), attention_for(forward, batch):
            weighted_logps(forward, batch).sum().backward()
        return {name: weight.grad for name, weight in model.named_parameters()}

    expected, found = gradients(plain), gradients(plain._replace(fused=on_cpu(plainly, heard)))
    assert heard.said == []
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-3)


def forgets_the_cap(*given, score_mod, **named):
    return flex_attention(*given, **named)


def not_finite(*given, **named):
    return flex_attention(*given, **named) * torch.nan


def halves_gradients(*given, **named):
    found = plainly(*given, **named)
    return found.detach() / 2 + found / 2


def skips_whole_blocks(*given, block_mask, **named):
    """Of which a row has none that is shorter than two."""
    listed = block_mask.kv_num_blocks, block_mask.kv_indices, torch.zeros_like(block_mask.full_kv_num_blocks)
    sizes = {"BLOCK_SIZE": 128, "mask_mod": block_mask.mask_mod, "seq_lengths": block_mask.shape[-2:]}
    return plainly(*given, block_mask=BlockMask.from_kv_blocks(*listed, block_mask.full_kv_indices, **sizes), **named)


def has_no_compiler(*given, **named):
    with torch.compiler.set_stance("force_eager"):
        return compiled_flex()(*given, **named)


@pytest.mark.parametrize(
    ("kernel", "dtype", "learns", "said"),
    [
        (forgets_the_cap, torch.float32, False, "in a trial its output is off by"),
        (forgets_the_cap, torch.bfloat16, False, "in a trial its output is off by"),
        (not_finite, torch.float32, False, "in a trial its output is off by nan"),
        (skips_whole_blocks, torch.float32, False, "in a trial its output is off by"),
        (halves_gradients, torch.float32, True, "in a trial its gradient of the queries is off by"),
        # torch's own has none on a CPU.
        (flex_attention, torch.float32, True, "does not support backward on CPU"),
        (has_no_compiler, torch.float32, False, "torch.compile is switched off"),
    ],
)
def test_where_it_is_wrong_or_fails_the_loop_attends_and_one_word_is_said(kernel, dtype, learns, said):
    layout, heard, how = Layout(ROWS["short"], CPU), Listens(), How(0.3, None, 50.0)
    given = drawn(18, learns=learns, dtype=dtype)
    with packed_attention(tiny_llama(10), layout, on_cpu(kernel, heard)):
        for _ in range(2):
            found, _ = _attend_packed(None, *given, None, scaling=0.3, softcap=50.0)
    assert torch.equal(found, attend_in_loop(*given, layout, how))
    [line] = heard.said
    assert line.startswith("Tiny: no FlexAttention")
    assert said in line


def test_too_little_memory_is_no_reason_for_a_slower_kernel():
    def full(*_, **__):
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        on_cpu(full)(*drawn(18), Layout(ROWS["short"], CPU), HOWS[0])


@pytest.mark.parametrize(
    ("dtype", "size", "softcap", "asked"),
    [
        (torch.bfloat16, 64, None, False),
        (torch.float16, 64, 50.0, True),
        (torch.bfloat16, 100, None, True),
        (torch.float32, 64, None, True),
    ],
)
def test_it_is_asked_where_flash_attention_cannot_serve(dtype, size, softcap, asked):
    asking = []
    with packed_attention(tiny_llama(10), Layout(ROWS["short"], META), lambda *given: asking.append(given)):
        _attend_packed(None, *drawn(18, (4, 2), (size, size), device=META, dtype=dtype), None, softcap=softcap)
    assert bool(asking) is asked


def test_cpus_are_left_to_the_loop():
    assert find_paths(tiny_llama(VOCABULARY), Quiet()).fused is None
    assert TriedFlex("Tiny", Quiet(), flex_attention)(*drawn(18), Layout(ROWS["short"], CPU), HOWS[0]) is None


def test_under_autocast_it_is_computed_in_the_precision_of_the_values():
    layout, heard, dtypes = Layout(ROWS["short"], CPU), Listens(), set()

    def noted(*given, **named):
        dtypes.add(tuple(each.dtype for each in given))
        return flex_attention(*given, **named)

    query, key, value = drawn(18)
    with packed_attention(tiny_llama(10), layout, on_cpu(noted, heard)), torch.autocast("cpu", torch.bfloat16):
        found, _ = _attend_packed(None, query, key, value.bfloat16(), None, scaling=0.3, softcap=2.0)
    assert heard.said == []
    assert dtypes == {3 * (torch.bfloat16,)}
    torch.testing.assert_close(
        found.float(), attend_in_loop(query, key, value, layout, How(0.3, None, 2.0)), atol=0.05, rtol=0.05
    )
