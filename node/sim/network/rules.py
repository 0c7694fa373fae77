"""What befalls messages on their way: loss, jitter, delays and partitions, now or for a while."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from node.clock import Priority, VirtualClock
from node.config import NetworkSection, RuleSection
from node.errors import ConfigError
from node.sim.draws import uniform

PACKET_BYTES = 1_460
"""Payload of a packet in an Ethernet frame."""
RETRANSMISSION_S = 0.2
"""What a retransmission timeout adds to a round trip, as in Linux."""

_LOSS = int.from_bytes(b"net_loss", "little")
_DROP = int.from_bytes(b"net_drop", "little")
_JITTER = int.from_bytes(b"netjittr", "little")


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of an experiment's network: what, on the way from whom to whom, and when."""

    kind: str
    value: float = 0.0
    frm: frozenset[int] | None = None
    to: frozenset[int] | None = None
    both_ways: bool = False
    start_s: float = 0.0
    end_s: float = math.inf

    def crosses(self, sender: int, peer: int) -> bool:
        """Whether it is about messages from one node to another."""
        return self._leads(sender, peer) or (self.both_ways and self._leads(peer, sender))

    def _leads(self, sender: int, peer: int) -> bool:
        if self.frm is not None and sender not in self.frm:
            return False
        if self.to is not None:
            return peer in self.to
        return self.frm is None or peer not in self.frm

    def has_uplink(self, node: int) -> bool:
        """Whether a rule on rates is about what a node sends: it is a sender, or receives and both ways are meant."""
        return self._names(node, self.frm, self.to)

    def has_downlink(self, node: int) -> bool:
        """Whether a rule on rates is about what a node receives."""
        return self._names(node, self.to, self.frm)

    def _names(self, node: int, nodes: frozenset[int] | None, opposite: frozenset[int] | None) -> bool:
        if nodes is None and opposite is None:
            return True
        named = nodes is not None and node in nodes
        return named or (self.both_ways and opposite is not None and node in opposite)


