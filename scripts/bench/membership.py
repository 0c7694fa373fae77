"""Failure detection in virtual time: how soon, how often wrongly, and for how much traffic.

A swarm of SWIM members runs under the virtual clock, some share of its messages is lost, and members are killed in it.

  suspected  from a death until the first member suspects it, in probe intervals. SWIM (Das, Gupta and Motivala, DSN
             2002) expects e / (e - 1) = 1.58 whole periods, of which death falls into the first: 1.08 from a death at
             any time in it. Members here do not probe in step: the next probe of a given member begins after 1 interval
             on average, and fails at the end of 1 more, so that 2 are expected
  dead       until the first verdict: the suspect has had its time
  everywhere until 99% of the members know of the verdict
  false/h    verdicts about members that were up, by peer and incarnation, per member and hour, and of how many hours
  B/s, msg/s sent by a member while nobody dies, a minute after the loss has begun
  worst B/s  in the worst ten seconds since it has

What a member sends is bounded at any number of members, since messages are bounded, and their number per interval; the
bound is printed. (A comparison of views counts as one page each way; more follow only where somebody has missed more.)
Far below it, traffic without loss depends on nothing, and with loss on the logarithm of the number of members: members
ask more others before they tell all of a suspicion (``node/membership/reach.py``).

The last part compares Lifeguard with plain SWIM where a tenth of the members only runs now and then. Its paper
(Dadgar, Phillips and Currey, arXiv 1707.00788, 2017) reports more than 50 times fewer false positives.
``--check`` exits with 1 where a live member was called dead without loss, traffic without loss grows with the network,
or with loss past 1 kB/s, or Lifeguard makes less than 50 times fewer false verdicts about healthy members.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import resource
import sys
import time
from collections.abc import Iterator

import numpy as np

from node.clock import VirtualClock
from node.membership import PIGGYBACK_BYTES, PRESETS, Action, Changed, Start, State, Statement, Swim, Timing
from node.membership.reach import MOST_HELPERS, Reach
from node.membership.vocabulary import EXCHANGE_BYTES
from node.sim.garbage import lean_garbage_collection
from node.sim.swarm import Swarm

RECORD = bytes(200)
"""As long as an address and two keys."""
WARM_UP_S = 10.0
SETTLE_S = 60.0
"""In which members learn how much is lost."""
WINDOW_S = 10.0
MOST_IDLE_BYTES_S = 1000.0
SHORT_BYTES = 160
"""Of a message with one accusation, at most."""
WORD_BYTES = 400
"""Of a message with one member's own word."""
STARVED_COST_S = 0.5
"""Of a starved member's processor, for one message; a few come every second."""


class Lossless(Reach):
    """What a member takes the network for that counts no answers."""

    def suffices(self, members: int, helpers: int) -> bool:
        return True

    def note(self, asked: int, answered: int) -> None:
        return


class Plain(Swim):
    """SWIM as it was: no local health, one timeout for all suspects, no lag, and suspects hear by chance."""

    def _start(self, start: Start) -> None:
        self._reach = Lossless()
        super()._start(start)

    def _charges(self, peer: int) -> list[Statement]:
        return []

    def _on_lag(self, lag_s: float) -> None:
        return


def plain(timing: Timing) -> Timing:
    return dataclasses.replace(timing, suspicion_max_mult=1, health_ceiling=1)


