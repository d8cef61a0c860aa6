"""The divergence from a second model while training: by whatever way models are read, it is the plain sum over the vocabulary."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stages.configs import OptimizerConfig
from stages.logprobs.batches import collate, whole
from stages.logprobs.head import Head, LazyLogits, head_kl, kl_from_reference, kl_of_reference
from stages.logprobs.logps import (
    Forward,
    Reference,
    attention_for,
    logps_and_kl,
    make_batch,
    make_groups,
    weighted_logps,
)
from stages.logprobs.paths import find_paths
from stages.registry import OBJECTIVES
from stages.reporting import Quiet
from stages.training.loop import fit
from stages.training.metrics import read_metrics
from stages.types import PairLogps, PerToken, ReferenceSums
from tests import reference
from tests.conftest import masked, random_pairs, tiny_gpt2, tiny_llama

sepo, tdpo = (OBJECTIVES[name].load() for name in ("sepo", "tdpo"))

CPU = torch.device("cpu")
PAIRS = random_pairs(5, 50)
SUMS = ReferenceSums(-3.0, -2.0)
SELECTED = [masked(pair, [0], [len(pair.rejected_ids) - 1])._replace(reference=SUMS) for pair in PAIRS]
WAYS = {
    "packed": {},
    "packed, own head": {"chunked": False},
    "padded": {"packs": False},
    "padded, own head": {"packs": False, "chunked": False},
    "alone": {"packs": False, "alone": True},
}


def models(kind=tiny_llama):
    return kind(50, seed=1), kind(50, seed=2).requires_grad_(False)


@functools.cache
def fast(kind=tiny_llama):
    """Both of them; no test changes a weight."""
    return [find_paths(model, Quiet()) for model in models(kind)]


def read(way, divergence):
    """KL and batch."""
    policy, frozen = fast()
    forward = policy._replace(**WAYS[way])
    second = frozen._replace(packs=forward.packs)
    batch = make_batch(SELECTED, CPU, packs=forward.packs, every_token=True)
    with attention_for(forward, batch):
        return logps_and_kl(forward, Reference(second, divergence), batch)[1], batch


@functools.cache
def by_hand(swapped):
    """KL of every token of every response, chosen ones first, from one unpadded row at a time in plain Python."""
    policy, frozen = models()
    rows = []
    for side in ("chosen_ids", "rejected_ids"):
        for example in SELECTED:
            ids = [*example.pair.prompt_ids, *getattr(example.pair, side)]
            start = len(example.pair.prompt_ids)
            with torch.no_grad():
                ours, theirs = (
                    model(input_ids=torch.tensor([ids])).logits[0].double().tolist() for model in (policy, frozen)
                )
            if swapped:
                ours, theirs = theirs, ours
            rows.append([reference.kl(ours[place - 1], theirs[place - 1]) for place in range(start, len(ids))])
    return rows


@pytest.mark.parametrize("divergence", [kl_from_reference, kl_of_reference])
@pytest.mark.parametrize("way", WAYS)
def test_kl_equals_the_plain_sum_at_every_token_of_a_response(way, divergence):
    kl, batch = read(way, divergence)
    expected = by_hand(swapped=divergence is kl_of_reference)
    found = [kl[row][batch.needed_RW[row]].tolist() for row in range(len(kl))]
    assert [len(row) for row in found] == [len(row) for row in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=2e-5)
    assert not kl[~batch.needed_RW].any()


@pytest.mark.parametrize("way", ["packed", "packed, own head", "padded", "padded, own head"])
def test_a_kl_under_autocast_has_heads_in_float32(way):
    """From the hidden states that the layers make in bfloat16, the divergence is exact."""
    hidden = {}
    policy, frozen = models()
    for model in (policy, frozen):
        model.base_model.register_forward_hook(
            lambda module, _, output: hidden.update({module: output.last_hidden_state.detach().double()})
        )
    forwards = [each._replace(model=model, **WAYS[way]) for each, model in zip(fast(), (policy, frozen), strict=True)]
    batch = make_batch(SELECTED, CPU, packs=forwards[0].packs, every_token=True)
    with torch.autocast("cpu", torch.bfloat16), attention_for(forwards[0], batch):
        _, kl = logps_and_kl(forwards[0], Reference(forwards[1], kl_from_reference), batch)
    ours, theirs = (
        (hidden[model.base_model].flatten(0, 1) @ model.lm_head.weight.double().T).log_softmax(-1)
        for model in (policy, frozen)
    )
    if forwards[0].packs:
        found, sources = kl.flatten()[batch.places_N], batch.sources_N
    else:
        found, sources = kl[batch.needed_RW], batch.needed_RW.flatten().nonzero()[:, 0] - 1
    expected = kl_from_reference(ours, theirs)[sources]
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)


@functools.cache
def plain(divergence, kind):
    """Loss and gradients by padded rows, whole logits and autograd."""
    policy, frozen = models(kind)
    batch = collate(SELECTED, CPU, every_token=True)
    inputs = {"input_ids": batch.ids_RT, "attention_mask": batch.attention_RT}
    ours, theirs = (F.log_softmax(model(**inputs).logits[:, :-1], -1) for model in (policy, frozen))
    kl = torch.where(batch.needed_RW, F.pad(divergence(ours, theirs), (1, 0)), 0.0)
    seen = batch._replace(kl_RW=kl)
    loss = (
        sepo(weighted_logps(Forward(policy), batch), seen, kl_weight=0.7).loss_B
        + tdpo(weighted_logps(Forward(policy), batch), seen).loss_B
    )
    loss.sum().backward()
    return loss.detach(), {name: each.grad for name, each in policy.named_parameters()}


@pytest.mark.parametrize("kind", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("divergence", [kl_from_reference, kl_of_reference])
@pytest.mark.parametrize("way", WAYS)
def test_losses_and_gradients_equal_plain_padded_rows(way, divergence, kind):
    expected_loss, expected = plain(divergence, kind)
    policy, frozen = fast(kind)
    policy.model.zero_grad()
    forward = policy._replace(**WAYS[way])
    second = Reference(frozen._replace(packs=forward.packs), divergence)
    batch = make_batch(SELECTED, CPU, packs=forward.packs, every_token=True)
    with attention_for(forward, batch):
        logps, kl = logps_and_kl(forward, second, batch)
        seen = batch._replace(kl_RW=kl)
        loss = sepo(logps, seen, kl_weight=0.7).loss_B + tdpo(logps, seen).loss_B
        loss.sum().backward()
    torch.testing.assert_close(loss.detach(), expected_loss, atol=1e-5, rtol=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(policy.model.get_parameter(name).grad, gradient, atol=1e-4, rtol=1e-3, msg=name)
    assert all(each.grad is None for each in frozen.model.parameters())


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("rows_at_once", [1, 3, 1000])
def test_rows_at_a_time_give_the_same_as_all_at_once(monkeypatch, rows_at_once, softcap):
    monkeypatch.setattr("stages.logprobs.head._CPU_LOGITS", rows_at_once * 20)
    torch.manual_seed(0)
    weights, biases, hiddens = torch.randn(2, 20, 8), torch.randn(2, 20), torch.randn(2, 7, 8)
    leaves = [each.clone().requires_grad_() for each in (weights[0], biases[0], hiddens[0])]
    ours, theirs = (
        LazyLogits(leaves[2], Head(leaves[0], leaves[1], 0.5, softcap)),
        LazyLogits(hiddens[1], Head(weights[1], None, 1.0, None)),
    )
    found = head_kl(ours, theirs, kl_from_reference)
    (found * torch.arange(1.0, 8.0)).sum().backward()
    exact = [each.detach().clone().requires_grad_() for each in leaves]
    logits = (exact[2] @ exact[0].T + exact[1]) * 0.5
    logits = logits if softcap is None else torch.tanh(logits / softcap) * softcap
    expected = kl_from_reference(logits.log_softmax(-1), (hiddens[1] @ weights[1].T).log_softmax(-1))
    (expected * torch.arange(1.0, 8.0)).sum().backward()
    torch.testing.assert_close(found, expected)
    for mine, other in zip(leaves, exact, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_no_tensor_of_rows_by_vocabulary_is_kept_for_the_backward_pass(monkeypatch):
    monkeypatch.setattr("stages.logprobs.head._CPU_LOGITS", 2 * 500)
    kept = []
    hidden, weight = torch.randn(64, 8, requires_grad=True), torch.randn(500, 8, requires_grad=True)
    rows = LazyLogits(hidden, Head(weight, None, 1.0, None))
    with torch.autograd.graph.saved_tensors_hooks(lambda each: (kept.append(each.numel()), each)[1], lambda each: each):
        head_kl(rows, LazyLogits(hidden.detach(), Head(weight.detach() + 1, None, 1.0, None)), kl_from_reference)
    assert max(kept, default=0) <= 500 * 8


def test_a_head_in_bfloat16_has_its_gradient_summed_in_float32(monkeypatch):
    monkeypatch.setattr("stages.logprobs.head._CPU_LOGITS", 250)
    torch.manual_seed(0)
    weight, hidden, other = torch.randn(50, 8), torch.randn(2000, 8), torch.randn(50, 8)
    half = [each.bfloat16().requires_grad_() for each in (weight, hidden)]
    theirs = LazyLogits(half[1].detach(), Head(other.bfloat16(), None, 1.0, None))
    head_kl(LazyLogits(half[1], Head(half[0], None, 1.0, None)), theirs, kl_from_reference).sum().backward()
    exact = [each.detach().double().requires_grad_() for each in half]
    logits = [exact[1] @ exact[0].T, exact[1].detach() @ other.bfloat16().double().T]
    kl_from_reference(*(each.log_softmax(-1) for each in logits)).sum().backward()
    error = (half[0].grad.double() - exact[0].grad).abs() / exact[0].grad.abs().clamp(min=1)
    assert error.max() < 2**-8 * 1.1


@pytest.mark.parametrize("packs", [True, False])
def test_what_is_known_of_every_token_stands_at_its_token(packs):
    """Ids as reference log-probs, their negatives as scores, and one selected token a response: all tokens are needed."""
    examples = []
    for example in SELECTED:
        ids = PairLogps(*(part.astype(np.float32) for part in example.pair[2:]))
        examples.append(example._replace(per_token=PerToken(ids, PairLogps(-ids.chosen, -ids.rejected))))
    [group] = make_groups(examples, 10_000, packs=packs)
    batch = make_batch([examples[index] for index in group], CPU, packs=packs)
    if packs:
        expected = torch.zeros_like(batch.weights_RW).flatten()
        expected[batch.places_N] = batch.targets_N.float()
        expected = expected.view_as(batch.weights_RW)
    else:
        expected = (batch.ids_RT * batch.needed_RW).float()
    assert int(batch.needed_RW.sum()) == sum(len(ids) for example in examples for ids in example.pair[2:])
    assert int((batch.weights_RW != 0).sum()) == 2 * len(examples)
    torch.testing.assert_close(batch.reference_RW, expected, rtol=0, atol=0)
    torch.testing.assert_close(batch.scores_RW, -expected, rtol=0, atol=0)
    assert make_groups(examples, 30, packs=packs) == make_groups(SELECTED, 30, packs=packs, every_token=True)


def test_a_budget_counts_every_token_that_is_read():
    """Selected are 2 tokens a pair, read are all of them."""
    few, many = (make_groups(SELECTED, 30, packs=True, every_token=every) for every in (False, True))
    assert len(few) < len(many)
    sizes = [sum(sum(map(len, SELECTED[index].pair.parts)) for index in group) for group in many]
    assert all(size <= 30 for size, group in zip(sizes, many, strict=True) if len(group) > 1)


@pytest.mark.parametrize("max_tokens", [20, 60, 10_000])
def test_a_training_step_equals_adamw_on_the_plain_loss(tmp_path, max_tokens):
    """One step on the mean of TDPO2's losses: neither the packing nor the budget changes it."""
    policy, frozen = models()
    config = OptimizerConfig(
        learning_rate=1e-2, batch_size=5, warmup_ratio=0.0, max_tokens_per_device=max_tokens, save_steps=0
    )
    fit(
        policy, [whole(pair)._replace(reference=SUMS) for pair in PAIRS], tdpo, config, phase="t", folder=tmp_path, reporter=Quiet(),
        reference=Reference(find_paths(frozen, Quiet()), kl_of_reference),
    )  # fmt: skip
    other, frozen = models()
    batch = collate([whole(pair)._replace(reference=SUMS) for pair in PAIRS], CPU)
    inputs = {"input_ids": batch.ids_RT, "attention_mask": batch.attention_RT}
    ours, theirs = (F.log_softmax(model(**inputs).logits[:, :-1], -1) for model in (other, frozen))
    kl = torch.where(batch.needed_RW, F.pad(kl_of_reference(ours, theirs), (1, 0)), 0.0)
    loss = tdpo(weighted_logps(Forward(other), batch), batch._replace(kl_RW=kl)).loss_B.mean()
    loss.backward()
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
    optimizer.step()
    assert read_metrics(tmp_path)[0]["loss"] == pytest.approx(loss.item(), abs=1e-5)
    for mine, plainly in zip(policy.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, plainly, atol=5e-5, rtol=1e-4)
