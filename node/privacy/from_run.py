"""A run's log of ops, told as weighted sums of private contributions and noise: what the network accountant reads.

:data:`RULES` says for each op what it makes of its inputs. A contribution is counted in units of the norm that it was
clipped to; training that nobody has clipped counts in its own, and bounds nothing. A core counts as the model, whose
noise it has its part of; a model that a head was joined to may be trained and split, but nobody may receive it. A
masked value says nothing to its receiver before all of the sum have come, or, where the sum can be recovered, before it
was opened; that its other senders could unmask one together is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, product
from typing import NamedTuple, TypeAlias

from node import provenance
from node.errors import ConfigError
from node.privacy.lineage import Lineage, Made, Noise, Received, Record, private
from node.provenance import PUBLIC, Step


class Sum(NamedTuple):
    """A weighted sum of earlier values, of a contribution of the node that makes it, and of noise."""

    terms: tuple[tuple[int, float], ...] = ()
    gradient: float = 0.0
    noise: tuple[Noise, ...] = ()
    is_clipped: bool = True
    size: int | None = None
    """Its elements, where it is a part of a model."""


class Joined(NamedTuple):
    """A model whose first elements alone are a known sum: what comes after them is the head of a node."""

    core: Sum
    size: int
    """Elements of the core; 0: nobody knows, and no part of it can be told."""


class Shares(NamedTuple):
    """A model with noise for each member of a neighbourhood, of which each gets its own."""

    model: int
    weights: tuple[float, ...]
    deviation: float
    draw: int
    """Tells its noise from that of others of the node."""


class Masked(NamedTuple):
    """What is nothing but noise until all values of one sum are together."""

    model: int
    weight: float
    total: tuple[int, int, tuple[int, ...]]
    """Round, receiver and senders of the sum."""
    is_recoverable: bool
    """Whether its sender's own mask hides it until the receiver has had it opened."""


class Unknown(NamedTuple):
    """What cannot be told as a sum; that is an error only if somebody received it, or what was made of it."""

    why: str


class Parts(NamedTuple):
    """Masked values added up, as masked as they are."""

    masked: tuple[Masked, ...]


Meaning: TypeAlias = Sum | Joined | Shares | Masked | Parts | Unknown
Rule: TypeAlias = Callable[[provenance.Made, Mapping[int, Meaning]], Meaning]
"""From an op, and what its inputs mean, to what it makes."""


_HEAD = "shares the head of a model, and only cores are accounted for"


def _public(made: provenance.Made, known: Mapping[int, Meaning]) -> Meaning:
    """Drawn by the experiment's seed."""
    return Sum()


def _trained(made: provenance.Made, known: Mapping[int, Meaning]) -> Meaning:
    """The model, and an update that nothing hides."""
    return Sum(((made.inputs[0], 1.0),), 1.0, is_clipped=False)


def _mixed(made: provenance.Made, known: Mapping[int, Meaning]) -> Meaning:
    return Sum(tuple(zip(made.inputs, made.static["weights"], strict=True)))


def _scaled(made: provenance.Made, known: Mapping[int, Meaning]) -> Meaning:
    return Sum(((made.inputs[0], made.static["by"]),))


def _shifted(made: provenance.Made, known: Mapping[int, Meaning]) -> Meaning:
    by = made.static.get("by", 1.0)
    return Sum(tuple(zip(made.inputs, (1.0, by, -by), strict=True)))


def _part(made: provenance.Made, known: Mapping[int, Meaning]) -> Meaning:
    start, stop, model = made.static["start"], made.static["stop"], known.get(made.inputs[0])
    if start or (isinstance(model, Joined) and stop > model.size):
        return Unknown(_HEAD)
    return Sum(((made.inputs[0], 1.0),), size=stop)


def _joined(made: provenance.Made, known: Mapping[int, Meaning]) -> Meaning:
    """The model of a core: what becomes of the head is the node's own affair, as long as it stays there."""
    return Joined(Sum(((made.inputs[0], 1.0),)), _size(made.inputs[0], known))


def _size(value: int, known: Mapping[int, Meaning]) -> int:
    """Elements of a core, which every op but a cut leaves as they are; 0: no cut has told."""
    while True:
        match known.get(value):
            case Sum(size=int(size)) | Joined(size=size):
                return size
            case Sum(terms=((value, _), *_)) | Shares(model=value) | Masked(model=value):
                pass
            case _:
                return 0


def _noised_update(made: provenance.Made, known: Mapping[int, Meaning]) -> Meaning:
    """The model before training, the clipped update, and noise in proportion to the clip."""
    clip, deviation = made.static["clip"], made.static["noise_multiplier"]
    if clip is None:
        return Sum(((made.inputs[0], 1.0),), 1.0, is_clipped=False)
    return Sum(((made.inputs[0], 1.0),), clip, (private(made.node, made.value, deviation * clip),))


