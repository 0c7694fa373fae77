"""One node sends nonsense, among real processes and simulated nodes: no honest node dies, or learns from it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

from launch import experiment
from node import Unreachable
from node.codec import Limits
from node.mods import Mod, Wrapping
from node.testing import Quadratic, run_protocol
from village import FULL, Model, Note, Scripted, longer, worlds

HERE = Path(__file__).parent
NODES, LIAR, ROUNDS = 6, 5, 3


def run(start, folder, clock, lie, rule="trimmed-mean", deadline_s=0.0, rounds=ROUNDS):
    tables = {
        "nodes": NODES,
        "protocol": {"use": "dpsgd", "rounds": rounds, "deadline_s": deadline_s},
        "topology": {"kind": "full"},
        "aggregation": {"rule": rule, "tolerance": 1},
        "mods": [{"use": "lying:Lying", "nodes": [LIAR], "lie": lie}, {"use": "lying:Extent"}],
        "data": {"name": "digits"},
        "training": {"lr": 0.3, "local_steps": 8},
        "record": {"models": True},
    }
    file = experiment(folder, **tables)
    shutil.copy(HERE / "lying.py", folder)
    command = start(folder, "run", file, "--clock", clock, "--out", "run", "--quiet")
    assert (command.wait(), command.err) == (0, "")
    return command


def honest(command):
    """The final models of all honest nodes, flat."""
    models = {}
    for node in set(range(NODES)) - {LIAR}:
        tensors = safetensors.numpy.load_file(command.folder / "run" / "models" / f"{node}.safetensors")
        models[node] = np.concatenate([tensors[name].ravel() for name in sorted(tensors)])
    return models


def recorded(command, metric, nodes=range(NODES)):
    table = pq.read_table(command.folder / "run" / "metrics.parquet", filters=[("metric", "=", metric)]).to_pydict()
    return [value for node, value in zip(table["node"], table["value"], strict=True) if node in nodes]


def assert_within_what_the_honest_trained(command):
    """A rule by coordinates cannot lead out of what honest nodes have: it starts inside, and training is theirs."""
    lowest, highest = recorded(command, "lowest"), recorded(command, "highest")
    assert len(lowest) >= NODES
    for model in honest(command).values():
        assert np.isfinite(model).all()
        assert min(lowest) - 1e-6 <= model.min() <= model.max() <= max(highest) + 1e-6


@pytest.mark.parametrize("lie", ["nan", "inf", "huge"])
def test_numbers_that_are_none_or_too_large_move_nobody(start, tmp_path, lie):
    real = run(start, tmp_path / "real", "real", lie)
    virtual = run(start, tmp_path / "virtual", "virtual", lie)
    assert real.models() == virtual.models()
    assert_within_what_the_honest_trained(real)
    refused = 0.0 if lie == "huge" else 1.0
    for command in (real, virtual):
        assert recorded(command, "refused_models", range(LIAR)) == [refused] * (NODES - 1) * ROUNDS
        assert recorded(command, "refused_models", [LIAR]) == [0.0] * ROUNDS
        assert command.summary["metrics"]["accuracy"]["max"] > 0.4


@pytest.mark.parametrize("lie", ["longer", "tenfold"])
def test_what_is_no_model_is_never_seen(start, tmp_path, lie):
    """Whoever waits for it goes on at the deadline, with the models of all others."""
    commands = {
        clock: run(start, tmp_path / clock, clock, lie, "median", deadline_s=1.5, rounds=2)
        for clock in ("real", "virtual")
    }
    for command in commands.values():
        assert_within_what_the_honest_trained(command)
        assert set(recorded(command, "refused_models", range(LIAR))) == {0.0}
    assert commands["virtual"].summary["refused_messages"] == 2 * (NODES - 1)
    assert 1 <= commands["real"].summary["refused_messages"] <= 2 * (NODES - 1), "the last may come too late"


def test_the_plain_mean_would_have_learned_from_it(start, tmp_path):
    """What the tests above hold against: without a rule the same numbers are everybody's."""
    command = run(start, tmp_path / "virtual", "virtual", "nan", "mean")
    assert not any(np.isfinite(model).any() for model in honest(command).values())
    assert "refused_models" not in command.summary["metrics"]


# Who goes on sending what is no model


class Odd(Mod):
    """All models that its node sends are too long."""

    def outgoing(self, ctx, to, message):
        return Model(number=message.number, model=ctx.apply(longer, message.model))


def persistent(times):
    """Node 0 sends ``times`` models, all too long; node 1 notes what that comes to."""

    async def script(protocol, ctx):
        if ctx.me == 0:
            for number in range(times):
                await ctx.send(1, Model(number=number, model=ctx.initial_model()))
            return
        with pytest.raises(Unreachable, match="node 0"):
            await ctx.collect(Model, frm=[0], number=0)
        assert ctx.alive((0,)) == ()
        assert ctx.peers() == ()
        await ctx.send(0, Note(number=1))  # is lost, as whatever is sent to a peer that has gone

    return script


async def test_who_goes_on_is_cut_off_by_a_real_node():
    script = persistent(Limits.refusals)
    async with worlds(2) as (liar, other):
        await liar.run(Scripted(script), Wrapping([Odd()], []))
        await other.run(Scripted(script), None)
        assert other.refused_messages == Limits.refusals


class OddOfOne(Odd):
    def outgoing(self, ctx, to, message):
        return super().outgoing(ctx, to, message) if ctx.me == 0 else message


def test_who_goes_on_is_cut_off_by_a_simulated_node():
    script = persistent(Limits.refusals)
    run_protocol(Scripted(script), 2, workload=Quadratic(2, seed=3), topology=FULL, seed=3, mods=[OddOfOne()])
