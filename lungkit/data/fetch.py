"""Public data sets that can be downloaded: checked against the published checksum, in place only when whole."""

from pathlib import Path

import pooch
import requests

from lungkit import config
from lungkit.errors import LungkitError
from lungkit.progress import bar

# The address of each file and its MD5 as the publisher states it: it finds damage on the way, not forgery.
PUBLISHED = {
    "pneumoniamnist": (
        "https://zenodo.org/records/10519652/files/pneumoniamnist.npz",
        "28209eda62fecd6e6a2d98b1501bb15f",
    )
}
TIMEOUT_S = 30  # without an answer or a byte
RETRIES = 3


class FetchError(LungkitError):
    """The file could not be downloaded; the message says which, why, and how to get it by hand."""


def fetch(name: str) -> Path:
    """The path of a published data set's file, downloaded into the data folder if it is not there yet.

    name: "pneumoniamnist" (MedMNIST v2, 28x28, 4 MB, CC BY 4.0). Raises FetchError.
    """
    if name not in PUBLISHED:
        raise FetchError(f"no data set '{name}' to fetch; there are: {', '.join(PUBLISHED)}")
    url, md5 = PUBLISHED[name]
    folder, file = config.data_dir() / name, url.rpartition("/")[2]
    path = folder / file
    if path.is_file() and pooch.file_hash(path, "md5") != md5:  # pooch would replace it
        raise FetchError(
            f"{path} is not the published file, whose md5 is {md5}; move it away and fetch again, or give its path as "
            "the data set"
        )
    folder.mkdir(parents=True, exist_ok=True)
    store = pooch.create(folder, "", registry={file: f"md5:{md5}"}, urls={file: url}, retry_if_failed=RETRIES)
    pooch.get_logger().setLevel("ERROR")
    try:
        with bar(total=0, label=f"fetching {file}", unit="B") as shown:
            store.fetch(file, downloader=pooch.HTTPDownloader(progressbar=shown, timeout=TIMEOUT_S))
    except (requests.RequestException, ValueError) as error:  # ValueError: another checksum
        raise FetchError(
            f"cannot download {url}: {error}. On a machine with a connection download it and put it at {path} "
            f"(md5 {md5})"
        ) from error
    return path
