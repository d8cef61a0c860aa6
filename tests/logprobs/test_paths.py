"""Every way to read a model gives what one unpadded row at a time gives, in families that differ in all that matters."""

import functools

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from stages.devices.precision import products
from stages.logprobs.attention import Layout, Span, packed_attention
from stages.logprobs.batches import collate, whole
from stages.logprobs.flex_trial import TriedFlex
from stages.logprobs.head import Head, _HeadLogps, head_logps
from stages.logprobs.logps import Forward, attention_for, make_batch, response_logps, weighted_logps
from stages.logprobs.packing import pack, packed_groups, unique_tokens
from stages.logprobs.paths import find_paths
from stages.registry import OBJECTIVES
from stages.reporting import Quiet
from stages.types import ReferenceSums
from tests import reference
from tests.conftest import Listens, masked, random_pairs, tiny_llama, token_pair
from tests.logprobs.zoo import ALONE, LEAKING, PACKED, PADDED, VOCABULARY, tiny

sepo = OBJECTIVES["sepo"].load()

CPU = torch.device("cpu")
PAIRS = [
    *random_pairs(5, VOCABULARY, longest=9),
    token_pair(5, [7], [3], [3, 4]),
    token_pair(6, [1, 2, 3], [9] * 14, [5]),
]


def read(forward, pairs, max_tokens=64, **options):
    [found] = response_logps([forward], pairs, max_tokens=max_tokens, device=CPU, task=Quiet(), **options)
    return [side for logps in found for side in logps]


def plain(model, pairs):
    return [
        reference.response_logps(model, pair.prompt_ids, response)
        for pair in pairs
        for response in (pair.chosen_ids, pair.rejected_ids)
    ]


@functools.cache
def fast(family):
    """Of a model that no test changes: how it can be computed, and what was said of that."""
    said = Listens()
    return find_paths(tiny(family), said), said.said


