"""What a folder contains: images, recognised by their content, and everything else, which is counted and named.

Names count only if the content is unknown: a damaged `scan.png` is an image that the reader refuses with a reason, and
`README` is not an image. Files of operating systems (`.DS_Store`, `__MACOSX`) are ignored.
"""

import os
import re
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_HEAD = 512  # bytes of a file that are read

# Also of formats that the reader refuses: its message says what would be accepted.
_IMAGE_STARTS = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",  # JPEG
    b"II*\0",  # TIFF, and BigTIFF below
    b"MM\0*",
    b"II+\0",
    b"MM\0+",
    b"GIF87a",
    b"GIF89a",
    b"\0\0\0\x0cjP  \r\n\x87\n",  # JPEG 2000, as a file and as a bare codestream
    b"\xff\x4f\xff\x51",
    b"\0\0\0\x0cJXL ",  # JPEG XL
    b"\xff\x0a",
    b"II\xbc\x01",  # JPEG XR
    b"8BPS",  # Photoshop
    b"NRRD000",
    b"ObjectType = Image",  # MetaImage
)
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")
_BITMAP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # bytes
_IMAGE_NAME = re.compile(
    r".*\.(png|jpe?g|jpe|jfif|jif|tiff?|dcm|dicom|dic|ima|bmp|dib|gif|webp|jp2|j2[kc]|jpf|jpx|jxl|jxr|hei[cf]|avif|"
    r"p[bgpn]m|psd|nii(\.gz)?|nrrd|mh[ad])"
    r"|(im|img|image)[-_ ]?\d+"  # as DICOM media name their files
    r"|[\d.]*\d",  # a number, or a unique identifier
    re.IGNORECASE | re.DOTALL,
)
_DICOMDIR = b"1.2.840.10008.1.3.10"  # media storage directory: a table of contents

_ARCHIVE_STARTS = (
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"7z\xbc\xaf\x27\x1c",
    b"Rar!\x1a\x07",
    b"\x1f\x8b",  # gzip
    b"BZh",
    b"\xfd7zXZ\0",
    b"\x28\xb5\x2f\xfd",  # Zstandard
)
_ARCHIVE_NAME = re.compile(r".*\.(zip|tar|tgz|tbz2?|txz|gz|bz2|xz|zst|7z|rar)", re.IGNORECASE | re.DOTALL)
_ZIPPED_DOCUMENT = re.compile(
    r".*\.(npz|xls[xm]|doc[xm]|ppt[xm]|od[tsp]|jar|whl|keras|epub)", re.IGNORECASE | re.DOTALL
)

