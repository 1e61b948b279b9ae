"""The clinic's server as browsers and attackers see it: a real process on a loopback port."""

import asyncio
import http.client
import json
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa
from tornado import httpclient
from typer.testing import CliRunner

from lungkit import cli, config, files
from lungkit.clinic.records import accounts, maintenance
from lungkit.clinic.records.store import Store
from lungkit.clinic.records.tables import SignIn, now
from lungkit.clinic.web import door, handlers, serve, sockets, supervisor, warm
from lungkit.errors import LungkitError
from lungkit.models import registry
from tests.clinic.browser import (
    Answer,
    Browser,
    ask_kernel,
    eventually,
    kernel_in,
    kernels_of,
    message,
    signed_in_as,
    talk,
)

PARTS = handlers.library_path()
NOT_REACHABLE = [
    "/api", "/api/kernels", "/api/contents", "/api/contents/app.ipynb", "/api/terminals", "/api/sessions",
    "/api/kernelspecs", "/api/me", "/api/status", "/api/config/notebook", "/api/security/csp-report", "/api/shutdown",
    "/app.ipynb", "/notebooks/app.ipynb", "/voila/files/app.ipynb", "/voila/render/app.ipynb", "/voila/tree",
    "/voila/api/contents", "/voila/query/00000000-0000-0000-0000-000000000000", f"{PARTS}/voila/../../pyproject.toml",
    f"{PARTS}/voila/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/clinic/frame.html", "/clinic/../server.py",
    "/clinic/", "/data/clinic/clinic.db", "/lab", "/tree", "/terminals/1", "/metrics", "/static/favicon.ico", "/.git",
]  # fmt: skip


@pytest.fixture
def visitor(clinic_server) -> Browser:
    return Browser(clinic_server.url)


@pytest.fixture
def anna(clinic_server) -> Iterator[Browser]:
    yield from _until_signed_out(clinic_server, "anna")


@pytest.fixture
def bert(clinic_server) -> Iterator[Browser]:
    yield from _until_signed_out(clinic_server, "bert")


def _until_signed_out(clinic, name: str) -> Iterator[Browser]:
    """A browser whose pages end with the test: a person may have a few in all."""
    browser = signed_in_as(clinic, name)
    yield browser
    if browser.get("/login").to == "/":
        browser.post("/logout")


@dataclass
class OpenPage:
    """A page that is open in a session of its own: for tests that leave it as it is."""

    browser: Browser
    answer: Answer
    kernel: str


def _open(clinic, name: str) -> OpenPage:
    browser = signed_in_as(clinic, name)
    answer = browser.page()
    return OpenPage(browser, answer, kernel_in(answer))


@pytest.fixture(scope="module")
def annas_page(clinic_server) -> OpenPage:
    return _open(clinic_server, "anna")


@pytest.fixture(scope="module")
def berts_page(clinic_server) -> OpenPage:
    return _open(clinic_server, "bert")


# --- signing in and out


def test_without_signing_in_the_page_is_not_shown(visitor, clinic_server):
    assert eventually(lambda: len(kernels_of(clinic_server)) == 1)  # the pool's
    answer = visitor.get("/")
    assert answer.status == 302
    assert answer.to.startswith("/login")
    assert answer.text == ""
    assert not eventually(lambda: len(kernels_of(clinic_server)) > 1, 2)  # none was given away


def test_the_sign_in_page_is_labelled_and_complete_in_itself(visitor):
    page = visitor.get("/login").text
    for name, kept in (("name", "username"), ("password", "current-password")):
        assert f'<label for="{name}">' in page
        assert re.search(rf'<input id="{name}"[^>]*autocomplete="{kept}"', page)
    assert "Research use only, not a diagnosis" in page
    assert page.count("autofocus") == 1
    assert 'role="alert"' not in page
    assert not re.search(r"""(src|href|action)=["'](https?:)?//""", page)


def test_the_right_password_opens_the_page_of_that_person(annas_page, berts_page):
    for page, name in ((annas_page, "Anna Test"), (berts_page, "Bert Test")):
        assert name in _shown(page.browser, page.kernel)


