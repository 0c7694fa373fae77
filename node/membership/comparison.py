"""Comparing whole views, so that what gossip missed is found, partitions heal, and newcomers hear of everybody.

SWIM implementations exchange full lists for that ("push-pull"). Here members exchange hashes of 64 buckets first, and
then only what is in those that differ: while nothing changes, that costs the same in a network of any size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from node.membership.hearer import Hearer
from node.membership.statement import Statement
from node.membership.view import BUCKETS
from node.membership.vocabulary import EXCHANGE_BYTES, MOST_STATEMENTS, Differences, Start, Summary

SOON = 8
"""By how much sooner than usual a node asks for others while it knows none."""


class Comparison(Hearer):
    """The part of a member that compares its view with others'."""

    _seeds: tuple[int, ...] = ()
    _is_new = True
    """Whether it still has to hear what everybody else knows, so that hearing it is no news for others."""
    _compare_s = math.inf

    def _remember(self, start: Start) -> None:
        self._seeds = tuple([seed for seed in dict.fromkeys(start.seeds) if seed != self.me])
        for statement in start.remembered:
            self._hear(statement, spreads=False)
        self._ring.fill(self._ring)
        self._is_new = bool(self._seeds)
        for peer in self._partners():
            self._compare_with(peer)
        self._set_comparison()

    def _set_comparison(self) -> None:
        interval_s = self._timing.push_pull_interval_s
        if not len(self._ring):
            interval_s /= SOON
        self._compare_s = self._now + interval_s * (0.75 + 0.5 * self._rng.random())

    def _compare_and_forget(self) -> None:
        for peer in self._partners():
            self._compare_with(peer)
        old = [peer for peer in self._view.gone() if self._view.since_s(peer) <= self._now - self._timing.forget_s]
        for peer in old:
            self._forget(peer)
        self._set_comparison()

    def _partners(self) -> list[int]:
        """One that is there, and one that seems not to be: a dead one or a seed, on the far side of a split perhaps."""
        lost = [*self._view.verdicts, *[seed for seed in self._seeds if self._view.state(seed) is None]]
        some = [lost[int(self._rng.random() * len(lost))]] if lost else []
        return [*self._ring.sample(1), *some]

    def _compare_with(self, peer: int) -> None:
        self._send((peer,), Summary(self._view.hashes(), (self._view.words[self.me], *self._charges(peer))))

    def _on_comparison(self, sender: int, message: Summary | Differences) -> None:
        if isinstance(message, Summary):
            for statement in message.updates:
                self._hear(statement)
            self._answer_summary(sender, message)
        else:
            self._on_differences(sender, message)

    def _answer_summary(self, sender: int, summary: Summary) -> None:
        mine = self._view.hashes()
        first = int(self._rng.random() * BUCKETS)
        order = [*range(first, BUCKETS), *range(first)]
        differing = [bucket for bucket in order if mine[bucket] != summary.hashes[bucket]]
        if differing:
            buckets, statements = self._page(differing)
            self._send((sender,), Differences(buckets, statements, True, len(buckets) < len(differing)))

    def _page(self, buckets: Iterable[int]) -> tuple[tuple[int, ...], tuple[Statement, ...]]:
        """As many whole buckets as fit into one message, at least one."""
        told: list[int] = []
        statements: list[Statement] = []
        room_bytes = EXCHANGE_BYTES
        for bucket in buckets:
            more = self._view.statements(bucket)
            room_bytes -= sum([statement.size_bytes for statement in more])
            if told and (room_bytes < 0 or len(statements) + len(more) > MOST_STATEMENTS):
                break
            told.append(bucket)
            statements += more[: MOST_STATEMENTS - len(statements)]
        return tuple(told), tuple(statements)

    def _on_differences(self, sender: int, message: Differences) -> None:
        heard = [self._hear(statement, spreads=not self._is_new) for statement in message.statements]
        if message.wants_answer:
            theirs = set(message.statements)
            _, mine = self._page(dict.fromkeys(message.buckets))
            answer = tuple([statement for statement in mine if statement not in theirs])
            if answer:
                self._send((sender,), Differences(message.buckets, answer, False, False))
        if message.has_more and any(heard):
            self._compare_with(sender)
        elif not message.has_more:
            self._is_new = False
