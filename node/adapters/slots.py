"""Which slot holds which version of which adapter: nothing that is read is ever written to.

A slot is free, then being loaded, then published under a name, then retired, and free again when no request holds it
and every forward step that began before it was retired has ended. To publish is one assignment; requests take the slot
of their name when they are admitted and keep it, so that each ends on the version that it began with.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from node.errors import ConfigError, Missing


class Held(NamedTuple):
    """What a request holds on to: one version of one adapter, and its slot."""

    name: str
    version: str
    slot: int


class Slots:
    """The slots of one model. For one thread, the one that admits requests and starts steps."""

    def __init__(self, count: int) -> None:
        """``count``: with at least one more than adapters in use, so that an update has where to go."""
        if count < 1:
            raise ConfigError(f"slots: {count}; allowed: at least 1")
        self._free = list(range(count))
        self._loading: set[int] = set()
        self._published: dict[str, Held] = {}
        self._held: Counter[int] = Counter()
        self._retired: dict[int, int] = {}
        self._steps: set[int] = set()
        self._last_step = 0

    @property
    def free(self) -> int:
        """How many slots can be claimed at once."""
        return len(self._free)

    def resident(self) -> dict[str, Held]:
        """What is published, sorted by name."""
        return dict(sorted(self._published.items()))

    def holds(self, name: str) -> int:
        """How many requests hold the present version of an adapter; 0 where it is not resident."""
        held = self._published.get(name)
        return self._held[held.slot] if held else 0

    def claim(self) -> int | None:
        """A slot to load into, the lowest; None where all are taken: retire one, and ask again after the next step."""
        if not self._free:
            return None
        slot = self._free.pop(0)
        self._loading.add(slot)
        return slot

    def give_back(self, slot: int) -> None:
        """Loading has failed and nobody writes to the slot any more. What is published stays as it is."""
        self._loading.remove(slot)
        self._release(slot)

    def publish(self, name: str, version: str, slot: int) -> Held | None:
        """From now on requests for the name get this slot; gives what they got until now, which is retired."""
        self._loading.remove(slot)
        before = self._published.get(name)
        self._published[name] = Held(name, version, slot)
        if before:
            self._retire(before.slot)
        return before

    def remove(self, name: str) -> Held:
        """Requests that hold the adapter keep it, new ones do not find it. Missing where it is not resident."""
        held = self._found(name)
        del self._published[name]
        self._retire(held.slot)
        return held

    def hold(self, name: str) -> Held:
        """Take hold of the present version, for one request. Missing where the adapter is not resident."""
        held = self._found(name)
        self._held[held.slot] += 1
        return held

    def let_go(self, held: Held) -> None:
        """The request has ended."""
        self._held[held.slot] -= 1
        if not self._held[held.slot]:
            del self._held[held.slot]
        self._sweep()

    def begin_step(self) -> int:
        """A forward step begins; gives its number."""
        self._last_step += 1
        self._steps.add(self._last_step)
        return self._last_step

    def end_step(self, step: int) -> None:
        """It has ended, whether well or not."""
        self._steps.remove(step)
        self._sweep()

    def _found(self, name: str) -> Held:
        if name not in self._published:
            raise Missing(f"adapter {name[:100]!r} is not resident; load it first")
        return self._published[name]

    def _retire(self, slot: int) -> None:
        self._retired[slot] = self._last_step
        self._sweep()

    def _sweep(self) -> None:
        oldest = min(self._steps, default=self._last_step + 1)
        for slot, last_reader in sorted(self._retired.items()):
            if slot not in self._held and last_reader < oldest:
                del self._retired[slot]
                self._release(slot)

    def _release(self, slot: int) -> None:
        self._free.append(slot)
        self._free.sort()