_RUBBISH = re.compile(
    r"\._.*|\.ds_store|thumbs\.db|ehthumbs\.db|desktop\.ini|icon\r|\.directory|\.nomedia|\.gitkeep|\.gitignore"
    r"|\.gitattributes|\.localized|__macosx|\.git|\.svn|\.ipynb_checkpoints|__pycache__|\.trash.*|\.spotlight-v100"
    r"|\.fseventsd|@eadir|\$recycle\.bin|system volume information",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class Survey:
    """What is in a folder and below it; each list is sorted.

    images: files to read, some of which the reader will refuse, each with its reason.
    passed_over: files that are no images, hidden files, and hidden folders (not searched).
    archives: files to unpack before images in them can be read.
    broken: links to nothing, or to a folder above this one.
    closed: folders without permission to open them.
    """

    images: list[Path] = field(default_factory=list)
    passed_over: list[Path] = field(default_factory=list)
    archives: list[Path] = field(default_factory=list)
    broken: list[Path] = field(default_factory=list)
    closed: list[Path] = field(default_factory=list)


def survey(folder: Path) -> Survey:
    """Look at every file in a folder and below it. Links to folders are followed, but no folder is searched twice."""
    contents = Survey()
    for kind, path in walk(folder):
        getattr(contents, kind).append(path)
    return contents


def walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """(the list of Survey that it belongs to, path) of everything in a folder and below it, sorted, as it is reached.

    However many files there are, only the names of the folders that are open, and which folders to leave out, are kept.
    """
    left_out = _left_out(folder)
    waiting = [iter([folder])]
    while waiting:
        path = next(waiting[-1], None)
        if path is None:
            waiting.pop()
        elif not stat.S_ISDIR(kind := mode(path)) and path != folder:
            yield _sorted_in(path, kind), path
        elif path.name.startswith(".") and path != folder:
            yield "passed_over", path
        elif path not in left_out:
            try:
                waiting.append(_entries(path))
            except OSError:
                yield "closed", path
        elif left_out[path]:
            yield "broken", path


def is_rubbish(name: str) -> bool:
    """Whether a file or folder with this name was made by an operating system or a tool."""
    return _RUBBISH.fullmatch(name) is not None


def is_image(path: Path) -> bool:
    """Whether a file is an image by its content or by its name; one that cannot be opened counts as an image."""
    head = _head(path)
    if head is None:
        return True  # the reader says what is wrong with it
    if _has_image_start(head):
        return path.name.upper() != "DICOMDIR" and not (head[128:132] == b"DICM" and _DICOMDIR in head)
    return _IMAGE_NAME.fullmatch(path.name) is not None


def is_archive(path: Path) -> bool:
    """Whether a file is an archive, by its content or else by its name."""
    if _ZIPPED_DOCUMENT.fullmatch(path.name):
        return False
    return is_archive_start(_head(path) or b"") or bool(_ARCHIVE_NAME.fullmatch(path.name))


def is_archive_start(head: bytes) -> bool:
    """Whether an archive starts with these bytes."""
    return head.startswith(_ARCHIVE_STARTS) or head[257:262] == b"ustar"


def _head(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError:
        return None


def mode(path: Path) -> int:
    """The kind of thing at a path, as in `stat`; 0 if there is nothing."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):  # ValueError: an impossible path
        return 0


def one_line(name: object) -> str:
    """A name of any bytes as one line of printable text.

    >>> print(one_line("a\\nb.png"))
    a\\nb.png
    """
    text = str(name).encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def is_text(path: Path) -> bool:
    """Whether a path is text: a file with other bytes in its name can be read, but not written into a table."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def few(names: Iterable[object], most: int = 3) -> str:
    """The first names, and how many more there are.

    >>> few(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    names = list(names)
    return ", ".join(map(one_line, names[:most])) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def below(path: Path, root: Path) -> str:
    """The path relative to `root`, in POSIX form."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _left_out(folder: Path) -> dict[Path, bool]:
    """The folders below that are not searched: True if they lead above `folder`, False if another path is searched.

    Linked folders come last: a file that also has a path without links is found under that one.
    """
    above = {_identity(place) for place in folder.resolve().parents}  # they are not part of the folder
    seen, tops, left_out = set(above), deque([folder]), {}
    while tops:
        waiting = [tops.popleft()]
        while waiting:
            place = waiting.pop()
            if (identity := _identity(place)) in seen:
                left_out[place] = identity in above
                continue
            seen.add(identity)
            for path in _folders(place):
                (tops if path.is_symlink() else waiting).append(path)
    return left_out


def _folders(place: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones; files are not looked at."""
    found = []
    with suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            is_folder = stat.S_ISDIR(mode(Path(entry.path))) if entry.is_symlink() else entry.is_dir()
            if is_folder and not entry.name.startswith(".") and not is_rubbish(entry.name):
                found.append(Path(entry.path))
    return sorted(found)


def _entries(folder: Path) -> Iterator[Path]:
    """What is in a folder, sorted. Only names are kept: paths of a million files would take ten times the memory."""
    names = sorted(path.name for path in folder.iterdir() if not is_rubbish(path.name))
    return (folder / name for name in names)


def _sorted_in(path: Path, kind: int) -> str:
    """The list of Survey that a file belongs to; kind: its mode."""
    if not kind and path.is_symlink():
        return "broken"
    if (kind and not stat.S_ISREG(kind)) or path.name.startswith("."):
        return "passed_over"
    if is_image(path):
        return "images"
    return "archives" if is_archive(path) else "passed_over"


def _identity(path: Path) -> tuple[int, int] | Path:
    try:
        status = path.stat()
    except OSError:
        return path
    return status.st_dev, status.st_ino


def _has_image_start(head: bytes) -> bool:
    return (
        head[128:132] == b"DICM"
        or head.startswith(_IMAGE_STARTS)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS)
        or (head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BITMAP_HEADERS)
        or re.match(rb"P[1-7]\n[\d#]", head) is not None  # PBM, PGM, PPM
        or head[344:348] in (b"n+1\0", b"ni1\0")  # NIfTI
        or _is_bare_dicom(head)
    )


def _is_bare_dicom(head: bytes) -> bool:
    """A DICOM header without the preamble: it starts with a tag of group 0002 or 0008."""
    if len(head) < 8:
        return False
    for order in ("little", "big"):
        group, element = int.from_bytes(head[:2], order), int.from_bytes(head[2:4], order)
        if group in (2, 8) and element <= 0x1200:
            with_type = head[4:6].isalpha() and head[4:6].isupper()
            return with_type or int.from_bytes(head[4:8], order) <= 0x10000
    return False