def _shown(browser: Browser, kernel: str) -> str:
    """All that the widgets of the page hold."""
    opened = message("comm_open", comm_id="c1", target_name="jupyter.widget.control", data={})
    opened["metadata"] = {"version": "1.0.0"}
    asked = message("comm_msg", comm_id="c1", data={"method": "request_states"})

    def states(message: dict) -> bool:
        return message.get("content", {}).get("data", {}).get("method") == "update_states"

    return json.dumps(talk(browser, kernel, opened, asked, until=states))


@pytest.mark.parametrize("name", ["anna", "nobody", "<script>alert(1)</script>"])
def test_a_failed_sign_in_shows_a_message_and_gives_no_session(visitor, name):
    answer = visitor.sign_in(name, "not the password")
    assert answer.status == 401
    assert f'role="alert">{accounts.REFUSED}' in answer.text
    assert "<script>alert" not in answer.text
    assert accounts.COOKIE not in visitor.cookies
    assert visitor.get("/").status == 302


def test_guessing_is_slowed_down_and_the_page_says_so(visitor):
    answers = [visitor.sign_in("guessed", f"wrong password {number}") for number in range(6)]
    assert [answer.status for answer in answers] == [401] * 5 + [429]
    assert re.search(r"Too many failed attempts. Try again in \d+ seconds", answers[-1].text)
    assert 0 < int(answers[-1].headers["Retry-After"]) <= 15


def test_the_session_cookie_is_out_of_reach_of_scripts_and_other_sites(anna):
    cookie = anna.cookies[accounts.COOKIE]
    assert cookie["httponly"]
    assert cookie["samesite"] == "Strict"
    assert cookie["path"] == "/"
    assert not cookie["expires"]  # gone with the browser
    assert not cookie["secure"]  # over plain HTTP it would never come back; see the test with TLS
    assert anna.cookies["_xsrf"]["samesite"] == "Strict"


def test_a_form_without_the_pages_own_token_is_refused(clinic_server, anna):
    visitor = Browser(clinic_server.url)
    visitor.get("/login")
    for xsrf in ("", "made up", "2|aaaaaaaa|bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb|1700000000"):
        refused = visitor.post("/login", xsrf, name="anna", password=clinic_server.passwords["anna"])
        assert refused.status == 403
        assert anna.post("/logout", xsrf).status == 403
    assert accounts.COOKIE not in visitor.cookies
    assert anna.get("/login").to == "/"  # still signed in


def test_a_form_from_another_site_is_refused(anna):
    body = urllib.parse.urlencode({"_xsrf": anna.cookies["_xsrf"].value})
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Origin": "https://elsewhere.example"}
    assert anna.ask("POST", "/logout", body, **headers).status in (403, 404)
    assert anna.get("/login").to == "/"


def test_signing_out_ends_the_session_even_for_someone_who_kept_the_cookie(clinic_server, anna):
    kernel = anna.open_page()
    kept = Browser(clinic_server.url)
    kept.cookies = dict(anna.cookies)
    before = len(kernels_of(clinic_server))
    answer = anna.post("/logout")
    assert (answer.status, answer.to) == (303, "/login")
    assert not anna.cookies[accounts.COOKIE].value
    assert kept.get("/").to.startswith("/login")
    assert json.loads(kept.get(f"/clinic/there/{kernel}").text)["state"] == "signed-out"
    assert kept.get(f"/api/kernels/{kernel}").status == 403
    with pytest.raises(httpclient.HTTPClientError):
        ask_kernel(kept, kernel)
    assert eventually(lambda: len(kernels_of(clinic_server)) <= before)  # the page's own is gone, another may warm up


def test_signing_out_is_not_a_link(anna):
    assert anna.get("/logout").status in (404, 405)
    assert anna.get("/login").to == "/"


# --- what can be reached


@pytest.mark.parametrize("who", ["visitor", "anna"])
def test_nothing_but_the_page_and_its_parts_is_there(request, who):
    browser = request.getfixturevalue(who)
    for path in NOT_REACHABLE:
        answer = browser.get(path)
        assert answer.status in (403, 404), path
        assert "Traceback" not in answer.text
        assert "import" not in answer.text  # no source, of the notebook or of anything


