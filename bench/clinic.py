"""The clinic as its people meet it: how soon the page is there, a reading is shown, and what a page's kernel weighs.

A real server and a real browser on this machine; Chromium (Debian: apt install chromium) must be there. Printed are
times, medians and ratios; nothing passes or fails. What the rows mean is in bench/README.md.
"""

import argparse
import hashlib
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pydicom
import sqlalchemy as sa
from PIL import Image
from playwright import sync_api
from pydicom.uid import DigitalXRayImageStorageForPresentation
from rich.console import Console
from rich.table import Table

from bench.machine import machine
from lungkit import config
from lungkit.clinic.records import accounts
from lungkit.clinic.records.tables import Patient, Reading, Study, User
from lungkit.data import phantom
from lungkit.progress import bar
from tests.e2e.conftest import Clinic, Visitor

MIB = 2**20
SETTLED = 0.5  # s in which a waiting kernel computes nothing: it is ready
TENSORFLOW = "import tensorflow"  # what a notebook that uses Keras as it is has in its first cell

# Milliseconds from "Sign in" until a patient can be entered; from the choice of files to each reading, and until the
# first is shown. The page takes them itself, and is not asked again and again: that would take time from it.
STOPWATCH = """
window.clock = {};
addEventListener("submit", () => sessionStorage.setItem("submitted", Date.now()), true);
window.ready = new Promise((resolve) => {
  const usable = () => {
    const buttons = [...document.querySelectorAll(".clinic button")];
    if (!buttons.some((button) => button.textContent === "+ New patient" && button.offsetParent)) return;
    observer.disconnect();
    requestAnimationFrame(() => requestAnimationFrame(() => resolve(Date.now() - sessionStorage.getItem("submitted"))));
  };
  const observer = new MutationObserver(usable);
  observer.observe(document, { childList: true, subtree: true, attributes: true, attributeFilter: ["style"] });
});
addEventListener("change", (event) => {
  if (event.target.type !== "file") return;
  window.clock = { chosen: performance.now(), files: event.target.files.length, read: [], shown: 0 };
  window.clock.finished = new Promise((resolve) => { window.clock.finish = resolve; });
}, true);
const look = () => {
  if (!window.clock.chosen) return;
  const now = performance.now() - window.clock.chosen;
  const done = document.querySelectorAll(".file-line:not(.file-working)").length;
  while (window.clock.read.length < done) window.clock.read.push(now);
  const finish = () => {
    if (window.clock.shown && window.clock.read.length >= window.clock.files) window.clock.finish();
  };
  finish();
  const picture = document.querySelector(".reading .viewer-canvas");
  if (!window.clock.shown && picture && document.querySelector(".reading .probabilities")) {
    // Drawn when the next frame is on the screen, not when the element is there.
    requestAnimationFrame(() => requestAnimationFrame(() => {
      window.clock.shown ||= performance.now() - window.clock.chosen;
      finish();
    }));
  }
};
new MutationObserver(look).observe(document, { childList: true, subtree: true, characterData: true });
"""


@contextmanager
def served(pool: int, tensorflow: bool = False, **settings: str) -> Iterator[Clinic]:
    """The clinic on throw-away records; with `tensorflow`, its notebook imports TensorFlow first."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        if tensorflow:
            settings["LUNGKIT_HOME"] = str(with_tensorflow(Path(folder, "home")))
        clinic = Clinic(Path(folder), pool=pool, **settings)
        try:
            yield clinic.start()
        finally:
            clinic.close()


def with_tensorflow(home: Path) -> Path:
    """A folder whose notebooks/app.ipynb is the clinic's with one more cell at its start."""
    page = json.loads((config.notebooks_dir() / "app.ipynb").read_text())
    cell = {"cell_type": "code", "execution_count": None, "id": "bench", "metadata": {}, "outputs": []}
    page["cells"].insert(0, cell | {"source": [TENSORFLOW]})
    (home / "notebooks").mkdir(parents=True)
    (home / "notebooks" / "app.ipynb").write_text(json.dumps(page))
    return home


def wait_until_ready(clinic: Clinic, kernels: int) -> None:
    """Return when so many kernels wait for visitors and have nothing left to do."""
    while True:
        waiting = clinic.kernels()
        before = [sum(kernel.cpu_times()[:2]) for kernel in waiting]
        time.sleep(SETTLED)
        if len(waiting) >= kernels and [sum(kernel.cpu_times()[:2]) for kernel in waiting] == before:
            return


# --- the page


def page_seconds(browser: sync_api.Browser, clinic: Clinic, kernels: int) -> float:
    """From the click on "Sign in" until the page can be worked with; nothing is kept from an earlier visit."""
    wait_until_ready(clinic, kernels)
    visitor = watched(browser, clinic)
    page = visitor.page
    page.goto(clinic.url)
    page.get_by_label("User name").type("ada", delay=150)  # as people type, and browsers fetch meanwhile
    page.get_by_label("Password").type(clinic.passwords["ada"], delay=100)
    page.get_by_role("button", name="Sign in").click()
    page.locator(".clinic-nav").wait_for(state="attached")  # not the page of those who wait, at the same address
    milliseconds = page.evaluate("window.ready")
    visitor.context.close()
    return milliseconds / 1000


