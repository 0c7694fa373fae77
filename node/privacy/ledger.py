"""What every node of an experiment has spent: each training is entered before it begins, and kept by whoever keeps it.

A state machine: it touches no disk and trains nothing. Nodes that have taken equal steps share the work of adding them
up; a node that has not trained costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from node.config import PrivacySection
from node.errors import BudgetSpent, ConfigError
from node.privacy.budget import Budget, Guarantee, NodeAccountant, Unit
from node.privacy.training import sampling_rate

Keep = Callable[[int, Mapping[str, Any]], None]
"""Told of a node and its accountant's state, before the steps in it are taken; must not return before that is safe."""


class Ledger:
    """Accountants of all nodes of a world, or of the one that is here; a :class:`~node.world.Ledger`.

    Under ``record`` every training step is a noisy one on random records; under ``node`` every training is one on all.
    """

    def __init__(
        self,
        privacy: PrivacySection,
        batch_size: int,
        records: Callable[[int], int],
        keep: Keep = lambda node, state: None,
    ) -> None:
        """``batch_size``: records in a batch, on average; ``records``: how many a node holds."""
        self._privacy = privacy
        self._batch_size = batch_size
        self._records = records
        self._keep = keep
        self._unit = unit(privacy)
        self._budget = Budget(privacy.epsilon, privacy.delta, privacy.accountant) if privacy.epsilon else None
        self._accountants: dict[int, NodeAccountant] = {}

    def restore(self, node: int, state: Mapping[str, Any]) -> None:
        """Go on from what a node had spent before it was started again.

        Raises:
            ConfigError: this is no accountant's state, or it counts something else than this experiment does.
        """
        found = NodeAccountant.restored(state, self._budget)
        if found.unit != self._unit:
            raise ConfigError(
                f"privacy.mechanism: node {node} has spent privacy per {found.unit}, and would now per {self._unit}, "
                "which do not add up; go on with the mechanism that it had"
            )
        self._accountants[node] = found

    def charge(self, node: int, steps: int) -> bool:
        """Enter training steps that a node is about to take; False: it must not take them, and goes on without.

        Raises:
            BudgetSpent: they would exceed the budget, and the experiment says to stop there.
        """
        accountant = self._accountant(node)
        sigma = self._privacy.noise_multiplier
        try:
            if self._unit == "node":
                accountant.step(sigma)
            else:
                accountant.step(sigma, sampling_rate(self._batch_size, self._records(node)), steps)
        except BudgetSpent as error:
            if self._privacy.when_spent == "relay":
                return False
            raise BudgetSpent(f"node {node} has spent its privacy: {error}") from None
        self._keep(node, accountant.state())
        return True

    def spent(self, node: int) -> Mapping[str, float]:
        """A node's epsilon so far; nothing where a node has no data that could be told of."""
        if not self._records(node):
            return {}
        return {"epsilon": self._epsilon(node)}

    def guarantee(self, node: int) -> Guarantee:
        """A node's epsilon so far, with all that it means nothing without."""
        return guarantee(self._privacy, self._epsilon(node))

    def states(self, nodes: Iterable[int] = ()) -> Mapping[int, Mapping[str, Any]]:
        """The accountants' states, by node: of all that have been charged, and of these nodes where they hold data."""
        for node in nodes:
            if self._records(node):
                self._accountant(node)
        return {node: accountant.state() for node, accountant in sorted(self._accountants.items())}

    def _epsilon(self, node: int) -> float:
        return self._accountant(node).epsilon(self._privacy.delta, self._privacy.accountant)

    def _accountant(self, node: int) -> NodeAccountant:
        if node not in self._accountants:
            self._accountants[node] = NodeAccountant(unit=self._unit, budget=self._budget)
        return self._accountants[node]


def unit(privacy: PrivacySection) -> Unit:
    """What one contribution is."""
    return "node" if privacy.mechanism == "node" else "record"


def guarantee(privacy: PrivacySection, epsilon: float) -> Guarantee:
    """What an epsilon of a ledger means: of one contribution more or less, whatever becomes of noised models."""
    return Guarantee(
        epsilon=epsilon,
        delta=privacy.delta,
        adjacency="add_remove",
        unit=unit(privacy),
        view=privacy.view,
        adaptive=True,
        conversion=privacy.accountant,
    )
