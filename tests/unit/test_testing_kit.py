"""The kit that authors of protocols test with: it must catch what it promises to catch."""

import gc
import itertools
import warnings

import numpy as np
import pytest

from node import Context, Protocol, Spec, op
from node.op import Key, Op, Task
from node.testing import Quadratic, check_op, check_protocol, run_protocol
from protocols.dpsgd import DPSGD

MODEL = np.arange(6.0)
METRICS = Spec((2,), "float64", ("accuracy", "loss"))


# Quadratic


def test_training_goes_a_share_of_the_way_to_the_nodes_target():
    workload = Quadratic(2, [[10.0], [20.0]], lr=0.5)
    static = {"steps": 2, "lr": 0.5, "proximal": 0.0}
    assert workload.train.solve(Task((np.zeros(1),), static, Key(0, 1, 0))) == pytest.approx(15.0)


def test_the_proximal_term_pulls_back_to_the_start():
    workload = Quadratic(1, [[10.0]])
    static = {"steps": 200, "lr": 0.1, "proximal": 1.0}
    assert workload.train.solve(Task((np.zeros(1),), static, Key(0, 0, 0))) == pytest.approx(5.0)


def test_the_optimum_is_the_mean_of_the_targets_and_scores_best():
    workload = Quadratic(5, seed=3)
    assert workload.optimum == pytest.approx(workload.targets.mean(axis=0))

    def score(model):
        return workload.evaluate.solve(Task((model,), {"on": "test"}, Key(0, 0, 0)))

    best = score(workload.optimum)
    assert best["accuracy"] == 1.0
    for shift in np.eye(4):
        assert score(workload.optimum + 0.1 * shift)["loss"] > best["loss"]
        assert score(workload.optimum + 0.1 * shift)["accuracy"] < 1.0


def test_targets_follow_from_the_seed():
    assert np.array_equal(Quadratic(3, seed=1).targets, Quadratic(3, seed=1).targets)
    assert not np.array_equal(Quadratic(3, seed=1).targets, Quadratic(3, seed=2).targets)


def test_noise_is_seeded_by_node_and_counter():
    train = Quadratic(2, [[0.0], [0.0]], noise=1.0).train
    static = {"steps": 1, "lr": 0.0, "proximal": 0.0}
    drawn = {float(train.solve(Task((np.zeros(1),), static, Key(0, n, c)))[0]) for n in (0, 1) for c in (0, 1)}
    assert len(drawn) == 4


def test_the_ops_of_the_workload_pass_their_own_check():
    workload = Quadratic(4, [[float(node)] * 6 for node in range(4)], noise=0.1)
    check_op(workload.train, [MODEL], steps=2, lr=0.1, proximal=0.0)
    check_op(workload.evaluate, [MODEL], on="test")
    check_op(workload.mix, [MODEL, MODEL * 2], weights=(0.5, 0.5))


# check_op


def test_a_sound_op_passes():
    @op(seeded=True, batch=lambda tasks: [task.inputs[0] + task.key.rng().normal() for task in tasks])
    def noisy(model, *, rng):
        return model + rng.normal()

    check_op(noisy, [MODEL])
    check_op(op(lambda a, b, *, by: (a - b) * by), [MODEL, MODEL[::-1].copy()], by=3.0)


counter = itertools.count()


@op
def impure(model):
    return model + next(counter)


@op
def greedy(model):
    model += 1
    return model * 1


@op
def wide(model):
    return np.concatenate([model, model])


@op
def other_type(model):
    return model.astype(np.float32)


@op(batch=lambda tasks: [task.inputs[0] + 1e-3 for task in tasks])
def other_batch(model):
    return model


@op(batch=lambda tasks: [tasks[0].inputs[0]])
def short_batch(model):
    return model


@op(seeded=True)
def deaf(model, *, rng):
    return model


BROKEN = {
    "another value the second time": impure,
    "changed one of its inputs": greedy,
    r"promises Spec\(shape=\(6,\).*and gives Spec\(shape=\(12,\)": wide,
    "promises .*float64.* and gives .*float32": other_type,
    "batch is not single": other_batch,
    "1 values for a batch of 4": short_batch,
    "is seeded, yet every key gives the same value": deaf,
    "reads its key, yet is not declared seeded": Op("sly", lambda task: task.inputs[0] + task.key.node),
    "promises .*accuracy": Op("liar", lambda task: {"loss": 1.0}, spec=lambda inputs, static: METRICS),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_op_is_caught(message):
    with pytest.raises(AssertionError, match=message):
        check_op(BROKEN[message], [MODEL.copy()])


# check_protocol


def test_a_sound_protocol_passes():
    check_protocol(DPSGD(DPSGD.Config(rounds=3)), 4, workload=Quadratic(4, noise=0.5))


class Forgetful(Protocol):
    """Sleeps differently in every run."""

    async def run(self, ctx: Context):
        await ctx.sleep(1 + next(counter))
        return ctx.initial_model()


class Sneaky(Protocol):
    """The same events, another model in every run."""

    async def run(self, ctx: Context):
        return ctx.apply(impure, ctx.initial_model())


class Leaking(Protocol):
    """A model that depends on what solves it."""

    async def run(self, ctx: Context):
        return ctx.apply(other_batch, ctx.initial_model())


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        (Forgetful, "two runs differ first at event 0: Event.*ENDED"),
        (Sneaky, r"two runs: the final models of node 0 differ by up to"),
        (Leaking, r"inline and batched: the final models of node 0 differ by up to 0.001"),
    ],
)
def test_a_broken_protocol_is_caught(protocol, message):
    with pytest.raises(AssertionError, match=message):
        check_protocol(protocol(), 3)


# run_protocol


def test_every_node_runs_a_copy_of_its_own():
    class Counting(Protocol):
        count = 0

        async def run(self, ctx: Context):
            self.count += 1
            seen.append(self.count)

    seen = []
    protocol = Counting()
    run_protocol(protocol, 5)
    assert seen == [1] * 5
    assert protocol.count == 0


def test_an_outcome_says_what_it_led_to():
    outcome = run_protocol(DPSGD(DPSGD.Config(rounds=2)), 4, seed=5)
    assert list(outcome.models) == [0, 1, 2, 3]
    assert outcome.messages == 2 * 4 * 2
    assert outcome.tasks == outcome.solved == 2 * 4 * 3
    assert outcome.mean() == pytest.approx(sum(outcome.models.values()) / 4)
    assert outcome.spread() == max(np.linalg.norm(model - outcome.mean()) for model in outcome.models.values())
    assert len(outcome.event_hash) == 32
    assert len(outcome.events) == 5 * 8 * (8 + 16 + 4)
    assert "events" not in repr(outcome)


def test_seeds_give_different_runs():
    hashes = {run_protocol(DPSGD(DPSGD.Config(rounds=1)), 4, seed=seed).models[0].tobytes() for seed in range(3)}
    assert len(hashes) == 3


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_few_nodes_are_enough(nodes):
    assert len(run_protocol(DPSGD(DPSGD.Config(rounds=2)), nodes).models) == nodes


def test_nothing_stays_open():
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        run_protocol(DPSGD(DPSGD.Config(rounds=1)), 3)
        gc.collect()
