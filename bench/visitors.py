"""Many people who sign in at once: how soon each has a page, how long a reading takes then, and what memory it needs.

With --before PATH, the same is measured with another checkout, in turns. A checkout serves its own clinic on throw-away
records. All people but one are programs that speak HTTP and websockets as a page does. The one has a real browser and
reads images while everyone is in. Nothing passes or fails. What the rows mean is in bench/README.md.
"""

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from playwright import sync_api
from rich.console import Console
from rich.table import Table

from bench.clinic import finished, watched
from bench.machine import machine
from lungkit.clinic import memory
from lungkit.clinic.records import accounts
from lungkit.data import phantom
from tests.clinic.browser import Browser, kernel_in, message, talk

HERE = Path(__file__).parents[1]
TYPING = 5.0  # s between the sign-in page and the password
POOL = 2
PATIENCE = 300.0  # s for a page
MIB = 2**20
SETUP = """
import json, shutil, sys
from pathlib import Path
from lungkit.clinic.records import accounts, maintenance
from lungkit.clinic.records.store import Store
from tests.shipped import export
folder, names = Path(sys.argv[1]), sys.argv[2:]
shutil.copytree(export(folder / "shipped") / "ct-infection", folder / "artifacts" / "ct-infection")
store = Store()
maintenance.upgrade(store)
with store.write() as db:
    print(json.dumps({name: accounts.add_user(db, name, f"Bench {name.title()}", "doctor") for name in names}))
"""


@dataclass
class Served:
    """A clinic of one checkout while it is measured. passwords: of its people."""

    url: str
    passwords: dict[str, str]
    process: subprocess.Popen[str]

    def processes(self) -> list[psutil.Process]:
        """The server and the pages' processes; not the one that watches."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def token(self, name: str) -> str:
        """A new session of this person."""
        browser = Browser(self.url)
        browser.sign_in(name, self.passwords[name])
        return browser.cookies[accounts.COOKIE].value


@contextmanager
def served(checkout: Path, names: list[str]) -> Iterator[Served]:
    """`lungkit serve` of a checkout, with warm processes ready."""
    with tempfile.TemporaryDirectory(prefix="bench-") as text:
        folder = Path(text)
        environment = os.environ | {
            "PYTHONPATH": str(checkout),
            "LUNGKIT_HOME": str(checkout),
            "LUNGKIT_DATA": str(folder / "data"),
            "LUNGKIT_ARTIFACTS": str(folder / "artifacts"),
            "LUNGKIT_REPORTS": str(folder / "reports"),
            "LUNGKIT_DATABASE": f"sqlite:///{folder / 'data' / 'clinic' / 'clinic.db'}",
            "OMP_NUM_THREADS": "1",
        }
        made = subprocess.run(
            [sys.executable, "-c", SETUP, folder, *names],
            cwd=checkout, env=environment, check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                [Path(sys.executable).with_name("lungkit"), "serve", "--port", "0", "--pool", str(POOL)],
                cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        try:
            assert process.stdout
            found = re.search(r"http://[\d.:]+/", process.stdout.readline())
            assert found, (folder / "log").read_text()
            clinic = Served(found[0], json.loads(made.stdout.splitlines()[-1]), process)
            _wait_until_idle(clinic)
            yield clinic
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _wait_until_idle(clinic: Served, patience: float = 60) -> None:
    """Return when the server and its warm processes have nothing left to do."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        before = [sum(each.cpu_times()[:2]) for each in clinic.processes()]
        time.sleep(1)
        after = [sum(each.cpu_times()[:2]) for each in clinic.processes()]
        if len(after) > POOL and len(after) == len(before) and sum(after) - sum(before) < 0.1:
            return


# --- people


@dataclass
class Person:
    """One who signs in without a browser. seconds: from the password to the page; 0 if it never came."""

    name: str
    browser: Browser
    kernel: str = ""
    seconds: float = 0.0

    def come(self, password: str, start: threading.Barrier) -> None:
        """Sign in when all others do, and load the page as a browser does, until its widgets are there."""
        self.browser.get("/login")
        time.sleep(TYPING)
        start.wait()
        began = time.perf_counter()
        try:
            self._sign_in(password)
            self._open(began)
        except Exception as problem:
            print(f"{self.name} has no page: {problem!r}", file=sys.stderr)
            return
        self.seconds = time.perf_counter() - began

    def _sign_in(self, password: str) -> None:
        while (answer := self.browser.post("/login", name=self.name, password=password)).status == 429:
            time.sleep(int(answer.headers["Retry-After"]))

    def _open(self, began: float) -> None:
        while (page := self.browser.get("/")).status == 503 and time.perf_counter() - began < PATIENCE:
            self.browser.get("/clinic/turn")
        kernel = kernel_in(page)
        opened = message("comm_open", comm_id=f"c{self.name}", target_name="jupyter.widget.control", data={})
        opened["metadata"] = {"version": "1.0.0"}
        asked = message("comm_msg", comm_id=f"c{self.name}", data={"method": "request_states"})
        talk(self.browser, kernel, opened, asked, until=_has_states)
        self.kernel = kernel

    def is_in(self) -> bool:
        """Whether the page still has its process."""
        return bool(self.kernel) and '"there"' in self.browser.get(f"/clinic/there/{self.kernel}").text


