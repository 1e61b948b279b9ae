"""Lines of Python in each layer of the package, and the limit of the whole; fails above it: python scripts/lines.py."""

import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "lungkit"
LIMIT = 64_000  # lines of the whole package
LAYERS = ("cli", "clinic/app", "clinic/web", "clinic/records", "clinic", "gateway", "study", "explore", "training")
LAYERS += ("models", "data")


def count(file: Path) -> int:
    """The lines of a file, blank ones and docstrings included."""
    return len(file.read_text(encoding="utf-8").splitlines())


def layers() -> dict[str, int]:
    """Layer to its lines; a file counts in the first layer that holds it, and the rest in "lungkit"."""
    sums = dict.fromkeys((*LAYERS, "lungkit"), 0)
    for file in PACKAGE.rglob("*.py"):
        place = file.relative_to(PACKAGE).as_posix()
        layer = next((name for name in LAYERS if place.startswith(f"{name}/")), "lungkit")
        sums[layer] += count(file)
    return sums


def main() -> int:
    """Print the table; 1 where the package has grown above its limit."""
    sums = layers()
    total = sum(sums.values())
    for layer, lines in sums.items():
        print(f"{lines:7,}  {'(other modules)' if layer == 'lungkit' else layer}")
    print(f"{total:7,}  lungkit, of at most {LIMIT:,}")
    if total > LIMIT:
        print(f"lungkit has {total - LIMIT:,} lines too many: remove some, or say in the commit why LIMIT has to grow")
    return int(total > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
