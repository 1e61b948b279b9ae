"""Words and turns of phrase that lungkit's texts avoid; CONTRIBUTING.md says what to write: python scripts/words.py.

Reads the comments and strings of Python files, the text cells of notebooks, and every line of Markdown, HTML,
JavaScript and CSS. What ships as data (models, sample reports) and this file are left out.
"""

import io
import json
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
KINDS = (".py", ".ipynb", ".md", ".html", ".js", ".css")
LEFT_OUT = ("artifacts/", "reports/", "scripts/words.py", "CONTRIBUTING.md", "CHANGELOG.md", "tests/test_lint.py")

# A pattern, and what to write.
AVOIDED = {
    r"\banew\b(?! as PNG)": "again",  # a comment in databases that exist
    r"\bwhereby\b": "by which, or two sentences",
    r"\bthereby\b": "two sentences",
    r"\bhitherto\b": "so far, until now",
    r"\b(?:shall)\b": "must, will",
    r"\bby and by\b": "over time",
    r"\bgo(?:es)? on (?:where|with|working)\b": "continue",
    r"\bgoes on after\b|\b(?:call|training|search|one) goes on\b": "continues",
    r"\bgone on with\b": "continued",
    r"\bnobody else\b": "no one else",
    r"\bbeside (?:the|it|each|them|this|that)\b": "next to",
    r"\blooked at of\b": "checked",
    r"""(?:^|[.:;>"'|] ?)(?:Who|Whoever) (?!is|was|has|may|can|did|does)[a-z]+s\b[^?:\n]*\.""": (
        "a subject, such as 'A user who ...'"
    ),
}


def texts(file: Path) -> Iterator[tuple[int, str]]:
    """The number and the text of each line that people read."""
    content = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        for token in tokenize.generate_tokens(io.StringIO(content).readline):
            if tokenize.tok_name[token.type] in ("COMMENT", "STRING", "FSTRING_MIDDLE"):
                yield from enumerate(token.string.splitlines(), token.start[0])
    elif file.suffix == ".ipynb":
        for number, cell in enumerate(json.loads(content)["cells"], 1):
            if cell["cell_type"] == "markdown":
                yield from ((number, line) for line in "".join(cell["source"]).splitlines())
    else:
        yield from enumerate(content.splitlines(), 1)


def complaints(file: Path) -> list[str]:
    """One line for each place that says something as it should not be said."""
    return [
        f"{file.relative_to(ROOT)}:{number}: '{match[0].strip()}': write {instead}"
        for number, line in texts(file)
        for pattern, instead in AVOIDED.items()
        for match in re.finditer(pattern, line, re.IGNORECASE if pattern.startswith(r"\b") else 0)
    ]


def main() -> int:
    """Print the places; 1 where there is any."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout.split("\0")
    files = [ROOT / name for name in listed if name.endswith(KINDS) and not name.startswith(LEFT_OUT)]
    lines = [line for file in sorted(files) if file.is_file() for line in complaints(file)]
    print("\n".join(lines) or f"words: {len(files)} files say it plainly")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
