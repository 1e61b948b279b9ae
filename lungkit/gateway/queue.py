"""The queue of jobs: only their numbers, in the clinic's folder by default, or in Redis for several hosts.

The records know every job (lungkit.clinic.records.jobs). A queue that loses numbers costs a minute, and one that
repeats them costs nothing.
"""

import json
from typing import Any

from huey import Huey, PriorityRedisHuey, SqliteHuey
from huey.registry import Message
from huey.serializer import Serializer

from lungkit import config
from lungkit.clinic.records.tables import PRIORITIES

NAME = "lungkit"


class _Json(Serializer):
    """Huey's own way would run whatever someone else has written into the queue."""

    def _serialize(self, data: Any) -> bytes:
        return json.dumps(data).encode()

    def _deserialize(self, data: bytes) -> Message:
        return Message(*json.loads(data))


def open_queue() -> Huey:
    """The queue that config names; it appears with its first job."""
    if address := config.redis_url():
        return PriorityRedisHuey(NAME, results=False, serializer=_Json(), url=address)
    path = config.clinic_dir() / "queue.db"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.touch(mode=0o600)
    return SqliteHuey(NAME, results=False, serializer=_Json(), filename=str(path), fsync=False)


def priority_number(priority: str) -> int:
    """The queue's number for a priority; the highest comes first."""
    return PRIORITIES.index(priority)