class Trial:
    """A swarm of members that all know each other, and what they make of each other."""

    def __init__(self, nodes: int, timing: Timing, machine: type[Swim] = Swim, seed: int = 0) -> None:
        self.clock = VirtualClock()
        self.loss = 0.0
        self.machine, self.timing, self.seed = machine, timing, seed
        self.rng = np.random.default_rng([seed, nodes])
        self.draws: Iterator[float] = iter(())
        self.words = tuple(Statement(State.ALIVE, node, 1, node, RECORD, bytes(64)) for node in range(nodes))
        self.swarm = Swarm(self.clock, nodes, self.launch, self.path)
        self.swarm.watch = self.see
        self.killed_s: dict[int, float] = {}
        self.seen_s: dict[tuple[int, State], list[float]] = {}
        self.false: set[tuple[int, int]] = set()
        for node in range(nodes):
            self.swarm.up(node)
        self.swarm.run(WARM_UP_S)

    def launch(self, node: int, kept: int) -> tuple[Swim, Start]:
        rng = np.random.default_rng([self.seed, node])
        remembered = self.words[:node] + self.words[node + 1 :]
        return self.machine(node, kept, RECORD, self.timing, rng), Start(remembered=remembered)

    def random(self) -> float:
        for draw in self.draws:
            return draw
        self.draws = iter(self.rng.random(10_000).tolist())
        return next(self.draws)

    def path(self, sender: int, to: int) -> float | None:
        return None if self.random() < self.loss else 0.001 + 0.004 * self.random()

    def see(self, node: int, action: Action) -> None:
        if not isinstance(action, Changed) or action.state not in (State.SUSPECT, State.DEAD):
            return
        if action.peer in self.killed_s:
            self.seen_s.setdefault((action.peer, action.state), []).append(self.clock.now)
        elif action.state is State.DEAD:
            machine = self.swarm.hosts[node].machine
            assert isinstance(machine, Swim)
            self.false.add((action.peer, machine.sighting(action.peer).incarnation))

    def settle(self) -> float:
        """Bytes per member and second in the worst window of the time in which members learn what is lost."""
        return max([self.traffic(WINDOW_S)[0] for _ in range(round(SETTLE_S / WINDOW_S))])

    def traffic(self, seconds: float) -> tuple[float, float, int]:
        """Bytes and messages per member and second, and false verdicts, while nobody dies."""
        sent_bytes, messages, false = self.swarm.sent_bytes, self.swarm.messages, len(self.false)
        self.swarm.run(seconds)
        share = seconds * len(self.up())
        return (
            (self.swarm.sent_bytes - sent_bytes) / share,
            (self.swarm.messages - messages) / share,
            len(self.false) - false,
        )

    def up(self) -> list[int]:
        return [node for node, host in enumerate(self.swarm.hosts) if host.machine is not None]

    def detection(self, kills: int) -> dict[str, np.ndarray]:
        """Times from each of some deaths, in probe intervals: suspected, dead, everywhere."""
        victims = self.rng.permutation(self.up())[:kills].tolist()
        for victim in victims:
            self.killed_s[victim] = self.clock.now
            self.swarm.down(victim)
            self.swarm.run(1.0 + 0.5 * self.random())
        _, most_s = self.timing.suspicion_s(len(self.swarm.hosts))
        until_s = self.clock.now + self.timing.health_ceiling * self.timing.probe_interval_s + most_s + 30
        enough = math.ceil(0.99 * len(self.up()))
        while self.clock.now < until_s and any(len(self.told(victim)) < enough for victim in victims):
            self.swarm.run(1.0)
        rows = {
            "suspected": [self.since(victim, self.seen_s.get((victim, State.SUSPECT), []), 1) for victim in victims],
            "dead": [self.since(victim, self.told(victim), 1) for victim in victims],
            "everywhere": [self.since(victim, self.told(victim), enough) for victim in victims],
        }
        return {name: np.array(row) for name, row in rows.items()}

    def told(self, victim: int) -> list[float]:
        return self.seen_s.get((victim, State.DEAD), [])

    def since(self, victim: int, seen_s: list[float], count: int) -> float:
        if len(seen_s) < count:
            return math.inf
        return (seen_s[count - 1] - self.killed_s[victim]) / self.timing.probe_interval_s


def most_bytes_s(timing: Timing) -> float:
    """What a member sends per second at most, on average over all members, however many there are and fall."""
    full = PIGGYBACK_BYTES + SHORT_BYTES
    gossip = (timing.gossip_fanout + 1) / timing.gossip_interval_s
    helpers = max(timing.indirect_probes, MOST_HELPERS)
    probe, answers = 1 / timing.probe_interval_s, (1 + helpers) / timing.probe_interval_s
    detours = 3 * helpers / timing.probe_interval_s  # request, probe, report
    objections = (gossip + probe + answers + detours) * WORD_BYTES
    comparison = 2 * (SHORT_BYTES + 1024 + 2 * EXCHANGE_BYTES) / timing.push_pull_interval_s
    return (gossip + probe + answers) * full + detours * SHORT_BYTES + objections + comparison


def measure(args: argparse.Namespace, timing: Timing) -> bool:
    print(f"{args.preset}: probe every {timing.probe_interval_s:g} s; times in probe intervals, median and p99")
    print(f"a member sends at most {most_bytes_s(timing) / 1000:.0f} kB/s, at any number of members")
    print("     n  loss     suspected          dead    everywhere   false/h (of h)     B/s  msg/s  worst B/s")
    idle: dict[float, list[float]] = {}
    is_bounded, false_without_loss = True, 0
    for nodes in args.nodes:
        trial = Trial(nodes, timing, seed=args.seed)
        for loss in args.loss:
            trial.loss = loss
            worst = trial.settle()
            sent_bytes, messages, false = trial.traffic(args.seconds)
            hours = len(trial.up()) * args.seconds / 3600
            times = trial.detection(min(args.kills, nodes // 10))
            cells = " ".join(f"{np.median(row):5.2f} {np.percentile(row, 99):7.2f}" for row in times.values())
            rates = f"{sent_bytes:7.0f} {messages:6.2f} {worst:10.0f}"
            print(f"{nodes:6} {loss:5.0%} {cells} {false / hours:9.3f} ({hours:4.0f}) {rates}", flush=True)
            idle.setdefault(loss, []).append(sent_bytes)
            is_bounded &= worst <= most_bytes_s(timing)
            false_without_loss += false if loss == 0 else 0
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory {rss:,.0f} MiB")
    constant = all(max(row) < (1.2 * min(row) if loss == 0 else MOST_IDLE_BYTES_S) for loss, row in idle.items())
    return is_bounded and false_without_loss == 0 and constant


def starve(trial: Trial, share: float, seconds: float) -> tuple[int, int]:
    """False verdicts about healthy and about starved members, while some hardly come to process messages."""
    nodes = len(trial.swarm.hosts)
    starved = set(trial.rng.permutation(nodes)[: round(share * nodes)].tolist())

    def turn(node: int) -> None:
        is_starved = trial.swarm.hosts[node].cost_s == 0
        trial.swarm.slow(node, STARVED_COST_S if is_starved else 0.0)
        trial.clock.post(5 + 25 * trial.random(), turn, node)

    for node in sorted(starved):
        trial.clock.post(5 * trial.random(), turn, node)
    trial.swarm.run(seconds)
    about_starved = sum(peer in starved for peer, _ in trial.false)
    return len(trial.false) - about_starved, about_starved


def compare_starved(args: argparse.Namespace, timing: Timing) -> bool:
    nodes, hours = args.starved_nodes, args.starved_seconds / 3600
    print(f"a tenth of {nodes} members needs {STARVED_COST_S:g} s for a message, half of {args.starved_seconds:g} s")
    found: dict[str, int] = {}
    for name, machine, preset in (("plain SWIM", Plain, plain(timing)), ("Lifeguard", Swim, timing)):
        healthy, starved = starve(Trial(nodes, preset, machine, args.seed), 0.1, args.starved_seconds)
        found[name] = healthy
        rate = healthy / (0.9 * nodes * hours)
        print(f"  {name:10}: {healthy} false verdicts about healthy members ({rate:.3f}/h), {starved} about starved")
    factor = found["plain SWIM"] / max(1, found["Lifeguard"])
    at_least = "at least " if found["Lifeguard"] == 0 else ""
    print(f"  {at_least}{factor:.0f} times fewer; the paper: more than 50 times")
    return factor >= 50


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="*", default=[125, 500, 2000])
    parser.add_argument("--loss", type=float, nargs="+", default=[0.0, 0.05, 0.2])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="lan")
    parser.add_argument("--seconds", type=float, default=120.0, help="of virtual time, for traffic and false verdicts")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--starved-nodes", type=int, default=100, help="0: leave that out")
    parser.add_argument("--starved-seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    args = parser.parse_args()
    began_s = time.perf_counter()
    timing = PRESETS[args.preset]
    with lean_garbage_collection(max([*args.nodes, args.starved_nodes])):
        holds = measure(args, timing) if args.nodes else True
        if args.starved_nodes:
            holds = compare_starved(args, timing) and holds
    print(f"{time.perf_counter() - began_s:.0f} s of wall time")
    return 1 if args.check and not holds else 0


if __name__ == "__main__":
    sys.exit(main())
