"""Every path and setting of the project, from LUNGKIT_* variables; no other module spells a path.

Variables: LUNGKIT_HOME (the project's folder; default: the checkout that holds this package, or
~/lungkit where the package was installed),
LUNGKIT_DATA, LUNGKIT_ARTIFACTS, LUNGKIT_REPORTS (defaults: data, artifacts and reports below it),
LUNGKIT_DATABASE (URL of the clinic's records; default: an SQLite file below LUNGKIT_DATA),
LUNGKIT_CLINIC (the clinic's name, as data sets of its reviews call their source; default: clinic),
LUNGKIT_IDLE_MINUTES, LUNGKIT_SESSION_HOURS (how long a person stays signed in without an action, and at most),
LUNGKIT_UPLOAD_MB (largest image that is uploaded), LUNGKIT_SERIES_MB (most of a CT series),
LUNGKIT_INBOX (files that came as DICOM; default: in the clinic's folder),
LUNGKIT_REDIS (address of the gateway's queue, redis://…; default: a file in the clinic's folder),
LUNGKIT_ALERT_WEBHOOK, LUNGKIT_ALERT_TOKEN_FILE (where drift is told to programs, with which token),
LUNGKIT_ALERT_MAIL, LUNGKIT_ALERT_FROM (who is told of drift by e-mail, and from which address),
LUNGKIT_SMTP, LUNGKIT_SMTP_PASSWORD_FILE (the mail server, smtp://user@host:587 or smtps://user@host:465),
LUNGKIT_ALERT_CA (a file with the certificate authority of both, if it is the clinic's own),
LUNGKIT_TIME_ZONE (in which people read times, as Europe/Berlin; default: the system's),
LUNGKIT_PAGES_PER_PERSON, LUNGKIT_PAGE_MB, LUNGKIT_CLINIC_MB (most pages of a person, memory of a page, memory of all),
LUNGKIT_HANG_SECONDS, LUNGKIT_SERVER_MB (when the clinic's server is replaced: without an answer, or above this memory).
They are read at each call, so a test or a second shell can point elsewhere.
"""

import functools
import os
import zoneinfo
from dataclasses import dataclass
from datetime import datetime, tzinfo
from pathlib import Path

from lungkit.errors import LungkitError

REGISTERED = "registered.json"  # in a run's folder: the version that the run registered


_PACKAGE = Path(__file__).parent


def home() -> Path:
    """The project's folder."""
    is_checkout = (_PACKAGE.parent / "pyproject.toml").is_file()
    default = _PACKAGE.parent if is_checkout else Path.home() / "lungkit"
    return Path(os.environ.get("LUNGKIT_HOME") or default).resolve()


def _folder(variable: str, name: str) -> Path:
    return Path(os.environ.get(variable) or home() / name).resolve()


def data_dir() -> Path:
    """Data sets that were made or downloaded here, and the manifests of all data sets."""
    return _folder("LUNGKIT_DATA", "data")


def looks_dir() -> Path:
    """The ledgers of how often test images were read."""
    return data_dir() / "looks"


def artifacts_dir() -> Path:
    """The model registry."""
    return _folder("LUNGKIT_ARTIFACTS", "artifacts")


def reports_dir() -> Path:
    """The results of runs."""
    return _folder("LUNGKIT_REPORTS", "reports")


def report_folder(path: str = "") -> Path:
    """The folder for a notebook's figures and tables: the run's, or reports/notebooks if it is opened by hand."""
    folder = Path(path) if path else reports_dir() / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def work_dir() -> Path:
    """Searches and trainings that can be continued."""
    return reports_dir() / "work"


def notebooks_dir() -> Path:
    """The notebooks: of the project's folder, else those installed with the package, else of the package's checkout."""
    own = home() / "notebooks"
    places = (own, _PACKAGE / "installed_notebooks", _PACKAGE.parent / "notebooks")
    return next((place for place in places if place.is_dir()), own)


def clinic_dir() -> Path:
    """The clinic's own records and secrets; no web server serves it."""
    return data_dir() / "clinic"


def database_url() -> str:
    """Where the clinic's records are, as SQLAlchemy writes it."""
    return os.environ.get("LUNGKIT_DATABASE") or f"sqlite:///{clinic_dir() / 'clinic.db'}"


def clinic_name() -> str:
    """What data sets of reviews call this clinic."""
    return os.environ.get("LUNGKIT_CLINIC", "").strip() or "clinic"


def inbox_dir() -> Path:
    """Files that came as DICOM, until they are read; hosts that share the records share it."""
    return Path(os.environ.get("LUNGKIT_INBOX") or clinic_dir() / "inbox").resolve()


def redis_url() -> str:
    """Where the gateway's queue is, if it is shared by several hosts; empty: in the clinic's folder."""
    return os.environ.get("LUNGKIT_REDIS", "")


def alert_webhook() -> str:
    """Where drift is told to programs; empty: nowhere."""
    return os.environ.get("LUNGKIT_ALERT_WEBHOOK", "").strip()


def alert_token_file() -> str:
    """The file with the token that the webhook wants; empty: none."""
    return os.environ.get("LUNGKIT_ALERT_TOKEN_FILE", "")


