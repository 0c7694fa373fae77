"""Ops, specs, keys and handles."""

import gc
import math
from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import ProtocolError
from node.op import Key, Op, Ref, Spec, Task, op


@op
def difference(a, b):
    """What ``a`` is more than ``b``."""
    return a - b


@op(seeded=True)
def noisy(model, *, scale, rng):
    return model + scale * rng.normal(size=model.shape)


@op(spec=lambda inputs, static: Spec((static["size"],)), batch=lambda tasks: ["batched"] * len(tasks))
def first(model, *, size):
    return model[:size]


# Specs


@pytest.mark.parametrize(
    ("spec", "size_bytes"),
    [
        (Spec((3, 4)), 48),
        (Spec((3, 4), "float64"), 96),
        (Spec((), "int64"), 8),
        (Spec((7,), "bfloat16"), 14),
        (Spec((0, 5)), 0),
        (Spec((5,), "bool"), 5),
        (Spec((2,), "float64", ("accuracy", "loss")), 16),
    ],
)
def test_the_size_of_a_spec_is_that_of_its_elements(spec, size_bytes):
    assert spec.size_bytes == size_bytes


@given(st.lists(st.integers(0, 50), max_size=4), st.sampled_from(["float64", "float32", "float16", "int32", "uint8"]))
def test_sizes_are_those_of_numpy(shape, dtype):
    assert Spec(tuple(shape), dtype).size_bytes == math.prod(shape) * np.dtype(dtype).itemsize


def test_equal_specs_are_equal_and_hash_alike():
    assert {Spec((3,)): "here"}[Spec((3,), "float32", ())] == "here"
    assert Spec((3,)) != Spec((3,), "float64")


# Keys


def test_the_same_key_gives_the_same_numbers():
    assert np.array_equal(Key(7, 3, 5).rng().random(100), Key(7, 3, 5).rng().random(100))


@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 10**6), st.integers(0, 2**32 - 1)), unique=True))
def test_different_keys_give_different_numbers(keys):
    drawn = {tuple(Key(*key).rng().integers(0, 2**63, size=4).tolist()) for key in keys}
    assert len(drawn) == len(keys)


def test_long_streams_of_neighbouring_keys_do_not_overlap():
    """A counter-based generator counts up from its key: the next task's stream must not be this one's, shifted."""
    streams = [Key(0, node, counter).rng().integers(0, 2**63, size=5000) for node in (0, 1) for counter in (0, 1, 2)]
    assert len(np.unique(np.concatenate(streams))) == 6 * 5000


# Ops


def test_positional_parameters_are_values_and_keywords_are_static():
    assert difference.solve(Task((5, 3), {}, Key(0, 0, 0))) == 2
    assert first.solve(Task(([1, 2, 3],), {"size": 2}, Key(0, 0, 0))) == [1, 2]


def test_an_op_is_named_after_its_function_and_keeps_the_first_inputs_spec():
    assert difference.name.endswith("test_op:difference")
    assert difference.spec([Spec((3,), "float64"), Spec((9,))], {}) == Spec((3,), "float64")
    assert not difference.seeded
    assert difference.solve_batch is None


def test_an_op_may_say_what_it_yields_and_how_to_solve_many():
    assert first.spec([Spec((9,))], {"size": 4}) == Spec((4,))
    assert first.solve_batch([1, 2]) == ["batched", "batched"]


def test_an_op_without_inputs_must_say_what_it_yields():
    with pytest.raises(ProtocolError, match="say what"):
        difference.spec([], {})


def test_a_seeded_op_draws_from_its_key_alone():
    model = np.zeros(3)
    one, again, other = (noisy.solve(Task((model,), {"scale": 2.0}, Key(1, 0, counter))) for counter in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert np.array_equal(one, 2.0 * Key(1, 0, 1).rng().normal(size=3))


def test_two_ops_of_one_function_are_two_ops():
    def identity(model):
        return model

    assert op(identity) != op(identity)
    assert len({op(identity), op(identity)}) == 2
    assert Op("a", identity) != Op("a", identity)


# Handles


READ_TOO_EARLY = {
    "bool": bool,
    "float": float,
    "int": int,
    "len": len,
    "iter": list,
    "add": lambda ref: ref + 1,
    "sub": lambda ref: ref - ref,
    "mul": lambda ref: ref * 2,
    "less": lambda ref: ref < 1,
    "greater": lambda ref: ref > 1,
    "if": lambda ref: 1 if ref else 2,
}


@pytest.mark.parametrize("name", READ_TOO_EARLY)
def test_reading_a_handle_says_what_to_do_instead(name):
    with pytest.raises(TypeError, match=r"await ctx\.value\(ref\)"):
        READ_TOO_EARLY[name](Ref(0, Spec(()), deque()))


def test_a_handle_shows_its_number_and_spec_and_no_value():
    assert repr(Ref(12, Spec((3, 4), "float64"), deque())) == "<Ref 12 float64[3, 4]>"


def test_handles_are_told_apart_by_identity():
    released = deque()
    one, other = Ref(1, Spec(()), released), Ref(1, Spec(()), released)
    assert one != other
    assert one in [other, one]


def test_a_dying_handle_leaves_its_number():
    released = deque()
    ref = Ref(5, Spec(()), released)
    keep = [ref]
    del ref
    gc.collect()
    assert not released
    keep.clear()
    assert list(released) == [5]
