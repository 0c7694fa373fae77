"""Messages in whose place random bytes come: who sends such, to whom and when, by chance but the same in every run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from node.sim.draws import uniform
from node.sim.surroundings import Spell

_GARBAGE = int.from_bytes(b"garbling", "little")


class Garbling:
    """Which of the messages that are sent are spoilt. What passes between other nodes changes nothing.

    Args:
        spells: who sends garbage when, and the share of it.
        device: on which device a participant is.
    """

    def __init__(self, spells: Sequence[Spell], seed: int, device: Callable[[int], int]) -> None:
        self._spells = spells
        self._seed = seed
        self._device = device
        self._sent: dict[tuple[int, int], int] = {}

    def part(self, sender: int, to: Sequence[int], now_s: float) -> tuple[Sequence[int], Sequence[int]]:
        """Those of a message's receivers that it comes to as it is, and those that it comes to as garbage."""
        device = self._device(sender)
        spells = [spell for spell in self._spells if spell.strikes(device, now_s)]
        if not spells:
            return to, ()
        garbled = {peer for peer in to if peer != sender and any(self._draw(sender, peer) < s.rate for s in spells)}
        return [peer for peer in to if peer not in garbled], [peer for peer in to if peer in garbled]

    def _draw(self, sender: int, peer: int) -> float:
        count = self._sent[sender, peer] = self._sent.get((sender, peer), 0) + 1
        return uniform(self._seed ^ _GARBAGE, sender << 32 | peer, count)
