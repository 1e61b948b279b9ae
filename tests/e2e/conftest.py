"""A clinic that is really served, browsers that look at it, and files to upload.

Everything lasts as long as one test file, no longer: while the browser's driver runs, its event loop is in the way of
tests elsewhere that start one.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from playwright import sync_api

from lungkit.clinic.records import accounts, maintenance
from lungkit.clinic.records.store import Store
from lungkit.data import phantom
from tests.shipped import export

PEOPLE = {"ada": ("Demo Doctor", "doctor"), "ben": ("Second Doctor", "doctor"), "eve": ("Demo Admin", "admin")}
WIDTHS = {"desk": 1280, "tablet": 820, "phone": 390}
PATIENCE = 30_000  # ms that a page may take on a busy machine
sync_api.expect.set_options(timeout=PATIENCE)


class Clinic:
    """`lungkit serve` as a process of its own, on records and models of its own.

    folder: holds data, artifacts (a copy of the committed ct-infection, which knows the phantom) and the server's log.
    After `start`, `url` is where it answers; a later start takes the same port. passwords: user name to password of
    PEOPLE. pool: processes that wait for the next page; with 0 each page starts its own.
    """

    def __init__(self, folder: Path, pool: int = 1, **environment: str):
        self.folder, self.pool = folder, pool
        self.artifacts, self.log = folder / "artifacts", folder / "server.log"
        with tempfile.TemporaryDirectory() as exported:
            shipped = export(Path(exported))
            shutil.copytree(shipped / "ct-infection", self.artifacts / "ct-infection", dirs_exist_ok=True)
        self.environment = os.environ | {
            "LUNGKIT_DATA": str(folder / "data"),
            "LUNGKIT_ARTIFACTS": str(self.artifacts),
            "LUNGKIT_REPORTS": str(folder / "reports"),
            "LUNGKIT_DATABASE": f"sqlite:///{folder / 'data' / 'clinic' / 'clinic.db'}",
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        self.store = Store(self.environment["LUNGKIT_DATABASE"])
        maintenance.upgrade(self.store)
        self.passwords, self.port, self.process = {}, 0, None
        with self.store.write() as db:
            for name, (full_name, role) in PEOPLE.items():
                self.passwords[name] = accounts.add_user(db, name, full_name, role)

    def start(self, **environment: str) -> "Clinic":
        """Serve, with these additions to the environment; returns when the server answers."""
        log = self.log.open("ab")
        self.process = subprocess.Popen(
            [Path(sys.executable).with_name("lungkit"), "serve", "--port", str(self.port), "--pool", str(self.pool)],
            env=self.environment | environment, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
        )  # fmt: skip
        log.close()
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        assert found, f"the server did not start: {line} {self.log_text()}"
        self.url, self.port = found[0], int(found[1])
        return self

    def log_text(self) -> str:
        """The server's log, its kernels' words included."""
        return self.log.read_text(errors="replace")

    def kernels(self) -> list[psutil.Process]:
        """The processes that pages run in, waiting ones included."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if "ipykernel" in str(child.cmdline())]

    def server(self) -> psutil.Process:
        """The process that answers; `process` watches over it."""
        (server,) = psutil.Process(self.process.pid).children()
        return server

    def kill(self) -> None:
        """End the server as a power cut would; its kernels are left to themselves."""
        server = self.server()
        self.process.kill()
        self.process.wait()
        psutil.wait_procs([server], timeout=10)  # it ends with the one that watches over it
        self.process.stdout.close()

    def stop(self) -> None:
        """End the server as an administrator would; nothing of it stays."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0, self.log_text()
        self.process.stdout.close()
        _, left = psutil.wait_procs(children, timeout=10)
        assert not left, f"still running after the server's end: {left}"
        with socket.create_server(("127.0.0.1", self.port)):
            pass  # the port is free

    def close(self) -> None:
        """Stop what still runs, whatever state a test left it in."""
        if self.process and self.process.poll() is None:
            self.stop()
        self.store.close()

    def token(self, name: str) -> str:
        """Sign in, without a browser."""
        return accounts.sign_in(self.store, name, self.passwords[name], "127.0.0.1")


class Visitor:
    """A person at a browser, on a page of the clinic.

    Keeps what went wrong unseen: `requests` that left this machine, `faults` of the page's scripts.
    """

    def __init__(self, browser: sync_api.Browser, clinic: Clinic, width: int):
        self.clinic = clinic
        self.context = browser.new_context(viewport={"width": width, "height": 900}, accept_downloads=True)
        self.context.set_default_timeout(PATIENCE)
        self.context.add_init_script(COUNT_MESSAGES)
        self.requests, self.faults = [], []
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.context.on("weberror", lambda fault: self.faults.append(str(fault.error)))
        self.context.on("dialog", lambda dialog: (self.faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page = self.context.new_page()

    def sign_in(self, name: str) -> "Visitor":
        """Open the clinic as a person who signed in a moment ago."""
        token = self.clinic.token(name)
        self.context.add_cookies([{"name": accounts.COOKIE, "value": token, "url": self.clinic.url}])
        return self.open()

    def cookie(self, name: str = accounts.COOKIE) -> str:
        """The value of a cookie; by default the session's token."""
        return next(cookie["value"] for cookie in self.context.cookies() if cookie["name"] == name)

    def open(self) -> "Visitor":
        self.page.goto(self.clinic.url)
        self.page.locator(".clinic-nav").wait_for()
        return self

    def start_over(self) -> "Visitor":
        """Back to the first screen, with an empty form; what was noted about earlier tests is forgotten."""
        self.requests.clear()
        self.faults.clear()
        first = self.page.locator(".nav-entry").first.inner_text().strip()
        self.go(first)
        self.page.get_by_role("heading", name=first, exact=True).wait_for()
        if first != "New case":
            return self
        new = self.page.get_by_role("button", name="+ New patient")
        entered = self.page.get_by_role("button", name="Choose another patient")
        following = self.page.get_by_role("button", name="Next patient")
        new.or_(entered).or_(following).first.wait_for()
        if entered.is_visible():
            self.page.evaluate("sessionStorage.clear()")  # text that was not saved would come back
            return self.open()  # a patient was entered, and no image read
        if following.is_visible():
            following.click()
            new.wait_for()
        return self

    def go(self, screen: str) -> None:
        """Another screen of the navigation, by its name."""
        entry = self.page.locator(".nav-entry", has_text=screen)
        entry.click()
        sync_api.expect(entry).to_have_class(re.compile(r"\bcurrent\b"))
        self.page.locator(".clinic-screen h1").wait_for()

    def new_patient(self, number: str, name: str, birth_year: str = "", sex: str = "unknown") -> None:
        """Enter a patient on the page New case."""
        page = self.page
        page.get_by_role("button", name="+ New patient").click()
        page.get_by_label("Patient number", exact=True).fill(number)
        page.get_by_label("Name", exact=True).fill(name)
        page.get_by_label("Birth year (if known)").fill(birth_year)
        page.get_by_label("Sex").select_option(sex)
        page.get_by_role("button", name="Use this patient").click()
        page.get_by_role("button", name="Choose another patient").wait_for()

    def upload(self, *files: Path, answer: str = r"Save for .* anyway") -> None:
        """Choose these files and wait until each was read or refused.

        answer: pattern of the button that is pressed where the page asks about the patient, as for an image that a
        patient of another test has; empty: none, and the question stays.
        """
        lines = self.page.locator(".file-line:not(.file-working)")
        before = lines.count()
        self.page.locator("input[type=file]:enabled").set_input_files(files)
        sync_api.expect(lines).to_have_count(before + len(files))
        asked = self.page.locator(".file", has=self.page.locator(".file-asked"))
        while answer and asked.count():
            button = self.page.get_by_role("button", name=re.compile(answer))
            pressed = asked.first.locator(button).element_handle()
            pressed.click()
            pressed.wait_for_element_state("hidden")
            sync_api.expect(asked.filter(has_not=button)).to_have_count(0)  # it is saved, or asks once more
            sync_api.expect(lines).to_have_count(before + len(files))

    def send_file(self, content: bytes) -> int:
        """Send a file to the page's kernel past the page; the answer's status."""
        kernel = self.page.evaluate("JSON.parse(document.getElementById('jupyter-config-data').textContent).kernelId")
        address = f"{self.clinic.url}clinic/upload/{kernel}"
        return self.context.request.post(address, data=content, headers={"X-XSRFToken": self.cookie("_xsrf")}).status

    def line(self, file: Path) -> str:
        """What became of a file, in the page's words."""
        return self.page.locator(".file-line", has_text=file.name).last.inner_text()

    def visible_text(self) -> str:
        """All text of the page, now."""
        return self.page.locator("body").inner_text()

    def sees(self, *words: str) -> None:
        """Wait until the page says each of these."""
        for each in words:
            sync_api.expect(self.page.locator("body")).to_contain_text(each, use_inner_text=True)

    def usable(self) -> list[str]:
        """What is in the way of people with a keyboard, a screen reader or a tablet; nothing where all is well."""
        controls = "button|checkbox|combobox|link|radio|searchbox|slider|spinbutton|textbox"
        tree = self.page.locator("body").aria_snapshot()
        found = re.findall(rf"^ *- (?:{controls})(?!\w)(?! \").*$", tree, re.MULTILINE)
        for place, width in WIDTHS.items():
            self.page.set_viewport_size({"width": width, "height": 900})
            try:
                self.page.wait_for_function(f"() => {NEEDED} <= window.innerWidth", timeout=3000)
            except sync_api.TimeoutError:
                needed = self.page.evaluate(NEEDED)
                found.append(f"{place}: {needed} of {width} pixels wide")
        self.page.set_viewport_size({"width": WIDTHS["desk"], "height": 900})
        return found

    def sent(self) -> dict[str, int]:
        """How many messages, and bytes, the page has sent to its kernel."""
        return self.page.evaluate("window.sent")

    def elsewhere(self) -> list[str]:
        """Requests to anything but the clinic."""
        own = (self.clinic.url, "blob:", "data:")
        return [url for url in self.requests if not url.startswith(own)]


