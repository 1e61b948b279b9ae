"""What a run was made with: versions, machine, code, parameters, as run.json in its folder."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, get_type_hints

import psutil

import lungkit
from lungkit import files
from lungkit.errors import LungkitError
from lungkit.models.schema import checked

RECORD = "run.json"
PARTS = ("lungkit", "notebooks")  # of the checkout: what a run is made with
# What decides about figures; every other installed package is in the lock file of the commit.
PACKAGES = ("numpy", "scipy", "pandas", "scikit-learn", "tensorflow", "keras", "keras-tuner", "openvino", "pillow",
            "pydicom", "matplotlib")  # fmt: skip
_ENVIRONMENT = {"packages": Mapping[str, Any], "cores": int | None}  # the types of what reports compute with
_CODE = {"changed": bool | None}


@dataclass(frozen=True)
class Stage:
    """One notebook of a run."""

    name: str  # "04_evaluation"
    seconds: float
    status: str  # "done", or why it stopped


@dataclass(frozen=True)
class RunRecord:
    """A run of notebooks, as run.json keeps it."""

    started: str  # ISO 8601, with the zone
    parameters: dict[str, Any]
    stages: tuple[Stage, ...]
    environment: dict[str, Any]  # as `environment` gives it
    code: dict[str, Any]  # as `code` gives it

    @classmethod
    def of(cls, started: str, parameters: Mapping[str, Any], stages: tuple[Stage, ...]) -> "RunRecord":
        """The record of a run on this machine, with this code."""
        return cls(started, dict(parameters), stages, environment(), code())

    def save(self, folder: Path) -> None:
        """Write run.json."""
        files.replace(folder / RECORD, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def open(cls, folder: Path) -> "RunRecord":
        """The record in a run's folder. LungkitError where there is none, or where it is damaged."""
        try:
            record = json.loads((folder / RECORD).read_text("utf-8"))
            return _checked(cls(**record | {"stages": tuple(Stage(**stage) for stage in record["stages"])}))
        except FileNotFoundError:
            raise LungkitError(f"{folder} is not the folder of a run: it has no {RECORD}. Give one that `lungkit run` "
                               "made") from None  # fmt: skip
        except (LungkitError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise LungkitError(f"{folder / RECORD} is damaged: {error}") from None


def _checked(record: RunRecord) -> RunRecord:
    """The record itself; LungkitError where a value has another type, or a notebook's name is a path."""
    parts: list[tuple[object, Mapping[str, Any]]] = [
        (record, get_type_hints(RunRecord) | {"stages": tuple[Any, ...]}),
        *((stage, get_type_hints(Stage)) for stage in record.stages),
    ]
    for part, types in parts:
        for name, kind in types.items():
            checked(getattr(part, name), kind, name)
    for known, types in ((record.environment, _ENVIRONMENT), (record.code, _CODE)):
        for name in types.keys() & known.keys():
            checked(known[name], types[name], name)
    if paths := [stage.name for stage in record.stages if Path(stage.name).name != stage.name or "\0" in stage.name]:
        raise LungkitError(f"a notebook has the name {ascii(paths[0])[:60]}; accepted: one without folders")
    return record


def environment() -> dict[str, Any]:
    """Python, system, processor, cores, memory in GiB, and the versions of PACKAGES that are installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "packages": versions,
    }


def code() -> dict[str, Any]:
    """lungkit's version, the commit of its checkout, and whether files differ from it; commit None without one.

    "patch": the SHA-256 of `patch`, where files differ.
    """
    known: dict[str, Any] = {"lungkit": lungkit.__version__, "commit": None, "changed": None}
    if (commit := git("rev-parse", "HEAD")) is None:
        return known
    changed = git("status", "--porcelain", "--", *PARTS)
    known |= {"commit": commit.decode().strip(), "changed": None if changed is None else bool(changed.strip())}
    return known | ({"patch": files.sha256(patch(known["commit"]))} if known["changed"] else {})


def patch(commit: str) -> bytes:
    """How the tracked files of PARTS differ from a commit, as `git apply` reads it; empty where git cannot say."""
    return git("diff", "--binary", "--no-color", "--no-ext-diff", commit, "--", *PARTS) or b""


def checkout() -> Path:
    """The folder that holds this package: a git checkout, unless the package was installed."""
    return Path(lungkit.__file__).parents[1]


def git(*arguments: str) -> bytes | None:
    """What git says of the package's checkout; None without git or a checkout, or where it refuses."""
    if not (checkout() / ".git").exists():
        return None
    try:
        asked = subprocess.run(["git", "-C", str(checkout()), *arguments], capture_output=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout if asked.returncode == 0 else None


def _processor() -> str:
    """The processor's name, as far as the system says it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
