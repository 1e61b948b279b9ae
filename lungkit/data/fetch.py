"""Public data sets that can be downloaded: resumed after a cut, checked, and in place only when whole."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from lungkit import config
from lungkit.errors import LungkitError
from lungkit.progress import bar

TIMEOUT = 30  # seconds without an answer or a byte
ATTEMPTS = 4  # connections in a row that may break before giving up
BLOCK = 1 << 16  # bytes


class FetchError(LungkitError):
    """The file could not be had; the message says which, why, and how to get it by hand."""


@dataclass(frozen=True)
class _Published:
    url: str
    md5: str  # as its publisher states; against damage on the way, not against forgery


PUBLISHED = {
    "pneumoniamnist": _Published(
        "https://zenodo.org/records/10519652/files/pneumoniamnist.npz", "28209eda62fecd6e6a2d98b1501bb15f"
    )
}


def fetch(name: str, folder: str | Path | None = None, url: str | None = None) -> Path:
    """The path of a published data set's file, downloaded if it is not there yet.

    name: "pneumoniamnist" (MedMNIST v2, 28x28, 4 MB, CC BY 4.0).
    folder: where the file goes; <data folder>/<name> by default.
    url: another place to get the same file from; its checksum must be the published one.
    A download that breaks off leaves FILE.part, from which the next one goes on. Raises FetchError.
    """
    if name not in PUBLISHED:
        raise FetchError(f"no data set '{name}' to fetch; there are: {', '.join(PUBLISHED)}")
    published = PUBLISHED[name]
    folder = Path(folder) if folder else config.data_dir() / name
    path = folder / published.url.rpartition("/")[2]
    url = url or published.url
    if path.is_file():
        _check(path, published.md5, f"move it away and fetch again, or give its path as the data set: {path}")
        return path

    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    _download(url, part, path, published)
    try:
        _check(part, published.md5, f"it was deleted; fetch again, or get the file from {published.url}")
    except FetchError:
        part.unlink()
        raise
    part.replace(path)
    return path


def _check(path: Path, md5: str, remedy: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        raise FetchError(f"{path} is not the published file: its md5 is {found}, published is {md5}; {remedy}")


def _download(url: str, part: Path, path: Path, published: _Published) -> None:
    """Fills `part`, going on where a connection broke; gives up after ATTEMPTS in a row that brought nothing."""
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _receive(url, part, f"fetching {path.name}"):
                return
            reason = "the connection closed early"
        except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
            reason = str(getattr(error, "reason", None) or error) or type(error).__name__
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                failures = ATTEMPTS  # the server's answer will not change
        progressed = part.exists() and part.stat().st_size > before
        failures = 0 if progressed else failures + 1
        if failures >= ATTEMPTS:
            raise FetchError(
                f"cannot download {url}: {reason}. On a machine with a connection download {published.url} "
                f"and put it at {path} (md5 {published.md5})"
            )


def _receive(url: str, part: Path, label: str) -> bool:
    """One connection; True when the whole file is there. Asks for the missing end only, if there is a beginning."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
            raise
        error.close()
        if error.headers.get("Content-Range", "").rpartition("/")[2] == str(start):
            return True  # the beginning is already the whole
        part.unlink()  # a beginning of something else
        return False
    with answer:
        if answer.status != HTTPStatus.PARTIAL_CONTENT:
            start = 0  # the server sends the whole
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        with part.open("ab" if start else "wb") as file, bar(total=total, label=label, unit="B") as shown:
            shown.update(start)
            while block := answer.read(BLOCK):
                file.write(block)
                shown.update(len(block))
            file.flush()
            os.fsync(file.fileno())
            return total is None or file.tell() == total