class Rules:
    """The rules of an experiment, and those of them that are in force.

    * ``loss``: links are reliable, so a share of loss p means that 1 / (1 - p) times the bytes are sent, and that a
      message of which any packet was lost arrives one retransmission timeout (a round trip and 0.2 s) later.
    * ``jitter``: an exponential delay of each message. The means of several rules add up. What was sent first from one
      node to another still arrives first, as on one connection; small messages have another connection than large ones.
    * ``delay``: more latency; several add up.
    * ``rate``: a factor on the uplinks of ``frm`` and the downlinks of ``to`` (both ways: also on the downlinks of
      ``frm`` and the uplinks of ``to``), or on all links, where neither is given; several multiply.
    * ``partition``: messages that cross are lost.
    * ``drop``: a share of messages is lost, whatever their size.

    Random numbers follow from seed, sender, receiver and how many messages the sender sent, whatever else happens.
    """

    def __init__(self, section: NetworkSection, nodes: int, seed: int) -> None:
        always = [Rule("jitter", section.jitter_s)] if section.jitter_s else []
        always += [Rule("loss", section.loss)] if section.loss else []
        self._rules = [*always, *(_rule(i, rule, nodes) for i, rule in enumerate(section.rules))]
        self._in_force: dict[str, list[Rule]] = {}
        self._seed = seed
        self._sent: dict[int, int] = {}
        self._droppable: dict[int, int] = {}
        self._last_s: dict[tuple[int, int, bool], float] = {}

    def __bool__(self) -> bool:
        return bool(self._rules)

    def start(self, clock: VirtualClock, changed: Callable[[Rule, bool], None]) -> None:
        """Put rules in force and out of it in time; ``changed(rule, begins)`` is called for each."""

        def change(arg: tuple[Rule, bool]) -> None:
            rule, begins = arg
            others = [other for other in self._in_force.get(rule.kind, ()) if other is not rule]
            self._in_force[rule.kind] = [*others, rule] if begins else others
            changed(rule, begins)

        for rule in self._rules:
            if rule.start_s > clock.now:
                clock.post(rule.start_s - clock.now, change, (rule, True), Priority.LINK)
            else:
                change((rule, True))
            if rule.end_s < math.inf:
                clock.post(rule.end_s - clock.now, change, (rule, False), Priority.LINK)

    def is_lost(self, sender: int, peer: int) -> bool:
        """Whether a message gets lost, in a partition or by chance; each call is a message."""
        if any(self._between("partition", sender, peer)):
            return True
        kept = math.prod(1 - rule.value for rule in self._between("drop", sender, peer))
        if kept == 1.0:
            return False
        count = self._droppable[sender] = self._droppable.get(sender, 0) + 1
        return uniform(self._seed ^ _DROP, sender << 32 | peer, count) > kept

    def loss(self, sender: int, peer: int) -> float:
        """Share of packets lost from one node to another."""
        kept = 1.0
        for rule in self._between("loss", sender, peer):
            kept *= 1 - rule.value
        return 1 - kept

    def latency_s(self, sender: int, peer: int, size_bytes: int, latency_s: float) -> float:
        """Latency of one message, of which ``latency_s`` is what there always is; each call is a message."""
        count = self._sent[sender] = self._sent.get(sender, 0) + 1
        pair = sender << 32 | peer
        loss = self.loss(sender, peer)
        extra_s = sum(rule.value for rule in self._between("delay", sender, peer))
        whole = (1 - loss) ** max(1, math.ceil(size_bytes / PACKET_BYTES))
        if loss and uniform(self._seed ^ _LOSS, pair, count) > whole:
            extra_s += 2 * (latency_s + extra_s) + RETRANSMISSION_S
        jitter_s = sum(rule.value for rule in self._between("jitter", sender, peer))
        if jitter_s:
            extra_s -= jitter_s * math.log(uniform(self._seed ^ _JITTER, pair, count))
        return latency_s + extra_s

    def in_order_s(self, sender: int, peer: int, is_small: bool, now_s: float, delay_s: float) -> float:
        """A delay from now, made longer where a message would overtake the one before it."""
        way = (sender, peer, is_small)
        last_s = self._last_s.get(way, -math.inf)
        if now_s + delay_s <= last_s:
            delay_s = last_s - now_s + 4 * math.ulp(last_s)  # later by more than what adding up times may round off
        self._last_s[way] = now_s + delay_s
        return delay_s

    def up_factor(self, node: int) -> float:
        """What becomes of the capacity of a node's uplink."""
        return math.prod(rule.value for rule in self._in_force.get("rate", ()) if rule.has_uplink(node))

    def down_factor(self, node: int) -> float:
        """What becomes of the capacity of a node's downlink."""
        return math.prod(rule.value for rule in self._in_force.get("rate", ()) if rule.has_downlink(node))

    def _between(self, kind: str, sender: int, peer: int) -> Iterator[Rule]:
        return (rule for rule in self._in_force.get(kind, ()) if rule.crosses(sender, peer))


def _rule(index: int, section: RuleSection, nodes: int) -> Rule:
    key = f"network.rules[{index}]"
    if section.kind in ("loss", "drop") and section.value >= 1:
        what = "packets" if section.kind == "loss" else "messages"
        raise ConfigError(f"{key}.value: {section.value:g} is no share of {what} lost; give one from 0 to below 1")
    if section.kind == "partition" and section.value:
        raise ConfigError(f"{key}.value: a partition has none; leave it out")
    if section.end_s is not None and section.end_s <= section.start_s:
        raise ConfigError(f"{key}.end_s: {section.end_s:g} s is not after start_s, {section.start_s:g} s")
    return Rule(
        section.kind,
        section.value,
        _existing(f"{key}.frm", section.frm, nodes),
        _existing(f"{key}.to", section.to, nodes),
        section.both_ways,
        section.start_s,
        math.inf if section.end_s is None else section.end_s,
    )


def _existing(key: str, named: Iterable[int] | None, nodes: int) -> frozenset[int] | None:
    if named is None:
        return None
    members = frozenset(named)
    if not members:
        raise ConfigError(f"{key}: names no node; leave it out to mean all")
    if max(members) >= nodes:
        raise ConfigError(f"{key}: there is no node {max(members)}; {nodes} nodes have the numbers 0 to {nodes - 1}")
    return members
