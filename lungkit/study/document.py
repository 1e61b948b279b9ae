"""A document without a format: sections, paragraphs, numbered figures and tables, and what refers to them.

lungkit.study.content says what a report contains; lungkit.study.html, docx and latex write one in their format.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

_NO_TEXT = re.compile(r"[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML and UTF-8 refuse it


@dataclass(frozen=True)
class Cite:
    """A source of a method, by its key in lungkit.study.references."""

    key: str


@dataclass(frozen=True)
class Ref:
    """A mention of a figure, table or section: "Table 2"."""

    kind: str  # "figure", "table" or "section"
    name: str


@dataclass(frozen=True)
class Link:
    """A link to a file, relative to the run's folder, or to an address."""

    text: str
    target: str


@dataclass(frozen=True)
class Strong:
    """Words that stand out."""

    text: str


@dataclass(frozen=True)
class Failure:
    """Words on what failed or is missing."""

    text: str


Inline = str | Cite | Ref | Link | Strong | Failure
Text = tuple[Inline, ...]


@dataclass(frozen=True)
class Paragraph:
    """Running text; `lead`: the sentence that a hurried reader should see."""

    text: Text
    lead: bool = False


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: tuple[Text, ...]


@dataclass(frozen=True)
class Figure:
    """A numbered figure: <stem>.png, .svg and .pdf."""

    name: str
    caption: str
    stem: Path  # without a suffix


@dataclass(frozen=True)
class Table:
    """A numbered table. Each row has as many cells as the head."""

    name: str
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]
    file: Path | None = None  # its CSV
    note: str = ""  # below the table
    wide: tuple[int, ...] = ()  # columns of long text; they share the room that the others leave


Block = Paragraph | Bullets | Figure | Table


@dataclass(frozen=True)
class Section:
    """A section with a title, its blocks and the sections below it."""

    name: str
    title: str
    blocks: tuple[Block, ...] = ()
    parts: tuple["Section", ...] = ()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to read in it."""
        return not self.blocks and all(part.empty for part in self.parts)


@dataclass(frozen=True)
class Document:
    """A report. folder: of the run; links and files are shown relative to it. All its text is `clean`."""

    title: str
    subtitle: str
    started: str  # ISO 8601
    folder: Path
    sections: tuple[Section, ...]
    appendices: tuple[Section, ...] = ()

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, clean(getattr(self, each.name)))

    def walk(self) -> Iterator[Section]:
        """Every section, in reading order."""
        return _walk((*self.sections, *self.appendices))

    @cached_property
    def labels(self) -> Mapping[Ref, str]:
        """What each figure, table and section is called: Ref("table", "04_roc") to "Table 2"."""
        return {ref: f"{kind} {number}" for kind, ref, number in self._numbered()}

    @cached_property
    def cited(self) -> tuple[str, ...]:
        """The keys of the sources, in the order in which they are first mentioned; a source's number is its place."""
        mentions = (one.key for text in self._texts() for one in text if isinstance(one, Cite))
        return tuple(dict.fromkeys(mentions))

    def number(self, cite: Cite) -> int:
        """A source's number in the list of references, from 1."""
        return self.cited.index(cite.key) + 1

    def plain(self, text: Text) -> str:
        """A text without marks, as a cell of a CSV file has it."""
        return "".join(map(self._plain, text))

    def _plain(self, inline: Inline) -> str:
        match inline:
            case str():
                return inline
            case Cite():
                return f" [{self.number(inline)}]"
            case Ref():
                return self.labels[inline]
        return inline.text

    def _numbered(self) -> Iterator[tuple[str, Ref, str]]:
        yield from _section_numbers("Section", self.sections, (str(number) for number in count(1)))
        yield from _section_numbers("Appendix", self.appendices, iter("ABCDEFGH"))
        places = {Figure: count(1), Table: count(1)}
        for block in (block for section in self.walk() for block in section.blocks):
            if isinstance(block, Figure | Table):
                kind = type(block).__name__
                yield kind, Ref(kind.lower(), block.name), str(next(places[type(block)]))

    def _texts(self) -> Iterator[Text]:
        for block in (block for section in self.walk() for block in section.blocks):
            match block:
                case Paragraph():
                    yield block.text
                case Bullets():
                    yield from block.items
                case Table():
                    yield from (cell for row in block.rows for cell in row)


def _walk(sections: tuple[Section, ...]) -> Iterator[Section]:
    for section in sections:
        yield section
        yield from _walk(section.parts)


def _section_numbers(
    kind: str, sections: tuple[Section, ...], numbers: Iterator[str]
) -> Iterator[tuple[str, Ref, str]]:
    for section, number in zip(sections, numbers, strict=False):
        yield kind, Ref("section", section.name), number
        below = (f"{number}.{place}" for place in count(1))
        yield from _section_numbers(kind, section.parts, below)


def clean(value: Any) -> Any:
    """A text, or blocks and sections with their texts, with "\ufffd" for each character that no format can hold.

    These are control characters, halves of surrogate pairs, and the two code points that are no characters.
    """
    if isinstance(value, str):
        return _NO_TEXT.sub("\ufffd", value)
    if isinstance(value, tuple):
        return tuple(map(clean, value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: clean(getattr(value, each.name)) for each in fields(value)})
    return value


def sentence(text: str) -> str:
    """A caption with a full stop, unless it ends with another mark."""
    text = " ".join(text.split())
    return text if not text or text[-1] in ".!?…" else f"{text}."
