"""What a simulated node refuses to take in: the messages, and in the end the senders, that a live node would."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from node import codec
from node.codec import Limits
from node.context import Context
from node.message import Message
from node.op import Spec


class Refusals:
    """Turns away messages whose tensors no model of the experiment has; only nodes with mods can send such.

    A sender is cut off for good once it has been refused ``Limits.refusals`` times, as by the transport of a live
    node: its receiver loses it, and nothing passes between the two any more.

    Args:
        contexts: by node; replaced in place when a node comes back.
    """

    def __init__(self, contexts: Sequence[Context]) -> None:
        self.refused = 0
        """Messages turned away for their content, or because they were none."""
        self._shapes: frozenset[Spec] = frozenset()
        self._contexts = contexts
        self._offences: Counter[tuple[int, int]] = Counter()
        self._cut: set[tuple[int, int]] = set()

    def open(self, shapes: frozenset[Spec]) -> None:
        """Begin: a model, or a part of one, in a message may look like this."""
        self._shapes = shapes

    def is_cut(self, to: int, sender: int) -> bool:
        """Whether a node has cut another off: neither hears the other any more."""
        return bool(self._cut) and ((to, sender) in self._cut or (sender, to) in self._cut)

    def refuses(self, to: int, sender: int, message: Message) -> bool:
        """Whether a node turns a message away, which is held against the sender; True once more than allowed cuts it.

        What a node sends to itself never passes its transport.
        """
        if to == sender or message.any_shape or not self._contexts[sender].has_mods:
            return False
        if all(ref.spec in self._shapes for ref in codec.refs(message)):
            return False
        self.offend(to, sender)
        return True

    def offend(self, to: int, sender: int) -> None:
        """Something that a node has sent is refused by another, and held against it."""
        self.refused += 1
        self._offences[to, sender] += 1
        if self._offences[to, sender] == Limits.refusals:
            self._cut.add((to, sender))

    def forget(self, node: int) -> None:
        """A node begins a new life: it holds nothing against anybody."""
        self._cut = {(to, sender) for to, sender in self._cut if to != node}
        self._offences = Counter({pair: count for pair, count in self._offences.items() if pair[0] != node})
