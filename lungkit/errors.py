"""The root of every error lungkit raises on purpose: the command line shows these without a traceback."""


class LungkitError(Exception):
    """Something a person can mend; the message says what was wrong and what would be accepted."""

    def _render_traceback_(self) -> list[str]:
        """What Jupyter shows in a notebook: the message alone."""
        return [f"{type(self).__name__}: {self}"]
