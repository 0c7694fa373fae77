"""Virtual nodes: a graph that everybody finds alike, and owners that nobody but they themselves can tell."""

from collections import Counter

import numpy as np
import pytest

from node import ConfigError, Observer, Protocol
from node.config import ChurnSection, DevicesSection, NetworkSection
from node.daemon import process
from node.daemon.nodefile import NodeFile
from node.experiment.loading import load
from node.experiment.setup import prepare
from node.experiment.virtual import run_virtual
from node.privacy.virtual import VirtualGraph
from node.testing import run_protocol
from protocols.shatter import Chunk, Handed, Heard, Over, Shatter
from tensorial import Tensorial, mechanisms

FIRST, COUNT, DEGREE = 10, 30, 4
SLOW = DevicesSection(seconds_per_sample=1.0)


def graph(beacon="b", count=COUNT, degree=DEGREE):
    return VirtualGraph(FIRST, count, degree, beacon)


def shattered(nodes=6, rounds=4, chunks=2, degree=3, deadline_s=0.0, **options):
    workload = options.pop("workload", None) or Tensorial(nodes, lr=0.5)
    protocol = Shatter(Shatter.Config(rounds=rounds, chunks=chunks, degree=degree, deadline_s=deadline_s))
    made = mechanisms(workload.model_spec.shape[0])
    return run_protocol(protocol, nodes, workload=workload, mechanisms=made, **options)


# The graph


@pytest.mark.parametrize("round", [0, 1, 7])
def test_both_ends_of_every_edge_agree(round):
    neighbours = {number: graph().neighbours(number, round) for number in range(FIRST, FIRST + COUNT)}
    for number, others in neighbours.items():
        assert len(set(others)) == DEGREE
        assert list(others) == sorted(others)
        assert number not in others
        assert all(number in neighbours[other] for other in others)


def test_the_graph_is_drawn_anew_by_round_and_beacon_alone():
    drawn = {(beacon, round): graph(beacon).neighbours(12, round) for beacon in "ab" for round in range(3)}
    assert len(set(drawn.values())) == len(drawn)
    assert drawn["a", 1] == graph("a").neighbours(12, 1)


@pytest.mark.parametrize(("count", "degree"), [(9, 3), (4, 4)])
def test_a_graph_that_cannot_be_is_refused(count, degree):
    with pytest.raises(ConfigError):
        graph(count=count, degree=degree)


# Who knows what


class Asking(Protocol):
    """Everybody asks whose it is, and what it owns."""

    class Config(Protocol.Config):
        chunks: int = 3

    @classmethod
    def virtual_nodes(cls, config):
        return config.chunks

    async def run(self, ctx):
        chunks = ctx.privacy.chunks(self.config.chunks, 2, "b")
        asked[ctx.me] = (chunks.owner, chunks.virtual, ctx.nodes, ctx.peers(), ctx.peers("virtual"))


asked = {}


def test_owner_and_virtual_node_know_of_each_other_and_nobody_else_does():
    asked.clear()
    run_protocol(Asking(), 4, workload=Tensorial(4), mechanisms=mechanisms())
    assert sorted(asked) == list(range(16))
    owned = {node: asked[node][1] for node in range(4)}
    assert sorted(number for virtual in owned.values() for number in virtual) == list(range(4, 16))
    for node in range(4):
        assert asked[node][0] is None
        assert asked[node][2:4] == ((0, 1, 2, 3), tuple(peer for peer in range(4) if peer != node))
        for number in owned[node]:
            assert asked[number][:2] == (node, ())
    assert asked[0][4] == tuple(range(4, 16)) == tuple(sorted({5, *asked[5][4]}))