def test_no_kernel_can_be_started_or_restarted(annas_page):
    anna, kernel = annas_page.browser, annas_page.kernel
    for path in ("/api/kernels", f"/api/kernels/{kernel}/restart", f"/api/kernels/{kernel}/interrupt", "/"):
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            answer = anna.ask(method, path, "{}", **{"X-XSRFToken": anna.cookies["_xsrf"].value})
            assert answer.status in (403, 404, 405), (method, path)


def test_a_kernel_answers_to_the_session_it_was_started_for(annas_page):
    anna, kernel = annas_page.browser, annas_page.kernel
    assert anna.get(f"/api/kernels/{kernel}", **{"X-XSRFToken": anna.cookies["_xsrf"].value}).status == 200
    assert ask_kernel(anna, kernel) == "ok"
    assert json.loads(anna.get(f"/clinic/there/{kernel}").text)["state"] == "there"


def test_a_kernel_answers_to_no_one_else(clinic_server, annas_page, berts_page, visitor):
    anna, kernel, bert = annas_page.browser, annas_page.kernel, berts_page.browser
    same_person = signed_in_as(clinic_server, "anna")  # another session of hers is another computer
    same_person.open_page()
    for browser in (bert, same_person, visitor):
        browser.get("/login")
        token = {"X-XSRFToken": browser.cookies["_xsrf"].value}
        assert browser.get(f"/api/kernels/{kernel}", **token).status == 403
        assert browser.ask("DELETE", f"/api/kernels/{kernel}", **token).status == 403
        assert browser.ask("POST", f"/clinic/upload/{kernel}", "an image", **token).status == 403
        assert browser.post(f"/voila/api/shutdown/{kernel}").status == (204 if browser is visitor else 403)
        assert json.loads(browser.get(f"/clinic/there/{kernel}").text)["state"] in ("gone", "signed-out")
        with pytest.raises(httpclient.HTTPClientError) as refused:
            ask_kernel(browser, kernel)
        assert refused.value.code == 403
    assert ask_kernel(anna, kernel) == "ok"


def test_a_page_sends_files_to_its_own_kernel_with_its_token_and_up_to_the_limit(annas_page):
    anna, kernel = annas_page.browser, annas_page.kernel
    token = {"X-XSRFToken": anna.cookies["_xsrf"].value}
    path, most = f"/clinic/upload/{kernel}", config.upload_bytes()
    assert _sent(anna, path, most, **token) == 204
    assert _sent(anna, path, 8) == 403
    assert _sent(anna, path, most + 1, **token) == 400
    assert _sent(anna, "/login", 2**21, **token) == 400


def test_the_next_file_replaces_one_that_is_not_complete(annas_page):
    anna, kernel = annas_page.browser, annas_page.kernel
    token = anna.cookies["_xsrf"].value
    begun = f"POST /clinic/upload/{kernel} HTTP/1.1\r\nHost: {anna.address.netloc}\r\nCookie: {anna.cookie()}\r\n"
    begun += f"X-XSRFToken: {token}\r\nContent-Length: 1000000\r\n\r\nthe beginning"
    with socket.create_connection((anna.address.hostname, anna.address.port), 30) as lost:
        lost.sendall(begun.encode())
        time.sleep(0.5)
        assert _sent(anna, f"/clinic/upload/{kernel}", 10, **{"X-XSRFToken": token}) == 204
        assert lost.recv(100) == b""
    assert _sent(anna, f"/clinic/upload/{kernel}", 10, **{"X-XSRFToken": token}) == 204


def _sent(browser: Browser, path: str, size: int, **headers: str) -> int:
    """The status; 400 also where the connection was cut before all was taken."""
    try:
        return browser.ask("POST", path, "x" * size, **headers).status
    except (http.client.HTTPException, ConnectionError):
        return 400


