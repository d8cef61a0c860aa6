"""Every way in which a text can spell a control token."""

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stages.tokens.encode import CONTROL, Encoder
from stages.types import Dropped, Pair
from tests.tokenizers_zoo import FAMILIES, TEMPLATES, byte_level, dress


def verdict(tokenizer, text, answer="It is", other="sorry"):
    pair = Encoder(tokenizer).encode(Pair(0, [{"role": "user", "content": text}], answer, other))
    return pair.reason if isinstance(pair, Dropped) else "kept"


def with_token(token, template="chatml", normalizer=None):
    tokenizer = Tokenizer.from_str(byte_level().to_str())
    tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens([token]) if token.special else tokenizer.add_tokens([token])
    return dress(tokenizer, TEMPLATES["chatml"].replace("<|im_end|>", token.content) if template == "own" else template)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("template", ["chatml", None])
def test_every_special_token_of_every_family(family, template):
    tokenizer = dress(FAMILIES[family](), template)
    for token in tokenizer.added_tokens_decoder.values():
        if token.special:
            assert verdict(tokenizer, f"so {token.content} now") == CONTROL
            assert verdict(tokenizer, "what?", f"{token.content}It is") == CONTROL
            assert verdict(tokenizer, "what?", other=f"sorry{token.content}") == CONTROL
    assert verdict(tokenizer, "so im_end now <| |> [/INST] <>") == "kept"


@pytest.mark.parametrize(
    "options", [{}, {"lstrip": True}, {"rstrip": True}, {"lstrip": True, "rstrip": True}, {"single_word": True}]
)
@pytest.mark.parametrize("special", [True, False])
def test_an_end_of_turn_that_was_added(options, special):
    """As a special token or not (fine-tunes add ChatML's tokens either way), taking blanks with it or not."""
    tokenizer = with_token(AddedToken("<eot>", special=special, normalized=False, **options), "own")
    encoder = Encoder(tokenizer)
    assert encoder.end_of_turn == tokenizer.convert_tokens_to_ids("<eot>")
    for text in ("so <eot> now", "<eot>", "so\n <eot>\n now"):
        assert verdict(tokenizer, text) == CONTROL
        assert verdict(tokenizer, "what?", text) == CONTROL
    pair = encoder.encode(Pair(0, [{"role": "user", "content": "what?"}], "It is", ""))
    assert pair.chosen_ids.tolist().count(encoder.end_of_turn) == 1
    assert pair.chosen_ids[-1] == encoder.end_of_turn


@pytest.mark.parametrize("spelled", ["<EOT>", "<eot>", "\uff1cEOT\uff1e", "<Eot>"])
def test_a_token_that_is_matched_after_normalising(spelled):
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer = with_token(AddedToken("<EOT>", special=True, normalized=True), normalizer=normalizer)
    assert tokenizer.convert_tokens_to_ids("<EOT>") in tokenizer(f"so {spelled} now")["input_ids"]
    assert verdict(tokenizer, f"so {spelled} now") == CONTROL
    assert verdict(tokenizer, "so EOT now") == "kept"


def test_a_token_with_a_role_that_was_never_added():
    """A word of the vocabulary as eos: the tokenizer knows nothing special about it."""
    vocabulary = {"<unk>": 0, "END": 1, "so": 2, "now": 3, "sorry": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    fast.eos_token = "END"
    assert "END" not in [token.content for token in fast.added_tokens_decoder.values()]
    assert verdict(fast, "so END now") == CONTROL
    assert verdict(fast, "so now", "so END now") == CONTROL
    assert verdict(fast, "so now", "so now") == "kept"


def test_added_tokens_that_are_not_the_templates_are_text():
    """<think> can be in the data of a model that thinks; it begins and ends no turn."""
    token = AddedToken("<think>", special=False, normalized=False)
    for template in ("chatml", "thinks_in_final_turn", None):
        assert verdict(with_token(token, template), "so <think> now") == "kept"


def test_a_turn_cannot_be_begun_either():
    tokenizer = with_token(AddedToken("<turn>", special=False, normalized=False))
    tokenizer.chat_template = TEMPLATES["chatml"].replace("<|im_start|>", "<turn>")
    assert verdict(tokenizer, "so <turn>assistant now") == CONTROL


def test_an_unknown_character_is_no_end_of_turn():
    """Its id is that of a special token, and the newline after an answer may be one."""
    tokenizer = dress(
        FAMILIES["unigram"](), "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    )
    assert tokenizer("\n", add_special_tokens=False)["input_ids"][-1] == tokenizer.unk_token_id
    assert Encoder(tokenizer).end_of_turn == tokenizer.eos_token_id


def test_the_end_of_turn_is_a_special_token_where_there_is_one():
    """Not a tag before it, though that is an added token too."""
    tokenizer = with_token(AddedToken("</answer>", special=False, normalized=False))
    tokenizer.chat_template = TEMPLATES["chatml"].replace("'<|im_end|>'", "'</answer><|im_end|>'")
    encoder = Encoder(tokenizer)
    assert encoder.end_of_turn == tokenizer.convert_tokens_to_ids("<|im_end|>")
    pair = encoder.encode(Pair(0, [{"role": "user", "content": "what?"}], "It is", ""))
    assert tokenizer.decode(pair.chosen_ids) == "It is</answer><|im_end|>"


def test_blanks_that_are_added_tokens_are_text():
    """Gemma's newline is one, and its template writes it."""
    tokenizer = with_token(AddedToken("\n", special=False, normalized=False))
    assert verdict(tokenizer, "so\nnow", "It\nis") == "kept"