def _noised(made: provenance.Made, known: Mapping[int, Meaning]) -> Meaning:
    """The model as it is, and noise."""
    return Sum(((made.inputs[0], 1.0),), 0.0, (private(made.node, made.value, made.static["deviation"]),))


def _decorrelated(made: provenance.Made, known: Mapping[int, Meaning]) -> Meaning:
    """Noise of an edge, which its lower end adds and its higher one subtracts."""
    deviation, round, me = made.static["deviation"], made.static["round"], made.node
    ends = [((me, peer), 1) if me < peer else ((peer, me), -1) for peer in made.static["peers"]]
    return Sum(((made.inputs[0], 1.0),), 0.0, tuple(Noise(edge, round, 0, sign * deviation) for edge, sign in ends))


def _shares(made: provenance.Made, known: Mapping[int, Meaning]) -> Meaning:
    return Shares(made.inputs[0], tuple(made.static["weights"]), made.static["deviation"], made.value)


def _share(made: provenance.Made, known: Mapping[int, Meaning]) -> Meaning:
    """The model with one member's noise: its own draw, less a part of all draws, so that they cancel when mixed."""
    shares, place = known.get(made.inputs[0]), made.static["place"]
    if not isinstance(shares, Shares):
        return Unknown("takes a share of what are no shares")
    scale = len(shares.weights) * shares.weights[place]
    factors = [(member == place) - weight / scale for member, weight in enumerate(shares.weights)]
    draws = (Noise((made.node,), shares.draw, member, shares.deviation * by) for member, by in enumerate(factors))
    return Sum(((shares.model, 1.0),), 0.0, tuple(draws))


def _masked(made: provenance.Made, known: Mapping[int, Meaning]) -> Meaning:
    static = made.static
    total = static["round"], static["receiver"], tuple(static["senders"])
    return Masked(made.inputs[0], static["weight"], total, static.get("recoverable", False))


def _unmasked(made: provenance.Made, known: Mapping[int, Meaning]) -> Meaning:
    parts = _summed(made, known)
    return Sum(tuple((part.model, part.weight) for part in parts.masked)) if isinstance(parts, Parts) else parts


def _summed(made: provenance.Made, known: Mapping[int, Meaning]) -> Meaning:
    masked: list[Masked] = []
    for value in made.inputs:
        match known.get(value):
            case Masked() as part:
                masked.append(part)
            case Parts(masked=parts):
                masked.extend(parts)
            case _:
                return Unknown("adds up what is not masked")
    return Parts(tuple(masked))


def _chunked(made: provenance.Made, known: Mapping[int, Meaning]) -> Meaning:
    return Unknown("cuts models into chunks, which is no differential privacy: epsilon is infinite")


_WORKLOAD: dict[str, Rule] = {
    "fresh": _public,
    "train": _trained,
    "adapt": _trained,
    "mix": _mixed,
    "part": _part,
    "join": _joined,
}

RULES: dict[str, Rule] = {
    **{f"learn:{name}": rule for name, rule in _WORKLOAD.items()},
    **{f"quadratic:{name}": rule for name, rule in _WORKLOAD.items()},
    "node.learn.parts:part": _part,
    "node.learn.parts:join": _joined,
    "node.arithmetic:scale": _scaled,
    "node.arithmetic:shift": _shifted,
    "node.privacy.clipping:noised_update": _noised_update,
    "node.privacy.mechanisms:noised": _noised,
    "node.privacy.correlated:decorrelate": _decorrelated,
    "node.privacy.correlated:zip_shares": _shares,
    "node.privacy.correlated:share": _share,
    "node.privacy.masking:masked": _masked,
    "node.privacy.masking:summed": _summed,
    "node.privacy.masking:unmasked": _unmasked,
    "node.privacy.chunks:cut": _chunked,
    "node.privacy.chunks:merged": _chunked,
}
"""What ops mean, by name; others can be added."""


@dataclass(frozen=True)
class Told:
    """A run's log, as the accountant reads it."""

    lineage: Lineage
    links: frozenset[tuple[int, int]]
    """Who has ever received something from whom: sender and receiver."""
    is_clipped: bool
    """Whether every contribution that reached somebody was clipped."""


def told(steps: Iterable[Step], rules: Mapping[str, Rule] = RULES) -> Told:
    """Translate what :func:`node.provenance.read` gives.

    Raises:
        ConfigError: somebody received what an op has made that is not in ``rules``, or that cannot be told as a sum.
    """
    translation = _Translation(rules)
    for step in steps:
        if isinstance(step, provenance.Made):
            translation.make(step)
        else:
            translation.receive(step)
    records = list(translation.relevant())
    clipped = all(sum.is_clipped for sum in translation.sums_in(records))
    return Told(Lineage(records), frozenset(translation.links), clipped)


