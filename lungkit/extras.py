"""Which extra of lungkit brings a package that is not installed, from the metadata of the installed lungkit."""

import re
from importlib import metadata

from lungkit.errors import LungkitError

# Packages whose name differs from that of the module they bring.
_PACKAGES = {
    "IPython": "ipython",
    "PIL": "pillow",
    "argon2": "argon2-cffi",
    "docx": "python-docx",
    "fontTools": "fonttools",
    "fpdf": "fpdf2",
    "keras_tuner": "keras-tuner",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "zmq": "pyzmq",
}


class ExtraMissing(LungkitError):
    """A package that an optional part of lungkit needs is not installed."""


def missing(error: ModuleNotFoundError) -> ExtraMissing:
    """What to install where an import failed.

    Raises `error` itself where the module is lungkit's own, which no installation can bring.
    """
    module = (error.name or "").partition(".")[0]
    if module in ("", "lungkit"):
        raise error
    name = package(module)
    if extra := _extra(name):
        return ExtraMissing(f"this needs lungkit[{extra}] ({name} is not installed): pip install 'lungkit[{extra}]'")
    return ExtraMissing(f"the package {name} is not installed: pip install 'lungkit[all]' brings what lungkit needs")


def package(module: str) -> str:
    """The name under which the package of a module is installed."""
    return _PACKAGES.get(module, module.replace("_", "-"))


def _extra(package: str) -> str:
    """The first extra that names the package; empty where none does."""
    try:
        requirements = metadata.requires("lungkit") or []
    except metadata.PackageNotFoundError:
        return ""
    for requirement in requirements:
        name, _, condition = requirement.partition(";")
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)", condition)
        if extra and re.split(r"[\s\[<>=!~]", name, maxsplit=1)[0].lower() == package.lower():
            return extra[1]
    return ""
