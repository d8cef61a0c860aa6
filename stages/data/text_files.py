"""A file of text, plain or compressed, as lines or as pieces of bounded length: what is packed may be any size.

What its rows are is for `stages.data.json_files` and `stages.data.files` to say.
"""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import pyarrow as pa

from stages.errors import SepoError, one_line

Placed = tuple[str, dict[str, Any]]
"""where a row stands, and the row"""

LONGEST: Final = 1 << 26
"""bytes of a line, or of one object of a list: a file without a line end would otherwise be taken into memory whole"""
COMPRESSED: Final = (".gz", ".zst")
DAMAGED_HINT: Final = "make or download the file again"
UTF8_HINT: Final = "save the file as UTF-8"
_PIECE: Final = 1 << 16


def kind(value: Any) -> str:
    """What a value of a row is, in words for a message: ``null``, ``a number``, ``a list``."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number"}
    names |= {str: "text", bytes: "bytes", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def unreadable(name: str, error: OSError) -> SepoError:
    return SepoError(f"{name} cannot be read: {error.strerror or error}", hint="check the file and its permissions")


def lines(path: Path, name: str) -> Iterator[bytes]:
    """The lines of a file, decompressed, without a byte order mark.

    Raises:
        SepoError: the file is damaged, or a line too long.
    """
    with _opened(path, name) as file:
        number = 1
        line = file.readline(LONGEST + 1).removeprefix(codecs.BOM_UTF8)
        while line:
            if len(line) > LONGEST:
                raise SepoError(f"{name}:{number}: a line of more than {LONGEST:,} bytes", hint="give each row a line")
            yield line
            number += 1
            line = file.readline(LONGEST + 1)


def pieces(path: Path, name: str) -> Iterator[str]:
    """The text of a file, piece by piece, decompressed, without a byte order mark; errors as `lines`."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with _opened(path, name) as file:
        read = 0
        piece = file.read(_PIECE).removeprefix(codecs.BOM_UTF8)
        while piece:
            before = read - len(decoder.getstate()[0])
            try:
                yield decoder.decode(piece)
            except UnicodeDecodeError as error:
                raise _not_utf8(name, before + error.start) from error
            read += len(piece)
            piece = file.read(_PIECE)
        try:
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise _not_utf8(name, read - len(error.object)) from error


def decoded(data: bytes, where: str) -> str:
    """
    Args:
        where: the bytes stand, for messages.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _not_utf8(where, error.start) from error


@contextmanager
def _opened(path: Path, name: str) -> Iterator[BinaryIO]:
    try:
        with _stream(path) as file:
            yield file
    except EOFError as error:
        raise SepoError(f"{name}: the gzip data ends too early", hint=DAMAGED_HINT) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise SepoError(f"{name}: damaged gzip data: {one_line(error)}", hint=DAMAGED_HINT) from error
    except OSError as error:
        if error.errno is not None:
            raise unreadable(name, error) from error
        # Arrow's own, which have no number.
        raise SepoError(f"{name}: damaged zstd data: {one_line(error)}", hint=DAMAGED_HINT) from error


def _stream(path: Path) -> BinaryIO:
    match path.suffix.lower():
        case ".gz":
            return cast(BinaryIO, gzip.open(path, "rb"))
        case ".zst":
            return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"), _PIECE)
    return path.open("rb")


def _not_utf8(where: str, start: int) -> SepoError:
    return SepoError(f"{where}: not UTF-8 at byte {start + 1}", hint=UTF8_HINT)
