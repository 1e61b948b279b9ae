"""Health: how the machine and the records are, with a word on what is low."""

from collections.abc import Callable
from datetime import datetime

import ipywidgets as widgets

from lungkit.clinic.app.page import safe
from lungkit.clinic.records.administration import Oversight

LOW_DISK, SHORT_DISK = 5 * 10**9, 10**9  # bytes free: soon to be looked after, and now
LARGE_KERNEL = 400 * 10**6  # bytes: a clinician's page takes 250 MB at most


def view(oversight: Oversight, act: Callable) -> widgets.Widget:
    """The screen."""
    health = Health(oversight, act)
    health.widget.refresh = health.refresh
    return health.widget


class Health:
    """One line for each thing to look after."""

    def __init__(self, oversight: Oversight, act: Callable):
        self._oversight = oversight
        self.lines = widgets.HTML()
        self.again = widgets.Button(description="Look again")
        self.again.on_click(act(lambda _: self.refresh()))
        self.widget = widgets.VBox(
            [widgets.HTML("<h1>Health</h1>"), self.lines, widgets.HBox([self.again]).add_class("actions")]
        )
        self.refresh()

    def refresh(self) -> None:
        """Look anew."""
        found = "".join(_line(*line) for line in assess(self._oversight.health()))
        self.lines.value = (
            f'<dl class="health">{found}</dl><p class="about" role="status">As of {datetime.now():%H:%M:%S}.</p>'
        )


def assess(health: dict) -> list[tuple[str, str, str]]:
    """What `Oversight.health` found, for people: (thing, state "good" or "low", words)."""
    free, kernels, models = health["disk_free_bytes"], health["kernels"], health["models"]
    kind = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}.get(health["database"], health["database"])
    lines = [("Database", "good", f"{kind}, {size(health['database_bytes'])}")]
    if free < SHORT_DISK:
        lines.append(("Disk", "low", f"{size(free)} free: nothing can be saved soon. Make room now."))
    elif free < LOW_DISK:
        lines.append(("Disk", "low", f"{size(free)} free: make room, or move the records to a larger disk."))
    else:
        lines.append(("Disk", "good", f"{size(free)} free"))
    lines.append(("People signed in", "good", str(health["sessions"])))
    if not kernels:
        lines.append(("Open pages", "good", "none counted; this page does not run under `lungkit serve`"))
    else:
        mean = health["kernels_bytes"] / kernels
        words = f"{kernels} kernels with {size(health['kernels_bytes'])} of memory, {size(mean)} each"
        large = mean > LARGE_KERNEL
        lines.append(("Open pages", "low" if large else "good", words + (": more than expected" if large else "")))
    lines += [("Damaged model", "low", f"{problem}.") for problem in health["damaged"]]
    if models:
        lines.append(("Models in use", "good", ", ".join(models)))
    elif not health["damaged"]:
        lines.append(("Models in use", "low", "none: images cannot be read. Choose a version under Models."))
    lines.append(("Audit trail", "good", f"{health['audit_events']:,} events; verify them under Audit trail"))
    return lines


def size(count: float) -> str:
    """Bytes for people: 1.3 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _line(thing: str, state: str, words: str) -> str:
    mark = {"good": "✓ fine", "low": "! look after this"}[state]
    return f'<dt>{safe(thing)}</dt><dd><span class="state {state}">{mark}</span><span>{safe(words)}</span></dd>'
