"""The state machine of one member that knows all others.

SWIM (Das, Gupta and Motivala, DSN 2002): probes, direct and through helpers, find who is gone; suspects may object;
news travels with the probes. Lifeguard (Dadgar, Phillips and Currey, arXiv 1707.00788, 2017): a member doubts itself
first.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from node.membership.comparison import Comparison
from node.membership.health import MOST_PEER_LAG_S
from node.membership.probe import Probe, Relays
from node.membership.reach import MOST_LOOKS, Reach
from node.membership.statement import Signatures, State, Unsigned
from node.membership.timing import Timing
from node.membership.vocabulary import (
    Ack,
    Action,
    Describe,
    Differences,
    Gossip,
    Input,
    Lag,
    Leave,
    Message,
    Nack,
    Ping,
    PingRequest,
    Received,
    SetTimer,
    Start,
    Summary,
    Tick,
)

if TYPE_CHECKING:
    import numpy as np

STALL_S = 0.1
"""Lateness that counts as a stall, during which no suspect's time runs: two ticks of 50 ms."""
FAREWELLS = 16
"""Peers that are told directly of a leave."""


class Swim(Comparison):
    """Full membership: every member knows every other, and probes one per interval.

    ``step`` is all there is: it changes the state, and gives what the caller has to do, in order.
    """

    def __init__(
        self,
        me: int,
        incarnation: int,
        record: bytes,
        timing: Timing,
        rng: np.random.Generator,
        signatures: Signatures | None = None,
        *,
        most_peers: int = 10_000,
    ) -> None:
        super().__init__(me, incarnation, record, timing, rng, signatures or Unsigned(), most_peers=most_peers)
        self._seq = 0
        self._probe: Probe | None = None
        self._probe_s = math.inf
        """When the next probe begins, while there is none."""
        self._gossip_s = math.inf
        self._relays = Relays()
        self._reach = Reach()
        self._stalled_s = -math.inf
        """Until when stalls have been made up for."""
        self._has_left = False

    def step(self, event: Input, now: float) -> list[Action]:
        """Take in what has happened at a time of the node's own clock, in s; gives what is to be done."""
        self._now, self._actions = now, []
        if self._has_left:
            return self._actions
        before = self.deadline_s
        if now > before:
            self._on_lag(now - before)
        match event:
            case Received(sender=sender, message=message):
                self._receive(sender, message)
            case Tick():
                self._due()
            case Lag(lag_s=lag_s):
                self._on_lag(lag_s)
            case Describe(record=record):
                self._record = record
                self._raise_incarnation()
            case Start():
                self._start(event)
            case Leave():
                self._leave()
        self._set_deadline()
        if self.deadline_s != before and self.deadline_s < math.inf:
            self._actions.append(SetTimer(self.deadline_s))
        return self._actions

    def _start(self, start: Start) -> None:
        self._view.began_s = self._now
        self._raise_incarnation()
        self._remember(start)
        self._probe_s = self._now + self._timing.probe_interval_s * self._rng.random()

    def _leave(self) -> None:
        self._raise_incarnation(State.LEFT)
        self._send(self._ring.sample(FAREWELLS), Gossip((self._view.words[self.me],)))
        self._has_left = True

    # Time

    def _set_deadline(self) -> None:
        if self._has_left:
            self.deadline_s = math.inf
            return
        if not self._rumours:
            self._gossip_s = math.inf
        elif self._gossip_s == math.inf:
            self._gossip_s = self._now + self._timing.gossip_interval_s
        probe_s = self._probe_s if self._probe is None else self._probe.deadline_s
        suspicion_s = self._view.next_suspicion_s() if self._view.suspicions else math.inf
        due_s = min(probe_s, self._gossip_s, self._compare_s, suspicion_s, self._relays.deadline_s)
        self.deadline_s = max(self._now, due_s)  # a confirmation may have put a suspect's end into the past

    def _due(self) -> None:
        now = self._now
        if self._probe is not None and self._probe.deadline_s <= now:
            self._go_on(self._probe)
        elif self._probe is None and self._probe_s <= now:
            self._begin_probe()
        for asker, seq in self._relays.overdue(now):
            self._send((asker,), Nack(seq))
        if self._gossip_s <= now:
            self._gossip()
        if self._compare_s <= now:
            self._compare_and_forget()
        if self._view.suspicions:
            for peer in [peer for peer, it in self._view.suspicions.items() if it.deadline_s <= now]:
                self._accuse(peer, State.DEAD)

    def _on_lag(self, lag_s: float) -> None:
        """This node has run late: its probes prove less, and suspects have had less time than it seems."""
        now = self._now
        self.health.note_lag(lag_s, now)
        if self._probe is not None:
            self._probe.worst_lag_s = max(self._probe.worst_lag_s, lag_s)
        lost_s, self._stalled_s = now - max(now - lag_s, self._stalled_s), now
        if lag_s <= STALL_S:
            return
        least_s, _ = self._timing.suspicion_s(self._view.live)
        for suspicion in self._view.suspicions.values():
            suspicion.delay(now - suspicion.began_s if lag_s > least_s else lost_s)
        if lag_s > least_s:  # others may have called this node dead meanwhile: hear that first, accuse later
            self._probe, self._probe_s = None, now + self._timing.probe_interval_s * self.health.scale
            self._compare_s = now

    # Probes

    def _begin_probe(self, before: Probe | None = None) -> None:
        interval_s = self._timing.probe_interval_s * self.health.scale
        if (target := self._ring.turn() if before is None else before.target) is None:
            self._probe, self._probe_s = None, self._now + interval_s
            return
        slack_s = 2 * self.health.lag_s(self._now) + self._lags_s.get(target, 0.0)
        patience_s = self._timing.probe_timeout_s * self.health.scale
        self._probe = Probe(
            self._next_seq(),
            target,
            began_s=self._now,
            timeout_s=patience_s + slack_s,
            end_s=self._now + interval_s + slack_s,
            tolerated_lag_s=patience_s / 2,
            look=1 if before is None else before.look + 1,
        )
        self._send((target,), Ping(self._probe.seq, self._updates_for(target)))

    def _go_on(self, probe: Probe) -> None:
        """Time is up for an answer: ask helpers, or draw the conclusion."""
        if not probe.is_answered and not probe.is_indirect:
            self._ask_helpers(probe)
            return
        again: Probe | None = None
        if not probe.is_inconclusive:
            self._reach.note(probe.is_answered + probe.helpers, probe.is_direct + min(probe.reports, probe.helpers))
        if not probe.is_answered and probe.is_inconclusive:
            self.health.change(+1)
        elif not probe.is_answered:
            self.health.change(min(probe.penalty, max(1, self._timing.indirect_probes)))
            if probe.look >= MOST_LOOKS or self._reach.suffices(self._view.live, probe.helpers):
                self._accuse(probe.target, State.SUSPECT)
            elif self._view.is_live(probe.target):
                again = probe
        self._begin_probe(again)

    def _ask_helpers(self, probe: Probe) -> None:
        helpers = self._ring.sample(self._helpers(), (probe.target,))
        probe.is_indirect, probe.helpers = True, len(helpers)
        within_ms = max(0, int(1000 * (probe.end_s - self._now)))
        self._send(helpers, PingRequest(probe.seq, probe.target, within_ms))

    def _helpers(self) -> int:
        return self._reach.helpers(self._view.live, self._timing.indirect_probes)

    def _on_ack(self, sender: int, ack: Ack) -> None:
        if (asked := self._relays.answered(ack.seq)) is not None:
            asker, seq = asked
            self._send((asker,), Ack(seq, ack.lag_ms))
            return
        probe = self._probe
        if probe is None or probe.seq != ack.seq:
            return
        probe.is_direct |= sender == probe.target
        probe.reports += sender != probe.target
        if probe.is_answered:
            return
        probe.is_answered = True
        self.health.change(-1)
        if lag_s := min(ack.lag_ms / 1000, MOST_PEER_LAG_S):
            self._lags_s[probe.target] = lag_s
        else:
            self._lags_s.pop(probe.target, None)
        if sender == probe.target:
            self._rtts_s[sender] = self._now - probe.began_s

    def _on_ping_request(self, sender: int, request: PingRequest) -> None:
        if request.target == self.me or request.target not in self._view.words:
            return
        seq = self._next_seq()
        within_s = min(request.within_ms / 1000, self._timing.probe_interval_s * self._timing.health_ceiling)
        if self._relays.add(seq, sender, request.seq, self._now, within_s):
            self._send((request.target,), Ping(seq, tuple(self._charges(request.target))))

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq

    # Messages

    def _receive(self, sender: int, message: Message) -> None:
        match message:
            case Summary() | Differences():
                self._on_comparison(sender, message)
            case Nack(seq=seq):
                if self._probe is not None and self._probe.seq == seq:
                    self._probe.reports += 1
            case Ping() | Ack() | Gossip():
                for statement in message.updates:
                    self._hear(statement)
        match message:
            case Ping(seq=seq):
                lag_ms = int(1000 * self.health.lag_s(self._now))
                self._send((sender,), Ack(seq, lag_ms, self._updates_for(sender)))
                if sender not in self._view.words:
                    self._compare_with(sender)
            case Ack():
                self._on_ack(sender, message)
            case PingRequest():
                self._on_ping_request(sender, message)
        self._defend_to(sender)

    def _gossip(self) -> None:
        self._gossip_s = math.inf
        while self._fallen and self._fallen[0][0] < self._now - self._timing.dead_gossip_s:
            self._fallen.popleft()
        dead = [peer for _, peer in self._fallen if peer in self._view.verdicts]
        some = dead[int(self._rng.random() * len(dead))] if dead else None
        for peer in (*self._ring.sample(self._timing.gossip_fanout), *([] if some is None else [some])):
            if not self._rumours:
                return
            if updates := self._updates_for(peer):
                self._send((peer,), Gossip(updates))