def pages(browser: sync_api.Browser, visits: int) -> tuple[Table, dict[str, float]]:
    """Page ready after sign-in, preheated and cold, of the clinic and of the same notebook with TensorFlow in it."""
    table = Table(
        title="Page ready after sign-in, seconds (median and range: after the first visit)", title_justify="left"
    )
    for heading, side in (("", "left"), ("first visit", "right"), ("median", "right"), ("range", "right")):
        table.add_column(heading, justify=side)
    medians = {}
    for name, tensorflow in (("clinic", False), ("the same with TensorFlow imported", True)):
        for state, pool in (("preheated", 1), ("cold", 0)):
            with served(pool, tensorflow) as clinic:
                label = f"{name}, {state}"
                times = [page_seconds(browser, clinic, pool) for _ in bar(range(visits + 1), label=label, unit="visit")]
            medians[label] = statistics.median(times[1:])
            table.add_row(
                label, f"{times[0]:.2f}", f"{medians[label]:.2f}", f"{min(times[1:]):.2f}–{max(times[1:]):.2f}"
            )
    return table, medians


# --- one upload


def large_files(folder: Path, number: int) -> dict[str, Path]:
    """An 8-bit PNG of 2,000 x 2,000 and a digital radiograph of 15 MB: phantom slices; other ones for each number."""
    folder.mkdir(exist_ok=True)
    cut = phantom.make_patient("bench", "Pneumonia", seed=number, slices=3, size=512)[1]
    grain = np.random.default_rng(number).normal(0, 12, (2740, 2740))  # as hard to compress as a real image

    def drawn(side: int) -> np.ndarray:
        hu = np.asarray(Image.fromarray(cut.hu.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC))
        return np.clip((hu + grain[:side, :side] + 1350) / 1500, 0, 1)

    png, dicom = folder / f"slice-{number}.png", folder / f"slice-{number}.dcm"
    Image.fromarray((255 * drawn(2000)).astype(np.uint8)).save(png)
    header = pydicom.dcmread(phantom.write_dicom(cut, dicom, compressed=False))
    for name in ("RescaleSlope", "RescaleIntercept", "RescaleType", "WindowCenter", "WindowWidth"):
        del header[name]
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    # A radiograph that says DX is not for a model of CT slices, which would refuse it and draw no heat map.
    header.Modality, header.Rows, header.Columns = "OT", 2740, 2740
    header.PixelData = (4095 * drawn(2740)).astype("<u2").tobytes()
    header.save_as(dicom)
    return {"PNG, 2,000 x 2,000 pixels": png, "DICOM (DX), 2,740 x 2,740 pixels": dicom}


def uploads(browser: sync_api.Browser, folder: Path, rounds: int) -> tuple[Table, list[float]]:
    """From the choice of a file to its reading on the screen, and the memory of the kernel that did it, MiB."""
    times: dict[str, list[float]] = {}
    sizes, memory = {}, []
    with served(pool=1) as clinic:
        wait_until_ready(clinic, 1)
        worker = clinic.kernels()[0]
        memory.append(own_memory(worker))
        visitor = watched(browser, clinic).sign_in("ada")
        for number in bar(range(rounds + 1), label="uploads", unit="round"):
            for name, file in large_files(folder, number).items():
                visitor.new_patient(f"B-{number}-{file.suffix}", "Bench Patient")
                visitor.page.locator("input[type=file]:enabled").set_input_files(file)
                seconds = finished(visitor)["shown"] / 1000
                if number:  # a first round only warms up
                    times.setdefault(name, []).append(seconds)
                sizes[name] = file.stat().st_size / 1e6
                visitor.page.get_by_role("button", name="Next patient").click()
            memory.append(own_memory(worker))
        visitor.context.close()
    table = Table(title="From the choice of a file to its reading shown, seconds", title_justify="left")
    for heading, side in (("", "left"), ("MB", "right"), ("median", "right"), ("range", "right")):
        table.add_column(heading, justify=side)
    for name, values in times.items():
        table.add_row(
            name, f"{sizes[name]:.1f}", f"{statistics.median(values):.2f}", f"{min(values):.2f}–{max(values):.2f}"
        )
    return table, memory


def own_memory(process: psutil.Process) -> float:
    """Resident memory, MiB: libraries that all kernels share are counted in full."""
    return process.memory_info().rss / MIB


def watched(browser: sync_api.Browser, clinic: Clinic) -> Visitor:
    """A visitor whose page takes the time."""
    visitor = Visitor(browser, clinic, 1280)
    visitor.context.add_init_script(STOPWATCH)
    return visitor