def test_the_door_gives_a_file_once_and_only_to_the_kernel_it_is_for(tmp_path, monkeypatch):
    kept = door.Door()
    monkeypatch.setenv(door.DOOR, str(tmp_path / "door"))

    async def asked(kernel: str) -> bytes | None:
        monkeypatch.setenv("VOILA_KERNEL_ID", kernel)
        return await asyncio.to_thread(door.upload)

    async def told() -> list[bytes | None]:
        async with await asyncio.start_unix_server(kept.answer, tmp_path / "door"):
            kept.leave("one", b"first")
            kept.leave("one", b"second")
            kept.leave("two", b"")
            kept.leave("three", b"left behind")
            kept.leave("large", large)
            kept.forget("three")
            return [await asked(kernel) for kernel in ("four", "one", "one", "two", "three", "large")]

    large = bytearray(b"x" * (2 * door.PIECE + 1))
    assert asyncio.run(told()) == [None, b"second", None, b"", None, large]


def test_a_file_is_handed_over_piece_by_piece_because_what_is_written_at_once_is_copied():
    written = []

    class Writer:
        write, close = written.append, lambda self: None

        async def drain(self):
            pass

    async def told():
        asked, kept = asyncio.StreamReader(), door.Door()
        asked.feed_data(b"upload one\n")
        kept.leave("one", b"x" * (2 * door.PIECE + 1))
        await kept.answer(asked, Writer())

    asyncio.run(told())
    assert [len(piece) for piece in written] == [1, door.PIECE, door.PIECE, 1]


