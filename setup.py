"""What pyproject.toml cannot say: a wheel brings the notebooks, which lie next to the package in a checkout."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class _WithNotebooks(build_py):
    def run(self):
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib) / "lungkit" / "installed_notebooks"
        folder.mkdir(parents=True, exist_ok=True)
        for notebook in Path("notebooks").glob("*.ipynb"):
            self.copy_file(str(notebook), str(folder))


setup(cmdclass={"build_py": _WithNotebooks})
