"""What travels in a run, as weighted sums of what entered it: the log that the network accountant reads.

A log is a sequence of two kinds of record, in the order in which things happened:

``Made``      a node made a value: a weighted sum of earlier values, plus its own private contribution of a round
              (a gradient, or its data), plus noise.
``Received``  a message arrived: this node now knows this value.

That is enough for every linear protocol. A message that got lost has no ``Received``, and is in no later sum. One that
is sent to many is made once. A secure sum is a value made of the senders' values, and received by whom it is for: the
addends are never received. Written as JSON, one record a line, each in a handful of numbers:

=====================  =============================================================================================
D-PSGD, EL             ``Made(x', node, round, terms=((x, 1),), gradient=-lr, noise=(private(node, round, lr * s),))``
                       per node and round, a ``Received`` per neighbour, and ``Made`` of what was mixed
Muffliato              ``Made(x, node, 0, gradient=1, noise=(private(node, 0, s),))``; then K times ``Received`` and
                       ``Made(terms=((x_t of node, gamma W_ii), ..., (x_{t-1}, 1 - gamma)))``
pairwise averaging     ``Made(terms=((mine, 1), (theirs, 0.5), (sent, -0.5)))`` at either end
DECOR                  noise of an edge: ``Noise((i, j), round, 0, s)`` at i and ``Noise((i, j), round, 0, -s)`` at j
Zip-DL                 a value per receiver, with a share of each ``Noise((node,), round, receiver, s)``
secure aggregation     ``Made(sum, receiver, round, terms=((x_1, w_1), ...))``, ``Received(sum, receiver)``
=====================  =============================================================================================
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from node.errors import ConfigError

Array: TypeAlias = NDArray[np.float64]


MAX_BYTES = 8 << 30
"""Memory for what values consist of: a thousand nodes for a hundred rounds take a gigabyte."""


class Variable(NamedTuple):
    """A standard normal variable, independent of all others: who knows it, and which of theirs it is."""

    owners: tuple[int, ...]
    round: int
    part: int


class Noise(NamedTuple):
    """Some multiple of a standard normal variable, the same one wherever owners, round and part are the same."""

    owners: tuple[int, ...]
    """The nodes that know it: the one that drew it, or both ends of an edge."""
    round: int
    part: int
    """Tells apart what the same owners drew in one round."""
    std: float
    """Factor, with its sign."""

    @property
    def variable(self) -> Variable:
        """What it is a multiple of."""
        return Variable(self.owners, self.round, self.part)


class Made(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A node made a value."""

    value: int
    """Unique in the log."""
    node: int
    round: int
    terms: tuple[tuple[int, float], ...] = ()
    """Earlier values, and what each weighs."""
    gradient: float = 0.0
    """What this node's private contribution of this round weighs; 0: there is none."""
    noise: tuple[Noise, ...] = ()


class Received(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A value, or a sum of values that only this node could unmask, reached a node."""

    value: int
    node: int


Record: TypeAlias = Made | Received


class Input(NamedTuple):
    """The private contribution of a node in a round."""

    node: int
    round: int


Column: TypeAlias = Input | Variable
"""What a column stands for."""


class Source(NamedTuple):
    """Where to read a contribution's weights: a column, times a factor."""

    column: int
    scale: float


def private(node: int, round: int, std: float, part: int = 0) -> Noise:
    """Noise that a node draws by itself, with this standard deviation."""
    return Noise((node,), round, part, std)


def encode(record: Record) -> bytes:
    """A record as a line of JSON, without the line's end."""
    return msgspec.json.encode(record)


def decode(lines: Iterable[bytes | str]) -> list[Record]:
    """The records of a log; empty lines are skipped.

    Raises:
        ConfigError: a line is no record.
    """
    decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Made | Received)
    records: list[Record] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                records.append(decoder.decode(line))
            except msgspec.DecodeError as error:
                raise ConfigError(f"line {number} is no record of who made and received what: {error}") from error
    return records