def finished(visitor: Visitor) -> dict:
    """The stopwatch when all chosen files were read and the first is shown: ms "shown", ms "read" of each."""
    return visitor.page.evaluate("async () => { await window.clock.finished; return window.clock; }")


# --- many at once


def crowd(browser: sync_api.Browser, folder: Path, people: int, each: int) -> list[str]:
    """So many clinicians choose so many files at the same moment: what became of all, in sentences."""
    names = [f"doctor{i:02d}" for i in range(people)]
    source = phantom.make_dataset(folder / "crowd", n_slices=people * each, size=512)
    files = sorted((source / "slices").iterdir())[: people * each]
    own = {name: files[i * each : (i + 1) * each] for i, name in enumerate(names)}
    with served(pool=2) as clinic:
        with clinic.store.write() as db:
            for name in names:
                clinic.passwords[name] = accounts.add_user(db, name, f"Bench {name.title()}", "doctor")
        visitors = {}
        for name in bar(names, label="sign-ins", unit="person"):
            visitors[name] = watched(browser, clinic).sign_in(name)
            visitors[name].new_patient(f"C-{name}", f"Patient of {name}")
        started = time.perf_counter()
        for name, visitor in visitors.items():
            visitor.page.locator("input[type=file]:enabled").set_input_files(own[name])
        chosen = time.perf_counter() - started
        seconds = []
        for visitor in bar(visitors.values(), total=people, label="readings", unit="person"):
            seconds += finished(visitor)["read"]
        took = time.perf_counter() - started
        texts = {name: visitors[name].visible_text() for name in names}
        strangers = sum(f"C-{other}" in texts[name] for name in names for other in names if other != name)
        lost, mixed = wrong(clinic, own)
        kernels = [own_memory(kernel) for kernel in clinic.kernels()]
        for visitor in visitors.values():
            visitor.context.close()
    seconds = np.array(seconds) / 1000
    return [
        f"{people} clinicians, {each} images each (DICOM, 512 x 512), all chosen within {chosen:.1f} s, read and saved "
        f"after {took:.1f} s ({len(seconds) / took:.0f} images/s)",
        f"slowest reading {seconds.max():.1f} s after its choice, median {np.median(seconds):.1f} s",
        f"lost {lost}, mixed up {mixed}, pages that show another's patient {strangers}",
        f"memory of the {len(kernels)} kernels: median {np.median(kernels):.0f} MiB, largest {max(kernels):.0f} MiB",
    ]


def wrong(clinic: Clinic, own: dict[str, list[Path]]) -> tuple[int, int]:
    """Of the files chosen: how many have no reading, and how many one under another person or patient."""
    with clinic.store.read() as db:
        rows = db.execute(
            sa.select(Study.sha256, User.name, Patient.number)
            .select_from(Reading).join(Study).join(Patient).join(User, Study.uploaded_by == User.id)
        ).all()  # fmt: skip
    whose = {sha256: (name, number) for sha256, name, number in rows}
    expected = {
        hashlib.sha256(file.read_bytes()).hexdigest(): (name, f"C-{name}")
        for name, files in own.items()
        for file in files
    }
    lost = sum(sha256 not in whose for sha256 in expected)
    return lost, sum(whose[sha256] != right for sha256, right in expected.items() if sha256 in whose)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--visits", type=int, default=5, help="visits of each page after the first (5)")
    arguments.add_argument("--rounds", type=int, default=5, help="uploads of each kind (5)")
    arguments.add_argument("--people", type=int, default=20, help="clinicians at once (20)")
    arguments.add_argument("--each", type=int, default=5, help="images that each of them chooses (5)")
    arguments.add_argument("--only", choices=["pages", "uploads", "crowd"], help="one part (default: all)")
    chosen = arguments.parse_args()
    console = Console()
    console.print(machine("voila", "openvino", "tensorflow", "playwright"), highlight=False)
    parts: dict[str, Callable[[], None]] = {}
    with sync_api.sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        # Without a sandbox: in a container there is none to be had, and all pages are our own.
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])

        def pages_shown() -> None:
            table, medians = pages(browser, chosen.visits)
            console.print(table)
            for state in ("preheated", "cold"):
                slower = medians[f"the same with TensorFlow imported, {state}"]
                console.print(
                    f"  {slower / medians[f'clinic, {state}']:6.2f}  TensorFlow / clinic, {state}", highlight=False
                )

        def uploads_shown() -> None:
            table, memory = uploads(browser, Path(folder, "uploads"), chosen.rounds)
            console.print(table)
            steps = ", ".join(f"{mib:.0f}" for mib in memory)
            console.print(f"Memory of the kernel, preheated and after each round, MiB: {steps}", highlight=False)

        def crowd_shown() -> None:
            for sentence in crowd(browser, Path(folder), chosen.people, chosen.each):
                console.print(sentence, highlight=False)

        parts |= {"pages": pages_shown, "uploads": uploads_shown, "crowd": crowd_shown}
        for name, part in parts.items():
            if chosen.only in (None, name):
                part()
        browser.close()


if __name__ == "__main__":
    main()
