import numpy as np
import pytest
import torch

from stages.logprobs.batches import collate, padded_groups, whole
from stages.logprobs.logps import Forward, response_logps, weighted_logps
from stages.logprobs.paths import find_paths
from stages.reporting import Quiet
from stages.types import ReferenceSums, longest
from tests import reference
from tests.conftest import masked, random_pairs, tiny_llama, token_pair

CPU = torch.device("cpu")


class WithoutLogitsToKeep(torch.nn.Module):
    """A model whose forward has no `logits_to_keep`, as older and remote-code models have not."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, input_ids, attention_mask, use_cache):
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)


def test_a_model_without_logits_to_keep_gives_the_same():
    model = tiny_llama(50)
    batch = collate([whole(pair) for pair in random_pairs(5, 50)], CPU)
    torch.testing.assert_close(
        weighted_logps(Forward(WithoutLogitsToKeep(model)), batch), weighted_logps(Forward(model), batch)
    )


def test_two_models_are_kept_apart():
    pairs = random_pairs(4, 50)
    first, second = tiny_llama(50, seed=1), tiny_llama(50, seed=2)
    both = response_logps(
        [find_paths(each, Quiet()) for each in (first, second)], pairs, max_tokens=64, device=CPU, task=Quiet()
    )
    for model, found in zip((first, second), both, strict=True):
        [alone] = response_logps([find_paths(model, Quiet())], pairs, max_tokens=64, device=CPU, task=Quiet())
        assert all(
            (a.chosen == b.chosen).all() and (a.rejected == b.rejected).all() for a, b in zip(found, alone, strict=True)
        )


def test_the_id_that_means_padding_elsewhere_is_a_token_like_any_other():
    """Id 0 fills the padding; a real token 0 inside and at the end of a response must keep its log-prob."""
    model = tiny_llama(50)
    pair = token_pair(0, [0, 7], [0, 3, 0], [0])
    [[found]] = response_logps([find_paths(model, Quiet())], [pair], max_tokens=100, device=CPU, task=Quiet())
    np.testing.assert_allclose(found.chosen, reference.response_logps(model, [0, 7], [0, 3, 0]), atol=2e-5)
    np.testing.assert_allclose(found.rejected, reference.response_logps(model, [0, 7], [0]), atol=2e-5)


def test_logps_stand_at_the_weighted_tokens_and_nowhere_else():
    model = tiny_llama(50)
    pair = token_pair(0, [4, 9, 2], [7, 8, 5], [6, 1])
    logps_RT = weighted_logps(Forward(model), collate([masked(pair, [0, 2], [1])], CPU))
    assert (logps_RT != 0).tolist() == [
        [False, False, False, True, False, True],
        [False, False, False, False, True, False],
    ]
    expected = reference.response_logps(model, [4, 9, 2], [7, 8, 5])
    assert logps_RT[0, 3].item() == pytest.approx(expected[0], abs=2e-5)
    assert logps_RT[0, 5].item() == pytest.approx(expected[2], abs=2e-5)


def test_unselected_tokens_get_no_direct_gradient():
    """The loss does not depend on the logits that predict unselected tokens."""
    model = tiny_llama(50)
    pair = token_pair(0, [4, 9], [7, 8, 5], [6, 1])
    other = token_pair(0, [4, 9], [7, 8, 40], [6, 41])
    logps = [weighted_logps(Forward(model), collate([masked(p, [1], [0])], CPU)).sum() for p in (pair, other)]
    assert logps[0].item() == logps[1].item()


def test_collate_by_hand():
    batch = collate([whole(token_pair(3, [1, 2], [3], [4, 5]))._replace(reference=ReferenceSums(-1.5, -0.5))], CPU)
    assert batch.ids_RT.tolist() == [[1, 2, 3, 0], [1, 2, 4, 5]]
    assert batch.attention_RT.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.weights_RW.tolist() == [[0, 0, 1, 0], [0, 0, 1, 1]]
    assert batch.reference_R.tolist() == [-1.5, -0.5]


def test_sft_batches_have_chosen_rows_only():
    batch = collate([whole(token_pair(0, [1], [3, 4], [])), whole(token_pair(1, [1, 2], [3], []))], CPU)
    assert batch.ids_RT.tolist() == [[1, 3, 4], [1, 2, 3]]


def test_padded_groups_hold_every_example_once_within_the_budget():
    examples = [whole(pair) for pair in random_pairs(40, 50)]
    groups = padded_groups(examples, 60)
    assert sorted(place for group in groups for place in group) == list(range(40))
    assert all(2 * len(g) * max(longest(examples[p].pair) for p in g) <= 60 for g in groups if len(g) > 1)
    assert max(map(len, groups)) > 1
    assert longest(examples[groups[0][0]].pair) == max(longest(e.pair) for e in examples)
