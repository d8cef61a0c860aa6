"""Templates of many manners: the whole answer is in the response, or the row is unusable and the reason says why."""

import json

import pytest
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers

from stages.data.layouts import read_pairs
from stages.errors import SepoError
from stages.reporting import Quiet
from stages.tokens import rendering
from stages.tokens.chat import NO_BEGINNING, NO_END, NO_SYSTEM, NOT_CONTINUED, REFUSED, REWRITTEN
from stages.tokens.dataset import tokenised
from stages.tokens.encode import Encoder
from stages.tokens.round_trip import OTHER_BLANKS, OTHER_LETTERS
from stages.types import Dropped, Pair
from tests.conftest import byte_level_tokenizer, write_lines

ANSWER = "Four\n\n  and <b>more</b>, 4 na\u00efve"
THOUGHTS = "<think>2 + 2</think>" + ANSWER
SYSTEM = {"role": "system", "content": "Be brief"}
END = "<|im_end|>"


def template(turn="{{ m.content }}", ask="", start="", between="<|im_end|>\n", last="<|im_end|>\n"):
    """`turn`: of the assistant; `ask`: behind the generation prompt's header."""
    return (
        start + "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}" + turn
        + "{% else %}{{ m.content }}{% endif %}{% if loop.last and m.role == 'assistant' %}" + last
        + "{% else %}" + between + "{% endif %}{% endfor %}"
        + "{% if add_generation_prompt %}<|im_start|>assistant\n" + ask + "{% endif %}"
    )  # fmt: skip


def texts(written, chosen=ANSWER, system=False, **arguments):
    tokenizer = byte_level_tokenizer(written, eos_token="</s>", bos_token="<s>")
    markers = ("<|channel|>", "<|message|>", "[THINK]", "[/THINK]", "<think>", "</think>")
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in markers])
    prompt = [*([SYSTEM] if system else []), {"role": "user", "content": "what?"}]
    pair = Encoder(tokenizer).encode(Pair(0, prompt, chosen, "Five", arguments))
    return pair.reason if isinstance(pair, Dropped) else [tokenizer.decode(ids) for ids in pair[1:]]


WHOLE = {
    "plain": (template(), "", END),
    "trims": (template("{{ m.content | trim }}"), "", END),
    "generation": (template("{% generation %}{{ m.content }}{% endgeneration %}"), "", END),
    "two starts": (template(start="{{ bos_token }}{{ bos_token }}"), "", END),
    "a header": (template("<|channel|>final<|message|>{{ m.content }}"), "<|channel|>final<|message|>", END),
    "a closed channel": (template(ask="<|channel|>thought\n<|message|>"), "<|channel|>thought\n<|message|>", END),
    "closed in brackets": (template(ask="[THINK][/THINK]"), "[THINK][/THINK]", END),
    "closed in one line": (template(ask="<think></think>"), "<think></think>", END),
    "opens, closed in one line": (template("<think></think>{{ m.content }}", ask="<think>\n"), "<think></think>", END),
    "opens, and only closes": (template("</think>{{ m.content }}", ask="<think>"), "</think>", END),
    "closes both": (template("</think>{{ m.content }}", ask="</think>"), "</think>", END),
    "no end at the last": (template(last=""), "", END),
    "no end at all": (template(between="", last=""), "", "<|im_start|>"),
    "an end of words": (template(between=";", last=";").replace("<|im_start|>", "# "), "", ";</s>"),
    "an eos between": (template(between="</s>", last="").replace("<|im_start|>", "# "), "", "</s>"),
    "a start between": (template(between="<s>", last="").replace("<|im_start|>", "# "), "", "</s>"),
}
LOST = {
    "strips thoughts": (template("{{ m.content.split('</think>')[-1] }}"), NO_BEGINNING),
    "cuts": (template("{{ m.content[:11] }}"), NO_END),
    "cuts long ones": (template("{{ m.content[:20] }}"), NO_END),
    "joins lines": (template("{{ m.content | replace('\n', ' ') }}"), REWRITTEN),
    "loses indents": (template("{{ m.content | replace('  ', '') }}"), REWRITTEN),
    "escapes": (template("{{ m.content | escape }}"), REWRITTEN),
    "without digits": (template("{{ m.content | replace('4', '') }}"), REWRITTEN),
    "reads out letters": (template("{{ m.content | replace('\u00ef', 'i') }}"), REWRITTEN),
    "opens thoughts": (template(ask="<think>\n"), NOT_CONTINUED),
    "asks for words": (template(ask="Well, "), NOT_CONTINUED),
    "opens a channel that it knows": (
        template(
            "{% if m.thinking %}<|channel|>analysis<|message|>{{ m.thinking }}{% endif %}{{ m.content }}",
            ask="<|channel|>analysis<|message|>",
        ),
        NOT_CONTINUED,
    ),
    "divides by zero": (template("{% if 'more' in m.content %}{{ 1 / 0 }}{% endif %}{{ m.content }}"), REFUSED),
    "adds numbers": (template("{% if 'more' in m.content %}{{ m.content + 1 }}{% endif %}{{ m.content }}"), REFUSED),
    "a range too long": (
        template("{% if 'more' in m.content %}{{ range(10 ** 9) }}{% endif %}{{ m.content }}"),
        REFUSED,
    ),
    "recurses": (
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}"
        + template("{% if 'more' in m.content %}{{ f(1) }}{% endif %}{{ m.content }}"),
        REFUSED,
    ),
}
BROKEN = {
    "empties": template("{{ '' }}"),
    "upper case": template("{{ m.content | upper }}"),
    "lower case": template("{{ m.content | lower }}"),
    "backwards": template("{{ m.content | reverse }}"),
    "twice": template("{{ m.content }} {{ m.content }}"),
    "without questions": template().replace("{% else %}{{ m.content }}", "{% else %}"),
    "zero": "{{ 1 / 0 }}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "syntax": "{% for %}",
}


