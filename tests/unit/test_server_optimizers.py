"""What a server makes of its clients' models: golden values, and the rules as the papers have them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.errors import ConfigError
from node.learn.federated import Scaffold, ServerOptimizer, nova_weights, yogi_square
from node.op import Task

RATES, TARGETS = np.array([1.0, 3.0]), np.array([0.0, 4.0])
STEPS, LR = 10, 0.1
CHANGES = [np.array([0.1, -0.2, 0.0]), np.array([0.05, 0.1, -0.3])]
START = np.array([1.0, -2.0, 0.5])


class Eager:
    """What a context records, solved at once: a Ref is its own value here."""

    def apply(self, op, *inputs, **static):
        return op.solve(Task(inputs, static, None))

    def mix(self, models, weights=None):
        weights = [1 / len(models)] * len(models) if weights is None else weights
        return sum(model * weight for model, weight in zip(models, weights, strict=True))


ctx = Eager()


def local(x, i, steps=STEPS, correction=0.0, proximal=0.0):
    """Exact gradient descent of client i on ``a (y - b)^2 / 2``."""
    y = x
    for _ in range(steps):
        y = y - LR * (RATES[i] * (y - TARGETS[i]) + proximal * (y - x) + correction)
    return y


def rounds(optimizer, count, x=0.0, **training):
    """The server's models after each round of two clients."""
    model = np.array([x])
    moments = optimizer.moments(ctx, model)
    for _ in range(count):
        mean = ctx.mix([local(model, i, **training) for i in (0, 1)])
        model, moments = optimizer.step(ctx, model, mean, moments)
        yield float(model[0])


def stepped(optimizer, changes=CHANGES, start=START, library=np.asarray):
    model = library(start)
    moments = optimizer.moments(ctx, model)
    for change in changes:
        model, moments = optimizer.step(ctx, model, model + library(change), moments)
    return model, moments


# Golden values


def test_fedavg_is_golden():
    assert list(rounds(ServerOptimizer(), 3)) == pytest.approx([1.943505, 2.309784, 2.378814], abs=1e-6)
    assert list(rounds(ServerOptimizer(), 60))[-1] == pytest.approx(2.394845, abs=1e-6)


def test_fedprox_is_golden():
    found = list(rounds(ServerOptimizer(), 60, proximal=1.0))
    assert found[:3] == pytest.approx([1.490930, 2.093431, 2.336909], abs=1e-6)
    assert 2.394845 < found[-1] < 3


@pytest.mark.parametrize(
    ("rule", "first_square", "expected"),
    [
        ("adam", 0.0, [1.206273, -2.129616, 0.403226]),
        ("yogi", 0.0, [1.205848, -2.129484, 0.403226]),
        ("adagrad", None, [1.022311, -2.013512, 0.490033]),
    ],
)
@pytest.mark.parametrize("library", [np.asarray, torch.tensor], ids=["numpy", "torch"])
def test_adaptive_servers_are_golden(rule, first_square, expected, library):
    optimizer = ServerOptimizer(rule, lr=0.1, first_square=first_square)
    assert stepped(optimizer, library=library)[0].tolist() == pytest.approx(expected, abs=1e-6)


# Rules


def in_formulas(rule, start, changes, lr, beta1, beta2, tau):
    x, m, v = start.copy(), np.zeros_like(start), np.full_like(start, tau**2)
    for change in changes:
        change = x + change - x  # as the server sees it: Yogi's sign is decided by the last bit where squares are equal
        if rule == "momentum":
            m = beta1 * m + change
            x = x + lr * m
            continue
        m = beta1 * m + (1 - beta1) * change
        square = change * change
        if rule == "adagrad":
            v = v + square
        elif rule == "yogi":
            v = v - (1 - beta2) * square * np.sign(v - square)
        else:
            v = beta2 * v + (1 - beta2) * square
        x = x + lr * m / (v**0.5 + tau)
    return x


numbers = st.floats(-2, 2).map(lambda number: round(number, 3))


