"""Alerts of drift: off by default, without anything of a patient, sent again until they arrive, only over TLS."""

import base64
import email
import email.policy
import http.server
import json
import socketserver
import ssl
import subprocess
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
import typer.testing

from lungkit import cli
from lungkit.clinic.records.tables import DriftRun, now
from lungkit.errors import LungkitError
from lungkit.gateway import alerts, periodic
from lungkit.gateway.addresses import NotSent
from tests.clinic.rows import events

VARIABLES = ("ALERT_WEBHOOK", "ALERT_TOKEN_FILE", "ALERT_MAIL", "ALERT_FROM", "SMTP", "SMTP_PASSWORD_FILE", "ALERT_CA")
NAME = "Jane Invented"  # in what files and accounts can bring along


@pytest.fixture(autouse=True)
def no_alerts(monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(f"LUNGKIT_{variable}", raising=False)


@pytest.fixture
def store(sqlite_store):
    return sqlite_store


@pytest.fixture
def certificate(tmp_path):
    """Certificate and key of 127.0.0.1, signed by itself; both in one file."""
    file = tmp_path / "tls.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
               "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", file, "-out", tmp_path / "only.pem"]  # fmt: skip
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("openssl cannot make a certificate here")
    file.write_bytes(file.read_bytes() + (tmp_path / "only.pem").read_bytes())
    return file


@pytest.fixture
def kept(store):
    """A function: a run of drift in the records, some days ago, where these measures have changed."""

    def keep(*changed, ago=0, told=False) -> None:
        day = now().date() - timedelta(days=ago)
        checks = [
            {"what": what, "alarm": what in changed, "since": "2026-11-02", "words": f"Changed: {NAME}"}
            for what in ("brightness", "device", "classes")
        ]
        card = {"model": "lung", "version": "v3", "source": NAME, "checks": checks}
        with store.write() as db:
            db.add(DriftRun(day=day, alarm=bool(changed), cards=[card], settings={}, told_at=now() if told else None))

    return keep


def told(store) -> dict[int, bool]:
    """Days ago to whether people were told."""
    with store.read() as db:
        return {(now().date() - row.day).days: row.told_at is not None for row in db.query(DriftRun)}


# --- servers on loopback


@dataclass
class Hook:
    """A web server that takes what is posted, and answers with a status."""

    url: str = ""
    status: int = 204
    posted: list[tuple[dict, dict]] = field(default_factory=list)  # headers, JSON
    path: str = ""  # of the last request


def _hook(certificate=None) -> tuple[Hook, http.server.HTTPServer]:
    hook = Hook()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            hook.posted.append((dict(self.headers), json.loads(content)))
            hook.path = self.path
            self.send_response(hook.status)
            self.end_headers()

        def log_message(self, *_) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if certificate:
        server.socket = _tls(certificate).wrap_socket(server.socket, server_side=True)
    hook.url = f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}/drift"
    return hook, server


def _tls(certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@dataclass
class Mailbox:
    """A mail server: what it took, how it was spoken to."""

    port: int = 0
    refuse: bool = False
    letters: list[email.message.EmailMessage] = field(default_factory=list)
    to: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)  # verbs, in order
    login: str = ""
    secure: bool = False


def _mail_server(certificate) -> tuple[Mailbox, socketserver.TCPServer]:
    """A few verbs of SMTP (RFC 5321), with STARTTLS where there is a certificate."""
    box = Mailbox()

    class Handler(socketserver.StreamRequestHandler):
        def answer(self, *lines: str) -> None:
            self.wfile.write("".join(f"{line}\r\n" for line in lines).encode())

        def handle(self) -> None:
            self.answer("220 test")
            while line := self.rfile.readline():
                verb, _, rest = line.decode().strip().partition(" ")
                box.said.append(verb.upper())
                if verb.upper() == "EHLO":
                    offers = ["250-AUTH PLAIN"] + (["250-STARTTLS"] if certificate and not box.secure else [])
                    self.answer("250-test", *offers, "250 8BITMIME")
                elif verb.upper() == "STARTTLS":
                    self.answer("220 go")
                    try:
                        self.connection = _tls(certificate).wrap_socket(self.connection, server_side=True)
                    except ssl.SSLError:  # our certificate was not accepted
                        return
                    self.rfile, self.wfile = (self.connection.makefile(mode) for mode in ("rb", "wb"))
                    self.wfile = self.connection.makefile("wb", buffering=0)
                    box.secure = True
                elif verb.upper() == "AUTH":
                    box.login = base64.b64decode(rest.split()[1]).decode()
                    self.answer("235 yes")
                elif verb.upper() == "RCPT":
                    box.to.append(rest)
                    self.answer(f"550 {NAME} is not here" if box.refuse else "250 yes")
                elif verb.upper() == "DATA":
                    self.answer("354 go")
                    lines = []
                    while (part := self.rfile.readline()) != b".\r\n":
                        lines.append(part)
                    box.letters.append(email.message_from_bytes(b"".join(lines), policy=email.policy.default))
                    self.answer("250 yes")
                elif verb.upper() == "QUIT":
                    self.answer("221 bye")
                    return
                else:
                    self.answer("250 yes")

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    box.port = server.server_address[1]
    return box, server