def _is_recoverable(meaning: Meaning | None) -> bool:
    """Whether only the receiver's having it opened tells it anything."""
    masked = meaning.masked if isinstance(meaning, Parts) else (meaning,)
    return any(isinstance(part, Masked) and part.is_recoverable for part in masked)


class _Translation:
    """The run so far: what each value means, and the records, in their order."""

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        self.links: dict[tuple[int, int], None] = {}
        self._rules = rules
        self._meanings: dict[int, Meaning] = {PUBLIC: Sum()}
        self._makers: dict[int, provenance.Made] = {}
        self._events: list[tuple[int, int | None]] = []
        """Values in the order of their making; with a node, those that it received."""
        self._gathered: dict[tuple[int, int, tuple[int, ...]], dict[int, dict[int, Masked]]] = {}
        """Of every masked sum what has come, by sender and value."""
        self._totals = count(-1, -1)  # below zero no op has a value
        self._contributions: Counter[int] = Counter()

    def make(self, made: provenance.Made) -> None:
        self._makers[made.value] = made
        self._meanings[made.value] = self._meaning(made)
        self._events.append((made.value, None))
        is_opened = not isinstance(self._meanings[made.value], Parts)
        if is_opened and any(_is_recoverable(self._meanings.get(value)) for value in made.inputs):
            self._events.append((made.value, made.node))

    def _meaning(self, made: provenance.Made) -> Meaning:
        """What an op makes; of models with heads, something of which the cores alone are known."""
        if (rule := self._rules.get(made.op)) is None:
            return Unknown("is not known to the network accountant")
        meaning, inputs = rule(made, self._meanings), [self._meanings.get(value) for value in made.inputs]
        sizes = [model.size for model in inputs if isinstance(model, Joined)]
        if not sizes or rule is _part or isinstance(meaning, Joined):
            return meaning
        return Joined(meaning, min(sizes)) if isinstance(meaning, Sum) else Unknown(_HEAD)

    def receive(self, received: provenance.Received) -> None:
        self.links[received.sender, received.node] = None
        for value in received.values:
            meaning = self._meanings[value]
            if isinstance(meaning, Joined):
                raise self._refused(value, _HEAD)
            if isinstance(meaning, Masked) and meaning.is_recoverable:
                continue
            if isinstance(meaning, Masked):
                self._gather(received.node, value, meaning)
            elif value != PUBLIC:
                self._events.append((value, received.node))

    def _gather(self, node: int, value: int, masked: Masked) -> None:
        """A masked value has come; with the last one of its sum, the receiver knows that.

        A sender that was away may have sent two, under other masks: each of them might be the one that fits.
        """
        parts, sender = self._gathered.setdefault(masked.total, {}), self._makers[value].node
        parts.setdefault(sender, {})[value] = masked
        _, receiver, senders = masked.total
        if node != receiver or len(parts) < len(senders):
            return
        choices = [[masked] if peer == sender else list(sent.values()) for peer, sent in parts.items()]
        for chosen in product(*choices):
            total = next(self._totals)
            self._makers[total] = provenance.Made(node, total, "", (), {})
            self._meanings[total] = Sum(tuple((part.model, part.weight) for part in chosen))
            self._events += [(total, None), (total, node)]

    def relevant(self) -> Iterator[Record]:
        """The records of what somebody received, and of what that was made of."""
        wanted = self._wanted()
        for value, node in self._events:
            if value not in wanted:
                continue
            if node is not None:
                yield Received(value, node)
                continue
            sum, maker = self._sum(value), self._makers[value]
            round = self._contributions[maker.node]
            self._contributions[maker.node] += sum.gradient != 0
            terms = tuple(term for term in sum.terms if term[0] != PUBLIC)
            yield Made(value, maker.node, round, terms, sum.gradient, sum.noise)

    def sums_in(self, records: Iterable[Record]) -> Iterator[Sum]:
        """What these records were made from."""
        return (self._sum(record.value) for record in records if isinstance(record, Made))

    def _wanted(self) -> set[int]:
        pending = [value for value, node in self._events if node is not None]
        wanted = {PUBLIC}
        while pending:
            value = pending.pop()
            if value not in wanted:
                wanted.add(value)
                pending.extend(term for term, _ in self._sum(value).terms)
        return wanted

    def _sum(self, value: int) -> Sum:
        meaning = self._meanings[value]
        if isinstance(meaning, Sum):
            return meaning
        if isinstance(meaning, Joined):
            return meaning.core
        raise self._refused(
            value, meaning.why if isinstance(meaning, Unknown) else "makes what is no model, and is used as one"
        )

    def _refused(self, value: int, why: str) -> ConfigError:
        maker = self._makers[value]
        return ConfigError(f"op {maker.op} of node {maker.node} {why}; node.privacy.from_run.RULES has what is known")
