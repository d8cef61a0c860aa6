"""The selection rules of `sepo train-policy`: which tokens count, and how much, one function each.

What they are made of is in `stages.method.selection`; names, options and needs stand in `stages.registry`.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from stages.errors import SepoError
from stages.method.order_statistics import median, order_statistics
from stages.method.selection import (
    Choose,
    Mask,
    RuleInputs,
    Selection,
    as_weights,
    random_keys,
    ranked,
    select_highest,
    select_where,
    selected_count,
    signed_scores,
)
from stages.types import Floats, PairLogps, PairWeights


def oracle(inputs: RuleInputs, *, chosen_ratio: float, rejected_ratio: float, authors_rule: bool) -> Selection:
    """the highest scores of each chosen response, the lowest of each rejected one, arXiv 2408.13518 section 3.3"""
    return ranked(signed_scores(inputs.rows), chosen_ratio, rejected_ratio, authors_rule=authors_rule)


def inverted(inputs: RuleInputs, *, chosen_ratio: float, rejected_ratio: float, authors_rule: bool) -> Selection:
    """the worst of each chosen response, the best of each rejected one"""
    keys = (PairLogps(-row.scores.chosen, row.scores.rejected) for row in inputs.rows)
    return ranked(keys, chosen_ratio, rejected_ratio, authors_rule=authors_rule)


def random(inputs: RuleInputs, *, chosen_ratio: float, rejected_ratio: float, authors_rule: bool) -> Selection:
    """as many tokens as oracle, by chance (seeded)"""
    keys = (random_keys(row.scores, seed=inputs.seed, pair_id=row.pair.pair_id) for row in inputs.rows)
    return ranked(keys, chosen_ratio, rejected_ratio, authors_rule=authors_rule)


def all(inputs: RuleInputs) -> Selection:
    """every response token"""
    return Selection(as_weights(*(np.ones(len(side)) for side in row.scores)) for row in inputs.rows)


def earliest(inputs: RuleInputs, *, chosen_ratio: float, rejected_ratio: float) -> Selection:
    """the first tokens of each response"""
    keys = (PairLogps(*(-np.arange(len(side), dtype=np.float32) for side in row.scores)) for row in inputs.rows)
    return ranked(keys, chosen_ratio, rejected_ratio)


def latest(inputs: RuleInputs, *, chosen_ratio: float, rejected_ratio: float) -> Selection:
    """the last tokens of each response"""
    keys = (PairLogps(*(np.arange(len(side), dtype=np.float32) for side in row.scores)) for row in inputs.rows)
    return ranked(keys, chosen_ratio, rejected_ratio)


def confidence(inputs: RuleInputs, *, chosen_ratio: float, rejected_ratio: float) -> Selection:
    """the tokens that the starting policy is least sure of, in both responses, as in ConfPO, arXiv 2506.08712

    ConfPO asks the policy anew in every step and takes the tokens below the mean of their response, as the objective
    confpo does; here the share is given, and the starting policy is asked once.
    """
    keys = (PairLogps(-logps.chosen, -logps.rejected) for logps in inputs.start_logps)
    return ranked(keys, chosen_ratio, rejected_ratio)


def sampo(inputs: RuleInputs) -> Selection:
    """every token of the shorter response, and as many of the longer one by chance (seeded), SamPO, arXiv 2406.10957

    A sum over the tokens then says nothing of length. SamPO draws anew in every step; here each pair is drawn once.
    """

    def draw() -> Iterator[PairWeights]:
        for row in inputs.rows:
            count = min(map(len, row.scores))
            keys = random_keys(row.scores, seed=inputs.seed, pair_id=row.pair.pair_id)
            yield as_weights(*(select_highest(side, count / len(side)) for side in keys))

    return Selection(draw())


def symmetric(inputs: RuleInputs, *, chosen_ratio: float, rejected_ratio: float) -> Selection:
    """in both responses the tokens whose score is farthest from the data set's median, whatever the sign

    The median is that of all response tokens of all pairs.
    """
    return ranked(_from_median(inputs)(), chosen_ratio, rejected_ratio)


def dataset_share(inputs: RuleInputs, *, chosen_ratio: float, rejected_ratio: float) -> Selection:
    """the highest scores of all chosen responses taken together, the lowest of all rejected ones

    A response without such a token keeps its best one (its worst, if rejected): a pair is a comparison of two.
    """
    return _share_of_all(lambda: signed_scores(inputs.rows), chosen_ratio, rejected_ratio)


def dataset_symmetric(inputs: RuleInputs, *, chosen_ratio: float, rejected_ratio: float) -> Selection:
    """the tokens whose score is farthest from the median, of all chosen responses together, and of all rejected ones

    The median is that of all response tokens of all pairs. A response without such a token keeps the one of it that is
    farthest.
    """
    return _share_of_all(_from_median(inputs), chosen_ratio, rejected_ratio)


Keys = Callable[[], Iterable[PairLogps]]
"""begins a pass over the keys of all rows"""


def _from_median(inputs: RuleInputs) -> Keys:
    """How far each token's score is from the median of all tokens of all pairs."""
    middle = median(lambda: (side for row in inputs.rows for side in row.scores))
    return lambda: (PairLogps(*(np.abs(side - middle) for side in row.scores)) for row in inputs.rows)


