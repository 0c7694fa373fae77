"""What happens in a small run of each bundled protocol, event by event, as a text that a person can read.

After a change that is meant to change what happens: ``pytest tests/stories --rewrite``, and read the diff.
"""

from pathlib import Path

import pytest

from node import Observer
from node.config import DevicesSection, Distribution, NetworkSection, TopologySection
from node.mailbox import describe
from node.tape import EventKind, events_of
from node.testing import Quadratic, run_protocol
from protocols.adpsgd import ADPSGD
from protocols.dpsgd import DPSGD
from protocols.epidemic import Epidemic
from protocols.fedavg import FedAvg
from protocols.local import Local
from protocols.pushsum import PushSum

GOLDEN = Path(__file__).parent / "golden"

RING, ONE_PEER = TopologySection(kind="ring"), TopologySection(kind="one-peer")

STORIES = {
    "local": (Local(Local.Config(rounds=2)), 3, RING),
    "dpsgd": (DPSGD(DPSGD.Config(rounds=2)), 4, RING),
    "dpsgd-deadline": (DPSGD(DPSGD.Config(rounds=2, deadline_s=0.4)), 4, RING),
    "adpsgd": (ADPSGD(ADPSGD.Config(rounds=2)), 4, RING),
    "epidemic-local": (Epidemic(Epidemic.Config(rounds=2, degree=2)), 4, RING),
    "epidemic-oracle": (Epidemic(Epidemic.Config(rounds=2, degree=2, variant="oracle")), 5, RING),
    "pushsum": (PushSum(PushSum.Config(rounds=2)), 4, ONE_PEER),
    "fedavg": (FedAvg(FedAvg.Config(rounds=2)), 4, RING),
    "fedavg-over-selection": (FedAvg(FedAvg.Config(rounds=3, sample=2, over_select=0.5)), 5, RING),
    "fedadam": (FedAvg(FedAvg.Config(rounds=2, server="adam")), 3, RING),
}


class Names(Observer):
    """What each delivery was, in order."""

    def __init__(self):
        super().__init__()
        self.of_messages = []

    def received(self, ctx, sender, message):
        self.of_messages.append(describe(message.slot))


def story(protocol, nodes, topology):
    """The run as text: one event a line, then what each node ends with."""
    names = Names()
    outcome = run_protocol(
        protocol,
        nodes,
        topology=topology,
        seed=1,
        workload=Quadratic(nodes, [[float(2**node), 1.0] for node in range(nodes)], lr=0.5),
        devices=DevicesSection(seconds_per_sample=Distribution(distribution="uniform", low=0.1, high=1.0)),
        network=NetworkSection(latency_s=0.05, up_bps=1e4, down_bps=1e5),
        mods=[names],
    )
    messages = iter(names.of_messages)
    lines = [line(event, messages) for event in events_of(outcome.events)]
    assert next(messages, None) is None
    lines.append(f"{outcome.messages} messages, {outcome.bytes_sent} bytes, {outcome.tasks} tasks")
    for node, model in outcome.models.items():
        lines.append(f"node {node} ends with [{', '.join(f'{value:.6f}' for value in model)}]")
    return "\n".join(lines) + "\n"


def line(event, messages):
    start = f"{event.time_s:8.4f} s  node {event.node}"
    if event.kind == EventKind.TRAINED:
        return f"{start} has trained"
    if event.kind == EventKind.ENDED:
        return f"{start} has ended"
    return f"{start} hears node {event.peer}: {next(messages)} ({event.size_bytes} bytes)"


@pytest.mark.parametrize("name", STORIES)
def test_the_story_is_the_golden_one(name, rewrite):
    path, told = GOLDEN / f"{name}.txt", story(*STORIES[name])
    if rewrite:
        path.write_text(told, encoding="utf-8")
    assert path.exists(), f"no golden trace yet: run pytest tests/stories --rewrite, and read {path.name}"
    assert told == path.read_text(encoding="utf-8"), (
        "if that is meant: pytest tests/stories --rewrite, and read the diff"
    )


def test_every_golden_file_has_its_story():
    assert {path.stem for path in GOLDEN.iterdir()} == set(STORIES)


def test_a_story_is_told_the_same_twice():
    assert story(*STORIES["adpsgd"]) == story(*STORIES["adpsgd"])
