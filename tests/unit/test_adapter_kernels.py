"""The kernels agree with one another and with the sum they stand for; which is used follows from the batch alone."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.adapters import choosing
from node.adapters.choosing import Bucket, Chooser, buckets, measure, remembered, rule
from node.adapters.kernels import BASE, COMPOSITIONS, KERNELS, Composed, Rows, Stack, fusion, mixture
from node.learn.choices import Choices

pytestmark = pytest.mark.usefixtures("one_thread")

SLOTS, RANK, IN, OUT = 4, 3, 6, 5


def stack(seed=0, slots=SLOTS, inward=IN, outward=OUT):
    generator = torch.Generator().manual_seed(seed)
    a, b = (
        torch.randn(slots + 1, RANK, inward, generator=generator),
        torch.randn(slots + 1, outward, RANK, generator=generator),
    )
    scale = torch.rand(slots + 1, generator=generator) + 0.5
    a[-1], b[-1], scale[-1] = 0, 0, 0
    return Stack(a, b, scale)


def batch(rows, tokens=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, tokens, OUT, generator=generator), torch.randn(rows, tokens, IN, generator=generator)


def one_by_one(y, x, adapters, slots):
    """The definition: y + s B(Ax), for each row alone."""
    rows = []
    for row, slot in enumerate(slots):
        delta = 0 if slot == BASE else adapters.scale[slot] * (x[row] @ adapters.a[slot].T) @ adapters.b[slot].T
        rows.append(y[row] + delta)
    return torch.stack(rows)


SLOT_LISTS = st.lists(st.integers(BASE, SLOTS - 1), min_size=1, max_size=9)


@pytest.mark.parametrize("name", KERNELS)
@given(slots=SLOT_LISTS, tokens=st.integers(1, 3))
def test_all_kernels_are_the_sum_that_they_stand_for(name, slots, tokens):
    adapters, (y, x) = stack(), batch(len(slots), tokens)
    found = KERNELS[name](y, x, adapters, Rows(slots))
    torch.testing.assert_close(found, one_by_one(y, x, adapters, slots), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", KERNELS)
def test_what_came_in_is_not_changed(name):
    for slots in ([0, 1], [1, 0], [BASE, BASE]):
        y, x = batch(2)
        before = y.clone(), x.clone()
        KERNELS[name](y, x, stack(), Rows(slots))
        assert torch.equal(y, before[0])
        assert torch.equal(x, before[1])


@pytest.mark.parametrize("name", KERNELS)
@given(slots=SLOT_LISTS, order=st.randoms(use_true_random=False))
def test_permuting_the_batch_permutes_what_comes_out(name, slots, order):
    permutation = list(range(len(slots)))
    order.shuffle(permutation)
    adapters, (y, x) = stack(), batch(len(slots))
    found = KERNELS[name](y, x, adapters, Rows(slots))
    permuted = KERNELS[name](y[permutation], x[permutation], adapters, Rows([slots[i] for i in permutation]))
    torch.testing.assert_close(permuted, found[permutation], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("slots", [[BASE, 2, BASE, 0], [BASE], [BASE] * 3])
def test_rows_of_the_base_keep_their_bits(name, slots):
    y, x = batch(len(slots))
    found = KERNELS[name](y, x, stack(), Rows(slots))
    of_base = torch.tensor(slots) == BASE
    assert torch.equal(found[of_base], y[of_base])


@pytest.mark.parametrize("name", KERNELS)
def test_an_adapter_without_a_product_is_the_base(name):
    adapters = stack()
    adapters.b.zero_()
    y, x = batch(4)
    torch.testing.assert_close(KERNELS[name](y, x, adapters, Rows([0, 1, 2, 3])), y, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", KERNELS)
def test_gradients_reach_each_adapter_as_if_it_were_alone(name):
    """All adapters can be trained in one mixed batch."""
    slots = [0, 0, 2, 1]
    y, x = batch(4)
    gradients = {}
    for kind in (KERNELS[name], lambda y, x, s, rows: one_by_one(y, x, s, rows.slots)):
        fixed = stack()
        a, b = fixed.a.clone().requires_grad_(), fixed.b.clone().requires_grad_()
        kind(y, x, Stack(a, b, fixed.scale), Rows(slots)).square().sum().backward()
        gradients[kind] = (a.grad, b.grad)
    ours, theirs = gradients.values()
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-3)
        assert not mine[3].any()


def test_what_rows_know():
    rows = Rows([2, BASE, 0, 2])
    assert rows.used == (0, 2)
    assert rows.order.tolist() == [1, 2, 0, 3]
    assert rows.runs == ((0, slice(1, 2)), (2, slice(2, 4)))
    assert rows.places.tolist() == [[False, True], [False, False], [True, False], [False, True]]
    assert Rows([BASE, 0, 2]).order is None
    assert Rows([BASE]).used == ()


# Compositions


def composed(slots, weights):
    return Composed(torch.tensor(slots), torch.tensor(weights))


def test_a_mixture_is_linear_in_its_weights():
    adapters, (y, x) = stack(), batch(2)
    slots, first, second = (
        [[0, 1], [2, 3]],
        torch.tensor([[0.2, 0.5], [1.0, 0.0]]),
        torch.tensor([[0.7, 0.1], [0.3, 2.0]]),
    )

    def added(weights):
        return mixture(y, x, adapters, Composed(torch.tensor(slots), weights)) - y

    torch.testing.assert_close(added(2 * first + 3 * second), 2 * added(first) + 3 * added(second), rtol=0, atol=1e-4)


def test_a_mixture_is_the_weighted_sum_of_what_the_adapters_add():
    adapters, (y, x) = stack(), batch(3)
    slots, weights = [[0, 1, 2], [3, BASE, BASE], [2, 2, 0]], [[0.5, 0.3, 0.2], [1.0, 0.0, 0.0], [0.25, 0.25, 0.5]]
    expected = y.clone()
    for place in range(3):
        delta = one_by_one(y, x, adapters, [row[place] for row in slots]) - y
        expected += delta * torch.tensor([row[place] for row in weights])[:, None, None]
    torch.testing.assert_close(mixture(y, x, adapters, composed(slots, weights)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_with_all_weight_on_one_adapter_composing_is_selecting(name):
    adapters, (y, x) = stack(), batch(3)
    one_hot = composed([[0, 1], [3, 2], [BASE, 1]], [[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    found = COMPOSITIONS[name](y, x, adapters, one_hot)
    torch.testing.assert_close(found, one_by_one(y, x, adapters, [1, 3, BASE]), rtol=0, atol=1e-5)


def test_fusing_an_adapter_with_itself_changes_nothing():
    adapters, (y, x) = stack(), batch(2)
    alike = composed([[1, 1, 1], [2, 2, 2]], [[1 / 3] * 3] * 2)
    expected = one_by_one(y, x, adapters, [1, 2])
    torch.testing.assert_close(fusion(y, x, adapters, alike), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(mixture(y, x, adapters, alike), expected, rtol=0, atol=1e-5)


def test_fusing_different_adapters_is_no_mixture():
    adapters, (y, x) = stack(), batch(1)
    two = composed([[0, 1]], [[0.5, 0.5]])
    assert (fusion(y, x, adapters, two) - mixture(y, x, adapters, two)).abs().max() > 0.1
    a = (adapters.a[0] + adapters.a[1]) / 2
    b = (adapters.b[0] * adapters.scale[0] + adapters.b[1] * adapters.scale[1]) / 2
    torch.testing.assert_close(fusion(y, x, adapters, two), y + x @ a.T @ b.T, rtol=0, atol=1e-5)


# Choosing


def test_buckets_are_powers_of_two():
    assert Bucket.of(5, 3, 1) == (8, 4, 1)
    assert Bucket.of(8, 0, 33) == (8, 0, 64)
    assert buckets(4, tokens=[1]) == [(1, 1, 1), (2, 1, 1), (2, 2, 1), (4, 1, 1), (4, 2, 1), (4, 4, 1)]
    assert {Bucket.of(rows, used, 1) for rows in range(1, 6) for used in range(1, rows + 1)} == set(buckets(8, [1]))


@pytest.mark.parametrize(
    ("bucket", "width", "name"),
    [
        (Bucket(32, 32, 1), 256, "gather"),
        (Bucket(32, 8, 1), 256, "segment"),
        (Bucket(32, 16, 1), 256, "gather"),
        (Bucket(32, 32, 1), 512, "segment"),
        (Bucket(1, 1, 1), 256, "gather"),
    ],
)
def test_the_rule_without_measurements(bucket, width, name):
    assert rule(bucket, width) == name
    assert Chooser(width).name(Rows(list(range(bucket.used)) * (bucket.rows // bucket.used)), 1) == name


def slow_but(fastest):
    """A stopwatch by which each kernel takes 1 s and the named one 0.5 s: kernels are measured in their order."""
    times = itertools.chain.from_iterable(
        (0.0, 0.5 if name == fastest else 1.0) for name in itertools.cycle(KERNELS) for _ in range(choosing.REPEATS + 1)
    )
    return lambda: next(times)


@pytest.mark.parametrize("fastest", KERNELS)
def test_what_was_measured_decides(fastest):
    wanted = [Bucket(2, 2, 1), Bucket(4, 1, 8)]
    found = measure([stack(), stack(2, inward=3, outward=7)], wanted, slow_but(fastest))
    assert found == dict.fromkeys(wanted, fastest)
    chooser = Chooser(IN, found)
    assert chooser.name(Rows([0, 1]), 1) == fastest
    assert chooser.kernel(Rows([0, 1]), 1) is KERNELS[fastest]
    assert chooser.name(Rows([0, 1, 2, 3]), 1) == "gather"


def test_the_first_time_of_a_kernel_does_not_count():
    repeats = choosing.REPEATS
    seconds = {
        "gather": [0.0] + [1.0] * repeats,
        "segment": [9.0] + [0.5] * repeats,
        "rank-concat": [9.0] * (repeats + 1),
    }
    times = iter([time for taken in seconds.values() for each in taken for time in (0.0, each)])
    assert measure([stack()], [Bucket(2, 2, 1)], lambda: next(times)) == {Bucket(2, 2, 1): "segment"}


def test_more_adapters_than_slots_are_not_measured():
    assert measure([stack()], [Bucket(8, 8, 1)], slow_but("gather")) == {}


def test_a_second_run_remembers_and_measures_nothing(tmp_path):
    choices, wanted = Choices(tmp_path / "kernels.json"), buckets(4, [1])
    found = remembered(choices, [stack()], wanted, slow_but("segment"))
    assert found == dict.fromkeys(wanted, "segment")

    def broken():
        raise AssertionError("measured again")

    assert remembered(choices, [stack()], wanted, broken) == found
    more = remembered(choices, [stack()], [*wanted, Bucket(4, 4, 2)], slow_but("gather"))
    assert more == {**found, Bucket(4, 4, 2): "gather"}
    other = remembered(choices, [stack(inward=7)], wanted, slow_but("rank-concat"))
    assert other == dict.fromkeys(wanted, "rank-concat")


def test_what_is_no_kernel_is_not_remembered(tmp_path):
    choices, wanted = Choices(tmp_path / "kernels.json"), [Bucket(2, 1, 1)]
    remembered(choices, [stack()], wanted, slow_but("segment"))
    (tmp_path / "kernels.json").write_text((tmp_path / "kernels.json").read_text().replace("segment", "magic"))
    assert remembered(choices, [stack()], wanted, slow_but("gather")) == {Bucket(2, 1, 1): "gather"}


def test_measuring_takes_real_kernels_and_a_real_stopwatch():
    ticks = itertools.count()
    found = measure([stack()], buckets(4), lambda: float(next(ticks)))
    assert set(found) == set(buckets(4))
    assert set(found.values()) <= set(KERNELS)
