"""Where tokens end in the text of a response, for tokenizers of many kinds."""

import numpy as np
import pytest

from stages.tokens.encode import Encoder
from stages.tokens.offsets import token_ends
from stages.types import Pair
from tests.tokenizers_zoo import FAMILIES, TEMPLATES, dress

TEXT = "na\u00efve caf\u00e9 \U0001f600 the  quick\n\tfox e\u0301 \u65e5\u672c jumps!"
ANSWERING = sorted(set(TEMPLATES) - {"asks_for_thoughts"})


def located(tokenizer, text, other="no"):
    return Encoder(tokenizer).offsets(Pair(4, [{"role": "user", "content": "what is it?"}], text, other))


def test_tokens_that_make_a_letter_together_share_it():
    """Letter 1 is of three tokens, a third each."""
    assert token_ends([(0, 2), (1, 2), (1, 3), (3, 4)], 4).tolist() == [1.333333333, 1.666666667, 3, 4]


def test_letters_of_no_token_go_to_the_one_behind_them_and_at_the_end_to_nobody():
    assert token_ends([(0, 1), (3, 4)], 6).tolist() == [1, 4]


def test_a_token_without_letters_ends_where_the_one_before_ends():
    assert token_ends([(0, 0), (0, 2), (2, 2), (0, 0), (2, 3)], 3).tolist() == [0, 2, 2, 2, 3]


def test_no_tokens_at_all():
    assert token_ends([], 3).tolist() == []


@pytest.mark.parametrize("template", [*ANSWERING, None])
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_the_encoder_s_and_borders_run_through_the_text(family, template):
    tokenizer = dress(FAMILIES[family](), template)
    found = located(tokenizer, f" {TEXT}\n", "no")
    encoded = Encoder(tokenizer).encode(Pair(4, [{"role": "user", "content": "what is it?"}], f" {TEXT}\n", "no"))
    for ours, theirs in zip((found.prompt_ids, found.chosen.ids, found.rejected.ids), encoded[1:], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (found.pair_id, found.chosen.text, found.rejected.text) == (4, TEXT, "no")
    ends = found.chosen.ends
    assert len(ends) == len(found.chosen.ids)
    assert (np.diff(ends) >= 0).all()
    assert ends[-1] == len(TEXT) + 1
    assert len(TEXT) in ends


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"words", "unigram"}))
def test_every_token_stands_where_its_text_is(family):
    """The text up to a border between letters is what the tokens up to there spell."""
    tokenizer = dress(FAMILIES[family](), "chatml")
    text = "the quick fox says caf\u00e9 and \u65e5\u672c"
    found = located(tokenizer, text)
    whole = 0
    for count, border in enumerate(found.chosen.ends[:-1], start=1):
        if border == int(border):
            spelled = tokenizer.decode(found.chosen.ids[:count], clean_up_tokenization_spaces=False)
            assert spelled.strip() == text[: int(border)].strip()
            whole += 1
    assert whole > 6


def test_an_accent_that_a_tokenizer_composes_with_its_letter_is_taken_by_the_token_behind():
    """e and its accent, two letters, become one of two bytes, which the tokenizer says stand for the e alone."""
    found = located(dress(FAMILIES["byte_level_nfc"](), "chatml"), "e\u0301x")
    assert found.chosen.ends.tolist() == [0.5, 1, 3, 4]


def test_an_end_of_turn_that_no_text_spells_stands_behind_the_text():
    """A tokenizer without a template: eos is put behind the ids."""
    found = located(dress(FAMILIES["byte_level"](), None), "the fox")
    assert found.chosen.ends[-2:].tolist() == [7, 8]