class Traffic(Observer):
    """All that every participant has been told."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def received(self, ctx, sender, message):
        self.heard.append((sender, ctx.me, message))


def test_a_node_hears_from_its_own_virtual_nodes_alone():
    traffic = Traffic()
    shattered(mods=[traffic])
    senders = {}
    for sender, to, message in traffic.heard:
        assert isinstance(message, Heard)
        assert sender >= 6 > to
        senders.setdefault(to, set()).add(sender)
    assert {to: len(own) for to, own in senders.items()} == dict.fromkeys(range(6), 2)
    assert sum(len(own) for own in senders.values()) == 12  # nobody's is another's
    sources = Counter(source for _, _, message in traffic.heard for source in message.sources)
    assert sources == dict.fromkeys(range(6, 18), 3 * 4)
    assert all(source >= 6 for source in sources)


# Time, bytes, and those who go


def test_what_stays_on_a_device_takes_no_time_and_no_bytes():
    outcome = shattered(rounds=1, devices=SLOW, network=NetworkSection(latency_s=0.25))
    assert outcome.messages == 6 * 2 * 3
    assert max(row.time_s for row in outcome.recorder.rows()) == pytest.approx(1.25, abs=1e-3)


def test_virtual_nodes_share_the_links_of_their_device():
    """Six chunks of a node leave one after another, however many names they leave under."""
    network = NetworkSection(model="fifo", latency_s=0.0, up_bps=8e3, down_bps=8e9, small_bytes=0)
    wide = Tensorial(6, np.zeros((6, 1000)), lr=0.5)
    outcome = shattered(rounds=1, workload=wide, network=network)
    assert outcome.time_s > outcome.bytes_sent / 6 / 1e3 * 0.99
    assert outcome.usage.summary()["shares"]["sending"] > 0.9


def test_counted_are_nodes():
    outcome = shattered(devices=SLOW)
    assert sorted(outcome.models) == list(range(6))
    beyond = {row.metric for row in outcome.recorder.rows() if row.node >= 6}
    assert beyond == {"bytes_sent"}
    of_nodes = [row.value for row in outcome.recorder.rows() if row.node < 6 and row.metric == "bytes_sent"]
    assert set(of_nodes) == {0.0}  # what it sends leaves under the names of its virtual nodes
    assert sum(outcome.recorder.latest("bytes_sent").values()) == outcome.bytes_sent
    assert outcome.usage.summary()["online_hours"] == pytest.approx(6 * outcome.time_s / 3600)


def crash(*times_s, what="crash"):
    changes = [(times_s[0], what), *[(time_s, "return") for time_s in times_s[1:]]]
    return ChurnSection(schedule=[{"time_s": time_s, "node": 2, "what": change} for time_s, change in changes])


def rounds(outcome, node):
    return [row.round for row in outcome.recorder.rows() if (row.node, row.metric) == (node, "loss")]


@pytest.mark.parametrize("what", ["crash", "leave", "pause"])
def test_a_node_comes_back_with_its_virtual_nodes(what):
    outcome = shattered(rounds=12, deadline_s=2.0, devices=SLOW, churn=crash(3.5, 9.2, what=what))
    assert sorted(outcome.models) == list(range(6))
    assert outcome.lost == {}
    assert rounds(outcome, 2) == list(range(12))
    assert outcome.models[2].shape == (4,)


def test_others_do_without_a_node_that_is_gone_for_good():
    outcome = shattered(rounds=12, deadline_s=2.0, devices=SLOW, churn=crash(3.5))
    assert sorted(outcome.models) == [0, 1, 3, 4, 5]
    assert outcome.lost == {2: "away since 3.5 s"}
    assert rounds(outcome, 2) == [0, 1, 2]
    assert rounds(outcome, 3) == list(range(12))


def test_without_a_deadline_all_virtual_nodes_are_needed():
    with pytest.raises(Exception, match=r"needs shatter/chunk/2 round=3 from node \d+, which is gone; give the"):
        shattered(rounds=12, devices=SLOW, churn=crash(3.5))


class Impostor(Shatter):
    """Node 0 hands every virtual node a chunk, as if it were its owner's, and tells it that all is over."""

    async def run(self, ctx):
        if ctx.me == 0:
            everybody = ctx.peers("virtual")
            own = ctx.privacy.chunks(self.config.chunks, self.config.degree, self.config.beacon).virtual
            others = [number for number in everybody if number not in own]
            await ctx.send(others, Handed(round=0, chunk=0, values=ctx.initial_model()))
            await ctx.send(others, Over())
        return await super().run(ctx)


def test_virtual_nodes_obey_their_owner_alone():
    workload = Tensorial(6, lr=0.5)
    options = {"workload": workload, "mechanisms": mechanisms(), "devices": SLOW}
    config = Shatter.Config(rounds=3, chunks=2, degree=3)
    honest, attacked = (run_protocol(kind(config), 6, **options) for kind in (Shatter, Impostor))
    assert [attacked.models[node].tolist() for node in range(6)] == [honest.models[node].tolist() for node in range(6)]