@pytest.fixture
def running():
    """A function: starts a server; it ends with the test."""
    started = []

    def run(pair):
        made, server = pair
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return made

    yield run
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.fixture
def hook(running, monkeypatch) -> Hook:
    hook = running(_hook())
    monkeypatch.setenv("LUNGKIT_ALERT_WEBHOOK", hook.url)
    return hook


@pytest.fixture
def mailed(running, monkeypatch, tmp_path):
    """A function: a mail server that alerts are set to, with or without TLS."""

    def start(certificate=None, **changes) -> Mailbox:
        box = running(_mail_server(certificate))
        (tmp_path / "password").write_text("s3cret\n")
        (tmp_path / "password").chmod(0o600)
        settings = {"ALERT_MAIL": "physics@clinic.example, boss@clinic.example", "ALERT_FROM": "lungkit@clinic.example",
                    "SMTP": f"smtp://robot@127.0.0.1:{box.port}", "SMTP_PASSWORD_FILE": str(tmp_path / "password"),
                    "ALERT_CA": str(certificate or "")} | changes  # fmt: skip
        for name, value in settings.items():
            monkeypatch.setenv(f"LUNGKIT_{name}", value)
        return box

    return start


# --- what is told


def test_alerts_are_off_until_an_address_is_set(store, kept):
    kept("brightness")
    assert not alerts.is_on()
    assert alerts.tell(store) == 0
    assert told(store) == {0: False}
    with pytest.raises(LungkitError, match="LUNGKIT_ALERT_WEBHOOK"):
        alerts.send_test()


def test_a_webhook_gets_the_model_the_measure_and_the_day_and_nothing_else(store, kept, hook):
    kept("brightness", "device")
    assert alerts.tell(store) == 2
    ((headers, body),) = hook.posted
    assert headers["Content-Type"] == "application/json"
    changes = [{"model": "lung@v3", "what": what, "since": "2026-11-02"} for what in ("brightness", "device")]
    assert body == {"event": "lungkit.drift", "test": False, "day": str(now().date()), "changes": changes}
    assert told(store) == {0: True}
    assert [event.object for event in events(store, "drift.tell")] == [f"day:{now().date()}"]


def test_nothing_that_files_or_accounts_bring_along_is_in_a_message(store, kept, hook, mailed, certificate):
    box = mailed(certificate)
    kept("brightness", "device", "classes")
    alerts.tell(store)
    (letter,) = box.letters
    told_to_people = letter["Subject"] + letter.get_content()
    assert "lung@v3: device, since about 2026-11-02" in told_to_people
    assert NAME not in told_to_people + json.dumps(hook.posted[0][1])


def test_what_was_told_is_not_told_again_for_a_week_and_what_is_new_is(store, kept, hook):
    kept("brightness", ago=2, told=True)
    kept("brightness", ago=1)
    assert alerts.tell(store) == 0
    kept("brightness", "classes")
    assert alerts.tell(store) == 1
    assert [one["what"] for one in hook.posted[0][1]["changes"]] == ["classes"]


def test_after_a_week_it_is_told_again(store, kept, hook):
    kept("brightness", ago=8, told=True)
    kept("brightness")
    assert alerts.tell(store) == 1


def test_what_did_not_arrive_is_told_the_next_night_although_it_is_over_then(store, kept, hook):
    kept("brightness", ago=1)
    hook.status = 503
    with pytest.raises(NotSent, match="the webhook was not sent: it answers 503"):
        alerts.tell(store)
    assert told(store) == {1: False}
    kept()
    hook.status = 200
    assert alerts.tell(store) == 1
    assert told(store) == {0: False, 1: True}


def test_where_one_way_fails_the_other_is_used_and_both_are_tried_again(store, kept, hook, mailed, certificate):
    box = mailed(certificate)
    hook.status = 500
    kept("brightness")
    with pytest.raises(NotSent, match="webhook"):
        alerts.tell(store)
    assert len(box.letters) == 1
    assert told(store) == {0: False}


# --- e-mail


def test_a_letter_goes_over_tls_with_a_password_from_a_file(mailed, certificate):
    box = mailed(certificate)
    alerts.send_test()
    (letter,) = box.letters
    assert box.said.index("STARTTLS") < box.said.index("AUTH")
    assert box.login == "\0robot\0s3cret"
    assert (letter["From"], letter["Auto-Submitted"]) == ("lungkit@clinic.example", "auto-generated")
    assert box.to == ["TO:<physics@clinic.example>", "TO:<boss@clinic.example>"]
    assert letter.get_content().strip() == alerts.TEST


def test_a_certificate_that_no_one_vouches_for_is_refused_before_the_password(mailed, certificate):
    box = mailed(certificate, ALERT_CA="")
    with pytest.raises(NotSent, match="certificate of the mail server"):
        alerts.send_test()
    assert box.login == ""
    assert box.letters == []