class Lineage:
    """A log, checked, its columns numbered: one for each independent noise and each contribution that has none.

    A contribution that only ever appears together with one noise of its node's own, in one proportion, shares that
    noise's column: nobody can tell the two apart, and the matrices are half as wide.

    Raises:
        ConfigError: a record names a value that was not made before it, or makes one again.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self.made: dict[int, Made] = {}
        self.received: list[Received] = []
        self._last_use: dict[int, int] = {}
        for number, record in enumerate(records, 1):
            self._check(number, record)
            if isinstance(record, Received):
                self.received.append(record)
            else:
                self._last_use.update({value: record.value for value, _ in record.terms})
                self.made[record.value] = record
        self.nodes: tuple[int, ...] = tuple(
            sorted({made.node for made in self.made.values()} | {got.node for got in self.received})
        )
        self._number_columns()

    def known_to(self, nodes: Collection[int]) -> list[int]:
        """The values that any of these received, each once, in the order of their making."""
        seen = {got.value for got in self.received if got.node in nodes}
        return [value for value in self.made if value in seen]

    def rows(self, values: Collection[int]) -> dict[int, Array]:
        """What these values consist of: coefficients of the columns that there were when each was made.

        Raises:
            ConfigError: what is known of the log at one time does not fit into the memory allowed.
        """
        wanted = set(values)
        found: dict[int, Array] = {}
        alive: dict[int, Array] = {}
        size_bytes = 0
        for value, made in self.made.items():
            alive[value] = row = self._row(made, alive)
            size_bytes += row.nbytes
            if size_bytes > MAX_BYTES:
                raise ConfigError(
                    f"the log has {len(self.made)} values and {len(self.columns)} contributions and noises: more than"
                    f" {MAX_BYTES >> 30} GiB to account for; log fewer nodes or rounds"
                )
            if value in wanted:
                found[value] = row
            over = {term for term, _ in made.terms if self._last_use[term] == value}
            for term in sorted(over if value in self._last_use else over | {value}):
                dropped = alive.pop(term)
                size_bytes -= 0 if term in wanted else dropped.nbytes
        return found

    def matrix(self, values: Sequence[int], rows: Mapping[int, Array] | None = None) -> Array:
        """The rows of these values one under the other, shape (values, columns)."""
        rows = self.rows(values) if rows is None else rows
        matrix = np.zeros((len(values), len(self.columns)))
        for at, value in enumerate(values):
            matrix[at, : len(rows[value])] = rows[value]
        return matrix

    def _check(self, number: int, record: Record) -> None:
        used = [record.value] if isinstance(record, Received) else [value for value, _ in record.terms]
        for value in used:
            if value not in self.made:
                raise ConfigError(f"record {number} of the log: value {value} was not made before; log it first")
        if isinstance(record, Made) and record.value in self.made:
            raise ConfigError(f"record {number} of the log: value {record.value} is made twice; number values apart")

    def _number_columns(self) -> None:
        self.columns: list[Column] = []
        self.sources: dict[Input, Source] = {}
        self._numbers: dict[Column, int] = {}
        self._widths: dict[int, int] = {}
        paired = self._paired()
        for value, made in self.made.items():
            for noise in made.noise:
                if noise.std:
                    self._number(noise.variable)
            if made.gradient:
                key = _input(made)
                own = paired.get(key)
                self.sources[key] = (
                    Source(self._number(own.variable), made.gradient / own.std)
                    if own
                    else Source(self._number(key), 1.0)
                )
            self._widths[value] = len(self.columns)

    def _number(self, column: Column) -> int:
        if column not in self._numbers:
            self._numbers[column] = len(self.columns)
            self.columns.append(column)
        return self._numbers[column]

    def _paired(self) -> dict[Input, Noise]:
        """Contributions that enter once, with a noise of their node's own that enters once."""
        entries: Counter[Column] = Counter()
        for made in self.made.values():
            entries.update(noise.variable for noise in made.noise)
            entries.update([_input(made)] if made.gradient else [])
        paired = {}
        for made in self.made.values():
            if made.gradient and entries[_input(made)] == 1:
                own = (noise for noise in made.noise if noise.std and noise.owners == (made.node,))
                alone = next((noise for noise in own if entries[noise.variable] == 1), None)
                if alone:
                    paired[_input(made)] = alone
        return paired

    def _row(self, made: Made, alive: Mapping[int, Array]) -> Array:
        row = np.zeros(self._widths[made.value])
        for value, weight in made.terms:
            row[: len(alive[value])] += weight * alive[value]
        for noise in made.noise:
            if noise.std:
                row[self._numbers[noise.variable]] += noise.std
        # Paired with a noise, it is in that noise's column already.
        if made.gradient and _input(made) in self._numbers:
            row[self._numbers[_input(made)]] += made.gradient
        return row


def _input(made: Made) -> Input:
    return Input(made.node, made.round)
