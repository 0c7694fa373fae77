"""What a protocol sees: training, mixing, reading values, recording, checkpoints and work beside ``run``."""

import numpy as np
import pytest

from node import Context, Protocol, ProtocolError, Spec, op, scale, shift
from node.config import ChurnSection, DevicesSection, FaultSection
from node.errors import ComputeError
from node.op import Op
from node.testing import Quadratic, run_protocol
from protocols.fedavg import FedAvg


def outcome_of(behave, nodes=2, **options):
    class Told(Protocol):
        async def run(self, ctx: Context):
            return await behave(ctx)

    return run_protocol(Told(), nodes, **options)


# Training and arithmetic


def test_training_takes_the_devices_time_and_steps_from_the_workload():
    times = {}

    async def behave(ctx):
        model = await ctx.train(ctx.initial_model())
        times[ctx.me] = [ctx.now]
        model = await ctx.train(model, steps=10)
        times[ctx.me].append(ctx.now)
        return model

    outcome = outcome_of(
        behave,
        workload=Quadratic(2, [[8.0], [16.0]], lr=0.5),
        devices=DevicesSection(seconds_per_sample=2.0),
    )
    assert times == {0: [2.0, 22.0], 1: [2.0, 22.0]}
    assert outcome.models[0] == pytest.approx(8 * (1 - 0.5**11))
    assert outcome.models[1] == pytest.approx(16 * (1 - 0.5**11))


def test_the_learning_rate_follows_the_count_of_trainings():
    class Falling(Quadratic):
        def lr(self, call):
            return 1 / (call + 1)

    async def behave(ctx):
        first = await ctx.train(ctx.initial_model())
        second = await ctx.train(ctx.initial_model())
        return ctx.mix([first, second], [1.0, 100.0])

    assert outcome_of(behave, workload=Falling(2, [[1.0], [1.0]])).models[0] == pytest.approx(1 + 100 / 2)


def test_mix_is_the_mean_or_the_weighted_sum():
    async def behave(ctx):
        target = await ctx.train(ctx.initial_model())
        double = ctx.apply(scale, target, by=2.0)
        mean = ctx.mix([target, double])
        return ctx.mix([mean, double, target], [2.0, -1.0, 0.0])

    outcome = outcome_of(behave, workload=Quadratic(2, [[4.0], [1.0]], lr=1.0))
    assert outcome.models[0] == pytest.approx(2 * 6 - 8)


def test_mix_refuses_nothing_and_too_few_weights():
    async def behave(ctx):
        model = ctx.initial_model()
        with pytest.raises(ProtocolError, match="mix needs at least one model"):
            ctx.mix([])
        with pytest.raises(ProtocolError, match="mix got 2 models and 1 weights"):
            ctx.mix([model, model], [1.0])
        return model

    outcome_of(behave)


def test_scale_and_shift():
    async def behave(ctx):
        one = await ctx.train(ctx.initial_model())
        three = ctx.apply(scale, one, by=3.0)
        return ctx.apply(shift, three, one, three, by=0.25)

    assert outcome_of(behave, workload=Quadratic(2, [[8.0], [8.0]], lr=1.0)).models[1] == pytest.approx(24 - 4)


def test_what_nobody_reads_is_never_computed():
    async def behave(ctx):
        model = ctx.initial_model()
        for _ in range(10):
            await ctx.train(model)
        return await ctx.train(model)

    outcome = outcome_of(behave, 3)
    assert (outcome.tasks, outcome.solved, outcome.forced_solves) == (33, 3, 0)


def test_an_error_in_an_op_names_node_and_op():
    @op
    def explode(model):
        raise ValueError("no such thing")

    async def behave(ctx):
        model = ctx.initial_model()
        return ctx.apply(explode, model) if ctx.me == 1 else model

    with pytest.raises(ComputeError, match=r"explode failed for node 1: ValueError: no such thing"):
        outcome_of(behave)


# Values


def test_a_value_is_read_while_time_stands_still():
    seen = []

    async def behave(ctx):
        model = await ctx.train(ctx.initial_model())
        before = ctx.now
        value = await ctx.value(model)
        again = await ctx.value(model)
        seen.append((before == ctx.now, float(value[0]), value is again))
        return model

    outcome = outcome_of(behave, workload=Quadratic(2, [[4.0], [4.0]], lr=0.5))
    assert seen == [(True, 2.0, True)] * 2
    assert outcome.forced_solves == 2


def test_a_value_solves_just_what_it_needs():
    async def behave(ctx):
        needed = await ctx.train(ctx.initial_model())
        others = [await ctx.train(ctx.initial_model()) for _ in range(5)]
        await ctx.value(needed)
        return others[0]

    outcome = outcome_of(behave, 1)
    assert (outcome.tasks, outcome.solved) == (6, 2)


