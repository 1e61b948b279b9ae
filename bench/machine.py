"""What the figures were taken on: printed above them."""

import os
import platform
from importlib.metadata import version


def machine(*packages: str) -> str:
    """Two lines: system, cores, load; versions of Python and of these packages."""
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores ({load} at the start)\n"
        f"Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in packages)}"
    )