def assert_close(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=3e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("family", PACKED)
def test_packed_padded_and_plain_are_one(family):
    forward, said = fast(family)
    assert forward.packs
    assert forward.chunked
    assert said == []
    expected = plain(forward.model, PAIRS)
    for max_tokens in (1, 40, 10_000):
        assert_close(read(forward, PAIRS, max_tokens), expected)
    assert_close(read(forward._replace(chunked=False), PAIRS), expected)
    assert_close(read(forward._replace(packs=False), PAIRS), expected)
    assert_close(read(forward._replace(packs=False, chunked=False), PAIRS), expected)
    heard = Listens()
    flex = forward._replace(fused=TriedFlex("", heard, flex_attention, device_type="cpu"))
    assert_close(read(flex, PAIRS, 10_000), expected)
    assert heard.said == [], "what a GPU compiles gives the same as it stands"


@pytest.mark.parametrize("family", PADDED)
def test_models_that_mix_what_is_packed_take_padded_rows_and_say_so(family):
    forward, said = fast(family)
    assert not forward.packs
    assert "cannot share a row" in said[0]
    expected = plain(forward.model, PAIRS)
    for max_tokens in (1, 60, 10_000):
        assert_close(read(forward, PAIRS, max_tokens), expected)


@pytest.mark.parametrize("family", [*PACKED, *LEAKING])
def test_a_leak_too_small_to_be_told_from_rounding_is_no_less_a_leak(family):
    """A young model hardly mixes its tokens; once it is trained it will."""
    model = tiny(family, initializer_range=0.02)
    for young in [model, model.bfloat16()] if family in LEAKING else [model.bfloat16()]:
        assert find_paths(young, Quiet()).packs == (family in PACKED)


@pytest.mark.parametrize("family", ALONE)
def test_frequencies_that_depend_on_the_longest_row_are_read_one_by_one(family):
    """In a batch a short response would get the frequencies of a long one."""
    model = tiny(family)
    said = Listens()
    forward = find_paths(model, said)
    assert "one by one" in said.said[0]
    expected = [logps for pair in PAIRS for logps in (fresh(family, pair.prompt_ids, r) for r in pair[2:])]
    assert_close(read(forward, PAIRS, 10_000), expected)
    together = read(forward._replace(alone=False), PAIRS, 10_000)
    assert any(not np.allclose(a, b, atol=1e-2) for a, b in zip(together, expected, strict=True))


def fresh(family, prompt, response):
    """By a model that has seen no other row."""
    return reference.response_logps(tiny(family), prompt, response)


def test_a_head_that_is_not_what_its_configuration_says_is_left_to_the_model():
    model = tiny("llama")
    model.config.logit_scale = 0.5
    said = Listens()
    forward = find_paths(model, said)
    assert forward.packs
    assert not forward.chunked
    assert "more than a matrix" in said.said[0]
    assert_close(read(forward, PAIRS), plain(model, PAIRS))


def test_a_window_that_no_layer_tells_of_is_not_packed():
    model = tiny("llama")
    assert find_paths(model, Quiet()).packs
    model.config.sliding_window = 4096
    assert not find_paths(model, Quiet()).packs


def test_attention_in_chunks_is_not_packed():
    model = tiny("llama")
    model.config.attention_chunk_size = 4096
    assert not find_paths(model, Quiet()).packs


def test_the_models_own_attention_comes_back():
    model = tiny("llama")
    before = model.config._attn_implementation
    with packed_attention(model, Layout([Span(1, 1, 1)], CPU)):
        assert model.config._attn_implementation == "sepo_packed"
    assert model.config._attn_implementation == before


SELECTED = [
    masked(pair, np.arange(0, len(pair.chosen_ids), 2), np.arange(len(pair.rejected_ids) // 2, len(pair.rejected_ids)))
    for pair in PAIRS
]


def gradients(forward, examples, *, plainly):
    """Of SePO's loss over some examples, by parameter."""
    model = forward.model
    model.zero_grad()
    batch = collate(examples, CPU) if plainly else make_batch(examples, CPU, packs=forward.packs)
    with attention_for(forward, batch):
        logps = weighted_logps(Forward(model), batch) if plainly else weighted_logps(forward, batch)
        loss = sepo(logps, batch, gamma=2.1, margin=0.5).loss_B
        loss.sum().backward()
    return loss.detach(), {name: each.grad for name, each in model.named_parameters()}


@pytest.mark.parametrize("family", [*PACKED, *PADDED])
@pytest.mark.parametrize("own_head", [False, True])
def test_every_way_has_the_gradient_of_plain_padded_rows(family, own_head):
    """Cut behind the last selected token, the prompt shared, the head on selected rows: losses and every gradient."""
    forward, _ = fast(family)
    expected_loss, expected = gradients(forward, SELECTED, plainly=True)
    loss, found = gradients(forward._replace(chunked=False) if own_head else forward, SELECTED, plainly=False)
    torch.testing.assert_close(loss, expected_loss, atol=1e-5, rtol=1e-5)
    for name, gradient in expected.items():
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-3)


LONG = [
    masked(token_pair(0, *(np.random.default_rng(0).integers(0, VOCABULARY, part) for part in (5, 20, 37))), [3], [36]),
    masked(token_pair(1, [1, 2], [3], [4, 5]), [0], [1]),
]


@pytest.mark.parametrize(
    "family", ["llama", "gemma2, soft caps and a window of 4", "gemma3, a window of 4", "mistral, a window of 3"]
)
def test_long_responses_are_attended_in_blocks_whose_masks_are_small(family, monkeypatch):
    """A mask of the whole would have 37 x 42 entries; at most 8 x 48 are allowed."""
    forward, _ = fast(family)
    expected_loss, expected = gradients(forward, LONG, plainly=True)
    monkeypatch.setattr("stages.logprobs.attention.LARGEST_MASK", 8 * 48)
    made = []
    make = Layout.causal_mask
    monkeypatch.setattr(Layout, "causal_mask", lambda *given, **named: made.append(make(*given, **named)) or made[-1])
    loss, found = gradients(forward, LONG, plainly=False)
    assert max(mask.numel() for mask in made) == 8 * 48
    torch.testing.assert_close(loss, expected_loss, atol=1e-5, rtol=1e-5)
    for name, gradient in expected.items():
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("keys", "window"), [(29, None), (29, 3), (32, 9)])
def test_blocks_by_hand(keys, window, monkeypatch):
    """Each token sees what is not behind it, of its window; on a GPU parts of a mask have to begin at an eighth."""
    monkeypatch.setattr("stages.logprobs.attention.LARGEST_MASK", 8 * 32)
    blocks = [*Layout([], CPU).blocks(2, keys - 2, keys, window, torch.float32)]
    assert [queries for queries, _, _ in blocks] == [(keys - 2 - 1) % 8 + 1, 8, 8, 8][-len(blocks) :]
    token = 2
    for queries, seen, mask_QS in blocks:
        assert mask_QS.shape == (queries, len(range(keys)[seen]))
        assert mask_QS.storage_offset() % 8 == mask_QS.stride(0) % 8 == 0
        for row in mask_QS:
            visible = {seen.start + place for place in torch.nonzero(row == 0).flatten().tolist()}
            assert visible == {*range(max(0, token - (window or keys) + 1), token + 1)}
            token += 1
    assert token == keys
    assert window is None or blocks[-1][1].start > 0, "nothing before a window is read"


def test_pack_by_hand():
    pairs = [token_pair(0, [1, 2], [3, 4, 5], [6, 7]), token_pair(1, [8], [9], [10])]
    packed = pack([whole(pair)._replace(reference=ReferenceSums(0.5, -1.5)) for pair in pairs], CPU)
    assert packed.ids_T.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert packed.positions_T.tolist() == [0, 1, 2, 3, 4, 2, 3, 0, 1, 1]
    assert packed.sources_N.tolist() == [1, 2, 3, 1, 5, 7, 7]
    assert packed.targets_N.tolist() == [3, 4, 5, 6, 7, 9, 10]
    assert packed.places_N.tolist() == [0, 1, 2, 6, 7, 3, 9]
    assert packed.weights_RW.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0]]
    assert packed.reference_R.tolist() == [0.5, 0.5, -1.5, -1.5]