def _has_states(heard: dict) -> bool:
    return heard.get("content", {}).get("data", {}).get("method") == "update_states"


@dataclass
class Outcome:
    """What was measured with one checkout: seconds of each page and reading, MiB of all processes, pages lost."""

    pages: list[float] = field(default_factory=list)
    readings: list[float] = field(default_factory=list)
    memory: float = 0.0
    lost: int = 0

    def values(self) -> dict[str, float]:
        """The table's cells."""
        return {
            "page ready, median s": statistics.median(self.pages or [0]),
            "page ready, worst s": max(self.pages, default=0),
            "reading, median s": statistics.median(self.readings or [0]),
            "reading, worst s": max(self.readings, default=0),
            "memory of all, MiB": self.memory,
            "pages lost": self.lost,
        }


def crowd(checkout: Path, people: int, readings: int, browser: sync_api.Browser, files: list[Path]) -> Outcome:
    """So many people sign in within the same moment; then one of them reads images while all are in."""
    names = [f"doctor{number:02d}" for number in range(people)]
    with served(checkout, [*names, "reader"]) as clinic:
        persons = [Person(name, Browser(clinic.url)) for name in names]
        start = threading.Barrier(people)
        with ThreadPoolExecutor(people) as threads:
            list(threads.map(lambda person: person.come(clinic.passwords[person.name], start), persons))
        outcome = Outcome(pages=[person.seconds for person in persons if person.seconds])
        visitor = watched(browser, clinic).sign_in("reader")
        for number, file in enumerate(files[: readings + 1]):
            visitor.new_patient(f"B-{number}", "Bench Patient")
            visitor.page.locator("input[type=file]:enabled").set_input_files(file)
            seconds = finished(visitor)["shown"] / 1000
            if number:  # the first loads what later ones use
                outcome.readings.append(seconds)
            visitor.page.get_by_role("button", name="Next patient").click()
        outcome.memory = memory.of_processes(process.pid for process in clinic.processes()) / MIB
        outcome.lost = sum(not person.is_in() for person in persons)
        visitor.context.close()
    return outcome


def table(people: int, outcomes: dict[str, list[Outcome]]) -> Table:
    """Medians over the rounds, and the ratio to the checkout before."""
    shown = Table(title=f"{people} people sign in at once", title_justify="left")
    for heading in ("", *outcomes, *(["ratio"] if len(outcomes) > 1 else [])):
        shown.add_column(heading, justify="right" if heading else "left")
    for row in Outcome().values():
        cells = [statistics.median(each.values()[row] for each in rounds) for rounds in outcomes.values()]
        ratio = [f"{cells[1] / cells[0]:.2f}" if cells[0] else "–"] if len(cells) > 1 else []
        digits = 1 if row.endswith(" s") else 0
        shown.add_row(row, *(f"{cell:,.{digits}f}" for cell in cells), *ratio)
    return shown


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--before", type=Path, help="another checkout to measure in turns with this one")
    arguments.add_argument("--people", type=int, nargs="+", default=[20, 40], help="how many sign in at once (20 40)")
    arguments.add_argument("--readings", type=int, default=5, help="images that one reads while all are in (5)")
    arguments.add_argument("--rounds", type=int, default=1, help="times that each checkout is measured (1)")
    chosen = arguments.parse_args()
    checkouts = ({"before": chosen.before.resolve()} if chosen.before else {}) | {"now": HERE}
    console = Console()
    console.print(machine("voila", "openvino", "playwright"), highlight=False)
    with sync_api.sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        # Without a sandbox: in a container there is none to be had, and all pages are our own.
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        source = phantom.make_dataset(Path(folder, "images"), n_slices=max(3, chosen.readings + 1), size=512)
        files = sorted((source / "slices").iterdir())
        for people in chosen.people:
            outcomes: dict[str, list[Outcome]] = {name: [] for name in checkouts}
            for _ in range(chosen.rounds):
                for name, checkout in checkouts.items():
                    outcomes[name].append(crowd(checkout, people, chosen.readings, browser, files))
            console.print(table(people, outcomes))
        browser.close()


if __name__ == "__main__":
    main()