def test_an_owner_that_asks_again_is_told_that_the_round_is_over():
    class Stammering(Shatter):
        async def _learn(self, ctx, chunks):
            model = await super()._learn(ctx, chunks)
            if ctx.me == 1:
                again = Handed(round=0, chunk=0, values=chunks.cut(model, 0)[0])
                await ctx.send(chunks.virtual, again)
                await ctx.sleep(1.0)
            return model

    traffic = Traffic()
    config = Shatter.Config(rounds=2, chunks=2, degree=3)
    run_protocol(Stammering(config), 6, workload=Tensorial(6), mechanisms=mechanisms(), mods=[traffic])
    last = [message for _, to, message in traffic.heard if to == 1][-2:]
    assert [(message.round, message.sources) for message in last] == [(0, ())] * 2


# An experiment with them


def small(*sets):
    tiny = ["clock=virtual", "nodes=5", "protocol.use=shatter", "protocol.rounds=2", "protocol.chunks=2"]
    return load("digits-gossip", [*tiny, "model.hidden=[8]", "training.local_steps=1", *sets], {})


def test_the_data_are_divided_among_nodes():
    setup = prepare(small())
    assert setup.participants.total == 15
    assert (setup.workload.shard_size(4) > 0, setup.workload.shard_size(5)) == (True, 0)
    assert setup.topology.nodes == 5
    held = [setup.workload.shard_size(node) for node in range(5)]
    alone = prepare(load("digits-gossip", ["clock=virtual", "nodes=5"], {}))
    assert held == [alone.workload.shard_size(node) for node in range(5)]


def test_secrets_of_a_real_run_do_not_follow_from_its_file():
    dealt = [prepare(small("clock=real")).participants for _ in range(3)]
    assert len({participants.virtual for participants in dealt}) > 1  # alike once in 10**13
    seeded = {prepare(small(*sets)).participants for sets in ([], ["clock=real", "privacy.noise=seeded"])}
    assert len(seeded) == 1
    assert prepare(small("seed=99")).participants not in seeded


def test_a_summary_counts_nodes(tmp_path):
    setup = prepare(small("attackers=[{kind='linkability', every=1}]"))
    summary = run_virtual(setup, lambda *_: None).summary(setup)
    assert summary["nodes"] == 5
    owners = summary["identities"].pop("owners")
    assert summary["identities"] == {"sybil": 0, "virtual": 10}
    assert Counter(owners) == dict.fromkeys(range(5), 2)
    sent = summary["metrics"]["bytes_sent"]
    assert sent["mean"] * 5 == summary["bytes_sent"]
    assert summary["privacy"]["insecure_keys"] is True
    messages = summary["attacks"]["messages"]
    assert {message["attacker"] for message in messages} == {0}
    assert {message["victim"] for message in messages} <= {1, 2, 3, 4}


def test_mods_ride_on_nodes_and_not_on_their_virtual_nodes():
    setup = prepare(small("mods=[{use='node.mods:Observer'}]"))
    assert [setup.wrapping(number) is None for number in (0, 4, 5, 14)] == [False, False, True, True]


@pytest.mark.parametrize(
    ("sets", "key"),
    [([], "protocol.use"), (["attackers=[{kind='byzantine', identities=1}]"], "attackers.identities")],
)
def test_a_node_by_itself_has_no_other_identities(tmp_path, monkeypatch, sets, key):
    for name in ("configure", "keep_freed_memory"):
        monkeypatch.setattr(process, name, lambda **_: None)
    with pytest.raises(ConfigError, match=rf"^{key}: has identities beyond the nodes, which only starling run can"):
        process.run_node(NodeFile(state=tmp_path / "state"), small("clock=real", *sets))


def test_a_node_by_itself_injects_no_faults(tmp_path, monkeypatch):
    for name in ("configure", "keep_freed_memory"):
        monkeypatch.setattr(process, name, lambda **_: None)
    faulty = load("digits-gossip", ["clock=real", "faults=[{kind='crash', nodes=[1], at_s=1.0}]"])
    with pytest.raises(ConfigError, match=r"^faults: only starling run injects faults"):
        process.run_node(NodeFile(state=tmp_path / "state"), faulty)


def test_messages_name_no_owner():
    fields = {kind: set(kind.__annotations__) for kind in (Chunk, Heard, Over)}
    assert fields == {Chunk: {"round", "chunk", "values"}, Heard: {"round", "sources", "chunks", "values"}, Over: set()}
