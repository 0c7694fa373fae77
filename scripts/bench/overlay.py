"""Partial views in virtual time: do they hold together, and do broadcasts reach everybody, where many fail at once.

A swarm of nodes of which each knows some 35 others joins through a few seeds, and is left alone for a while. Then a
share of all nodes crashes in one instant; who had a link to one hears of it after a second, as TCP would tell.

  joined     nodes of the largest connected component among those that are up, just after the failure and when healed
  links      neighbours of a node, on average
  reached    of the nodes that are up, by broadcasts of random nodes that are still up: those in the ten seconds after
             the failure, and when healed
  hops       of the last to hear, when healed
  copies     of a broadcast that a node receives, when healed: 1 is a tree
  B/s        sent by a node while nobody says or does anything

HyParView (Leitão, Pereira and Rodrigues, DSN 2007) has views of 5 and 30 at 10,000 nodes, as here. ``--check`` exits
with 1 where a healed broadcast does not reach every node that is up, takes more than 1.1 copies, or idle traffic grows
with the network.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import networkx as nx
import numpy as np

from node.clock import VirtualClock
from node.membership import Action, Broadcast, Deliver, Partial, Send, Sizes, Start, Tell
from node.sim.garbage import lean_garbage_collection
from node.sim.swarm import Swarm

RECORD = bytes(200)
"""As long as an address and two keys."""
SEEDS = 4
JOINING_S = 20.0
SETTLED_S = 30.0
LOST_AFTER_S = 1.0
BROADCASTS = 10
APART_S = 1.0
AFTER_S = 10.0
"""A broadcast has so long to come through."""
HEALING_S = 60.0
CONTENT_BYTES = 200


class Trial:
    """A swarm of nodes with partial views, and what of its broadcasts comes where."""

    def __init__(self, nodes: int, seed: int) -> None:
        self.clock, self.seed = VirtualClock(), seed
        self.rng = np.random.default_rng([seed, nodes])
        self.swarm = Swarm(self.clock, nodes, self.launch, self.path, lost_after_s=LOST_AFTER_S)
        self.swarm.watch = self.see
        self.copies = 0
        self.heard: dict[bytes, list[int]] = {}
        """Hops to each that has heard it, by content."""
        for node in range(nodes):
            self.clock.post(0.0 if node < SEEDS else JOINING_S * node / nodes, self.swarm.up, node)
        self.swarm.run(JOINING_S + SETTLED_S)

    def launch(self, node: int, kept: int) -> tuple[Partial, Start]:
        rng = np.random.default_rng([self.seed, node])
        return Partial(node, kept, RECORD, Sizes(), rng), Start(seeds=tuple(range(SEEDS)))

    def path(self, sender: int, to: int) -> float:
        return 0.005 + 0.02 * ((sender * 7919 + to * 104_729) % 1000) / 1000

    def see(self, node: int, action: Action) -> None:
        if isinstance(action, Deliver):
            self.heard.setdefault(action.content, []).append(action.hop)
        elif isinstance(action, Send) and isinstance(action.message, Broadcast):
            self.copies += len(action.to)

    def up(self) -> list[int]:
        return [node for node, host in enumerate(self.swarm.hosts) if host.machine is not None]

    def overlay(self) -> tuple[float, float]:
        """Share of the largest connected component of those that are up, and neighbours of a node."""
        graph = nx.Graph()
        graph.add_nodes_from(self.up())
        for node in self.up():
            machine = self.swarm.hosts[node].machine
            assert machine is not None
            graph.add_edges_from([(node, peer) for peer in machine.peers() if peer in graph])
        largest = max(nx.connected_components(graph), key=len)
        return len(largest) / len(graph), 2 * graph.number_of_edges() / len(graph)

    def idle_bytes_s(self, seconds: float) -> float:
        sent_bytes = self.swarm.sent_bytes
        self.swarm.run(seconds)
        return (self.swarm.sent_bytes - sent_bytes) / seconds / len(self.up())

    def tell(self) -> tuple[list[float], list[int], float]:
        """Shares of nodes that some broadcasts reach, one after the other, hops of the last, and copies per node."""
        up = self.up()
        self.heard.clear()
        self.copies = 0
        for node in self.rng.choice(up, BROADCASTS).tolist():
            self.swarm.give(node, Tell(self.rng.bytes(CONTENT_BYTES)))
            self.swarm.run(APART_S)
        self.swarm.run(AFTER_S)
        shares = [len(hops) / len(up) for hops in self.heard.values()]
        return shares, [max(hops) for hops in self.heard.values()], self.copies / BROADCASTS / len(up)

    def fail(self, share: float) -> None:
        for node in self.rng.permutation(self.up())[: round(share * len(self.up()))].tolist():
            self.swarm.down(node)


def measure(args: argparse.Namespace) -> bool:
    print("     n  failed   joined: after  healed   links   reached: after  healed   hops  copies     B/s")
    holds, idle = True, []
    for nodes in args.nodes:
        for failed in args.failed:
            trial = Trial(nodes, args.seed)
            trial.tell()  # the first floods, and finds the tree
            bytes_s = trial.idle_bytes_s(30.0)
            idle.append(bytes_s)
            trial.fail(failed)
            before, _ = trial.overlay()
            shares_before, _, _ = trial.tell()
            trial.swarm.run(HEALING_S)
            joined, links = trial.overlay()
            trial.tell()
            shares, hops, copies = trial.tell()
            print(
                f"{nodes:6} {failed:7.0%} {before:15.2%} {joined:7.2%} {links:7.2f} {np.mean(shares_before):16.2%} "
                f"{np.mean(shares):7.2%} {max(hops):6} {copies:7.3f} {bytes_s:7.0f}",
                flush=True,
            )
            holds &= min(shares) == 1 and copies <= 1.1
            trial.clock.close()
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")
    return holds and max(idle) < 1.2 * min(idle)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1000, 5000])
    parser.add_argument("--failed", type=float, nargs="+", default=[0.0, 0.3, 0.6], help="shares of all nodes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    args = parser.parse_args()
    began_s = time.perf_counter()
    with lean_garbage_collection(max(args.nodes)):
        holds = measure(args)
    print(f"{time.perf_counter() - began_s:.0f} s of wall time")
    return 1 if args.check and not holds else 0


if __name__ == "__main__":
    sys.exit(main())