@pytest.mark.parametrize("rule", ["momentum", "adagrad", "yogi", "adam"])
@given(
    st.lists(st.lists(numbers, min_size=3, max_size=3).map(np.array), max_size=5),
    st.sampled_from([0.01, 0.1, 1.0]),
    st.sampled_from([0.0, 0.9]),
    st.sampled_from([0.5, 0.99]),
    st.sampled_from([1e-3, 0.1]),
)
def test_servers_step_as_the_formulas_say(rule, changes, lr, beta1, beta2, tau):
    optimizer = ServerOptimizer(rule, lr, beta1, beta2, tau)
    model, moments = stepped(optimizer, changes)
    np.testing.assert_allclose(model, in_formulas(rule, START, changes, lr, beta1, beta2, tau), rtol=1e-6, atol=1e-8)
    assert set(moments) == ({"mean"} if rule == "momentum" else {"mean", "square"})


def test_the_average_is_the_mean_itself():
    mean, moments = np.array([3.0]), {}
    after = ServerOptimizer(lr=0.5).step(ctx, np.array([1.0]), mean, moments)
    assert after[0] is mean
    assert after[1] is moments


def test_momentum_without_decay_at_rate_1_is_the_average():
    plain = list(rounds(ServerOptimizer(), 5))
    assert list(rounds(ServerOptimizer("momentum", beta1=0.0), 5)) == pytest.approx(plain)
    assert list(rounds(ServerOptimizer("momentum", beta1=0.5), 2))[1] > plain[1]


def test_square_starts_at_tau_squared_or_as_told():
    assert ServerOptimizer("adam", tau=0.1).moments(ctx, START)["square"] == pytest.approx(np.full(3, 0.01))
    assert ServerOptimizer("adam", first_square=0.0).moments(ctx, START)["square"].tolist() == [0, 0, 0]
    assert ServerOptimizer("adam").moments(ctx, START)["mean"].tolist() == [0, 0, 0]


def test_yogi_moves_no_further_than_the_square_where_adam_would_forget():
    square, zero = np.array([1.0]), np.array([0.0])
    found = ctx.apply(yogi_square, square, np.array([0.1]), zero, beta=0.9)
    assert found == pytest.approx([1 - 0.1 * 0.01])
    assert ctx.apply(yogi_square, square, np.array([1.0]), zero, beta=0.9) == pytest.approx([1.0])


@pytest.mark.parametrize("rule", ["momentum", "adagrad", "yogi", "adam"])
def test_a_step_changes_none_of_its_inputs(rule):
    for library in (np.array, torch.tensor):
        optimizer = ServerOptimizer(rule, lr=0.1)
        model, mean = library(START.tolist()), library((START + 1).tolist())
        moments = optimizer.moments(ctx, model)
        before = {name: moment.tolist() for name, moment in moments.items()}
        optimizer.step(ctx, model, mean, moments)
        assert model.tolist() == START.tolist()
        assert mean.tolist() == (START + 1).tolist()
        assert {name: moment.tolist() for name, moment in moments.items()} == before


@pytest.mark.parametrize("rule", ["average", "momentum", "adagrad", "yogi", "adam"])
def test_float32_models_stay_float32(rule):
    model, moments = stepped(
        ServerOptimizer(rule, lr=0.1), library=lambda values: torch.tensor(values, dtype=torch.float32)
    )
    assert {model.dtype, *(moment.dtype for moment in moments.values())} == {torch.float32}


# Control variates


def scaffold(count, lr=1.0, taking_part=((0, 1),)):
    """The server's models; in round r the clients ``taking_part[r % ...]`` train."""
    model = np.array([0.0])
    common, own = Scaffold.start(ctx, model), [Scaffold.start(ctx, model) for _ in (0, 1)]
    for round in range(count):
        models, changes = [], []
        for i in taking_part[round % len(taking_part)]:
            after = local(model, i, correction=Scaffold.correction(ctx, common, own[i]))
            own[i], change = Scaffold.trained(ctx, common, own[i], model, after, STEPS, LR)
            models.append(after)
            changes.append(change)
        model, common = Scaffold.step(ctx, model, common, models, changes, clients=2, lr=lr)
        yield float(model[0]), float(common[0])


