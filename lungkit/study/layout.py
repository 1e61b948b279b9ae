"""How a table's columns share the width of a page."""

import re

from lungkit.study.document import Document, Table

GAP = 2.5  # the room between two columns, in letters
_LONGEST = 24  # letters of a column that keeps its natural width where a table does not fit
_NUMBER = re.compile(r"[−+-]?[\d,.]+(e[−+-]?\d+)?( ?[%s])?")


def is_number(document: Document, table: Table, place: int) -> bool:
    """Whether every cell of a column is a number, or empty; such columns are aligned at the right."""
    cells = [document.plain(row[place]).strip() for row in table.rows]
    return any(cells) and all(not cell or _NUMBER.fullmatch(cell) for cell in cells)


def fits(document: Document, table: Table, room: float) -> bool:
    """Whether every cell of a table fits on one line of a page with room for so many letters."""
    return sum(length + GAP for length in _lengths(document, table)) <= room + GAP


def widths(document: Document, table: Table, room: float) -> list[float]:
    """The width of each column in letters; together with the gaps they fill at most `room`.

    Where the table does not fit, columns of long text share what the others leave.
    """
    natural = _lengths(document, table)
    room -= GAP * (len(natural) - 1)
    if sum(natural) <= room:
        return natural
    shared = [place for place, length in enumerate(natural) if length > _LONGEST] or list(range(len(natural)))
    left = room - sum(length for place, length in enumerate(natural) if place not in shared)
    weights = {place: min(natural[place], 80) ** 0.6 for place in shared}
    given = [left * weights[place] / sum(weights.values()) if place in shared else natural[place]
             for place in range(len(natural))]  # fmt: skip
    if min(given) > 0 and left > 8 * len(shared):
        return given
    longest = _longest(document, table)
    if (spare := room - sum(longest)) >= 0:  # no word breaks; what is left goes to where most text is
        more = [max(0.0, length - word) ** 0.6 for length, word in zip(natural, longest, strict=True)]
        return [word + spare * part / (sum(more) or 1) for word, part in zip(longest, more, strict=True)]
    return [room * length**0.6 / sum(other**0.6 for other in natural) for length in natural]


def needs(document: Document, table: Table) -> float:
    """Letters that a page needs across for the table without breaking a word, gaps included."""
    longest = _longest(document, table)
    return sum(longest) + GAP * (len(longest) - 1)


def _longest(document: Document, table: Table) -> list[float]:
    """Letters of each column's longest word; figures may break after the dash of their interval, hashes anywhere."""
    heads = (max(1.15 * len(word) for word in [*_words(name), ""]) for name in table.head)
    cells = (
        max(len(word) for row in table.rows or ((),) for word in [*_words(document.plain(row[at]) if row else ""), ""])
        for at in range(len(table.head))
    )
    return [max(3.0, head, cell) for head, cell in zip(heads, cells, strict=True)]


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"(?<=[–/-])|\s+", text) if word and len(word) <= _LONGEST]


def _lengths(document: Document, table: Table) -> list[float]:
    """Letters of each column's longest cell."""
    heads = (1.15 * len(name) for name in table.head)  # in bold type
    cells = ([len(document.plain(row[at])) for row in table.rows] for at in range(len(table.head)))
    return [max(3.0, head, *column) for head, column in zip(heads, cells, strict=True)]
