"""Rows of CSV and TSV text: with a header, quoted by `\"`, each as wide as the header."""

import csv
from collections.abc import Callable, Iterable, Iterator

from jaxprune.data.text_lines import MAX_BYTES
from jaxprune.errors import UserError


def separated_rows(
    lines: Iterable[str], separator: str, where: Callable[[int], str]
) -> Iterator[tuple[int, list[str]]]:
    """(line on which it begins, cells) of each row, the header first; `lines` keep their ends.

    Blank rows are left out. UserError, with `where` of the line, for another number of cells and for bare quotes.
    """
    csv.field_size_limit(MAX_BYTES)  # a text may be a whole document
    reader = csv.reader(lines, delimiter=separator, strict=True)
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            if header and cells and len(cells) != len(header):
                raise UserError(
                    f"{where(line)}: {len(cells)} values for {len(header)} columns ({', '.join(header)}). "
                    'Put a value that holds a separator or a quote in quotes: "a, ""b"""'
                )
            if cells or not header:
                yield line, cells
            header = header or cells
            line = reader.line_num + 1
    except csv.Error as error:
        if "field limit" in str(error):
            raise UserError(
                f"{where(line)}: a value longer than {MAX_BYTES >> 20} MiB; a quote may be missing"
            ) from None
        raise UserError(f'{where(line)}: {error}; a value with a quote in it is written "a ""b"""') from None