def alert_mail() -> list[str]:
    """Who is told of drift by e-mail; empty: no one."""
    return [one.strip() for one in os.environ.get("LUNGKIT_ALERT_MAIL", "").split(",") if one.strip()]


def alert_from() -> str:
    """The address that e-mails come from."""
    return os.environ.get("LUNGKIT_ALERT_FROM", "").strip()


def smtp() -> str:
    """The mail server: smtp://user@host:587 with STARTTLS, or smtps://user@host:465."""
    return os.environ.get("LUNGKIT_SMTP", "").strip()


def smtp_password_file() -> str:
    """The file with the password for the mail server."""
    return os.environ.get("LUNGKIT_SMTP_PASSWORD_FILE", "")


def alert_ca() -> str:
    """The file with the certificate authority of webhook and mail server; empty: those that the system trusts."""
    return os.environ.get("LUNGKIT_ALERT_CA", "")


def time_zone() -> tzinfo:
    """The zone in which people read times; what is stored has UTC. Raises LungkitError for an unknown name."""
    return _zone(os.environ.get("LUNGKIT_TIME_ZONE", "").strip(), os.environ.get("TZ", ""))


@functools.lru_cache(maxsize=8)
def _zone(name: str, system: str) -> tzinfo:
    """The zone of this name; for an empty one the system's. system: the variable TZ."""
    if name:
        if found := _known_zone(name):
            return found
        raise LungkitError(
            f"LUNGKIT_TIME_ZONE={name}: give a name of the IANA time zone database, such as Europe/Berlin or UTC"
        )
    path = system.removeprefix(":") or os.path.realpath("/etc/localtime")
    if found := _known_zone(path.rpartition("zoneinfo/")[2]):
        return found
    fixed = datetime.now().astimezone().tzinfo  # the system does not say where it is, only how late it is
    assert fixed is not None
    return fixed


def _known_zone(name: str) -> zoneinfo.ZoneInfo | None:
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):  # unknown, a path, or a folder of zones
        return None


def _number(variable: str, default: float) -> float:
    text = os.environ.get(variable) or str(default)
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e6:
        raise LungkitError(f"{variable}={text}: give a number above 0")
    return number


def idle_minutes() -> float:
    """A session ends after this time without an action."""
    return _number("LUNGKIT_IDLE_MINUTES", 30)


def session_hours() -> float:
    """A session ends this long after the sign-in."""
    return _number("LUNGKIT_SESSION_HOURS", 12)


def upload_bytes() -> int:
    """The largest file that may be uploaded."""
    return int(_number("LUNGKIT_UPLOAD_MB", 64) * 2**20)


def series_bytes() -> int:
    """The most that all files of one upload of CT series may have together."""
    return int(_number("LUNGKIT_SERIES_MB", 1024) * 2**20)


def hang_seconds() -> float:
    """A server of the clinic that does not answer for this long is replaced."""
    return _number("LUNGKIT_HANG_SECONDS", 20)


def server_bytes() -> int:
    """A server of the clinic that takes more memory is replaced; the processes of its pages do not count."""
    return int(_number("LUNGKIT_SERVER_MB", 4096) * 2**20)


def pages_per_person() -> int:
    """How many pages of the clinic a person may have open, in all browsers together; at least 1."""
    return max(1, int(_number("LUNGKIT_PAGES_PER_PERSON", 4)))


def page_bytes() -> int:
    """What the process of a page may need at most; as much has to be free before one starts."""
    return int(_number("LUNGKIT_PAGE_MB", 270) * 2**20)


def clinic_bytes() -> int:
    """What the clinic's server and its pages may take together; by default all that the system leaves."""
    return int(_number("LUNGKIT_CLINIC_MB", 999_999) * 2**20)


@dataclass(frozen=True)
class Profile:
    """Sizes of a run: `quick` to see what comes out, `full` for results to report, `smoke` to test that it runs."""

    image_size: int  # side of the model's square input, pixels
    phantom_slices: int
    images: int | None  # most images taken from any other data set (whole patients, every class); None: all
    search_batches: int  # training batches in an epoch of a trial
    search_epochs: int  # most epochs of one trial
    search_trials: int  # trials of a Bayesian search; Hyperband's number follows from its epochs
    epochs: int  # most epochs of the final training
    patience: int  # epochs without a lower validation loss before training stops
    batch_size: int
    explained: int  # images that Grad-CAM is measured on
    finalists: int  # settings of a search that are trained again
    repeats: int  # starts of each of them

    def limit(self, data: str) -> int | None:
        """How many images to take from the data set called `data`."""
        return self.phantom_slices if data == "phantom" else self.images


PROFILES = {
    "quick": Profile(96, 600, 6000, 12, 3, 4, 40, 40, 32, 200, 2, 2),
    "full": Profile(224, 1500, None, 100, 12, 20, 60, 10, 32, 600, 3, 3),
    "smoke": Profile(64, 600, 600, 3, 2, 2, 4, 4, 32, 12, 2, 1),
}


def profile(name: str) -> Profile:
    """The profile of this name. Raises LungkitError for an unknown name."""
    try:
        return PROFILES[name]
    except KeyError:
        raise LungkitError(f"no profile '{name}'; there are: {', '.join(PROFILES)}") from None
