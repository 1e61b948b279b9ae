"""How much memory is really left to this process, how much others take, and how many cores it may use.

The machine's free memory says nothing of a container or a service with a limit: a control group (cgroup, version 1 or
2) and each group above it may allow less. Memory that only caches files does not count as taken, because the system
gives it up first; files in active use do count, because a group that has to drop those comes to a halt. Groups limit
the time on cores in the same way.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path("/")  # tests read another tree instead
# For version 2 and version 1: the limits, what is taken, and the line of memory.stat with what can be given up.
_NAMES = {
    2: (("memory.max", "memory.high"), "memory.current", "inactive_file"),
    1: (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"),
}


def left(root: Path = ROOT) -> int:
    """Bytes that can be taken before the machine, or a control group of this process, has no more; at least 0."""
    return max(0, min([psutil.virtual_memory().available, *(limit - taken for limit, taken in _groups(root))]))


def total(root: Path = ROOT) -> int:
    """Bytes that this process and what it shares its limit with may take in all."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _groups(root))])


def cores(root: Path = ROOT) -> int:
    """Cores that this process may keep busy: the machine's, or fewer by affinity or a control group; at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it
    own = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, int(min([own, *_quotas(root)])))


def of_processes(pids: Iterable[int]) -> int:
    """Bytes that these processes take together; a page that several share counts once (proportional set size).

    A process that has ended counts nothing. Where the system tells no proportional size, the resident size counts.
    """
    return sum(_of_process(pid) for pid in pids)


def _of_process(pid: int) -> int:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        with suppress(psutil.AccessDenied, OSError):
            if proportional := getattr(process.memory_full_info(), "pss", 0):
                return int(proportional)
        with suppress(psutil.AccessDenied):
            return int(process.memory_info().rss)
    return 0


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and bytes taken of each control group with a limit that this process is in, from the inside out."""
    for version, group in _folders(root, "memory"):
        limits, taken, cache = _NAMES[version]
        allowed = [limit for name in limits if (limit := _number(group / name)) is not None]
        used = _number(group / taken)
        if allowed and used is not None:
            yield min(allowed), used - _stat(group, cache)


def _quotas(root: Path) -> Iterator[float]:
    """Cores that each control group of this process with a limit may keep busy."""
    for version, group in _folders(root, "cpu"):
        if version == 2:
            quota, _, period = _text(group / "cpu.max").strip().partition(" ")
        else:
            quota, period = (_text(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
        if quota.isdigit() and period.isdigit():  # "max" or -1: no limit
            yield int(quota) / int(period)


def _folders(root: Path, kind: str) -> Iterator[tuple[int, Path]]:
    """Version and folder of each control group of this kind that this process is in, from the inside out."""
    for version, mount, folder in _places(root, kind):
        for group in (folder, *folder.parents):
            if not group.is_relative_to(mount):
                break
            yield version, group


def _places(root: Path, kind: str) -> Iterator[tuple[int, Path, Path]]:
    """(version, mount, this process's group below it); a group that is not visible in here shows only its mount."""
    mounts = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, kinds, path = [*line.split(":", 2), "", ""][:3]
        below = path.strip("/")
        if ".." in Path(below).parts:
            below = ""
        if kind in kinds.split(","):
            yield 1, mounts / kind, mounts / kind / below
        elif number == "0" and not kinds:
            yield 2, mounts, mounts / below


def _number(file: Path) -> int | None:
    """The number in a file; None if there is none, as in "max"."""
    text = _text(file).strip()
    return int(text) if text.isdigit() else None


def _stat(group: Path, name: str) -> int:
    for line in _text(group / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdigit():
            return int(value)
    return 0


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
