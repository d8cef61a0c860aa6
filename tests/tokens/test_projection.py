"""The projection of scores, against a slow one that hands out every token's score letter by letter."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.tokens.projection import project


def array(*values):
    return np.array(values, np.float64)


def letter_by_letter(scores, borders, other_borders, parts=12):
    """Scores by stretches a twelfth of a letter long, in plain Python."""
    stretches = [0.0] * round(borders[-1] * parts)
    owners, start, waiting = [], 0, 0.0
    for score, end in zip(scores, borders, strict=True):
        end = round(end * parts)
        if end > start:
            owners.append([start, end, waiting])
            start, waiting = end, 0.0
        if owners:
            owners[-1][2] += score
        else:
            waiting += score
    for start, end, score in owners:
        for at in range(start, end):
            stretches[at] += score / (end - start)
    cuts = [0, *(round(end * parts) for end in other_borders)]
    return [sum(stretches[a:b]) for a, b in itertools.pairwise(cuts)]


def test_a_token_cut_in_two_gives_each_part_by_its_letters():
    """ "splendid" (8 letters, 2.0) as "splen" (5) and "did" (3): 2 * 5/8 and 2 * 3/8; " lake" as it is."""
    found = project(np.array([2.0, -0.5], np.float32), array(8, 13), array(5, 8, 13))
    assert found.tolist() == [1.25, 0.75, -0.5]
    assert found.dtype == np.float32


def test_tokens_merged_are_summed():
    assert project(np.array([1, 2, 4], np.float32), array(1, 3, 6), array(3, 6)).tolist() == [3.0, 4.0]


def test_a_border_within_both_is_shared_by_letters():
    """ab|cd -> a|bcd: half of the first goes with the second."""
    assert project(np.array([1, 3], np.float32), array(2, 4), array(1, 4)).tolist() == [0.5, 3.5]


def test_a_token_without_letters_gives_its_score_to_the_one_before_or_else_to_the_first():
    """A blank that the text lacks (0 letters, 5), "a" (1), nothing (3), "b" (2), nothing (7)."""
    scores, borders = np.array([5, 1, 3, 2, 7], np.float32), array(0, 1, 1, 2, 2)
    assert project(scores, borders, array(1, 2)).tolist() == [9.0, 9.0]


def test_the_end_of_turn_keeps_its_score_behind_a_token_without_letters():
    """ "abc" (1), a line break at the end that the text lacks (2), the end of turn (3)."""
    ours = array(3, 3, 4)
    assert project(np.array([1, 2, 3], np.float32), ours, ours).tolist() == [3, 0, 3]


def test_a_token_without_letters_of_the_other_tokenizer_gets_nothing():
    assert project(np.array([4, 6], np.float32), array(1, 2), array(0, 1, 1, 2, 2)).tolist() == [0, 4, 0, 6, 0]


def test_what_reaches_beyond_the_scored_text_gets_nothing_for_it():
    assert project(np.array([4, 6], np.float32), array(1, 2), array(1, 5, 6)).tolist() == [4, 6, 0]


twelfths = st.lists(st.integers(0, 48), min_size=1, max_size=12).map(sorted)


@settings(deadline=None)
@given(twelfths.filter(lambda ends: ends[-1] > 0), twelfths, st.integers(0, 99))
def test_it_is_the_slow_projection_and_conserves_the_sum(ends, other_ends, seed):
    borders, others = np.array(ends) / 12, np.array([*other_ends, ends[-1] + other_ends[-1]]) / 12
    scores = np.random.default_rng(seed).normal(size=len(ends)).astype(np.float32)
    found = project(scores, borders, others)
    slow = letter_by_letter(scores.tolist(), borders, np.minimum(others, borders[-1]))
    np.testing.assert_allclose(found, slow, atol=1e-5)
    assert found.sum(dtype=np.float64) == pytest.approx(scores.sum(dtype=np.float64), abs=1e-5)


@settings(deadline=None)
@given(twelfths.filter(lambda ends: ends[0] > 0), twelfths, st.integers(0, 99))
def test_there_and_back_keeps_every_stretch_between_common_borders(ends, other_ends, seed):
    ends = sorted(set(ends))
    borders, others = np.array(ends) / 12, np.array(sorted({*other_ends, 48, ends[-1]} - {0})) / 12
    scores = np.random.default_rng(seed).normal(size=len(ends)).astype(np.float32)
    back = project(project(scores, borders, others), others, borders)
    common = np.isin(borders, others)
    np.testing.assert_allclose(np.cumsum(back)[common], np.cumsum(scores)[common], atol=1e-5)
