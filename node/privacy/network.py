"""What a set of nodes learns of each other node, exactly, from all that reached it in a run.

Everything that gossip delivers is a sum of private contributions and of normal noise. So the view of an attacker is one
Gaussian mechanism: what it received is ``R_g g + R_z z`` with z standard normal, and a difference ``d`` in somebody's
contributions shifts it by ``mu = ||(R_z R_z')^(-1/2) R_g d||``. Where every contribution has noise of its own, that is
``D / sigma`` times the root of a leverage score, the diagonal of the projector on what the attacker's rows span.

After El Mrini, Cyffers, Bellet: Privacy Attacks in Decentralized Learning, ICML 2024; Koskela, Kulkarni,
arXiv 2505.19969; Bellet et al., ICLR 2026, arXiv 2510.17480. It is exact for averaging, and for contributions that do
not depend on earlier noise; a guarantee is marked non-adaptive.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from node.errors import ConfigError
from node.privacy import gaussian
from node.privacy.budget import Guarantee, View
from node.privacy.lineage import Array, Column, Input, Lineage, Variable
from node.privacy.pld import Adjacency
from node.privacy.rowspace import RowSpace

Participation: TypeAlias = Literal["single", "all"] | Sequence[Collection[int]]
"""In which rounds a secret can play a part: any one, all, or any one of some sets of rounds."""

# Leverages are exact to far better than this, and one that is 1 cannot be missed.
_ALL = 1e-9
# Attackers whose rows are held at once.
_BATCH_BYTES = 256 << 20


class NetworkAccountant:
    """The view of some nodes, as one Gaussian mechanism.

    Args:
        lineage: what happened.
        view: whose messages the attacker reads.
        known: whose noise and contributions it knows; those of ``view`` where not given, and nobody's for an
            eavesdropper.
        rows: what ``lineage.rows`` gave for these values and perhaps others, where many attackers share it.

    Raises:
        ConfigError: there is no such node in the log.
    """

    def __init__(
        self,
        lineage: Lineage,
        view: Iterable[int],
        known: Iterable[int] | None = None,
        rows: Mapping[int, Array] | None = None,
    ) -> None:
        self.view = frozenset(view)
        self.known = self.view if known is None else frozenset(known)
        for node in sorted(self.view | self.known):
            if node not in lineage.nodes:
                raise ConfigError(f"view: node {node} is not in the log; allowed: {lineage.nodes}")
        self._lineage = lineage
        self.values = lineage.known_to(self.view)
        """The values that reached the attacker, in the order of the matrix's rows."""
        self._rows = lineage.matrix(self.values, rows)
        self._noises = np.array([isinstance(column, Variable) for column in lineage.columns], bool)
        self._variances = np.einsum("rc,rc,c->r", self._rows, self._rows, self._noises)
        # Zeros span nothing, so this is as good as leaving the columns out.
        self._rows[:, [self._is_known(column) for column in lineage.columns]] = 0.0
        self._space = RowSpace(self._rows, self._noises)

    @property
    def resolved(self) -> bool:
        """Whether float64 could tell how much the attacker sees; if not, each mu is that of local privacy."""
        return self._space.resolved

    @property
    def rank(self) -> int:
        """How many independent combinations of noises the attacker sees."""
        return self._space.rank

    def inputs(self, node: int) -> list[Input]:
        """The contributions of a node, in the order in which they entered.

        Raises:
            ConfigError: there is no such node in the log.
        """
        if node not in self._lineage.nodes:
            raise ConfigError(f"node: {node} is not in the log; allowed: {self._lineage.nodes}")
        return self._inputs_of.get(node, [])

    def matrix(self) -> tuple[Array, list[Column]]:
        """R, shape (values received, unknowns), and what its columns stand for; what is known to the attacker is out.

        An unknown is a contribution together with its own noise, in units of the noise; or a contribution that has
        none, or a noise that several values share. The sums received are ``R`` times the unknowns, and what is known.
        """
        kept = [at for at, column in enumerate(self._lineage.columns) if not self._is_known(column)]
        owned = {source.column: input for input, source in self._lineage.sources.items()}
        return self._rows[:, kept], [owned.get(at, self._lineage.columns[at]) for at in kept]

    def gram(self, node: int) -> Array:
        """``R_g' (R_z R_z')^+ R_g`` of a node's contributions, shape (inputs, inputs); infinite where nothing hides it.

        The diagonal is mu^2 of each by itself, for a sensitivity of 1. Where the rank is in doubt, it is what an
        attacker would learn who saw every contribution with nothing but its own noise.

        Raises:
            ConfigError: there is no such node in the log.
        """
        columns, scales = self._sources(self.inputs(node))
        if not self.resolved:
            return np.diag(self._alone(columns, scales))
        whitened = self._space.whitened[columns] * scales[:, None]
        gram = whitened @ whitened.T
        np.fill_diagonal(gram, np.where(self._space.outside[columns], np.inf, gram.diagonal()))
        return np.asarray(gram)

    def leverage(self, node: int, round: int = 0) -> float:
        """How much of a contribution with its own noise the attacker knows, 0 to 1; 1 where that is in doubt.

        Raises:
            ConfigError: the node made no contribution in that round.
        """
        source = self._lineage.sources.get(Input(node, round))
        if source is None:
            raise ConfigError(f"round: node {node} contributed nothing in round {round} of the log")
        if not self._full.resolved:
            return float(self._rows[:, source.column].any())
        return float(self._full.squares[source.column])

    def mu(self, node: int, sensitivity: float = 1.0, participation: Participation = "single") -> float:
        """How well the view tells apart two runs in which a node's contributions differ; infinite: nothing hides them.

        Args:
            node: the victim.
            sensitivity: the largest L2 distance of two contributions of one round.
            participation: the rounds in which they may differ; of several, an upper bound.

        Raises:
            ConfigError: there is no such node in the log, or no contribution in a round that is named.
        """
        if participation == "single":
            return sensitivity * math.sqrt(self._alone(*self._sources(self.inputs(node))).max(initial=0.0))
        gram = np.abs(self.gram(node))
        local = self._local(*self._sources(self.inputs(node)))
        patterns = self._patterns(node, participation)
        sums = (min(gram[np.ix_(rounds, rounds)].sum(), local[rounds].sum()) for rounds in patterns)
        return sensitivity * math.sqrt(max(sums, default=0.0))

    def epsilon(
        self, node: int, delta: float, sensitivity: float = 1.0, participation: Participation = "single"
    ) -> float:
        """The epsilon of a node towards this view, for contributions that do not depend on earlier noise.

        Raises:
            ConfigError: as ``mu``, or delta is no probability.
        """
        return gaussian.epsilon_of(self.mu(node, sensitivity, participation), delta)

    def guarantee(
        self,
        node: int,
        delta: float,
        view: View,
        *,
        sensitivity: float = 1.0,
        participation: Participation = "single",
        adjacency: Adjacency = "replace_one",
    ) -> Guarantee:
        """The epsilon of a node towards this view, with all that belongs to it.

        Raises:
            ConfigError: as ``epsilon``, or there is no such threat model or adjacency.
        """
        return Guarantee(
            epsilon=self.epsilon(node, delta, sensitivity, participation),
            delta=delta,
            adjacency=adjacency,
            unit="node",
            view=view,
            adaptive=False,
            conversion="gdp",
        )

    def published_mu(self, node: int, sensitivity: float = 1.0) -> float:
        """The sum over messages of what each gives away by itself: a figure of the literature, and no guarantee.

        Cyffers, Even, Bellet, Massoulié: Muffliato, NeurIPS 2022. A joint view may tell more than its parts
        do one by one, or less.

        Raises:
            ConfigError: there is no such node in the log.
        """
        columns, scales = self._sources(self.inputs(node))
        squares = (self._rows[:, columns] * scales) ** 2
        if (squares[self._variances == 0] > 0).any():
            return math.inf
        hidden = self._variances > 0
        sums = (squares[hidden] / self._variances[hidden, None]).sum(axis=0)
        return sensitivity * math.sqrt(sums.max(initial=0.0))

    def reconstructable(self) -> tuple[Input, ...]:
        """The contributions that the attacker can solve for, each with its own noise, by node and round.

        Where the rank is in doubt, those that float64 arithmetic suffices for.
        """
        return tuple(
            input
            for input, source in sorted(self._lineage.sources.items())
            if input.node not in self.known and self._full.squares[source.column] > 1 - _ALL
        )

    @cached_property
    def _inputs_of(self) -> dict[int, list[Input]]:
        found: dict[int, list[Input]] = {}
        for input in self._lineage.sources:
            found.setdefault(input.node, []).append(input)
        return found

    @cached_property
    def _full(self) -> RowSpace:
        """The space of all unknowns; that of the noises, unless some contribution has none of its own."""
        return self._space if self._noises.all() else RowSpace(self._rows, np.ones(len(self._noises), bool))

    def _alone(self, columns: NDArray[np.int64], scales: Array) -> Array:
        """mu^2 of contributions one by one, for a sensitivity of 1, shape (inputs,)."""
        if self.resolved:
            return np.where(self._space.outside[columns], np.inf, self._space.squares[columns] * scales**2)
        return self._local(columns, scales)

    def _local(self, columns: NDArray[np.int64], scales: Array) -> Array:
        """The same for an attacker who sees each contribution with its own noise, of those that reached it at all."""
        hidden = np.where(self._noises[columns], scales**2, np.inf)
        return np.where(self._rows[:, columns].any(axis=0), hidden, 0.0)

    def _sources(self, inputs: Sequence[Input]) -> tuple[NDArray[np.int64], Array]:
        sources = [self._lineage.sources[input] for input in inputs]
        return np.array([source.column for source in sources], np.int64), np.array([source.scale for source in sources])

    def _is_known(self, column: Column) -> bool:
        return not self.known.isdisjoint(column.owners if isinstance(column, Variable) else (column.node,))

    def _patterns(self, node: int, participation: Participation) -> Iterator[list[int]]:
        places = {input.round: at for at, input in enumerate(self.inputs(node))}
        if isinstance(participation, str):
            if participation != "all":
                raise ConfigError(f"participation: {participation!r}; allowed: single, all, or sets of rounds")
            yield list(places.values())
            return
        for rounds in participation:
            for round in sorted(rounds):
                if round not in places:
                    raise ConfigError(f"participation: node {node} contributed nothing in round {round} of the log")
            yield [places[round] for round in sorted(set(rounds))]


