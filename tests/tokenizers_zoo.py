"""Tokenizers of different families, trained on a few sentences, and chat templates in the manners of published ones."""

import functools
import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.conftest import BOS_TEMPLATE, CHATML, SENTENCES

MARK = "\u2581"
SPECIAL = [
    "<unk>",
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
    "<|endoftext|>",
]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

_TURNS = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
_ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_NO_THOUGHTS = "<think>\\n\\n</think>\\n\\n"

TEMPLATES = {
    "chatml": CHATML,
    "bos": BOS_TEMPLATE,
    # The answer stands behind a blank that is no part of the generation prompt; the eos behind another one.
    "llama2": (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
        "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
    ),
    # The end of turn is not eos, and the turns are stripped.
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{{ '<|im_start|>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n'"
        " + m['content'] | trim + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
    ),
    # A newline and an eos after the end of turn, the eos only where no answer is asked for.
    "phi3": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "dated": (
        "{% if strftime_now is defined %}{% set today = strftime_now('%d %b %Y') %}{% else %}{% set today = 'none' %}{% endif %}"
        "{{ '<|im_start|>system\nToday: ' + today + '<|im_end|>\n' }}" + _TURNS + _ASK
    ),
    # SmolLM2: a system turn of its own where the conversation has none.
    "default_system": (
        "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}" + _ASK
    ),
    # Qwen3: the final turn thinks, or says that it does not; an answer's own thoughts are kept.
    "thinks_in_final_turn": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if loop.last and m['role'] == 'assistant' %}"
        "{% set thoughts = m['content'].split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in m['content'] else '' %}"
        "{{ '<think>\n' + thoughts + '\n</think>\n\n' + m['content'].split('</think>')[-1].lstrip('\n') }}"
        "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}" + _ASK
    ),
    # Qwen3 asked with enable_thinking=False, in an old version: the block is in the generation prompt alone.
    "no_thoughts_in_prompt": _TURNS + _ASK.replace("assistant\n", "assistant\n" + _NO_THOUGHTS.replace("\\n", "\n")),
    # DeepSeek-R1, QwQ: the model is asked to think, what is rendered afterwards has no thoughts.
    "asks_for_thoughts": _TURNS + _ASK.replace("assistant\n", "assistant\n<think>\n"),
    # The answer stands right behind a special token.
    "direct": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    ),
    # No generation prompt at all.
    "no_generation_prompt": _TURNS,
}


def dress(tokenizer, template=None, **options):
    """The tokenizer for transformers, with a chat template (a name of `TEMPLATES`, or its text, or None)."""
    roles = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"} | options
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.to_str()), **{k: v for k, v in roles.items() if v}
    )
    fast.chat_template = TEMPLATES.get(template, template)
    return fast


@functools.cache
def byte_level(nfc=False):
    """GPT-2, Llama 3, Qwen2 (which composes characters first): every byte is a token, blanks belong to words."""
    tokenizer = Tokenizer(models.BPE())
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        _TEXTS,
        trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    return tokenizer


@functools.cache
def sentencepiece(scheme):
    """SentencePiece BPE with bytes for what is unknown. Scheme: "first" (Mistral), "always", "never" (Gemma) as
    Metaspace, or "legacy" (Llama 2): a normaliser that puts a mark before every piece of text between special tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(MARK, prepend_scheme="always" if scheme == "legacy" else scheme)
    tokenizer.train_from_iterator(
        _TEXTS, trainers.BpeTrainer(vocab_size=700, special_tokens=[*SPECIAL, *BYTES], show_progress=False)
    )
    state = json.loads(tokenizer.to_str())
    # Bytes are ordinary tokens: nobody can spell one.
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in SPECIAL]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    steps = [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if scheme != "never":
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    if scheme == "legacy":
        tokenizer.pre_tokenizer = None
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)])
    return tokenizer


@functools.cache
def unigram():
    """SentencePiece Unigram (T5, ALBERT): the likeliest cut of a word, unknown characters are <unk>."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(MARK, prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(MARK, prepend_scheme="first")
    tokenizer.train_from_iterator(
        _TEXTS, trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    )
    return tokenizer


@functools.cache
def words():
    """A word is a token, or <unk>; blanks are lost."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(_TEXTS, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False))
    return tokenizer


@functools.cache
def with_added_tokens():
    """Byte-level, with tokens added that are not special: Qwen3's <think>, and one that takes blanks with it."""
    tokenizer = Tokenizer.from_str(byte_level().to_str())
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("<think>", "</think>")])
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False, lstrip=True, rstrip=True)])
    return tokenizer


FAMILIES = {
    "byte_level": byte_level,
    "byte_level_nfc": functools.partial(byte_level, nfc=True),
    "metaspace_first": functools.partial(sentencepiece, "first"),
    "metaspace_always": functools.partial(sentencepiece, "always"),
    "metaspace_never": functools.partial(sentencepiece, "never"),
    "llama2_legacy": functools.partial(sentencepiece, "legacy"),
    "unigram": unigram,
    "words": words,
    "added_tokens": with_added_tokens,
}
LOSSLESS = sorted(set(FAMILIES) - {"unigram", "words", "byte_level_nfc"})
"""decode(encode(text)) == text for any text (SentencePiece: any without its mark)"""

_TEXTS = [*SENTENCES, "model system [INST] what is it? [/INST] Today 26 Jul 2024", "think tool: 1 2 3"] * 3
