"""Models in fewer bytes: the numbers that come back, sizes that are known before, and bytes that nobody packed."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from node.op import Key, Spec, Task
from node.packing import (
    bf16_bytes,
    bf16_packed,
    bf16_unpacked,
    int8_bytes,
    int8_packed,
    int8_unpacked,
    kept_of,
    nothing,
    random_k_bytes,
    random_k_packed,
    random_k_unpacked,
    top_k_bytes,
    top_k_packed,
    top_k_unpacked,
)
from node.testing import check_op

MODELS = hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-(2.0**100), 2.0**100, width=32))
ANY_MODELS = hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32))


def solve(op, *inputs, counter=0, **static):
    return op.solve(Task(inputs, static, Key(7, 1, counter)))


def model(size=1000, seed=1):
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def bf16(values):
    return solve(bf16_unpacked, values, solve(bf16_packed, values), elements=len(values))


def int8(values, counter=0):
    return solve(int8_unpacked, values, solve(int8_packed, values, counter=counter), elements=len(values))


# bfloat16


@given(ANY_MODELS)
def test_bf16_is_what_torch_makes_of_it(values):
    expected = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(bf16(values), expected)


def test_bf16_takes_half_the_bytes():
    assert len(solve(bf16_packed, model())) == 2000 == bf16_bytes(1000)


# int8


@given(MODELS, st.integers(0, 1000))
def test_int8_is_off_by_a_step_at_most(values, counter):
    scale = np.abs(values).max() / np.float32(127)
    smallest = np.finfo(np.float32).tiny  # below it a step cannot be told
    assert np.all(np.abs(int8(values, counter) - values) <= scale * (1 + 1e-4) + smallest)


def test_int8_is_right_in_the_mean():
    """40,000 roundings of one number: the mean is within five standard errors."""
    values = np.full(40_001, 0.3, np.float32)
    values[0] = 127.0  # so that a step is 1
    mean = int8(values)[1:].mean()
    assert abs(mean - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 40_000)


def test_int8_draws_from_the_task_alone():
    values = model()
    np.testing.assert_array_equal(int8(values, 3), int8(values, 3))
    assert (int8(values, 3) != int8(values, 4)).any()


def test_int8_keeps_zeros_and_the_largest():
    np.testing.assert_array_equal(int8(np.zeros(5, np.float32)), np.zeros(5))
    values = np.array([-2.0, 0.0, 2.0], np.float32)
    np.testing.assert_allclose(int8(values), values, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_model_that_has_diverged_says_so_in_int8(bad):
    assert np.isnan(int8(np.array([1.0, bad, 2.0], np.float32))).all()


def test_int8_takes_a_quarter_of_the_bytes():
    assert len(solve(int8_packed, model())) == 1004 == int8_bytes(1000)


# Few elements


@pytest.mark.parametrize(
    ("size", "share"), [(1, 0.1), (7, 0.5), (1000, 0.01), (1000, 0.02), (1000, 0.04), (1001, 0.75)]
)
def test_top_k_tells_what_is_furthest_from_what_is_known(size, share):
    values, known, kept = model(size), model(size, seed=2), kept_of(size, share)
    packed = solve(top_k_packed, values, known, kept=kept)
    assert len(packed) == top_k_bytes(size, kept)
    told = solve(top_k_unpacked, known, packed, kept=kept)
    changed = np.flatnonzero(told != known)
    assert len(changed) == kept
    np.testing.assert_array_equal(told[changed], values[changed])
    left = np.setdiff1d(np.arange(size), changed)
    distance = np.abs(values - known)
    assert not len(left) or distance[left].max() <= distance[changed].min()


@given(MODELS, st.floats(0.01, 0.75))
def test_told_again_and_again_everything_is_known(values, share):
    known, kept = np.zeros_like(values), kept_of(len(values), share)
    for _ in range(-(-len(values) // kept)):
        known = solve(top_k_unpacked, known, solve(top_k_packed, values, known, kept=kept), kept=kept)
    np.testing.assert_array_equal(known, values)


def test_places_take_the_shorter_form():
    assert top_k_bytes(3200, 100) == 400 + 400 == top_k_bytes(3200, 99) + 8
    assert top_k_bytes(3200, 101) == 404 + 400
    assert top_k_bytes(10**6, 10**4) == 80_000


def test_random_k_tells_elements_that_a_seed_names():
    values, known = model(), model(seed=2)
    packed = solve(random_k_packed, values, kept=50)
    assert len(packed) == 208 == random_k_bytes(1000, 50)
    told = solve(random_k_unpacked, known, packed, kept=50)
    changed = np.flatnonzero(told != known)
    assert len(changed) == 50
    np.testing.assert_array_equal(told[changed], values[changed])


def test_random_k_draws_every_element_equally_often():
    """2,000 draws of 10 in 40: each count is within five standard deviations of 500."""
    counts = np.zeros(40)
    for counter in range(2000):
        packed = solve(random_k_packed, np.ones(40, np.float32), kept=10, counter=counter)
        counts += solve(random_k_unpacked, np.zeros(40, np.float32), packed, kept=10)
    assert np.abs(counts - 500).max() < 5 * np.sqrt(2000 * 0.25 * 0.75)


def test_the_places_of_a_seed_are_the_same_for_ever():
    """They are part of the wire: what they are must not follow from the version of numpy."""
    packed = np.concatenate([np.zeros(12, np.uint8), np.arange(8, dtype=np.uint8)])
    told = solve(random_k_unpacked, np.ones(1000, np.float32), packed, kept=3)
    assert np.flatnonzero(told == 0).tolist() == PLACES


PLACES = [41, 637, 659]


@pytest.mark.parametrize(("size", "share", "kept"), [(1, 0.001, 1), (10, 0.1, 1), (10, 0.11, 2), (10, 0.75, 8)])
def test_a_share_is_one_element_at_least(size, share, kept):
    assert kept_of(size, share) == kept


def test_nothing_is_zeros():
    np.testing.assert_array_equal(solve(nothing, model(3), elements=5), np.zeros(5, np.float32))


# Any bytes


@given(st.binary(min_size=14, max_size=14))
def test_any_bytes_unpack(data):
    received, known = np.frombuffer(data, np.uint8), np.zeros(7, np.float32)
    assert solve(bf16_unpacked, known, received, elements=7).shape == (7,)
    assert solve(int8_unpacked, known, received, elements=10).shape == (10,)
    assert solve(random_k_unpacked, known, received[:12], kept=1).shape == (7,)
    assert solve(top_k_unpacked, known, received[:13], kept=3).shape == (7,)


@pytest.mark.parametrize("places", [[5, 3], [3, 3], [3, 1000], [3, 2**32 - 1]])
def test_places_that_are_none_change_nothing(places):
    known = model(1000)
    assert top_k_bytes(1000, 2) == 16
    packed = np.concatenate([np.ones(2, "<f4").view(np.uint8), np.array(places, "<u4").view(np.uint8)])
    np.testing.assert_array_equal(solve(top_k_unpacked, known, packed, kept=2), known)


@pytest.mark.parametrize("bits", [0b0000, 0b0111, 0b10000011])
def test_bits_that_name_another_number_of_places_change_nothing(bits):
    known = model(8)
    packed = np.concatenate([np.ones(2, "<f4").view(np.uint8), np.array([bits], np.uint8)])
    np.testing.assert_array_equal(solve(top_k_unpacked, known, packed, kept=2), known)


def test_bytes_at_an_odd_address_are_read():
    values = model(9)
    packed = solve(bf16_packed, values)
    moved = np.zeros(len(packed) + 1, np.uint8)
    moved[1:] = packed
    np.testing.assert_array_equal(solve(bf16_unpacked, values, moved[1:], elements=9), bf16(values))


# Of any library


OPS = [
    (bf16_packed, (model(9),), {}, Spec((18,), "uint8")),
    (bf16_unpacked, (model(3), solve(bf16_packed, model(9))), {"elements": 9}, Spec((9,))),
    (int8_packed, (model(9),), {}, Spec((13,), "uint8")),
    (int8_unpacked, (model(3), solve(int8_packed, model(9))), {"elements": 9}, Spec((9,))),
    (top_k_packed, (model(9), model(9, 2)), {"kept": 2}, Spec((10,), "uint8")),
    (top_k_unpacked, (model(9), solve(top_k_packed, model(9, 2), model(9), kept=2)), {"kept": 2}, Spec((9,))),
    (random_k_packed, (model(9),), {"kept": 2}, Spec((16,), "uint8")),
    (random_k_unpacked, (model(9), solve(random_k_packed, model(9, 2), kept=2)), {"kept": 2}, Spec((9,))),
    (nothing, (model(3),), {"elements": 9}, Spec((9,))),
]


@pytest.mark.parametrize(("op", "inputs", "static", "spec"), OPS, ids=lambda each: getattr(each, "name", ""))
def test_torch_and_numpy_give_the_same_bits_of_the_announced_shape(op, inputs, static, spec):
    result = solve(op, *inputs, **static)
    tensors = [torch.from_numpy(np.array(each)) for each in inputs]
    again = solve(op, *tensors, **static)
    assert isinstance(again, torch.Tensor)
    assert result.tobytes() == again.numpy().tobytes()
    specs = [Spec(each.shape, str(each.dtype)) for each in inputs]
    assert op.spec(specs, static) == spec == Spec(result.shape, str(result.dtype))
    for tensor, each in zip(tensors, inputs, strict=True):
        assert tensor.numpy().tobytes() == each.tobytes(), "inputs never change"


@pytest.mark.parametrize(("op", "inputs", "static", "spec"), OPS, ids=lambda each: getattr(each, "name", ""))
def test_the_ops_keep_the_rules(op, inputs, static, spec):
    check_op(op, inputs, **static)