def test_a_mail_server_elsewhere_without_tls_gets_nothing(mailed, monkeypatch):
    box = mailed()
    monkeypatch.setattr(alerts, "is_loopback", lambda host: False)
    with pytest.raises(NotSent, match="offers no TLS"):
        alerts.send_test()
    assert (box.login, box.letters) == ("", [])


def test_what_a_mail_server_says_is_not_repeated(mailed, certificate):
    mailed(certificate).refuse = True
    with pytest.raises(NotSent) as refused:
        alerts.send_test()
    assert "refuses all addresses" in str(refused.value)
    assert NAME not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"SMTP": "mail.example"}, "LUNGKIT_SMTP is not understood"),
        ({"SMTP": "smtp://robot:s3cret@127.0.0.1:25"}, "a secret belongs into a file"),
        ({"SMTP": "smtp://127.0.0.1:99999"}, "LUNGKIT_SMTP is not understood"),
        ({"SMTP": "smtp://127.0.0.1:1"}, "cannot be reached"),
        ({"ALERT_FROM": ""}, "LUNGKIT_ALERT_FROM is empty"),
        ({"SMTP_PASSWORD_FILE": "/nowhere/password"}, "token cannot be read"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_words(mailed, certificate, changes, words):
    mailed(certificate, **changes)
    with pytest.raises(NotSent, match=words) as refused:
        alerts.send_test()
    assert "s3cret" not in str(refused.value)


# --- webhook


def test_a_webhook_over_tls_gets_its_token_and_only_if_its_certificate_is_accepted(
    running, monkeypatch, certificate, tmp_path
):
    hook = running(_hook(certificate))
    (tmp_path / "token").write_text("t0ken")
    (tmp_path / "token").chmod(0o600)
    monkeypatch.setenv("LUNGKIT_ALERT_WEBHOOK", hook.url)
    monkeypatch.setenv("LUNGKIT_ALERT_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(NotSent, match="certificate is not accepted"):
        alerts.send_test()
    assert hook.posted == []
    monkeypatch.setenv("LUNGKIT_ALERT_CA", str(certificate))
    alerts.send_test()
    assert hook.posted[0][0]["Authorization"] == "Bearer t0ken"
    assert hook.posted[0][1]["test"] is True


@pytest.mark.parametrize(
    ("end", "path"), [("", "/drift"), ("/", "/drift/"), ("/?sig=a%2Fb&v=1", "/drift/?sig=a%2Fb&v=1")]
)
def test_the_address_of_a_webhook_is_used_exactly_as_it_is_entered(hook, monkeypatch, end, path):
    monkeypatch.setenv("LUNGKIT_ALERT_WEBHOOK", hook.url + end)
    alerts.send_test()
    assert hook.path == path


@pytest.mark.parametrize(
    "url", ["http://192.0.2.1/drift", "ftp://127.0.0.1/", "https://", "https://user:pw@x.example/"]
)
def test_a_webhook_elsewhere_is_https_and_holds_no_secret(monkeypatch, url):
    monkeypatch.setenv("LUNGKIT_ALERT_WEBHOOK", url)
    with pytest.raises(NotSent, match="https") as refused:
        alerts.send_test()
    assert "pw" not in str(refused.value)


# --- when


def test_the_night_begins_at_two_and_is_made_up_for():
    at = datetime(2026, 11, 29, 2, 0, tzinfo=UTC)
    assert not periodic.each_night(None, at - timedelta(minutes=1))
    assert periodic.each_night(None, at)
    assert periodic.each_night(None, at + timedelta(hours=20))
    assert not periodic.each_night(at, at + timedelta(hours=20))
    assert periodic.each_night(at, at + timedelta(days=1))


def test_the_gateways_night_keeps_the_day_once_and_tells_it_once(store, hook, monkeypatch):
    tasks = periodic.Periodic()
    periodic.register(tasks, store)
    told = []
    monkeypatch.setattr(alerts, "tell", told.append)
    at = now().replace(hour=3)
    tasks.look(at)
    tasks.look(at + timedelta(minutes=1))
    tasks.look(at + timedelta(days=1))  # the records have this day already
    assert len(events(store, "drift.run")) == len(told) == 1


def test_a_task_that_fails_stops_no_other(caplog):
    tasks, done = periodic.Periodic(), []
    tasks.register("first", lambda: 1 / 0, periodic.each_night)
    tasks.register("second", lambda: done.append(1), periodic.each_night)
    tasks.look(datetime(2026, 11, 29, 3, tzinfo=UTC))
    assert done == [1]
    assert "first" in caplog.text


def test_a_running_gateway_looks_for_what_is_due_and_stops(monkeypatch, start_gateway, store):
    looked = threading.Event()
    monkeypatch.setattr(periodic, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(periodic, "watch_drift", lambda _: looked.set())
    monkeypatch.setattr(periodic, "NIGHT", 0)
    start_gateway(store)
    assert looked.wait(10)


def test_a_test_message_is_sent_from_the_command_line(hook):
    answer = typer.testing.CliRunner().invoke(cli.app, ["learn", "drift", "--try-alert"], catch_exceptions=False)
    assert answer.exit_code == 0
    assert "taken everywhere" in answer.stdout
    assert hook.posted[0][1]["test"] is True
