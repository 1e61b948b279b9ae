"""Tells people that something has drifted, by e-mail and to a web address; off unless config names where to.

A message has fixed words, names of models and dates. Names of sources and of categories stay here: they come from
accounts and from headers of files, and anyone can write a patient's name into a header.
"""

import json
import smtplib
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from lungkit import config
from lungkit.clinic.learning import nightly
from lungkit.clinic.learning.nightly import Change
from lungkit.clinic.records.store import Store
from lungkit.clinic.records.tables import now
from lungkit.clinic.web.supervisor import is_loopback
from lungkit.errors import LungkitError
from lungkit.gateway import web_client
from lungkit.gateway.addresses import SILENCE_SECONDS, NotSent, tls_context, token

TEST = "This is a test. Nothing has drifted."
_PORTS = {"smtp": 587, "smtps": 465}


@dataclass(frozen=True)
class Message:
    """What is told: the day of the run, and what has changed; nothing has in a test."""

    day: date
    changes: tuple[Change, ...] = ()

    @property
    def subject(self) -> str:
        """One line for a list of messages."""
        return f"lungkit: {len(self.changes)} alarms of drift" if self.changes else "lungkit: test of the alerts"

    def text(self) -> str:
        """The message for people."""
        if not self.changes:
            return f"{TEST}\n"
        lines = [f"- {one.model}: {one.what}, since about {one.since}" for one in self.changes]
        told = (
            f"lungkit looked at the days before {self.day} (UTC). Something has changed:\n",
            *lines,
            "\nAn administrator sees the figures under Drift in the clinic. A model may be less reliable on images",
            "that differ from those before. Research use only.",
        )
        return "\n".join(told) + "\n"

    def body(self) -> dict[str, Any]:
        """The message for programs."""
        changes = [{"model": one.model, "what": one.what, "since": one.since} for one in self.changes]
        return {"event": "lungkit.drift", "test": not self.changes, "day": self.day.isoformat(), "changes": changes}


def tell(store: Store) -> int:
    """Tell what has changed and was not told in the last week; returns how many changes were told.

    Raises NotSent where it did not arrive everywhere; it is then tried again with the next run.
    """
    changes = nightly.untold(store)
    if not changes or not is_on():
        return 0
    send(Message(now().date(), tuple(changes)))
    nightly.note_told(store)
    return len(changes)


def is_on() -> bool:
    """Whether config names anywhere to tell."""
    return bool(config.alert_webhook() or config.alert_mail())


def send_test() -> None:
    """Send a test message. Raises LungkitError where there is no address, NotSent where it did not arrive."""
    if not is_on():
        raise LungkitError("alerts are off: set LUNGKIT_ALERT_WEBHOOK, or LUNGKIT_ALERT_MAIL with LUNGKIT_SMTP")
    send(Message(now().date()))


def send(message: Message) -> None:
    """Send a message to every address; all are tried before NotSent says which of them failed."""
    failed = list(_failures(message))
    if failed:
        raise NotSent("; ".join(failed))


def _failures(message: Message) -> Iterable[str]:
    ways = (("the webhook", config.alert_webhook(), _post), ("the e-mail", ", ".join(config.alert_mail()), _mail))
    for name, address, way in ways:
        if address:
            try:
                way(message)
            except NotSent as error:
                yield f"{name} was not sent: {error}"


def _post(message: Message) -> None:
    url = config.alert_webhook()
    parts = _parsed("LUNGKIT_ALERT_WEBHOOK", url, ("https", "http"))
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise NotSent(
            "LUNGKIT_ALERT_WEBHOOK: give an https address; http is accepted for this machine only", final=True
        )
    address = {"url": url, "token_file": config.alert_token_file(), "tls_ca": config.alert_ca()}
    web_client.post_json(address, json.dumps(message.body()).encode())


def _mail(message: Message) -> None:
    parts = _parsed("LUNGKIT_SMTP", config.smtp(), tuple(_PORTS))
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    sender = config.alert_from()
    if not sender:
        raise NotSent("LUNGKIT_ALERT_FROM is empty: give the address that the message comes from", final=True)
    context = tls_context({"tls_ca": config.alert_ca()})
    try:
        with (
            smtplib.SMTP_SSL(host, port, timeout=SILENCE_SECONDS, context=context)
            if parts.scheme == "smtps"
            else smtplib.SMTP(host, port, timeout=SILENCE_SECONDS)
        ) as server:
            server.ehlo()
            if parts.scheme == "smtp":
                _secure(server, host, context)
            if parts.username:
                secret = token({"token_file": config.smtp_password_file()})
                server.login(unquote(parts.username), secret)
            server.send_message(_letter(message, sender))
    except ssl.SSLCertVerificationError as error:
        raise NotSent(f"the certificate of the mail server is not accepted: {error.verify_message}") from error
    except smtplib.SMTPResponseException as error:  # its own words may repeat anything
        raise NotSent(f"the mail server refuses with {error.smtp_code}") from error
    except smtplib.SMTPRecipientsRefused as error:
        raise NotSent("the mail server refuses all addresses of LUNGKIT_ALERT_MAIL") from error
    except (OSError, smtplib.SMTPException, ValueError) as error:
        words = getattr(error, "strerror", None) or type(error).__name__
        raise NotSent(f"the mail server cannot be reached, or does not answer as one: {words}") from error


def _secure(server: smtplib.SMTP, host: str, context: ssl.SSLContext) -> None:
    """Begin TLS; a mail server on this machine may do without."""
    if server.has_extn("starttls"):
        server.starttls(context=context)
        server.ehlo()
    elif not is_loopback(host):
        raise NotSent("the mail server offers no TLS (STARTTLS), so nothing is sent to it")


def _letter(message: Message, sender: str) -> EmailMessage:
    letter = EmailMessage()
    try:
        letter["Subject"], letter["From"] = message.subject, sender
        letter["To"] = ", ".join(config.alert_mail())
    except ValueError as error:
        raise NotSent("LUNGKIT_ALERT_MAIL or LUNGKIT_ALERT_FROM is no address of e-mail", final=True) from error
    letter["Date"] = format_datetime(now())
    letter["Auto-Submitted"] = "auto-generated"  # RFC 3834: no one's absence is answered to it
    letter.set_content(message.text())
    return letter


def _parsed(variable: str, url: str, schemes: tuple[str, ...]) -> SplitResult:
    """An address; its port is one. Raises NotSent, without repeating a password that may be in it."""
    accepted = " or ".join(f"{scheme}://" for scheme in schemes)
    try:
        parts = urlsplit(url)
        if parts.scheme in schemes and parts.hostname and parts.port != 0 and not parts.password:
            return parts
    except ValueError:
        pass
    raise NotSent(f"{variable} is not understood: give {accepted}HOST:PORT; a secret belongs into a file", final=True)