def test_pack_cuts_behind_the_last_weighted_token():
    packed = pack([masked(token_pair(0, [1, 2], [3, 4, 5, 6], [7, 8, 9]), [0, 2], [1])], CPU)
    assert packed.ids_T.tolist() == [1, 2, 3, 4, 5, 7, 8]
    assert packed.sources_N.tolist() == [1, 3, 5]
    assert packed.targets_N.tolist() == [3, 5, 8]
    assert packed.weights_RW.tolist() == [[1, 1], [1, 0]]


def test_pack_of_responses_without_another():
    packed = pack([whole(token_pair(0, [1], [3, 4], [])), whole(token_pair(1, [1, 2], [3], []))], CPU)
    assert packed.ids_T.tolist() == [1, 3, 4, 1, 2, 3]
    assert packed.sources_N.tolist() == [0, 1, 4]
    assert packed.weights_RW.tolist() == [[1, 1], [1, 0]]


def test_groups_hold_every_example_once_within_the_budget_longest_first():
    examples = [whole(pair) for pair in random_pairs(40, 50)]
    groups = packed_groups(examples, 60)
    assert sorted(place for group in groups for place in group) == list(range(40))
    sizes = [[unique_tokens(examples[place]) for place in group] for group in groups]
    assert all(sum(size) <= 60 for size in sizes)
    flat = [tokens for size in sizes for tokens in size]
    assert flat == sorted(flat, reverse=True)
    assert packed_groups(examples, 1) == [[place] for group in groups for place in group]


def test_a_sliding_window_is_by_position_by_hand():
    mask = Layout([], CPU).causal_mask(prompt=2, queries=2, keys=4, window=2, dtype=torch.float32)
    assert (mask == 0).tolist() == [[False, True, True, False], [False, False, True, True]]


@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"softcap": 1.5}, {"scale": 2.0, "softcap": 0.7}])
@pytest.mark.parametrize("bias", [True, False])
def test_head_tiles_equal_the_whole_in_float64(options, bias, monkeypatch):
    """Chunks smaller than rows and vocabulary, with a last one that is not full."""
    monkeypatch.setattr("stages.logprobs.head._CPU_CHUNK", (7, 13))
    torch.manual_seed(0)
    weight, hidden, targets = torch.randn(50, 8), 9 * torch.randn(20, 8), torch.randint(0, 50, (20,))
    head = Head(weight, torch.randn(50) if bias else None, options.get("scale", 1.0), options.get("softcap"))
    logits = hidden.double() @ weight.double().T + (head.bias_V.double() if bias else 0.0)
    logits = logits * head.scale
    if head.softcap:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    expected = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(head_logps(head, hidden, targets).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"scale": 2.0, "softcap": 0.7}])
