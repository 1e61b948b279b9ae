"""Work that continues where it stopped may only continue with the same settings."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from lungkit import config, files
from lungkit.errors import LungkitError


class SettingsDiffer(LungkitError):
    """The folder holds unfinished or finished work that was made with other settings."""


def work_folder(name: str, settings: dict[str, Any], keep: bool = True) -> Path:
    """The folder for work called `name` with these settings: the same again for the same settings.

    With `keep` false what an earlier call left there is deleted.
    """
    key = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:10]
    folder = config.work_dir() / f"{name}-{key}"
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return folder


def same_settings(folder: Path, settings: dict[str, Any], what: str) -> None:
    """Record `settings` in `folder` (made if absent), or compare with what an earlier call recorded.

    Raises SettingsDiffer naming the settings that changed; `what` says what the folder holds ("search").
    """
    record = folder / "settings.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not record.exists():
        files.replace(record, json.dumps(settings, indent=1, sort_keys=True))
        return
    before = json.loads(record.read_text())
    now = json.loads(json.dumps(settings))  # tuples become lists, as in the record
    changed = sorted(key for key in now.keys() | before.keys() if now.get(key) != before.get(key))
    if changed:
        raise SettingsDiffer(
            f"{folder.name} holds a {what} with other settings ({', '.join(changed)} differ); "
            "give another folder, or delete it to start again"
        )
