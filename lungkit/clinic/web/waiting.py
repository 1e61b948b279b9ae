"""The people who wait for a page, in the order of arrival: each once, with however many tabs and sessions."""

import time
from collections.abc import Callable

ASKING = 5.0  # s since a browser asked for its turn, after which others go first
KEPT = 120.0  # s for which a place is kept; hidden tabs ask only once a minute


class Queue:
    """A person keeps the place while the browser asks again and again; one that stopped asking holds up no one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._asked: dict[str, float] = {}  # person to the time of the last question, in the order of their coming

    def ask(self, person: str) -> int:
        """Join, or stay; returns the place among those who wait now, from 1."""
        now = self._clock()
        for gone in [each for each, asked in self._asked.items() if now - asked > KEPT]:
            del self._asked[gone]
        self._asked[person] = now
        return self._present().index(person) + 1

    def leave(self, person: str) -> None:
        """The person has a page, or went away."""
        self._asked.pop(person, None)

    def __contains__(self, person: str) -> bool:
        return person in self._asked

    def __len__(self) -> int:
        """How many wait now."""
        return len(self._present())

    def _present(self) -> list[str]:
        now = self._clock()
        return [person for person, asked in self._asked.items() if now - asked <= ASKING]