def test_scaffold_is_golden():
    found = [model for model, _ in scaffold(200)]
    assert found[0] == pytest.approx(1.943505, abs=1e-6)
    assert found[-1] == pytest.approx(3.0, abs=1e-6)


def test_scaffold_is_as_published():
    """Option II, written out."""
    x, c, own = 0.0, 0.0, [0.0, 0.0]
    for found, control in scaffold(20, lr=0.7):
        models, controls = [], []
        for i in (0, 1):
            y = x
            for _ in range(STEPS):
                y -= LR * (RATES[i] * (y - TARGETS[i]) - own[i] + c)
            models.append(y)
            controls.append(own[i] - c + (x - y) / (STEPS * LR))
        c += 2 / 2 * np.mean([controls[i] - own[i] for i in (0, 1)])
        x += 0.7 * np.mean([y - x for y in models])
        own = controls
        assert (found, control) == pytest.approx((x, c), abs=1e-12)


def test_the_common_control_moves_by_the_share_that_took_part():
    (model, common), *_ = scaffold(1, taking_part=((1,),))
    after = local(np.array([0.0]), 1)[0]
    assert model == pytest.approx(after)
    assert common == pytest.approx(0.5 * (0 - after) / (STEPS * LR))


def test_the_common_control_is_the_mean_of_the_clients():
    """After every client has taken part, at whatever rounds: the changes add up."""
    model = np.array([0.0])
    common, own = Scaffold.start(ctx, model), [Scaffold.start(ctx, model) for _ in (0, 1)]
    for i in (0, 1, 1, 0, 1):
        after = local(model, i, correction=Scaffold.correction(ctx, common, own[i]))
        own[i], change = Scaffold.trained(ctx, common, own[i], model, after, STEPS, LR)
        model, common = Scaffold.step(ctx, model, common, [after], [change], clients=2, lr=1.0)
        assert common == pytest.approx(np.mean(own, axis=0))


# Unequal steps


def test_nova_is_the_mean_where_all_take_equally_many_steps():
    assert nova_weights([10, 30], [5, 5]) == pytest.approx((0, 0.25, 0.75))


@given(st.lists(st.tuples(st.integers(1, 99), st.integers(1, 50)), min_size=1, max_size=6), st.integers(0, 99))
def test_nova_is_as_published(clients, seed):
    rng = np.random.default_rng(seed)
    x, models = rng.normal(size=3), rng.normal(size=(len(clients), 3))
    samples, steps = zip(*clients, strict=True)
    shares = np.array(samples) / sum(samples)
    effective = (shares * steps).sum()
    expected = x + effective * sum(p * (y - x) / tau for p, y, tau in zip(shares, models, steps, strict=True))
    weights = nova_weights(samples, steps)
    assert sum(weights) == pytest.approx(1)
    np.testing.assert_allclose(ctx.mix([x, *models], weights), expected, rtol=1e-9, atol=1e-9)


def drift(weigh):
    model, steps = np.array([0.0]), (10, 2)
    for _ in range(200):
        models = [local(model, i, steps=count) for i, count in enumerate(steps)]
        model = ctx.mix([model, *models], weigh(steps))
    return float(model[0])


def test_nova_does_not_favour_who_takes_more_steps():
    """The one of many steps pulls to 0, the optimum is 3."""
    assert drift(lambda steps: (0.0, 0.5, 0.5)) < 2
    assert drift(lambda steps: nova_weights([1, 1], steps)) == pytest.approx(3, abs=0.3)


@pytest.mark.parametrize(("samples", "steps"), [([], []), ([1], [1, 2]), ([0, 1], [1, 1]), ([1, 1], [0, 1])])
def test_clients_without_samples_or_steps_are_refused(samples, steps):
    with pytest.raises(ConfigError, match="nova_weights"):
        nova_weights(samples, steps)
