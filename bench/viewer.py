"""How soon is a CT series on the screen, how fast does it scroll, and what does the page's kernel weigh?

python -m bench.viewer [SLICES] saves a phantom series of 512 x 512 pixels (default: 300 slices) in throw-away records,
opens it several times in Chromium (Debian: apt install chromium), and scrolls it. Printed are times; nothing passes or
fails. What the rows mean is in bench/README.md.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright import sync_api
from rich.console import Console
from rich.table import Table

from bench.clinic import own_memory, served, wait_until_ready
from bench.machine import machine
from lungkit.clinic import series_reading
from lungkit.clinic.predictor import ModelPool
from lungkit.clinic.records.accounts import Access
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.patients import NewPatient
from lungkit.data import phantom, series
from lungkit.progress import bar
from tests.e2e.conftest import Clinic, Visitor

SIZE, ROUNDS = 512, 5

# Turns the wheel once a frame for three seconds, to the feet and back; the frames that showed another slice, a second.
SCROLL = """
async () => {
  const canvas = document.querySelector(".stack-slice canvas");
  const { measured } = document.querySelector(".stack");
  const where = document.querySelector(".stack-where");
  const [begun, before] = [performance.now(), measured.drawn];
  let down = 1;
  while (performance.now() - begun < 3000) {
    const shown = where.textContent;
    canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: 100 * down, cancelable: true }));
    if (where.textContent === shown) down = -down;
    await new Promise(requestAnimationFrame);
  }
  return (1000 * (measured.drawn - before)) / (performance.now() - begun);
}
"""


def drawn(folder: Path, slices: int) -> series.Series:
    """A phantom's series as a scanner stores it, without compression."""
    cuts = phantom.make_patient("bench", "Pneumonia", 46, slices, SIZE, (30, 80))
    for cut in bar(cuts, label="files", unit="slice"):
        phantom.write_dicom(cut, folder / f"{cut.index:04}.dcm", compressed=False, original=True)
    (only,) = series.read(folder).series
    return only


def save(clinic: Clinic, one: series.Series) -> tuple[float, float]:
    """Read and save it as the doctor "ada"; seconds that each took."""
    os.environ.update({name: value for name, value in clinic.environment.items() if name.startswith("LUNGKIT_")})
    predictor = ModelPool().get("ct-infection")
    begun = time.perf_counter()
    said = series_reading.read(predictor, one)
    read = time.perf_counter()
    records = Records(Access(clinic.store, clinic.token("ada")))
    records.save_series(NewPatient("B-1", "Bench Patient"), one, said)
    return read - begun, time.perf_counter() - read


def opened(visitor: Visitor) -> tuple[float, float, float]:
    """Seconds from the click that opens the case to its first image and to its last slice, and slices a second."""
    page = visitor.page
    visitor.go("Worklist")
    page.locator("tbody tr", has_text="B-1").click()
    begun = time.perf_counter()
    page.get_by_role("button", name="Open case").click()
    page.wait_for_function("() => document.querySelector('.stack')?.measured.first > 0")
    first = time.perf_counter() - begun
    page.wait_for_function("() => document.querySelector('.stack').measured.whole > 0", timeout=120_000)
    whole = time.perf_counter() - begun
    return first, whole, page.evaluate(SCROLL)


def main(slices: int) -> None:
    console = Console()
    console.print(machine("playwright"))
    rows = []
    with tempfile.TemporaryDirectory() as folder, served(pool=1) as clinic, sync_api.sync_playwright() as playwright:
        reading, saving = save(clinic, drawn(Path(folder), slices))
        stored = Path(clinic.environment["LUNGKIT_DATABASE"].removeprefix("sqlite:///")).stat().st_size / 1e6
        wait_until_ready(clinic, 1)
        kernel = clinic.kernels()[0]
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=sandbox)
        visitor = Visitor(browser, clinic, 1280).sign_in("ada")
        before = own_memory(kernel)
        rows = [opened(visitor) for _ in bar(range(ROUNDS), label="opened", unit="time")]
        after, server = own_memory(kernel), own_memory(clinic.server())
        browser.close()
    table = Table(title=f"A series of {slices} slices of {SIZE} x {SIZE}", title_justify="left")
    for heading, side in (("", "left"), ("median", "right"), ("range", "right")):
        table.add_column(heading, justify=side)
    names = ("first image, s after the click", "all slices there, s", "slices shown a second, scrolling")
    for name, values in zip(names, zip(*rows, strict=True), strict=True):
        table.add_row(name, f"{statistics.median(values):.2f}", f"{min(values):.2f}–{max(values):.2f}")
    console.print(table)
    console.print(f"kernel {before:.0f} MiB before, {after:.0f} MiB after; server {server:.0f} MiB")
    console.print(f"read in {reading:.1f} s, saved in {saving:.1f} s, {stored:.0f} MB in the records")
    console.print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