def _share_of_all(keys: Keys, chosen_ratio: float, rejected_ratio: float) -> Selection:
    """The highest keys of each side's responses taken together."""
    chosen = _best_of_all(lambda: (pair.chosen for pair in keys()), chosen_ratio)
    rejected = _best_of_all(lambda: (pair.rejected for pair in keys()), rejected_ratio)
    return select_where(keys(), (chosen, rejected), "in the share")


def _best_of_all(keys: Callable[[], Iterable[Floats]], ratio: float) -> Choose:
    """What takes this share of all tokens, given each response's keys in order; ties go to the earlier token."""
    [cut] = order_statistics(keys, lambda count: [count - selected_count(count, ratio)])
    left = cut.from_top - cut.above
    # The one cut is in all responses that have its key, also where all of their tokens are on one side of it.
    within_ties = cut.equal > left

    def choose(key: Floats) -> tuple[Mask, bool]:
        nonlocal left
        mask = key > cut.value
        at_the_cut = np.flatnonzero(key == cut.value)
        mask[at_the_cut[:left]] = True
        left -= len(at_the_cut[:left])
        return mask, within_ties and len(at_the_cut) > 0

    return choose


def threshold(inputs: RuleInputs, *, threshold: float) -> Selection:
    """scores of at least T in chosen responses, of at most -T in rejected ones

    A response without such a token keeps its best one (its worst, if rejected): a pair is a comparison of two.
    """

    def choose(key: Floats) -> tuple[Mask, bool]:
        return key >= threshold, False

    return select_where(signed_scores(inputs.rows), (choose, choose), "beyond the threshold", counts_ties=False)


def soft(inputs: RuleInputs, *, soft_k: float, soft_mu: float, soft_low: float, soft_high: float) -> Selection:
    """all tokens, weighted by k exp(mu clamp(score, L, U)), mu negative in rejected responses, arXiv 2410.04350

    (TIS-DPO.) k matters to objectives that sum over tokens; those that average divide it out.
    """

    def weight(scores: Floats, mu: float) -> Floats:
        weights: Floats = soft_k * np.exp(mu * np.clip(scores, soft_low, soft_high))
        return weights

    rows = (row.scores for row in inputs.rows)
    return Selection(as_weights(weight(row.chosen, soft_mu), weight(row.rejected, -soft_mu)) for row in rows)


def auto(inputs: RuleInputs, *, auto_share: float) -> Selection:
    """the fewest tokens that hold a share of their response's reward, none of them within the scorer's noise

    Why: a fixed k takes noise where few tokens matter and leaves reward where many do. The paper's own picture of a
    good k is its Figure 1, the share of a response's reward that the top k tokens hold (0.8 of it at about 0.3 of the
    tokens); so that share is what is given, and k follows for each response. A token's reward is how far its score
    is beyond the scorer's noise (99th percentile of its measured error, 0 if nothing was measured), on the side that
    is wanted: up in a chosen response, down in a rejected one. Others have none: their sign could be chance. Where
    no token has any, the best one is taken.
    """

    def choose(key: Floats) -> tuple[Mask, bool]:
        return _fewest(key, inputs.noise or 0.0, auto_share), False

    selection = select_where(signed_scores(inputs.rows), (choose, choose), "beyond the noise")
    if inputs.noise is None:
        selection.notes["pairs whose scorer did not measure its noise, which was taken to be 0"] = len(inputs.rows)
    return selection


def _fewest(keys: Floats, noise: float, share: float) -> Mask:
    """The fewest tokens whose keys beyond the noise sum up to a share of all such; ties go to the earlier token."""
    beyond = np.maximum(keys.astype(np.float64) - noise, 0.0)
    order = np.argsort(-beyond, kind="stable")
    sums = np.cumsum(beyond[order])
    mask = np.zeros(len(keys), bool)
    if sums[-1] > 0:
        # Rounding must not ask for a token more than the sum needs.
        mask[order[: int(np.searchsorted(sums, share * sums[-1] * (1 - 1e-12))) + 1]] = True
    return mask & (beyond > 0)


def column(inputs: RuleInputs) -> Selection:
    """the weights in the shards' columns chosen_weights and rejected_weights"""

    def draw() -> Iterator[PairWeights]:
        for row in inputs.rows:
            if row.weights is None:
                raise SepoError(
                    f"pair {row.pair.pair_id} comes without weights, and select column takes nothing else",
                    hint="add the columns chosen_weights and rejected_weights (list<float32>) to the shards",
                )
            yield as_weights(*row.weights)

    return Selection(draw())
