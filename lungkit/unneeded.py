"""Importing this leaves out a part of an installed package that is slow to load and that lungkit never uses."""

import sys

# jsonschema loads it to check international web addresses, which takes more than a second. No schema here has any, and
# jsonschema works without it.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
