"""The demo's model: a Llama of about a tenth of a million parameters, untrained, that knows one token a word."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stages.models.folders import save_model

UNKNOWN: Final = "<unk>"
BEGIN: Final = "<s>"
PADDING: Final = "<pad>"
END_OF_TURN: Final = "<|end|>"
ROLES: Final = ("<|system|>", "<|user|>", "<|assistant|>")
MOST_TOKENS: Final = 512
_WEIGHT_SPREAD: Final = 0.06
"""Llama's 0.02 suits widths of thousands; from it a width of 64 learnt no copying of the prompt's nouns in 300 steps"""

_CHAT_TEMPLATE: Final = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message['role']) }}"
    "{% endif %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_demo_model(folder: Path, words: Sequence[str], seed: int, *, layers: int = 2, width: int = 64) -> None:
    """Write a `save_pretrained` folder: random float32 weights, tokenizer, chat template.

    The same words and seed give the same bytes (under the same version of transformers). A word has no blanks.
    """
    tokenizer = demo_tokenizer(words)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 5 // 2,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MOST_TOKENS,
        tie_word_embeddings=False,
        initializer_range=_WEIGHT_SPREAD,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        save_model(LlamaForCausalLM(config), tokenizer, folder)


def demo_tokenizer(words: Sequence[str]) -> Any:
    """A word-level tokenizer: one token a word between blanks, decoded with single blanks between words.

    Like Llama's it puts a BOS before plain text, and its chat template writes the BOS itself.
    """
    special = [UNKNOWN, BEGIN, PADDING, END_OF_TURN, *ROLES]
    vocabulary = {token: id_ for id_, token in enumerate([*special, *words])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, vocabulary[BEGIN])])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END_OF_TURN,
        pad_token=PADDING,
        extra_special_tokens=list(ROLES),
        model_max_length=MOST_TOKENS,
        # The text of a response holds " ." with its blank; cleaning it up would make another text.
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer
