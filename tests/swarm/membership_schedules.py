"""Members under random schedules of faults, in virtual time, and what must hold afterwards.

Everything follows from the seed. For ``FAULTS_S`` nodes crash and come back, hang, run slowly, are cut off from each
other, in one direction too, leave and join again; messages are lost and late; clocks drift. Then the faults stop,
some nodes may stay down, and within ``SETTLE_S`` all that are up must hold the same view of who is there.

``python tests/swarm/membership_schedules.py 2000`` runs so many of them.
"""

import sys
from dataclasses import dataclass

import numpy as np

from node.clock import VirtualClock
from node.membership import Changed, Leave, Persist, Start, State, Swim, Timing, Usurped
from node.sim.swarm import Swarm

TIMING = Timing(
    probe_interval_s=1.0,
    probe_timeout_s=0.4,
    indirect_probes=2,
    suspicion_mult=4,
    suspicion_max_mult=3,
    retransmit_mult=3,
    gossip_interval_s=0.4,
    gossip_fanout=2,
    push_pull_interval_s=6.0,
    dead_gossip_s=10.0,
)
FAULTS_S = 20.0
SETTLE_S = 90.0
"""A suspect's longest time at bad health, and some comparisons."""
MOST_NODES = 30


class Violation(Exception):
    """A schedule has broken a rule."""

    def __init__(self, rule, seed, what, faults):
        told = "".join(f"\n  {fault}" for fault in faults[-40:])
        super().__init__(f"{rule}: seed {seed}: {what}; the faults:{told}")
        self.rule, self.seed, self.faults = rule, seed, faults


@dataclass(frozen=True)
class Planted:
    """What the scheduler runs: the real machine, unless a test plants a bug or breaks an assumption."""

    machine: type = Swim
    kept: int | None = None
    """What a restarted node believes to have kept, where that is not what it has."""
    only: tuple | None = None
    """Which of the faults happen, by index; None: all. This shrinks a schedule."""


@dataclass
class Outcome:
    """How a schedule went."""

    settled_s: float
    """From the last fault until all agreed."""
    nodes: int
    faults: int
    false_deaths: int
    """Verdicts about nodes that were up."""


class Schedule:
    """One seeded schedule; :meth:`run` gives its outcome, or raises a Violation."""

    def __init__(self, seed, planted=None):
        self.seed = seed
        self.planted = planted or Planted()
        self.rng = np.random.default_rng(seed)
        self.clock = VirtualClock()
        draw = self.rng.random
        self.nodes = int(5 + (MOST_NODES - 4) * draw() ** 3)
        self.loss = 0.4 * draw() ** 3
        self.lateness_s = 0.02 + 0.6 * draw() ** 4
        self.calm_s = 0.5 + 4 * draw()
        self.swarm = Swarm(self.clock, self.nodes, self.launch, self.path)
        self.swarm.watch = self.see
        self.blocked = {}
        """Pairs of nodes between which, in this direction, nothing arrives until some time."""
        self.slow_s = [0.0] * self.nodes
        self.issued = [0] * self.nodes
        self.remembered = [()] * self.nodes
        """Whom a node knew when it went down, as a driver keeps it: the seeds may be gone when it comes back."""
        self.down = set()
        """Who stays down in the end."""
        self.faults = []
        self.false_deaths = 0

    # The world

    def up(self, node):
        if node not in self.down:
            self.swarm.up(node)

    def launch(self, node, kept):
        planted = self.planted
        kept = kept if planted.kept is None else planted.kept
        rng = np.random.default_rng([self.seed, node, self.issued[node]])
        seeds = tuple(seed for seed in (0, 1, 2) if seed != node)
        return planted.machine(node, kept, b"record %d" % node, TIMING, rng), Start(seeds, self.remembered[node])

    def path(self, sender, to):
        draw = self.rng.random
        if draw() < self.loss or self.blocked.get((sender, to), 0.0) > self.clock.now:
            return None
        return 0.002 + self.lateness_s * draw() ** 2 + self.slow_s[sender] + self.slow_s[to]

    def see(self, node, action):
        match action:
            case Persist(incarnation=incarnation):
                self.require("incarnation", incarnation > self.issued[node], f"node {node} issues {incarnation} again")
                self.issued[node] = incarnation
            case Changed(peer=peer, state=State.DEAD):
                self.false_deaths += self.swarm.hosts[peer].machine is not None
            case Usurped(incarnation=incarnation):
                self.require("one identity", False, f"node {node} hears of its incarnation {incarnation}")

    def require(self, rule, holds, what):
        if not holds:
            raise Violation(rule, self.seed, what, self.faults)

    # Faults

    def run(self):
        try:
            return self.outcome()
        finally:
            self.clock.close()

    def outcome(self):
        for node in range(self.nodes):
            self.clock.post(3 * self.rng.random(), self.up, node)
        self.clock.post(4.0, self.fault, None)
        self.swarm.run(FAULTS_S)
        self.heal()
        settled_s = self.settle()
        return Outcome(settled_s, self.nodes, len(self.faults), self.false_deaths)

    def fault(self, _):
        if self.clock.now >= FAULTS_S:
            return
        kind = FAULTS[int(self.rng.integers(len(FAULTS)))]
        node, share, lasts_s = int(self.rng.integers(self.nodes)), self.rng.random(), 12 * self.rng.random() ** 2
        index = len(self.faults)
        self.faults.append(f"{index}: {self.clock.now:.3f} s: {kind} node {node}, {share:.3f}, {lasts_s:.3f} s")
        side = self.rng.random(self.nodes) < share
        if self.planted.only is None or index in self.planted.only:
            getattr(self, kind)(node, share, lasts_s, side)
        self.clock.post(self.rng.exponential(self.calm_s), self.fault, None)

    def crash(self, node, share, lasts_s, side):
        if (machine := self.swarm.hosts[node].machine) is not None:
            self.remembered[node] = machine.statements()
        self.swarm.down(node)
        self.clock.post(lasts_s, self.up, node)

    def crash_many(self, node, share, lasts_s, side):
        for each in np.flatnonzero(side).tolist():
            self.crash(each, share, lasts_s, side)

    def partition(self, node, share, lasts_s, side):
        self.block([(a, b) for a in range(self.nodes) for b in range(self.nodes) if side[a] != side[b]], lasts_s)

    def one_way(self, node, share, lasts_s, side):
        self.block([(a, b) for a in range(self.nodes) for b in range(self.nodes) if side[a] and not side[b]], lasts_s)

    def isolate(self, node, share, lasts_s, side):
        self.block([pair for a in range(self.nodes) for pair in ((a, node), (node, a))], lasts_s)

    def block(self, pairs, lasts_s):
        for pair in pairs:
            self.blocked[pair] = max(self.blocked.get(pair, 0.0), self.clock.now + lasts_s)

    def pause(self, node, share, lasts_s, side):
        self.swarm.hold(node, min(lasts_s, FAULTS_S - self.clock.now))

    def slow(self, node, share, lasts_s, side):
        self.slow_s[node] = share

    def drift(self, node, share, lasts_s, side):
        self.swarm.drift(node, 0.95 + 0.1 * share)

    def leave(self, node, share, lasts_s, side):
        if self.swarm.hosts[node].machine is not None:
            self.swarm.give(node, Leave())
            self.crash(node, share, lasts_s, side)

    def heal(self):
        """No more faults; up to a third of the nodes stay down, or leave, for good."""
        self.loss, self.lateness_s, self.slow_s = 0.0, 0.02, [0.0] * self.nodes
        self.blocked.clear()
        ending = self.rng.integers(3)
        lost = self.rng.permutation(self.nodes)[: self.nodes // 3].tolist() if ending else []
        self.down = set(lost)
        for node in range(self.nodes):
            host = self.swarm.hosts[node]
            if node not in self.down:
                self.up(node)
            elif ending == 1 and host.machine is not None and host.held_until_s <= self.clock.now:
                self.swarm.give(node, Leave())
            if node in self.down:
                self.swarm.down(node)

    # What must hold

    def settle(self):
        """Seconds until all views agreed, which they then go on to do for a while."""
        up = tuple(node for node in range(self.nodes) if node not in self.down)
        while not self.agree(up):
            if self.clock.now > FAULTS_S + SETTLE_S:
                self.require("views converge", False, self.disagreement(up))
            self.swarm.run(1.0)
        settled_s = self.clock.now - FAULTS_S
        self.swarm.run(5.0)
        # A probe that began before the last fault ended may have somebody suspected once more; nobody may be lost.
        stay = all(set(self.view(node)) <= set(others(up, node)) <= set(self.peers(node)) for node in up)
        self.require("views stay", stay, self.disagreement(up))
        return settled_s

    def peers(self, node):
        """Who is there, for sure or suspected, as a node sees it."""
        return self.swarm.hosts[node].machine.peers()

    def agree(self, up):
        return all(self.view(node) == others(up, node) for node in up)

    def view(self, node):
        """Who is there for sure, as a node sees it."""
        return tuple(
            sighting.peer for sighting in self.swarm.hosts[node].machine.known() if sighting.state is State.ALIVE
        )

    def disagreement(self, up):
        wrong = {node: sorted(set(self.view(node)) ^ (set(up) - {node})) for node in up}
        return "; ".join(f"node {node} is wrong about {peers}" for node, peers in wrong.items() if peers)


def others(nodes, node):
    return tuple(each for each in nodes if each != node)


FAULTS = ["crash", "crash", "crash_many", "partition", "one_way", "isolate", "pause", "slow", "drift", "leave"]


def shrink(seed, planted):
    """The smallest set of a failing schedule's faults, found greedily, with which it still fails."""
    try:
        Schedule(seed, planted).run()
    except Violation as violation:
        worst = violation
    else:
        return None
    needed = list(range(len(worst.faults)))
    for index in reversed(range(len(worst.faults))):
        fewer = tuple(each for each in needed if each != index)
        try:
            Schedule(seed, Planted(planted.machine, planted.kept, fewer)).run()
        except Violation as violation:
            needed, worst = list(fewer), violation
    return needed, worst


def main(schedules):
    """Run so many schedules, and say how soon all agreed once the faults had stopped."""
    outcomes = [Schedule(seed).run() for seed in range(schedules)]
    settled_s = sorted(outcome.settled_s for outcome in outcomes)
    at = {"median": len(settled_s) // 2, "99%": len(settled_s) * 99 // 100, "worst": -1}
    told = ", ".join(f"{name} {settled_s[place]:.0f} s" for name, place in at.items())
    wrong = sum(outcome.false_deaths for outcome in outcomes)
    faults = sum(outcome.faults for outcome in outcomes)
    sys.stdout.write(f"{schedules} schedules, {faults} faults, {wrong} wrong verdicts undone; agreed after {told}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