class EarlyStopping(Protocol):
    """Train until the loss is small: control flow that depends on values."""

    async def run(self, ctx: Context):
        model = ctx.initial_model()
        for round in range(1000):
            model = await ctx.train(model)
            metrics = await ctx.value(ctx.evaluate(model))
            ctx.record(round=round, loss=metrics["loss"])
            if metrics["loss"] < 1e-3 * (ctx.me + 1):
                return model
        raise AssertionError("never small")


def test_early_stopping_by_value_is_deterministic_and_ends_when_the_value_says():
    def run(window):
        return run_protocol(EarlyStopping(), 3, workload=Quadratic(3, [[9.0]] * 3, lr=0.1), window_tasks=window)

    one, again, windowed = run(10**6), run(10**6), run(1)
    assert one.event_hash == again.event_hash == windowed.event_hash
    # 0.5 (9 * 0.9^n)^2 < 1e-3 (node + 1)
    rounds = [int(np.ceil(np.log(np.sqrt(2e-3 * (node + 1)) / 9) / np.log(0.9))) for node in range(3)]
    assert one.forced_solves == sum(rounds)
    assert [
        sum(row.node == node and row.metric == "loss" for row in one.recorder.rows()) for node in range(3)
    ] == rounds
    assert one.time_s == pytest.approx(0.001 * max(rounds))


def test_a_model_is_seeded_by_its_node_and_its_number_and_not_by_when_it_is_solved():
    async def behave(ctx):
        models = [await ctx.train(ctx.initial_model()) for _ in range(4)]
        if ctx.me == 1:
            for model in reversed(models):
                await ctx.value(model)
        return ctx.mix(models, [1.0, 10.0, 100.0, 1000.0])

    async def lazy(ctx):
        return ctx.mix([await ctx.train(ctx.initial_model()) for _ in range(4)], [1.0, 10.0, 100.0, 1000.0])

    noisy = {"workload": Quadratic(3, [[0.0]] * 3, noise=1.0)}
    one, other = outcome_of(behave, 3, **noisy), outcome_of(lazy, 3, **noisy)
    assert one.models == other.models
    assert len({float(model[0]) for model in one.models.values()}) == 3


# Recording


def test_metrics_are_recorded_with_time_node_and_round():
    async def behave(ctx):
        model = await ctx.train(ctx.initial_model())
        ctx.record(round=3, accuracy=ctx.evaluate(model), extra=ctx.me + 0.5)
        return model

    rows = list(outcome_of(behave, workload=Quadratic(2, [[0.0], [0.0]])).recorder.rows())
    assert [(row.time_s, row.node, row.round, row.metric, row.value) for row in rows] == [
        (0.001, 0, 3, "accuracy", 1.0),
        (0.001, 0, 3, "extra", 0.5),
        (0.001, 0, 3, "bytes_sent", 0.0),
        (0.001, 1, 3, "accuracy", 1.0),
        (0.001, 1, 3, "extra", 1.5),
        (0.001, 1, 3, "bytes_sent", 0.0),
    ]


def test_what_is_not_kept_is_not_computed():
    async def behave(ctx):
        model = ctx.initial_model()
        for round in range(8):
            model = await ctx.train(model)
            ctx.record(round=round, accuracy=ctx.evaluate(model))
        return model

    outcome = outcome_of(behave, 1, every=5)
    rounds = [row.round for row in outcome.recorder.rows() if row.metric == "accuracy"]
    assert rounds == [0, 5, 7]
    assert outcome.solved == 8 + 3


def test_recording_a_whole_model_is_refused():
    async def behave(ctx):
        ctx.record(round=0, model=ctx.initial_model())

    with pytest.raises(ProtocolError, match=r"record\(model=…\) takes a number or metrics; this Ref is a tensor \[4\]"):
        outcome_of(behave)


def test_a_number_of_an_op_can_be_recorded():
    norm = Op("norm", lambda task: float(np.linalg.norm(task.inputs[0])), spec=lambda inputs, static: Spec(()))

    async def behave(ctx):
        ctx.record(round=0, norm=ctx.apply(norm, await ctx.train(ctx.initial_model())))

    outcome = outcome_of(behave, workload=Quadratic(2, [[3.0, 4.0]] * 2, lr=1.0))
    assert outcome.recorder.latest("norm") == {0: 5.0, 1: 5.0}


# State, and work beside run