# How many pixels wide a page is. A page with widgets scrolls in a part of Voila's around them.
NEEDED = "Math.max(...[...document.querySelectorAll('html, .clinic')].map((part) => part.scrollWidth))"
# What the page sends to its kernel, for tests that say what must not be sent.
COUNT_MESSAGES = """
window.sent = { messages: 0, bytes: 0 };
window.WebSocket = class extends WebSocket {
  send(message) {
    window.sent.messages += 1;
    window.sent.bytes += message.byteLength ?? message.length;
    super.send(message);
  }
};
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    """Debian's Chromium, as it is installed."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no Chromium here (Debian: apt install chromium)")
    with sync_api.sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=program, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def start_clinic(browser, tmp_path_factory) -> Iterator[Callable[..., Clinic]]:
    """A function: a clinic that is served, on folders of its own; all stop at the end of the test file."""
    clinics = []

    def start(folder: Path | None = None, **settings) -> Clinic:
        clinic = Clinic(folder or tmp_path_factory.mktemp("clinic"), **settings)
        clinics.append(clinic)
        return clinic.start()

    yield start
    for clinic in clinics:
        clinic.close()


@pytest.fixture(scope="module")
def clinic(start_clinic) -> Clinic:
    """The clinic that all tests of a file share."""
    return start_clinic()