@pytest.mark.parametrize("bias", [True, False])
def test_the_gradient_of_head_tiles_is_that_of_the_whole_in_float64(options, bias, monkeypatch):
    monkeypatch.setattr("stages.logprobs.head._CPU_CHUNK", (7, 13))
    torch.manual_seed(0)
    given = [torch.randn(50, 8), torch.randn(50), 2 * torch.randn(20, 8)]
    targets, outer = torch.randint(0, 50, (20,)), torch.randn(20)
    ours, theirs = (
        [each.detach().to(dtype, copy=True).requires_grad_() for each in given]
        for dtype in (torch.float32, torch.float64)
    )
    head = Head(ours[0], ours[1] if bias else None, options.get("scale", 1.0), options.get("softcap"))
    (head_logps(head, ours[2], targets) * outer).sum().backward()
    logits = (theirs[2] @ theirs[0].T + (theirs[1] if bias else 0.0)) * head.scale
    if head.softcap:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    (logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1) * outer).sum().backward()
    for one, other in zip(ours if bias else ours[::2], theirs if bias else theirs[::2], strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, atol=1e-4, rtol=1e-4)


def test_a_head_in_bfloat16_computes_its_logits_in_float32():
    torch.manual_seed(0)
    weight, hidden, targets = (
        torch.randn(50, 64).bfloat16(),
        torch.randn(20, 64).bfloat16(),
        torch.randint(0, 50, (20,)),
    )
    expected = (hidden.double() @ weight.double().T).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    found = head_logps(Head(weight, None, 1.0, None), hidden, targets)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_the_gradient_of_a_head_in_bfloat16_is_summed_in_float32():
    """4,000 rows add up to a gradient in which bfloat16 sums would lose the small ones."""
    torch.manual_seed(0)
    weight, hidden, targets = torch.randn(50, 8), torch.randn(4000, 8), torch.randint(0, 50, (4000,))
    half = [each.bfloat16().requires_grad_() for each in (weight, hidden)]
    head_logps(Head(half[0], None, 1.0, None), half[1], targets).sum().backward()
    exact = [each.detach().double().requires_grad_() for each in half]
    (exact[1] @ exact[0].T).log_softmax(-1).gather(1, targets[:, None]).sum().backward()
    error = (half[0].grad.double() - exact[0].grad).abs() / exact[0].grad.abs().clamp(min=1)
    assert error.max() < 2**-8 * 1.1


def test_reading_uses_no_tensor_of_tokens_by_vocabulary():
    """A vocabulary that would need 1.4 GB for its logits is read in far less."""
    import resource

    model = tiny_llama(50_000)
    forward = find_paths(model, Quiet())
    rng = np.random.default_rng(0)
    pair = token_pair(0, [5], rng.integers(0, 50_000, 250), rng.integers(0, 50_000, 5))
    # Warm, so that only what the length adds is measured.
    read(forward, [token_pair(0, [5], [6], [7])])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pairs = [pair._replace(pair_id=number) for number in range(28)]
    read(forward, pairs, max_tokens=8000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024


@pytest.mark.parametrize("frozen", [("weight",), ("bias",), ("weight", "bias")], ids="+".join)
def test_a_frozen_head_gets_no_gradient_and_changes_none(frozen):
    """Under LoRA only the hidden states need one; the product that the weight's would cost is left out."""

    def slopes(learns):
        torch.manual_seed(0)
        hidden_NH, targets_N = torch.randn(9, 5, requires_grad=True), torch.arange(9)
        weight_VH = torch.randn(20, 5, requires_grad="weight" in learns)
        bias_V = torch.randn(20, requires_grad="bias" in learns)
        logps_N = head_logps(Head(weight_VH, bias_V, 1.0, None), hidden_NH, targets_N)
        # Asked directly: autograd would throw away what was computed for nothing.
        return dict(
            zip(("hidden", "weight", "bias"), _HeadLogps.backward(logps_N.grad_fn, torch.ones(9)), strict=False)
        )

    whole, part = slopes({"weight", "bias"}), slopes({"weight", "bias"} - {*frozen})
    for name, expected in whole.items():
        if name in frozen:
            assert part[name] is None
        else:
            assert torch.equal(part[name], expected)


def test_paths_are_tried_in_exact_products_whatever_the_recipe_that_is_open():
    model, seen = tiny_llama(VOCABULARY), set()
    model.register_forward_pre_hook(lambda *_: seen.add(torch.get_float32_matmul_precision()))
    with products("medium"):
        find_paths(model, Quiet())
        assert torch.get_float32_matmul_precision() == "medium"
    assert seen == {"highest"}
