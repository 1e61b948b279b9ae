"""What all answers of the server share: security headers, and pages that browsers do not keep."""

from typing import Any

from jupyter_server.base.handlers import JupyterHandler
from tornado import web

from lungkit.clinic.records.store import StoreError

# Scripts come from this server alone; blob: is how anywidget loads its modules.
POLICY = (
    "default-src 'none'; script-src 'self' blob:; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no referrer at all, forms would come from the origin "null"
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
WORDS = {
    403: "This was not allowed. Go back to the start page and try again.",
    404: "There is no such page.",
    429: "Too many of your pages are opening at once. Wait a moment, then go to the start page.",
}
FAILED = "Something went wrong; nothing was saved. Try again in a moment, or tell an administrator."


class SecurityHeaders(web.OutputTransform):
    """The same headers on every answer, including files and errors."""

    def __init__(self, request: Any):
        pass

    def transform_first_chunk(
        self, status_code: int, headers: Any, chunk: bytes, finishing: bool
    ) -> tuple[int, Any, bytes]:
        for name, value in HEADERS.items():
            headers[name] = value
        headers.pop("Server", None)
        return status_code, headers, chunk


class PageHandler(JupyterHandler):
    """Base of the clinic's own pages: browsers keep none of them, and an error is a page that says what to do."""

    @property
    def clinic(self) -> Any:
        """The application, serve.Clinic."""
        return self.settings["clinic"]

    def owns(self, kernel_id: str) -> bool:
        """Whether the kernel belongs to the session that sends this request."""
        return bool(self.current_user) and self.clinic.owners.get(kernel_id) == self.current_user.session_id

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("Cache-Control", "no-store")

    def render_page(self, template: str, **values: object) -> None:
        self.finish(self.settings["jinja2_env"].get_template(template).render(**values))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """A page that says what to do, and nothing about what went wrong inside."""
        error = kwargs.get("exc_info", (None, None))[1]
        words = str(error) if isinstance(error, StoreError) else WORDS.get(status_code, FAILED)
        self.render_page("error.html", words=words, status=status_code)
