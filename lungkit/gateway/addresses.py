"""How a system that gets results is reached: TLS, secrets in files, and why something could not be sent."""

import ssl
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from lungkit.errors import LungkitError

DEADLINE = 120.0  # seconds for one object, whatever the other side does; below the lease of a dispatch
CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 30.0  # without a byte from the other side
_MOST_SECRET = 16 * 1024  # bytes of a file with a token


class NotSent(LungkitError):
    """An object that did not arrive. The words never name a patient: what the other side says in its own is left out.

    final: sending it again cannot help. after: try again no sooner than this.
    """

    def __init__(self, message: str, final: bool = False, after: timedelta = timedelta()):
        super().__init__(message)
        self.final, self.after = final, after


def tls_context(address: Mapping[str, Any]) -> ssl.SSLContext:
    """A context that checks the other side's certificate and name, with our own certificate where one is entered.

    Raises NotSent if a file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=address.get("tls_ca") or None)
        if certificate := address.get("tls_cert"):
            key = address.get("tls_key")
            context.load_cert_chain(certificate, _private(key) if key else None, password=_no_pass_phrase)
    except (OSError, ValueError) as error:
        raise NotSent(f"a certificate or key for TLS cannot be used: {_reason(error)}") from error
    return context


def token(address: Mapping[str, Any]) -> str:
    """The secret in token_file, read again each time; empty where there is none. Raises NotSent."""
    if not (file := address.get("token_file")):
        return ""
    try:
        with _private(file).open("rb") as opened:
            secret = opened.read(_MOST_SECRET + 1).decode("ascii", "replace").strip()
    except OSError as error:
        raise NotSent(f"the file with the token cannot be read: {_reason(error)}") from error
    if not secret or len(secret) > _MOST_SECRET or not secret.isprintable() or not secret.isascii() or " " in secret:
        raise NotSent(f"{file} holds no token: accepted is one line of visible ASCII characters")
    return secret


def _private(file: str) -> Path:
    path = Path(file)
    if path.stat().st_mode & 0o077:
        raise NotSent(f"{file} can be used by others than its owner, so it is not used: chmod 600 helps")
    return path


def _no_pass_phrase() -> str:
    raise ValueError("the key has a pass phrase")


def _reason(error: Exception) -> str:
    named = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    return named + (getattr(error, "strerror", None) or str(error) or type(error).__name__)
