"""Hashes of what decides which ids a text becomes, and what ids mean: the tokenizer, and the code that uses it."""

import functools
import inspect
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from stages.errors import SepoError
from stages.store.files import hash_file, hash_json
from stages.store.manifest import TOKENIZATION, Input
from stages.types import Tokenizer

_LIBRARIES: Final = ("tokenizers", "transformers", "jinja2")


def vocabulary_hash(tokenizer: Tokenizer) -> str:
    """Hash of the token->id map: two models whose hashes agree give every id the same meaning."""
    return hash_json(tokenizer.get_vocab())


def refuse_other_tokens(one: Tokenizer, other: Tokenizer, whose: str, hint: str) -> None:
    """Refuse two tokenizers that give an id another meaning; `whose` they are, as in ``oracle and reference``."""
    if vocabulary_hash(one) != vocabulary_hash(other):
        sizes = f"{len(one):,} and {len(other):,} tokens"
        raise SepoError(f"{whose} do not share a token->id map ({sizes})", hint=hint)


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """What every id of the token->id map is below, whether or not all ids up to there have a token."""
    return 1 + max(map(int, tokenizer.get_vocab().values()))


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """Hash of what ids mean: token->id map, special tokens, chat template."""
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return hash_json([tokenizer.get_vocab(), special, tokenizer.chat_template])


def tokenizer_section(tokenizer: Tokenizer) -> dict[str, Any]:
    """What a manifest of scores says of the tokenizer that their ids are of."""
    return {
        "vocabulary": vocabulary_hash(tokenizer),
        "hash": tokenizer_hash(tokenizer),
        "size": vocabulary_size(tokenizer),
    }


def tokenizer_inputs(name: str, tokenizer: Tokenizer) -> dict[str, Input]:
    """The tokenizer as an input of a run: its hash, and another of how it cuts text, which earlier manifests lack."""
    return {
        "tokenizer": Input(name, tokenizer_hash(tokenizer)),
        TOKENIZATION: Input(name, tokenization_hash(tokenizer)),
    }


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """``sha256:...`` of a tokenizer: vocabulary, merges, normaliser, added and special tokens, chat template, class.

    More than `tokenizer_hash`, which tells whether two models give the same meaning to an id.
    """
    kind = type(tokenizer)
    # A tokenizer may come with its model.
    foreign = not kind.__module__.startswith("transformers.")
    return hash_json(
        {
            "class": f"{kind.__module__}.{kind.__qualname__}",
            "code": inspect.getsource(sys.modules[kind.__module__]) if foreign else "",
            "state": _state(tokenizer),
            "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
            "splits_special": bool(tokenizer.split_special_tokens),
            "template": tokenizer.chat_template,
        }
    )


def tokenization_hash(tokenizer: Tokenizer) -> str:
    """``sha256:...`` of how a tokenizer cuts text: merges, normaliser, pre-tokenizer, added tokens."""
    return hash_json(_state(tokenizer))


@functools.cache
def code_fingerprint() -> str:
    """``sha256:...`` of the modules beside this one and of the libraries that they call.

    Read from the files, so that no number has to be raised by hand when a line changes that decides an id.
    """
    return hash_json([modules_hash("data", "tokens"), [version(name) for name in _LIBRARIES]])


def modules_hash(*packages: str) -> str:
    """``sha256:...`` of the modules of some packages of `stages`, and of the types that they share."""
    stages = Path(__file__).parents[1]
    modules = [*(path for package in packages for path in (stages / package).glob("*.py")), stages / "types.py"]
    return hash_json({str(path.relative_to(stages)): hash_file(path) for path in modules})


def _state(tokenizer: Tokenizer) -> Any:
    if tokenizer.is_fast:
        # Every call sets these two anew.
        return json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    # Its vocabulary as it would save it: a SentencePiece model holds more than a list of tokens.
    added = {number: repr(token) for number, token in tokenizer.added_tokens_decoder.items()}
    options = {name: repr(value) for name, value in tokenizer.init_kwargs.items() if name != "name_or_path"}
    return [tokenizer.get_vocab(), added, options, _saved_vocabulary(tokenizer)]


def _saved_vocabulary(tokenizer: Tokenizer) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            tokenizer.save_vocabulary(folder)
        except NotImplementedError:
            return {}
        return {path.name: hash_file(path) for path in Path(folder).iterdir()}
