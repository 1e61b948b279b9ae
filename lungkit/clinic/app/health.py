"""Health: the state of the machine and of the records, with a warning for what runs low."""

from datetime import datetime
from typing import Any

import ipywidgets as widgets

from lungkit.clinic.app import drift_screen
from lungkit.clinic.app.page import safe
from lungkit.clinic.app.screen import Screen
from lungkit.clinic.records.administration import Administration
from lungkit.clinic.records.tables import now
from lungkit.wording import count

LOW_DISK, SHORT_DISK = 5 * 10**9, 10**9  # bytes free: a warning, and an urgent one
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
            f'<dl class="health">{lines}</dl><p class="about" role="status">Checked at {datetime.now():%H:%M:%S}.</p>'
        )


def assess(health: dict[str, Any]) -> list[tuple[str, bool, str]]:
    """The figures of `Administration.health` as lines: (what, whether it is good, words)."""
    kernels, models = health["kernels"], health["models"]
    kind = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}.get(health["database"], health["database"])
    lines = [
        ("Database", True, f"{kind}, {size(health['database_bytes'])}"),
        _disk(health["disk_free_bytes"]),
        ("People signed in", True, str(health["sessions"])),
    ]
    if not kernels:
        lines.append(("Open pages", True, "none counted; this page does not run under `lungkit serve`"))
    else:
        mean = health["kernels_bytes"] / kernels
        words = f"{kernels} processes with {size(health['kernels_bytes'])} of memory, {size(mean)} each"
        large = mean > LARGE_KERNEL
        lines.append(("Open pages", not large, words + (": more than expected" if large else "")))
    lines += [("Damaged model", False, f"{problem}.") for problem in health["damaged"]]
    if models:
        lines.append(("Models in use", True, ", ".join(models)))
    elif not health["damaged"]:
        lines.append(("Models in use", False, "none: images cannot be read. Select a version under Models."))
    lines.append(("Drift", *drift_screen.standing(health["drift"], now().date())))
    lines.append(("Audit trail", True, f"{count(health['audit_events'], 'event')}. Verify them under Audit trail."))
    return lines


def _disk(free: int) -> tuple[str, bool, str]:
    if free < SHORT_DISK:
        return "Disk", False, f"{size(free)} free. Soon nothing can be saved. Free up space now."
    if free < LOW_DISK:
        return "Disk", False, f"{size(free)} free. Free up space, or move the records to a larger disk."
    return "Disk", True, f"{size(free)} free"


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
