"""Health: the state of the machine and of the records, with a warning for what runs low."""

from typing import Any

import ipywidgets as widgets

from lungkit import times
from lungkit.clinic.app import drift_screen
from lungkit.clinic.app.page import safe
from lungkit.clinic.app.screen import Screen
from lungkit.clinic.records.administration import Administration
from lungkit.clinic.records.tables import now
from lungkit.wording import count

LOW_DISK, SHORT_DISK = 5 * 10**9, 10**9  # bytes free: a warning, and an urgent one
LOW_MEMORY, SHORT_MEMORY = 10**9, 4 * 10**8  # bytes left: a warning, and an urgent one; a page takes up to 250 MB
LOW_TEMPORARY = 2 * 10**9  # bytes free; a CT series of the largest size needs this
LARGE_KERNEL = 400 * 10**6  # bytes; a clinician's page needs at most 250 MB


class HealthScreen(Screen[Administration]):
    """One line for each thing to watch."""

    def build(self) -> None:
        self.lines = widgets.HTML()
        self.again = self.page.button("Check again", self.refresh)
        self.lay_out("Health", self.lines, widgets.HBox([self.again]).add_class("actions"))

    def refresh(self) -> None:
        """Check again."""
        lines = "".join(_health_line(*line) for line in assess(self.records.health()))
        self.lines.value = (
            f'<dl class="health">{lines}</dl><p class="about" role="status">Checked at {times.now():%H:%M:%S}.</p>'
        )


def assess(health: dict[str, Any]) -> list[tuple[str, bool, str]]:
    """The figures of `Administration.health` as lines: (what, whether it is good, words)."""
    kernels, models = health["kernels"], health["models"]
    kind = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}.get(health["database"], health["database"])
    lines = [
        ("Database", True, f"{kind}, {size(health['database_bytes'])}"),
        *_disk(health),
        _memory(health["memory_left_bytes"], health["memory_bytes"]),
        ("People signed in", True, str(health["sessions"])),
    ]
    if not kernels:
        lines.append(("Open pages", True, "none counted; this page does not run under `lungkit serve`"))
    else:
        mean = health["kernels_bytes"] / kernels
        words = f"{kernels} processes with {size(health['kernels_bytes'])} of memory, {size(mean)} each"
        large = mean > LARGE_KERNEL
        lines.append(("Open pages", not large, words + (": more than expected" if large else "")))
        lines.append(("Server", True, f"{size(health['server_bytes'])} of memory"))
    lines += [("Damaged model", False, f"{problem}.") for problem in health["damaged"]]
    if models:
        lines.append(("Models in use", True, ", ".join(models)))
    elif not health["damaged"]:
        lines.append(("Models in use", False, "none: images cannot be read. Select a version under Models."))
    lines.append(("Drift", *drift_screen.standing(health["drift"], now().date())))
    lines.append(("Audit trail", True, f"{count(health['audit_events'], 'event')}. Verify them under Audit trail."))
    return lines


def _disk(health: dict[str, Any]) -> list[tuple[str, bool, str]]:
    """The disk of the records, the reserve that is kept there, and the disk for temporary files."""
    free, reserve, temporary = health["disk_free_bytes"], health["reserve_bytes"], health["temporary_free_bytes"]
    if reserve is None:  # of the data folder, while PostgreSQL has a disk of its own
        line = ("Disk of the database", True, "It belongs to the PostgreSQL server. Watch it there.")
    elif reserve:
        line = ("Reserve", True, f"{size(reserve)} are kept for signing in, opening cases and reviews on a full disk.")
    else:
        words = "None. On a full disk signing in fails and no case can be opened. Free up space; it is then made again."
        line = ("Reserve", False, words)
    room = ("Temporary files", True, f"{size(temporary)} free")
    if temporary < LOW_TEMPORARY:
        room = ("Temporary files", False, f"{size(temporary)} free. Large CT series are refused. Free up space there.")
    return [_free(free, health["full_disk"]), line, room]


def _free(free: int, full: str) -> tuple[str, bool, str]:
    if full:
        return "Disk", False, f"{size(free)} free. {full}"
    if free < SHORT_DISK:
        return "Disk", False, f"{size(free)} free. Soon no image can be saved. Free up space now."
    if free < LOW_DISK:
        return "Disk", False, f"{size(free)} free. Free up space, or move the records to a larger disk."
    return "Disk", True, f"{size(free)} free"


def _memory(left: int, total: int) -> tuple[str, bool, str]:
    words = f"{size(left)} of {size(total)} left"
    if left < SHORT_MEMORY:
        words += ". Further pages have to wait, and a reading may fail. Close pages that are not used, now."
    elif left < LOW_MEMORY:
        words += ". Close pages that are not used. If this comes often, the machine needs more memory."
    return "Memory", left >= LOW_MEMORY, words


def size(number: float) -> str:
    """Bytes for people: 1.3 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "bytes" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def _health_line(what: str, good: bool, words: str) -> str:
    state = '<span class="state good">✓ Good</span>' if good else '<span class="state low">! Needs attention</span>'
    return f"<dt>{safe(what)}</dt><dd>{state}<span>{safe(words)}</span></dd>"