@pytest.fixture(scope="module")
def open_pages() -> Iterator[dict[str, Visitor]]:
    """Pages of the shared clinic that later tests of the file use again, by user name."""
    pages: dict[str, Visitor] = {}
    yield pages
    for visitor in pages.values():
        visitor.context.close()


@pytest.fixture
def visit(browser, open_pages, request) -> Iterator[Callable[..., Visitor]]:
    """A function: a browser on the clinic, signed in if a name is given.

    To open a page takes seconds, so it is one that an earlier test used, back at its first screen. Later tests use it
    again, unless this one ends its session or the like (`ends=True`). Pages that get a name in `open_pages` during the
    test stay open too. After the test: no requests to other machines, no failed scripts.
    """
    visitors = []

    def open_browser(name: str | None = None, width: int = WIDTHS["desk"], ends: bool = False) -> Visitor:
        if name in open_pages:
            visitor = open_pages[name].start_over()
        else:
            visitor = Visitor(browser, request.getfixturevalue("clinic"), width)
            if name:
                open_pages[name] = visitor.sign_in(name)
        if ends:
            del open_pages[name]
        visitors.append(visitor)
        return visitor

    yield open_browser
    for visitor in visitors:
        if visitor not in open_pages.values():
            visitor.context.close()
    assert [visitor.elsewhere() for visitor in visitors] == [[] for _ in visitors]
    assert [visitor.faults for visitor in visitors] == [[] for _ in visitors]


@pytest.fixture(scope="session")
def slices(tmp_path_factory) -> dict[str, Path]:
    """DICOM files of the phantom, as large as a scanner's: class to a slice that the committed model is sure of."""
    folder = tmp_path_factory.mktemp("slices")
    drawn = {label: phantom.make_patient("demo", label, seed=46, slices=3, size=512)[1] for label in phantom.CLASSES}
    return {label: phantom.write_dicom(cut, folder / f"phantom-{label.lower()}.dcm") for label, cut in drawn.items()}