def test_restore_gives_the_last_checkpoint_of_an_earlier_life():
    seen = []

    async def behave(ctx):
        saved = ctx.restore()
        seen.append((ctx.me, saved and {**saved, "model": saved["model"].spec}))
        model = await ctx.train(ctx.initial_model())
        await ctx.checkpoint(model=model, round=1)
        await ctx.checkpoint(model=model, round=2, name="x")
        await ctx.sleep(10)

    crash = (FaultSection(time_s=5, node=1, what="crash"), FaultSection(time_s=6, node=1, what="return"))
    outcome_of(behave, churn=ChurnSection(schedule=crash))
    model = Quadratic(2).model_spec
    assert seen == [(0, None), (1, None), (1, {"model": model, "round": 2, "name": "x"})]


def test_what_a_life_has_kept_itself_it_does_not_restore():
    async def behave(ctx):
        await ctx.checkpoint(round=1)
        ctx.restore()

    with pytest.raises(ProtocolError, match=r"restore\(\) goes before checkpoint\(\)"):
        outcome_of(behave)


def test_randomness_goes_on_where_the_checkpoint_was_and_repeats_nothing():
    drawn = []

    async def behave(ctx):
        saved = ctx.restore()
        trained = await ctx.train(ctx.initial_model())
        counter = ctx._world.graph.task_key(trained.id).counter
        drawn.append((ctx.me, saved is not None, float(ctx.rng.random()), counter))
        await ctx.checkpoint()
        await ctx.sleep(10)

    crash = (FaultSection(time_s=5, node=1, what="crash"), FaultSection(time_s=6, node=1, what="return"))
    outcome_of(behave, churn=ChurnSection(schedule=crash))
    [(_, _, first, one), (_, was_saved, second, two)] = [entry for entry in drawn if entry[0] == 1]
    assert was_saved
    assert first != second
    assert (one, two) == (1, 2)


def test_work_beside_run_ends_with_the_run():
    ticks = []

    async def behave(ctx):
        async def tick():
            try:
                while True:
                    await ctx.sleep(1)
                    ticks.append(ctx.now)
            finally:
                ticks.append("end")

        if ctx.me == 0:
            ctx.spawn(tick())
        await ctx.sleep(3.5)

    outcome = outcome_of(behave)
    assert ticks == [1.0, 2.0, 3.0, "end"]
    assert outcome.time_s == 3.5


def test_a_failure_beside_run_ends_the_whole_run():
    async def behave(ctx):
        async def fail():
            await ctx.sleep(2)
            raise ValueError("beside")

        if ctx.me == 1:
            ctx.spawn(fail())
        await ctx.sleep(100)

    with pytest.raises(
        ProtocolError, match=r"^node 1: ValueError: beside \(test_context_compute.py, line \d+\)$"
    ) as error:
        outcome_of(behave)
    assert isinstance(error.value.__cause__, ValueError)


def test_a_failure_of_run_names_the_node_and_the_line():
    async def behave(ctx):
        await ctx.sleep(ctx.me + 1)
        if ctx.me == 1:
            raise KeyError("gone")
        await ctx.sleep(100)

    with pytest.raises(
        ProtocolError, match=r"^node 1: KeyError: 'gone' \(test_context_compute.py, line \d+\)$"
    ) as error:
        outcome_of(behave)
    assert isinstance(error.value.__cause__, KeyError)


def test_one_of_our_own_errors_passes_as_it_is():
    async def behave(ctx):
        raise ProtocolError("so not")

    with pytest.raises(ProtocolError, match=r"^so not$"):
        outcome_of(behave)


def test_reading_a_model_as_a_number_says_what_to_do():
    async def behave(ctx):
        if ctx.evaluate(ctx.initial_model()) > 0.5:
            return

    with pytest.raises(ProtocolError, match=r"read it with `await ctx.value\(ref\)`"):
        outcome_of(behave)


def test_a_long_sum_is_recorded_in_parts_and_is_the_same_to_the_last_bit():
    rng = np.random.default_rng(5)
    values = [rng.normal(size=4) for _ in range(100)]
    weights = tuple(rng.random(100))
    summed = []

    async def behave(ctx):
        models = [ctx._world.graph.constant(value, Spec((4,), "float64")) for value in values]
        summed.append(await ctx.value(ctx.mix(models, weights)))
        summed.append(ctx._counter)

    outcome_of(behave, nodes=1)
    expected = values[0] * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        expected = expected + value * weight
    assert summed[0].tobytes() == expected.tobytes()
    assert summed[1] == 4


@pytest.mark.parametrize("clients", [60, 600])
def test_the_models_of_a_round_do_not_pile_up_with_the_clients(clients):
    """The server's sum takes updates in as they are trained, a few batches at a time."""
    outcome = run_protocol(FedAvg(FedAvg.Config(rounds=3)), clients + 1)
    model = Quadratic(2).model_spec.size_bytes
    assert outcome.counters["skipped"] == 0
    assert outcome.counters["peak_resident_bytes"] <= 200 * model