def mu_matrix(lineage: Lineage, sensitivity: float = 1.0, participation: Participation = "single") -> Array:
    """mu of each node towards each other one, shape (nodes, nodes), in the order of ``lineage.nodes``.

    Row u, column v: what v learns of u. The diagonal is not a number.

    Raises:
        ConfigError: as ``NetworkAccountant``.
    """
    found = np.full((len(lineage.nodes),) * 2, np.nan)
    # Of products as small as these, a second thread makes ten times the time where another process wants the core.
    with threadpool_limits(1, user_api="blas"):
        for batch in _batches(lineage):
            rows = lineage.rows({value for at in batch for value in lineage.known_to({lineage.nodes[at]})})
            for at in batch:
                accountant = NetworkAccountant(lineage, {lineage.nodes[at]}, rows=rows)
                for other, victim in enumerate(lineage.nodes):
                    if other != at:
                        found[other, at] = accountant.mu(victim, sensitivity, participation)
    return found


def _batches(lineage: Lineage) -> Iterator[list[int]]:
    """Places of nodes, a few at a time, whose rows fit into the memory set aside."""
    batch: list[int] = []
    size_bytes = 0
    for at, node in enumerate(lineage.nodes):
        batch.append(at)
        size_bytes += 4 * len(lineage.columns) * len(lineage.known_to({node}))
        if size_bytes > _BATCH_BYTES:
            yield batch
            batch, size_bytes = [], 0
    if batch:
        yield batch
