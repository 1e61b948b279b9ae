"""Whose image a DICOM header says it is, to compare it with the patient who was chosen.

It is read apart from the image, and never kept with it. What is missing, or identifies no person, is empty: such as the
pseudonyms of a file without identity. `stated` never fails: a header that cannot be read says nothing.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path

from pydicom import charset

from lungkit.data import images
from lungkit.data.dicom_header import Header, person_header
from lungkit.data.image import DUMMY_DATES, ImageRefused
from lungkit.data.series import Series

_FIRST_YEAR = 1850
_SEXES = {"M": "male", "F": "female", "O": "other"}
_TITLES = {"dr", "prof", "mr", "mrs", "ms", "miss", "herr", "frau", "med", "jr", "sr", "dipl", "ing", "mme", "mlle"}
# A name or a number of these words alone identifies no person.
_PLACEHOLDERS = {
    *("anonymous", "anonymized", "anonymised", "anonym", "anonymisiert", "anon", "pseudonym", "phantom", "synthetic"),
    *("deidentified", "removed", "redacted", "unknown", "unbekannt", "unnamed", "none", "null", "patient", "subject"),
    *("test", "noname", "nil", "na", "notgiven", "notstated", "notavailable", "notknown", ""),
}
# Names that stand for others: "Anonymous CT", "ANON 0007", "pseudo_3F9A". The short beginnings need a code after them,
# as there are people with names such as Anonuevo.
_PSEUDONYM = re.compile(
    r"(anonym|pseudonym|de-?ident).*|(anon|pseudo)(\d[^\W_]*)?([\W_]+[^\W\d_]*\d[^\W_]*)*[\W_]*", re.IGNORECASE
)
# Random identifiers: hexadecimal digits, UUIDs and UIDs.
_RANDOM = re.compile(
    r"(?=.*[a-f])[0-9a-f]{16,}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9]+(\.[0-9]+){4,}", re.IGNORECASE
)
_LONGEST = 200  # characters of a name that are compared and shown
_GERMAN = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ø": "oe", "å": "aa"})
_NO_MARKS = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ħ": "h", "ı": "i", "æ": "ae", "œ": "oe"})


@dataclass(frozen=True)
class Person:
    """What a header says of the patient; not shown by `repr`, which ends up in logs.

    names: one for each script, "Family^Given^Middle". sex: female, male, other, or unknown.
    mixed: the files of a series state different people; the other fields are then those of the first.
    """

    number: str = field(default="", repr=False)
    names: tuple[str, ...] = field(default=(), repr=False)
    birth_year: int | None = field(default=None, repr=False)
    sex: str = field(default="unknown", repr=False)
    mixed: bool = False

    @property
    def name(self) -> str:
        """The name as people write it: "Given Middle Family"; empty if there is none."""
        family, *given = (self.names[0] if self.names else "").split("^")[:3]
        return " ".join(" ".join([*given, family]).split())


def stated(content: images.Source, name: str | None = None) -> Person:
    """What a file says of the patient; nothing if it is no DICOM, or cannot be read. Raises nothing."""
    try:
        with images.opened(content, name) as (stream, kind, _):
            return _person(person_header(stream)) if kind == "DICOM" else Person()
    except ImageRefused:
        return Person()


def stated_in(series: Series) -> Person:
    """What the files of a series say of the patient. Raises nothing."""
    contents = {id(one.content): one.content for one in series.slices}  # frames share a file
    said = dict.fromkeys(map(_stated_by, contents.values()))
    return reduce(_together, said, Person())


def _stated_by(content: Callable[[], Path | bytes]) -> Person:
    try:
        return stated(content())
    except ImageRefused:  # an archive that changed
        return Person()


def _together(one: Person, other: Person) -> Person:
    """One person of two statements: what one of them leaves out, the other may say."""
    differ = one.mixed or bool(one.names and other.names and not same_name(one.names, other.names))
    for first, second in (
        (plain(one.number), plain(other.number)),
        (one.birth_year, other.birth_year),
        (one.sex.replace("unknown", ""), other.sex.replace("unknown", "")),
    ):
        differ = differ or bool(first and second and first != second)
    sex = one.sex if one.sex != "unknown" else other.sex
    return Person(
        one.number or other.number, one.names or other.names, one.birth_year or other.birth_year, sex, mixed=differ
    )


# --- names


def same_name(one: Iterable[str], other: Iterable[str]) -> bool:
    """Whether two people can have the same name, each given in one or more scripts.

    The order of words, case, accents, titles, initials and a missing second name make no difference; "Müller" is also
    "Mueller". A word that stands in both places of different people makes one: "Anna Weber" is not "Eva Weber".
    A family name that is marked by "^" has to be in the other name.
    """
    return any(_alike(first, second) for first in one for second in other)


def plain(text: str) -> str:
    """Text for comparing: without case, kinds of letters, and space."""
    return "".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())


def _alike(one: str, other: str) -> bool:
    if not all(_has_family(name, of) for name, of in ((one, other), (other, one))):
        return False
    few, many = sorted((_words(one), _words(other)), key=len)
    if not few or "".join(few) == "".join(many):
        return bool(few)
    left, whole = list(many), 0
    for word in sorted(few, key=len, reverse=True):  # initials last
        same = next((it for it in left if _spellings(it) & _spellings(word)), "")
        found = same or next((it for it in left if _is_initial(it, word)), "")
        if not found:
            return False
        left.remove(found)
        whole += len(same) > 1 or not same.isascii()
    return whole > 0


def _has_family(name: str, other: str) -> bool:
    """Whether a word of the family name, where it is marked, is in the other name."""
    family, marked, _ = name.partition("^")
    words = _words(family)
    if not marked or not words:
        return True
    known = set[str]().union(*map(_spellings, _words(other)))
    return any(_spellings(word) & known for word in words) or "".join(words) in "".join(_words(other))


def _words(name: str) -> list[str]:
    """The words of a name without titles, in their order."""
    parts = name.split("^")[:3]  # after these come titles
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFKC", " ".join(parts)).casefold())
    words = re.findall(r"[^\W_]+(?:['’`][^\W_]+)*", _composed(text))
    words = [re.sub(r"['’`]", "", word) for word in words]
    return [word for word in words if word not in _TITLES] or words


def _composed(text: str) -> str:
    """Text whose marks, which no letter takes in, do not part its words."""
    return "".join(letter for letter in text if not unicodedata.category(letter).startswith(("M", "Cf")))


def _spellings(word: str) -> set[str]:
    """A word without accents, and as it is written where there are none."""
    return {_bare(word.translate(_NO_MARKS)), _bare(word.translate(_GERMAN).translate(_NO_MARKS))}


def _bare(word: str) -> str:
    return "".join(letter for letter in unicodedata.normalize("NFKD", word) if not unicodedata.combining(letter))


def _is_initial(one: str, other: str) -> bool:
    short, long = sorted((one, other), key=len)
    return len(short) == 1 and bool({short, _bare(short)} & {long[0], _bare(long)[0]})


# --- reading


def _person(header: Header) -> Person:
    terms = header.values("SpecificCharacterSet")
    groups = _decoded(header, "PatientName", terms).split("=")
    names = tuple(name for group in groups if (name := _one_line(group)[:_LONGEST].strip("^ ")))
    number = _one_line(_decoded(header, "PatientID", terms))
    removed = header.word("PatientIdentityRemoved") == "YES"
    # The number of a file with a pseudonym is one as well.
    without = removed or any(_is_placeholder(name) or plain(name) == plain(number) for name in names)
    sex = _SEXES.get(header.word("PatientSex"), "unknown")
    return Person(
        number="" if without or _is_placeholder_number(number) else number,
        names=() if without else tuple(name for name in names if not all(map(_has_digit, _words(name)))),
        birth_year=None if removed else _year(header.text("PatientBirthDate")),
        sex="unknown" if removed and sex == "other" else sex,
    )


def _is_placeholder(text: str) -> bool:
    """Whether a name or number stands for another, or for none: "ANONYMOUS", "Patient 17", "xxx", a random one."""
    words = re.findall(r"[^\W\d_]+", text.casefold())
    alone = {"" if set(word) == {"x"} else word for word in words}
    stands_in = _PSEUDONYM.fullmatch(text) or _RANDOM.fullmatch(text)
    return bool(stands_in or (words and (alone <= _PLACEHOLDERS or "".join(words) in _PLACEHOLDERS)))


def _is_placeholder_number(number: str) -> bool:
    """As `_is_placeholder`, but "Patient 17" is a number that tells people apart."""
    alone = _is_placeholder(number) and not _has_digit(number)
    return alone or bool(_PSEUDONYM.fullmatch(number) or _RANDOM.fullmatch(number))


def _has_digit(text: str) -> bool:
    return any(letter.isdigit() for letter in text)


def _year(date: str) -> int | None:
    """The year of a birth date, also of one that is not complete; None where that is not known."""
    digits = re.sub(r"[.\-/: ]", "", date)
    if not re.fullmatch(r"[0-9]{4}([0-9]{2}){0,2}", digits) or digits in DUMMY_DATES:
        return None
    year = int(digits[:4])
    return year if _FIRST_YEAR <= year <= datetime.now(UTC).year else None


def _decoded(header: Header, keyword: str, terms: Sequence[object]) -> str:
    """Text in the character sets that the header names; where it names none, or the wrong ones, UTF-8 or Latin-1."""
    content = header.raw[keyword].content if keyword in header.raw else b""
    if not any(str(term).startswith(("ISO 2022", "GB")) for term in terms):
        with suppress(UnicodeDecodeError):  # what can be read as UTF-8 is UTF-8, whatever the header says
            return content.decode()
    with suppress(Exception):  # on bad bytes pydicom raises any error
        encodings = charset.convert_encodings([str(term) for term in terms])
        decoded = charset.decode_bytes(content, encodings, {ord("^"), ord("=")})
        if "\ufffd" not in decoded:
            return decoded
    return content.decode("latin-1")


def _one_line(text: str) -> str:
    """Printable text, without the blanks and zeros that fill a value up."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
