"""Searches and trainings that continue where they stopped, if the settings are the same."""

import json
from pathlib import Path
from typing import Any

from lungkit import config, files
from lungkit.errors import LungkitError


class SettingsDiffer(LungkitError):
    """The folder holds work that was done with other settings."""


def work_folder(name: str, settings: dict[str, Any]) -> Path:
    """The folder for work called `name` with these settings: equal settings give the same folder."""
    key = files.sha256(json.dumps(settings, sort_keys=True, default=str).encode())[:10]
    return config.work_dir() / f"{name}-{key}"


def same_settings(folder: Path, settings: dict[str, Any], what: str) -> None:
    """Record `settings` in `folder`, which is made if absent, or compare them with what an earlier call recorded.

    Raises SettingsDiffer, which names the settings that changed. what: the kind of work, such as "search".
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
