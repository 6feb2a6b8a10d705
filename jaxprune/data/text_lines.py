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


def lines(path: AnyPath) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file, unpacked by its suffix, without line ends and byte order mark.

    Errors: UserError for a byte that is not UTF-8 and for a damaged file.
    """
    offset = 0
    unpack = COMPRESSIONS.get(path.suffix.lower())
    try:
        with ExitStack() as stack:
            file = stack.enter_context(path.open("rb"))
            if unpack is not None:
                file = stack.enter_context(unpack(file))
            for number, line in enumerate(file, 1):
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