def test_files_that_a_kernel_keeps_are_private_and_removed_when_it_ends(tmp_path, monkeypatch):
    monkeypatch.setenv(door.DOOR, str(tmp_path / "door"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = {}
    for kernel in ("one", "two"):
        monkeypatch.setenv("VOILA_KERNEL_ID", kernel)
        (door.folder() / "files").mkdir()
        kept[kernel] = door.folder()
    assert kept["one"] != kept["two"] and kept["one"].parent == tmp_path
    assert kept["one"].stat().st_mode & 0o077 == 0
    door.Door().forget("one")
    assert [folder.exists() for folder in kept.values()] == [False, True]


def _say_there(browser: Browser, kernel: str, **headers: str) -> Answer:
    return browser.ask("POST", f"/clinic/active/{kernel}", "", **headers)


def _last_activity(page: OpenPage) -> str:
    return json.loads(page.browser.get(f"/api/kernels/{page.kernel}").text)["last_activity"]


def _seen_earlier(clinic, browser: Browser, minutes: float) -> None:
    """The session's last action was so long ago."""
    token = files.sha256(browser.cookies[accounts.COOKIE].value.encode())
    with clinic.store.write() as db:
        session = db.scalar(sa.select(SignIn).where(SignIn.token_sha256 == token))
        session.seen_at = now() - timedelta(minutes=minutes)


def test_a_page_learns_how_long_its_session_lasts_and_asking_does_not_extend_it(clinic_server, annas_page):
    anna, kernel = annas_page.browser, annas_page.kernel
    _seen_earlier(clinic_server, anna, 29)
    for _ in range(2):
        told = json.loads(anna.get(f"/clinic/there/{kernel}").text)
        assert told.pop("seconds") <= 60
        assert told == {"state": "there", "extendable": True, "warn": 60, "again": 60}
    _seen_earlier(clinic_server, anna, 0)


def test_someone_who_is_at_a_page_stays_signed_in_and_no_page_of_theirs_ends_as_idle(clinic_server, annas_page):
    anna, kernel = annas_page.browser, annas_page.kernel
    other = OpenPage(anna, annas_page.answer, anna.open_page())
    assert ask_kernel(anna, kernel) == "ok"  # a page without a connection for a while does not count
    before = _last_activity(annas_page), _last_activity(other)
    _seen_earlier(clinic_server, anna, 29)
    told = json.loads(_say_there(anna, kernel, **{"X-XSRFToken": anna.cookies["_xsrf"].value}).text)
    assert told["state"] == "there"
    assert told["seconds"] > 29 * 60
    assert all(new > old for new, old in zip(map(_last_activity, (annas_page, other)), before, strict=True))


def test_who_can_see_the_page_that_waits_stays_signed_in(clinic_server, annas_page):
    anna, kernel = annas_page.browser, annas_page.kernel
    for method, stays in (("GET", False), ("POST", True)):
        _seen_earlier(clinic_server, anna, 29)
        answer = anna.ask(method, "/clinic/turn", "", **{"X-XSRFToken": anna.cookies["_xsrf"].value})
        assert json.loads(answer.text)["state"] in ("waiting", "ready")
        left = json.loads(anna.get(f"/clinic/there/{kernel}").text)["seconds"]
        assert (left > 29 * 60) == stays
    assert anna.ask("POST", "/clinic/turn", "").status == 403  # not from another site


def test_only_a_page_itself_says_that_someone_is_there(annas_page, bert, visitor):
    anna, kernel = annas_page.browser, annas_page.kernel
    assert _say_there(anna, kernel).status == 403  # no token of the page: another site
    bert.get("/")
    assert _say_there(bert, kernel, **{"X-XSRFToken": bert.cookies["_xsrf"].value}).status == 403
    visitor.get("/login")
    said = _say_there(visitor, kernel, **{"X-XSRFToken": visitor.cookies["_xsrf"].value})
    assert json.loads(said.text) == {"state": "signed-out"}


def test_no_one_can_tell_whether_another_persons_kernel_exists(berts_page):
    bert = berts_page.browser
    token = {"X-XSRFToken": bert.cookies["_xsrf"].value}
    assert bert.get("/api/kernels/00000000-0000-4000-8000-000000000000", **token).status == 403


def test_a_socket_opened_by_another_site_is_refused(annas_page):
    with pytest.raises(httpclient.HTTPClientError) as refused:
        ask_kernel(annas_page.browser, annas_page.kernel, Origin="https://elsewhere.example")
    assert refused.value.code == 403


def test_a_page_cannot_run_code_in_its_kernel(clinic_server, annas_page):
    mark = clinic_server.home / "executed"

    code = message("execute_request", code=f"open({str(mark)!r}, 'w')", silent=False)
    asked = message("kernel_info_request")
    talk(
        annas_page.browser,
        annas_page.kernel,
        code,
        asked,
        until=lambda message: message["msg_type"] == "kernel_info_reply",
    )
    assert not mark.exists()


def test_a_page_that_was_left_gives_its_kernel_back(clinic_server, anna):
    kernel = anna.open_page()
    assert anna.post(f"/voila/api/shutdown/{kernel}").status == 204
    assert json.loads(anna.get(f"/clinic/there/{kernel}").text)["state"] == "gone"


def test_pages_of_one_person_are_few_in_all_sessions_and_many_opened_at_once_start_few_processes(clinic_server):
    most, own = len(kernels_of(clinic_server)) + warm.MOST_AHEAD + warm.AT_ONCE, config.pages_per_person()
    chief, elsewhere = (signed_in_as(clinic_server, "chief") for _ in range(2))
    oldest = chief.open_page()
    with ThreadPoolExecutor(12) as pool:
        opened = [pool.submit(browser.get, "/") for browser in (chief, elsewhere) * 6]
        while not all(each.done() for each in opened):
            assert len(kernels_of(clinic_server)) <= most + own
            time.sleep(0.1)
    answers = [each.result() for each in opened]
    assert {answer.status for answer in answers} <= {200, 429, 503}
    pages = [oldest] + [kernel_in(answer) for answer in answers if answer.status == 200]
    pages += [browser.open_page() for browser in (chief, elsewhere) * 2]
    states = Counter(
        json.loads(browser.get(f"/clinic/there/{kernel}").text)["state"]
        for kernel in pages
        for browser in (chief, elsewhere)
    )
    assert states == {"there": own, "gone": 2 * len(pages) - own}
    assert json.loads(chief.get(f"/clinic/there/{oldest}").text)["state"] == "gone"
    assert json.loads(elsewhere.get(f"/clinic/there/{pages[-1]}").text)["state"] == "there"
    for browser in (chief, elsewhere):
        browser.post("/logout")


# --- what every answer says


@pytest.mark.parametrize("path", ["/", "/login", "/nothing", "/clinic/clinic.css", f"{PARTS}/voila/voila.js"])
def test_every_answer_carries_the_security_headers(visitor, path):
    _has_security_headers(visitor.get(path))


def test_the_page_carries_the_security_headers(annas_page):
    _has_security_headers(annas_page.answer)


def _has_security_headers(answer: Answer) -> None:
    headers = answer.headers
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self' blob:"  # no inline script, no eval
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "same-origin"
    assert "Server" not in headers


def test_browsers_do_not_keep_pages(visitor, annas_page):
    for answer in (visitor.get("/"), visitor.get("/login"), annas_page.answer, annas_page.browser.get("/nothing")):
        assert "no-store" in answer.headers["Cache-Control"]


def test_browsers_keep_the_libraries_files_and_the_sign_in_page_knows_those_in_use(visitor, annas_page):
    anna = annas_page.browser
    part, unused = f"{PARTS}/voila/voila.js", f"{PARTS}/voila/voila-style.js"
    answer = anna.get(part)
    assert answer.status == 200
    assert "immutable" in answer.headers["Cache-Control"]
    assert anna.get(f"{part}?v=voila").status == 200
    for made_up in (f"{part}?v=oil", f"{part}?v=of-no-file"):
        assert anna.get(made_up).status == 200
    assert visitor.get(f"{unused}?v=voila-style").status == 200  # of no page
    assert visitor.get(f"{PARTS}/voila/no-such.js").status in (403, 404)
    known = json.loads(visitor.get("/clinic/parts").text)["parts"]
    assert {part, f"{part}?v=voila"} <= set(known)
    assert not [part for part in known if re.search("no-such|no-file|v=oil|v=voila-style", part)]


def test_the_page_needs_no_other_server_and_has_no_inline_script(annas_page):
    page = annas_page.answer.text
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page)
    settings = json.loads(re.search(r'id="jupyter-config-data"[^>]*>(.*?)</script>', page, re.S)[1])
    assert not [value for value in settings.values() if isinstance(value, str) and "://" in value]
    scripts = re.findall(r"<script([^>]*)>([^<]*)", page)
    assert all("src=" in attributes or "json" in attributes for attributes, _ in scripts)
    assert "door.token" not in page  # no source of the notebook
    assert "Research use only, not a diagnosis" in page


def test_styles_and_scripts_of_the_page_need_no_other_server():
    for name in ("clinic.css", "viewer.css", "clinic.js", "look.js", "tables.js", "sign_in.js", "waiting.js"):
        text = (serve.PAGES / name).read_text()
        assert not re.search(r"(https?:)?//[a-z0-9.-]+\.[a-z]{2,}", text)


# --- starting and stopping


def test_only_the_owner_can_read_records_and_secrets(clinic_server):
    folder = clinic_server.home / "data" / "clinic"
    for file in folder.rglob("*"):
        assert file.stat().st_mode & 0o077 == 0, file


def test_kernels_use_files_of_the_owner_and_no_ports(clinic_server, annas_page):
    kernel = annas_page.kernel
    (process,) = [process for process in kernels_of(clinic_server) if kernel in process.cmdline()[-1]]
    connection = Path(process.cmdline()[-1])
    assert json.loads(connection.read_text())["transport"] == "ipc"
    assert connection.parents[1].stat().st_mode & 0o077 == 0


def test_a_port_in_use_is_reported_and_no_other_is_used(clinic_server, monkeypatch):
    for name, folder in (("HOME", ""), ("DATA", "data"), ("ARTIFACTS", "artifacts")):
        monkeypatch.setenv(f"LUNGKIT_{name}", str(clinic_server.home / folder))
    port = urllib.parse.urlsplit(clinic_server.url).port
    with pytest.raises(LungkitError, match=rf"port {port} on 127.0.0.1 is taken by another program; .* another --port"):
        _serve_here(port)


@pytest.fixture
def own_home(clinic_server, tmp_path) -> Path:
    """A project folder with the page, without people and without models."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "app.ipynb").write_bytes((clinic_server.home / "notebooks" / "app.ipynb").read_bytes())
    return tmp_path


def _serve_here(port: int = 0, **how) -> None:
    supervisor.serve(port=port, announce=lambda _: pytest.fail("the server started"), **how)


@pytest.fixture
def here(own_home, monkeypatch) -> Path:
    for name in ("HOME", "DATA", "ARTIFACTS"):
        monkeypatch.setenv(f"LUNGKIT_{name}", str(own_home / {"HOME": ""}.get(name, name.lower())))
    return own_home


def test_without_people_the_server_says_how_to_make_the_first(here):
    with pytest.raises(LungkitError, match=r"no one can sign in yet; .*`lungkit user add NAME --role admin`"):
        _serve_here()


def test_without_a_model_the_server_says_how_to_get_one(here, cheap_passwords):
    store = Store()
    maintenance.upgrade(store)
    with store.write() as db:
        accounts.add_user(db, "anna", "Anna Test", "doctor")
    with pytest.raises(LungkitError, match="no model is active yet; `make demo` trains one"):
        _serve_here()


def test_with_a_damaged_model_the_server_starts_so_that_records_can_be_seen(here):
    folder = here / "artifacts" / "lung" / "v1"
    folder.mkdir(parents=True)
    (folder.parent / registry.POINTER).write_text('{"version": "v1", "history": [], "sums": {}}')
    assert supervisor._has_active("lung")  # its card is missing
    (folder.parent / registry.POINTER).unlink()
    assert not supervisor._has_active("lung")


def test_without_its_notebook_the_server_says_so(here):
    (here / "notebooks" / "app.ipynb").unlink()
    with pytest.raises(LungkitError, match=r"no notebook .*app\.ipynb to serve"):
        _serve_here()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "clinic.example"])
def test_passwords_never_cross_a_network_in_clear_text(here, host):
    with pytest.raises(LungkitError, match=rf"on {re.escape(host)} passwords would cross the network in clear text"):
        _serve_here(host=host)


def test_a_certificate_that_cannot_be_used_is_reported(here, tmp_path):
    with pytest.raises(LungkitError, match="--keyfile needs --certfile"):
        _serve_here(keyfile=tmp_path / "key.pem")
    with pytest.raises(LungkitError, match=r"no TLS with certificate .*missing.pem.*No such file"):
        _serve_here(certfile=tmp_path / "missing.pem")
    (tmp_path / "broken.pem").write_text("no certificate")
    with pytest.raises(LungkitError, match=r"no TLS with certificate .*broken.pem"):
        _serve_here(certfile=tmp_path / "broken.pem")


def test_messages_stay_small_with_a_large_upload_limit_and_no_other_port_is_tried(monkeypatch):
    monkeypatch.setenv("LUNGKIT_UPLOAD_MB", "500")
    settings = serve._settings(8866, "127.0.0.1", Path("app.ipynb"), secure=True)
    assert settings.Voila.tornado_settings["websocket_max_message_size"] == sockets.MESSAGE_BYTES <= 2**22
    assert settings.Voila.port_retries == 0


def test_a_demo_makes_its_first_people_once_and_shows_their_passwords_once(here):
    refused = ["serve", "--demo", "--host", "0.0.0.0"]  # for its address, after the accounts were made
    first, second = (CliRunner().invoke(cli.app, refused) for _ in range(2))
    made = dict(re.findall(r"user name (\w+) +password (\S+)", first.output))
    assert set(made) == {"admin", "doctor"}
    assert "There are accounts already" in second.output
    assert not re.search("|".join(made.values()), second.output)
    store = Store()
    for name, password in made.items():
        assert accounts.whoami(store, accounts.sign_in(store, name, password, "127.0.0.1")).role == name
    store.close()


def _folder_of(kernel: psutil.Process) -> Path:
    """The private folder of the server that a kernel belongs to."""
    return Path(kernel.cmdline()[-1]).parents[1]


def _assert_stops_cleanly(clinic, how: int = signal.SIGTERM) -> None:
    kernels = kernels_of(clinic)
    folder = _folder_of(kernels[0])
    assert clinic.stop(how) == 0
    assert not any(kernel.is_running() for kernel in kernels)
    assert not folder.exists()
    assert "Traceback" not in clinic.log.read_text()
    with socket.create_server(("127.0.0.1", urllib.parse.urlsplit(clinic.url).port)):
        pass


def test_kernels_end_with_a_killed_server_the_next_one_knows_the_sessions_and_a_stopped_one_leaves_nothing(
    start_clinic, own_home
):
    killed = start_clinic(own_home, pool=0)
    browser = signed_in_as(killed, "anna")
    browser.open_page()
    kernels = kernels_of(killed)
    folder = _folder_of(kernels[0])
    killed.stop(signal.SIGKILL)
    assert eventually(lambda: not any(kernel.is_running() for kernel in kernels), 15)
    clinic = start_clinic(own_home, "--behind-proxy")
    browser.address = urllib.parse.urlsplit(clinic.url)
    assert not folder.exists()
    assert "Anna Test" in _shown(browser, browser.open_page())
    assert eventually(lambda: len(kernels_of(clinic)) == 2)
    assert _address_that_counts(clinic, killed.passwords) == FORGED
    _assert_stops_cleanly(clinic)


def test_addresses_that_a_client_claims_do_not_count_without_a_proxy(clinic_server):
    assert _address_that_counts(clinic_server, clinic_server.passwords) == "127.0.0.1"


FORGED = "203.0.113.77"


def _address_that_counts(clinic, passwords: dict[str, str]) -> str:
    """Sign in with a claimed address; returns the one that the records have."""
    browser = Browser(clinic.url)
    browser.get("/login")
    body = {"_xsrf": browser.cookies["_xsrf"].value, "name": "anna", "password": passwords["anna"]}
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    claimed = {"X-Forwarded-For": FORGED, "X-Real-Ip": FORGED}
    browser.ask("POST", "/login", urllib.parse.urlencode(body), **kind, **claimed)
    with clinic.store.read() as db:
        return db.query(accounts.SignIn.address).order_by(accounts.SignIn.created_at.desc()).first()[0]


def test_the_page_learns_that_its_kernel_was_killed(clinic_server, anna):
    kernel = anna.open_page()
    (process,) = [process for process in kernels_of(clinic_server) if kernel in process.cmdline()[-1]]
    process.kill()
    assert eventually(lambda: json.loads(anna.get(f"/clinic/there/{kernel}").text)["state"] == "gone")
    assert anna.open_page() != kernel


@pytest.fixture
def certificate(tmp_path) -> list[str]:
    """Options of `lungkit serve` for TLS."""
    certificate, key = tmp_path / "clinic.pem", tmp_path / "clinic.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days",
         "2", "-subj", "/CN=localhost", "-keyout", key, "-out", certificate], check=True, capture_output=True,
    )  # fmt: skip
    return ["--certfile", str(certificate), "--keyfile", str(key)]


def test_behind_tls_cookies_are_secure_an_idle_kernel_stops_with_its_session_and_a_stop_while_one_starts_is_clean(
    start_clinic, own_home, certificate
):
    clinic = start_clinic(own_home, *certificate, LUNGKIT_IDLE_MINUTES="0.1")
    assert clinic.url.startswith("https://")
    browser = signed_in_as(clinic, "anna")
    assert browser.cookies[accounts.COOKIE]["secure"]
    assert browser.cookies["_xsrf"]["secure"]
    while (page := browser.page()).status == 302:  # a slow machine: the session ended before the page was there
        browser = signed_in_as(clinic, "anna")
    kernel = kernel_in(page)  # its kernel also learned who is there
    assert eventually(lambda: json.loads(browser.get(f"/clinic/there/{kernel}").text)["state"] == "signed-out", 15)
    page = [process for process in kernels_of(clinic) if kernel in process.cmdline()[-1]]
    assert eventually(lambda: not any(process.is_running() for process in page), 20)
    signed_in_as(clinic, "bert").page()
    time.sleep(0.2)  # the pool starts its next kernel
    _assert_stops_cleanly(clinic, signal.SIGINT)  # Ctrl-C
