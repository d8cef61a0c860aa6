import numpy as np
import pytest

from stages.data.conversations import EMPTY_RESPONSE
from stages.tokens.encode import NEEDS_TEMPLATE, SAME_WHEN_CUT, Encoder, truncate
from stages.types import Dropped, Pair
from tests.conftest import CHATML, byte_level_tokenizer


def user(text):
    return [{"role": "user", "content": text}]


def encode(tokenizer, prompt, chosen="It is Paris", rejected="sorry"):
    return Encoder(tokenizer).encode(Pair(3, prompt, chosen, rejected))


def text_of(tokenizer, ids):
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def test_a_prompt_without_a_token_is_dropped_and_counted():
    """A vocabulary without unk knows nothing of it: there would be nothing to answer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "</s>": 2}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    encoder = Encoder(PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="</s>"))
    found = encoder.encode(Pair(4, [{"role": "user", "content": "日本"}], "a", "b"))
    assert found == Dropped(4, "the tokenizer has no token for the prompt")


def test_pad_equal_to_eos_is_still_an_end_of_turn(chatml):
    """SmolLM2's case: the end of turn is eos and pad at once, a newline follows it in the template."""
    assert chatml.pad_token_id == chatml.eos_token_id
    pair = encode(chatml, user("what is it?"))
    assert text_of(chatml, pair.prompt_ids) == "<|im_start|>user\nwhat is it?<|im_end|>\n<|im_start|>assistant\n"
    assert text_of(chatml, pair.chosen_ids) == "It is Paris<|im_end|>"
    assert text_of(chatml, pair.rejected_ids) == "sorry<|im_end|>"
    for ids in (pair.chosen_ids, pair.rejected_ids):
        assert ids.tolist().count(chatml.eos_token_id) == 1
        assert ids[-1] == chatml.eos_token_id


def test_no_template_is_plain_text():
    tokenizer = byte_level_tokenizer(None, eos_token="</s>")
    pair = encode(tokenizer, user("what is "), "it", "not it")
    assert text_of(tokenizer, pair.prompt_ids) == "what is "
    assert text_of(tokenizer, pair.chosen_ids) == "it</s>"
    several = [*user("a"), {"role": "assistant", "content": "b"}, *user("c")]
    assert encode(tokenizer, several) == Dropped(3, NEEDS_TEMPLATE)


def test_sft_pairs_have_one_response(chatml):
    pair = encode(chatml, user("what?"), "It is", "")
    assert len(pair.rejected_ids) == 0


@pytest.mark.parametrize("template", [CHATML, None])
@pytest.mark.parametrize("answer", [" ", "\n\t ", "\u3000"])
def test_blanks_are_no_answer(template, answer):
    tokenizer = byte_level_tokenizer(template, eos_token="<|im_end|>")
    assert encode(tokenizer, user("what?"), answer) == Dropped(3, EMPTY_RESPONSE)
    assert encode(tokenizer, user("what?"), "It is", answer) == Dropped(3, EMPTY_RESPONSE)


def test_what_is_too_long_is_cut_at_its_end_and_has_no_end_of_turn(chatml):
    whole = encode(chatml, user("what?"), "It is Paris, of course", "sorry")
    asked, said, other = (len(ids) for ids in whole[1:])
    assert said > other + 1
    assert same(truncate(whole, asked + said), whole)
    for room in range(other, said):
        cut = truncate(whole, asked + room)
        assert cut.prompt_ids.tolist() == whole.prompt_ids.tolist()
        assert cut.chosen_ids.tolist() == whole.chosen_ids.tolist()[:room]
        assert chatml.eos_token_id not in cut.chosen_ids
        # What fits keeps its end of turn: that is real.
        assert cut.rejected_ids.tolist() == whole.rejected_ids.tolist()


def test_a_prompt_that_leaves_no_room_is_dropped(chatml):
    pair = encode(chatml, user("what?"))
    asked = len(pair.prompt_ids)
    assert len(truncate(pair, asked + 1).chosen_ids) == 1
    for limit in (asked, asked - 1, 1):
        assert truncate(pair, limit) == Dropped(3, f"prompt leaves no room for a response in {limit} tokens")


def test_what_differs_only_where_it_is_cut_is_dropped(chatml):
    pair = encode(chatml, user("what?"), "It is Paris", "It is not")
    assert truncate(pair, len(pair.prompt_ids) + 2) == Dropped(3, SAME_WHEN_CUT)
    alone = encode(chatml, user("what?"), "It is Paris", "")
    assert len(truncate(alone, len(alone.prompt_ids) + 2).chosen_ids) == 2


def same(left, right):
    return [np.asarray(ids).tolist() for ids in left] == [np.asarray(ids).tolist() for ids in right]
