import numpy as np
import pytest

from stages.method.rules import auto, dataset_share, oracle
from stages.method.selection import CUT_TIES, RuleInputs
from stages.store.alarms import Scale, alarms
from stages.types import PairLogps, ScoredPair
from tests.conftest import token_pair

MODELS = {"inputs": {"oracle": "a", "reference": "b"}}


def pair(chosen, rejected):
    return PairLogps(np.array(chosen, np.float32), np.array(rejected, np.float32))


def scale_of(*pairs):
    scale = Scale()
    for each in pairs:
        scale.add(each)
    return scale


@pytest.mark.parametrize(
    ("scores", "manifest", "said"),
    [
        (pair([0.0, 0.0], [0.0]), {}, "every score is 0:"),
        (pair([0.3, 0.3], [0.3]), MODELS, "every score is 0.3:"),
        (pair([1.0, 0.0], [0.5]), {"inputs": {"oracle": "a", "reference": "a"}}, "are one model"),
        (pair([1.0, 0.0], [0.5]), {"results": {"noise": {"p99": 0.5}}}, "spread of 0.41 nats is below their noise of 0.5"),
        (pair([1.0, 0.0], [0.5]), MODELS | {"results": {"noise": {"p99": 0.4}}}, None),
        (pair([1.0, 0.0], [0.5]), MODELS | {"results": {"noise": None}}, None),
    ],
)  # fmt: skip
def test_scores_that_tell_nothing_are_called_so(scores, manifest, said):
    found = alarms(scale_of(scores), manifest)
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


def test_without_scores_there_is_no_alarm():
    assert alarms(Scale(), MODELS | {"results": {"noise": {"p99": 0.4}}}) == []


def test_scales_of_parts_are_merged_into_that_of_all():
    parts = pair([1.0, 0.5], [0.25]), pair([-2.0], [3.0])
    merged = scale_of(parts[0])
    merged.merge(Scale())
    merged.merge(scale_of(parts[1]))
    assert merged == scale_of(*parts)
    assert merged.spread == pytest.approx(np.std([1.0, 0.5, 0.25, -2.0, 3.0]))


def row(scores):
    ids = token_pair(0, [1], [2] * len(scores.chosen), [3] * len(scores.rejected))
    return ScoredPair(ids, scores, None)


@pytest.mark.parametrize(
    ("scores", "ties"),
    [
        (pair([0, 0, 0, 0], [0, 0]), 2),
        (pair([1, 0, 0, 0], [0, 0]), 1),
        (pair([1, 1, 0, 0], [-1, 0]), 0),
        (pair([1, 1, 1, 0], [0, -1, -1, -1, -1]), 2),
        (pair([1], [1]), 0),
    ],
)
def test_cuts_within_ties_are_counted(scores, ties):
    _, notes = oracle(
        RuleInputs([row(scores)]), chosen_ratio=0.5 if ties != 1 else 0.25, rejected_ratio=0.5, authors_rule=False
    ).drawn()
    assert notes.get(CUT_TIES, 0) == ties


def test_the_authors_rule_never_counts_the_first_token():
    inputs = RuleInputs([row(pair([5, 5, 1, 0, 0], [0, -3]))])
    assert oracle(inputs, chosen_ratio=0.3, rejected_ratio=0.3, authors_rule=True).drawn()[1] == {}


def test_auto_counts_ties_too():
    _, notes = auto(RuleInputs([row(pair([1, 1, 1, 1], [-2, -1]))], noise=0.0), auto_share=0.5).drawn()
    assert notes[CUT_TIES] == 1


@pytest.mark.parametrize(
    ("rows", "ties"),
    [
        # Half of six chosen tokens is three of the five 1s: position decided in both responses.
        ([pair([1, 1, 0], [-2, 0]), pair([1, 1, 1], [-3, 0])], 2),
        # The same where each response is wholly on one side of the cut; the second keeps the first of its equals.
        ([pair([1, 1], [-2, 0]), pair([1, 1], [-3, 0])], 2),
        # Equal keys within the share, or beyond it, of which none was cut.
        ([pair([1, 1, 0], [-2, 0]), pair([2, 0, 0], [-2, 0])], 0),
    ],
)
def test_a_share_of_the_data_set_counts_the_responses_in_which_it_cuts_ties(rows, ties):
    _, notes = dataset_share(RuleInputs([row(each) for each in rows]), chosen_ratio=0.5, rejected_ratio=0.5).drawn()
    assert notes.get(CUT_TIES, 0) == ties
