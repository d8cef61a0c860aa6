"""A file of text, plain or compressed, as lines of bounded length: what is packed may be any size."""

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
"""bytes of a line or row: a file without a line end would otherwise be taken into memory whole"""
COMPRESSED: Final = (".gz", ".zst")
DAMAGED_HINT: Final = "make or download the file again"
UTF8_HINT: Final = "save the file as UTF-8"


def kind(value: Any) -> str:
    """What a value of a row is, in words for a message: ``null``, ``a number``, ``a list``."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number"}
    names |= {str: "text", bytes: "bytes", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def unreadable(name: str, error: OSError) -> SepoError:
    return SepoError(f"{name} cannot be read: {error.strerror or error}", hint="check the file and its permissions")


def lines(path: Path, name: str) -> Iterator[tuple[str, str]]:
    """Where each line of a file stands, and the line, without a byte order mark; blank lines included."""
    with opened(path, name) as file:
        number = 1
        line = file.readline(LONGEST + 1).removeprefix(codecs.BOM_UTF8)
        while line:
            where = f"{name}:{number}"
            if len(line) > LONGEST:
                raise SepoError(f"{where}: a line of more than {LONGEST:,} bytes", hint="give each row a line")
            try:
                yield where, line.decode()
            except UnicodeDecodeError as error:
                raise SepoError(f"{where}: not UTF-8 at byte {error.start + 1}", hint=UTF8_HINT) from error
            number += 1
            line = file.readline(LONGEST + 1)


@contextmanager
def opened(path: Path, name: str) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed; what goes wrong while they are read is said in one line."""
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
            return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"), 1 << 16)
    return path.open("rb")