@pytest.mark.parametrize("name", WHOLE)
def test_the_whole_answer_is_in_the_response(name):
    written, ask, end = WHOLE[name]
    prompt, chosen, rejected = texts(written)
    assert prompt.endswith("assistant\n" + ask)
    assert (chosen, rejected) == (ANSWER + end, "Five" + end)


@pytest.mark.parametrize("name", LOST)
def test_a_row_whose_answer_is_not_whole_is_unusable(name):
    written, reason = LOST[name]
    assert texts(written, THOUGHTS if reason == NO_BEGINNING else ANSWER) == reason


@pytest.mark.parametrize("name", BROKEN)
def test_a_template_that_never_writes_what_is_said_is_refused(name):
    with pytest.raises(SepoError, match=r"the chat template (fails|leaves out)"):
        texts(BROKEN[name])


def test_a_template_without_end_is_stopped(monkeypatch):
    monkeypatch.setattr(rendering, "SECONDS", 0.2)
    endless = "{% for i in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}" + template()
    with pytest.raises(SepoError, match="for more than 0 seconds"):
        texts(endless)


def test_a_system_turn_that_moves_when_an_answer_follows_is_asked_with():
    """Mistral writes it into the last turn, if that is the user's."""
    moves = (
        "{% set s = messages[0].content if messages[0].role == 'system' else '' %}{% for m in messages if m.role != 'system' %}"
        "{% if m.role == 'user' %}[INST]{% if loop.last and s %}{{ s }}\n\n{% endif %}{{ m.content }}[/INST]"
        "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
    )
    assert texts(moves, system=True) == ["[INST]Be brief\n\nwhat?[/INST]", f" {ANSWER}</s>", " Five</s>"]
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + template()
    assert texts(refuses, system=True) == NO_SYSTEM


def fitted(change):
    tokenizer = byte_level_tokenizer(template(), eos_token="</s>")
    change(tokenizer)
    return tokenizer


def metaspace(tokenizer):
    """What transformers makes of a byte-level file whose class is said to be Llama's."""
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", prepend_scheme="first")
    tokenizer.backend_tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse()])


def split_special(tokenizer):
    tokenizer.split_special_tokens = True


def no_alphabet(tokenizer):
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"] = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[none]"}
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(state))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (metaspace, "loses all blanks"),
        (split_special, "split_special_tokens"),
        (no_alphabet, "fails on its first text"),
    ],
)
def test_a_tokenizer_that_spoils_all_text_is_refused(change, message):
    with pytest.raises(SepoError, match=message):
        Encoder(fitted(change))


def replacing(pattern, by):
    def change(tokenizer):
        tokenizer.backend_tokenizer.normalizer = normalizers.Replace(pattern, by)

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (replacing("\u20ac", ""), OTHER_LETTERS),
        (replacing("Paris", "paris"), OTHER_LETTERS),
        (replacing("   ", " "), OTHER_BLANKS),
        (replacing("\r", "\n"), OTHER_BLANKS),
        (replacing("never", "there"), None),
    ],
)
@pytest.mark.parametrize("place", ["prompt", "chosen", "rejected"])
def test_a_tokenizer_that_damages_what_a_row_holds(tmp_path, change, reason, place):
    """What it makes of the probe is whole: only the row shows it."""
    said = "\u20ac 5 in Paris:   e\u0301\r"
    whole = {"prompt": "what?", "chosen": "so", "rejected": "no"}
    path = write_lines(tmp_path / "pairs.jsonl", [whole, whole | {place: said + "now"}, whole])
    encoder = Encoder(fitted(change))
    read = [encoder.encode(pair) for pair in read_pairs(str(path))]
    assert [getattr(pair, "reason", None) for pair in read] == [None, reason, None]


def test_what_a_tokenizer_is_made_to_change_is_counted_and_drops_no_row(tmp_path):
    """Capital letters: said again where the ids come from the cache, and not at all where there are none."""

    def lower(tokenizer):
        tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()

    encoder = Encoder(fitted(lower))
    known = {"prompt": "the quick fox", "chosen": "the dog", "rejected": "the lazy dog"}
    for name, rows in {"known": [known], "other": [known, known | {"prompt": "Paris"}]}.items():
        path = write_lines(tmp_path / f"{name}.jsonl", rows)
        for _ in range(2):
            reporter = Quiet()
            found = tokenised(str(path), encoder, reporter=reporter)
            assert (found.counts.read, found.counts.dropped) == (len(rows), {})
            said = [line for line in reporter.warnings if "the tokenizer changes" in line]
            assert len(said) == (name == "other")
    assert "the tokenizer changes 1 texts: '<|im_start|>user\\nParis" in said[0]
