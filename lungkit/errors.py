"""The root of every error lungkit raises on purpose: the command line shows these without a traceback."""


class LungkitError(Exception):
    """Something a person can mend; the message says what was wrong and what would be accepted."""
