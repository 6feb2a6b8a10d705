"""Lines of a text file, packed or not."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from jaxprune.data.bucket import AnyPath
from jaxprune.errors import UserError


def _zstd(raw: Any) -> Any:
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))  # pyright: ignore[reportArgumentType]


COMPRESSIONS: dict[str, Callable[[Any], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zstd}
"""Last suffix of a packed file's name -> what unpacks a binary file object."""


MAX_BYTES = 1 << 24
"""Of a line, and of a cell of a table: more is no text, or a file without line ends."""


def whole_lines(file: Any, where: object) -> Iterator[bytes]:
    """The lines of a binary file, with their ends; UserError for one above MAX_BYTES, before memory is taken for it."""
    number = 0
    while line := file.readline(MAX_BYTES + 1):
        number += 1
        if len(line) > MAX_BYTES:
            raise UserError(f"{where}, line {number}: longer than {MAX_BYTES >> 20} MiB; break it into several")
        yield line


def lines(path: AnyPath) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file, unpacked by its suffix, without line ends and byte order mark.

    Errors: UserError for a byte that is not UTF-8, for a line above MAX_BYTES and for a damaged file.
    """
    offset = 0
    unpack = COMPRESSIONS.get(path.suffix.lower())
    try:
        with ExitStack() as stack:
            file = stack.enter_context(path.open("rb"))
            file = stack.enter_context(unpack(file) if unpack else io.BufferedReader(file))
            for number, line in enumerate(whole_lines(file, path), 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                offset += len(line)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {offset + error.start} is not UTF-8 ({error.reason}); convert it: iconv -f LATIN1 -t UTF-8"
        ) from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)}); give a whole copy of it") from error


def one_line(error: BaseException) -> str:
    """What an error says, on one line of at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
