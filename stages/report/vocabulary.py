"""The tokenizer of a folder of scores, to read tokens with and not to make any: the library tokenizers, no torch."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from huggingface_hub import hf_hub_download
from tokenizers import Tokenizer

from stages.errors import SepoError, borrowed
from stages.report.visible import visible, visible_parts
from stages.store.files import hash_json
from stages.store.shape import lookup

FILE: Final = "tokenizer.json"
MOST_IDS: Final = 1 << 24
"""of a tokenizer; no model has embeddings for more"""
_REMEDY: Final = f"give a folder that holds the {FILE} of the model that was scored with: --tokenizer FOLDER"


class Vocabulary:
    """What each id means."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decode = partial(tokenizer.decode, skip_special_tokens=False)
        self._tokenizer = tokenizer
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        self.hash = hash_json(vocabulary)
        self.size = 1 + max(vocabulary.values(), default=-1)
        added = tokenizer.get_added_tokens_decoder()
        # An added token that is a blank is text (GPT-NeoX has some).
        self.control: Mapping[int, str] = {
            id_: token.content for id_, token in added.items() if not token.content.isspace()
        }
        """id -> name of the control tokens"""

    def texts(self) -> list[str]:
        """Every id's text alone, (V,)."""
        return self.decoded([[id_] for id_ in range(self.size)])

    def decoded(self, rows: list[list[int]]) -> list[str]:
        """The text of each row, control tokens by their names."""
        found: list[str] = self._tokenizer.decode_batch(rows, skip_special_tokens=False)
        return found

    def parts(self, ids: Sequence[int], shown: Callable[[str], str] = visible) -> list[str]:
        """Each token's part of the text of all, visibly; as `stages.report.visible` has it."""
        return visible_parts(ids, self._decode, self.control, shown)

    def type_text(self, id_: int) -> str:
        """A token type visibly, with the blank that it may begin with, which some decoders drop from a beginning."""
        if id_ in self.control:
            return f"«{visible(self.control[id_])}»"
        alone, twice = self._decode([id_]), self._decode([id_, id_])
        return visible(twice[len(alone) :] if twice.startswith(alone) else alone)


def open_vocabulary(manifest: Mapping[str, Any], given: str | None) -> Vocabulary | str:
    """The tokenizer that a manifest of scores names, or another folder's; or, in words, why there is none.

    Args:
        given: folder or hub name that goes before the manifest's.

    Raises:
        SepoError: what was given is no tokenizer, or not that of the scores.
    """
    name = given or lookup(manifest, "input_names.tokenizer")
    if not name:
        return f"the manifest names no tokenizer, so tokens are shown by their ids; {_REMEDY}"
    try:
        found = Vocabulary(_read(name, fetch=given is not None))
        wanted = lookup(manifest, "tokenizer.vocabulary")
        if found.hash != wanted:
            raise SepoError(f"the tokenizer of {name} is not that of the scores: its token->id map differs", _REMEDY)
        if found.size > MOST_IDS:
            raise SepoError(f"the tokenizer of {name} has the id {found.size - 1:,}", _REMEDY)
        return found
    except SepoError as fault:
        if given:
            raise
        return f"{fault.message}, so tokens are shown by their ids; {_REMEDY}"


def _read(name: str, *, fetch: bool) -> Tokenizer:
    """
    Args:
        fetch: from the hub, if it is no folder; else what lies in its cache will do.
    """
    path = Path(name).expanduser() / FILE
    if not path.parent.is_dir():
        repository, _, revision = name.partition("@")
        # What no cache holds is said below, in fewer words than the hub's.
        refused = borrowed(f"there is no folder {name}, and the hub has no {FILE} of that name", _REMEDY)
        with refused if fetch else suppress(Exception):
            path = Path(hf_hub_download(repository, FILE, revision=revision or None, local_files_only=not fetch))
    if not path.exists():
        raise SepoError(f"there is no {FILE} in {path.parent}", hint=_REMEDY)
    with borrowed(f"cannot read {path}", _REMEDY):
        return Tokenizer.from_file(str(path))
