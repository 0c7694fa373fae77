"""Core and head as ops on flat models."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node import Spec
from node.learn import parts
from node.op import Key, Task
from node.testing import check_op

MODEL = torch.arange(10.0)


def solved(op, *inputs, **static):
    return op.solve(Task(inputs, static, Key(0, 0, 0)))


@given(st.integers(1, 40), st.data())
def test_what_was_cut_joins_to_the_same_bits(size, data):
    cut = data.draw(st.integers(0, size))
    model = torch.randn(size, generator=torch.Generator().manual_seed(size))
    core = solved(parts.part, model, start=0, stop=cut)
    head = solved(parts.part, model, start=cut, stop=size)
    assert (len(core), len(head)) == (cut, size - cut)
    assert torch.equal(solved(parts.join, core, head), model)


def test_a_part_keeps_nothing_of_the_rest_alive():
    core = solved(parts.part, MODEL, start=0, stop=3)
    assert core.untyped_storage().nbytes() == 3 * 4
    core[0] = 7.0
    assert MODEL[0] == 0.0


def test_the_ops_keep_their_promises():
    check_op(parts.part, [MODEL], start=2, stop=7)
    check_op(parts.join, [MODEL, MODEL[:3].clone(), MODEL[4:].clone()])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_specs_are_known_before_anything_is_computed(dtype):
    assert parts.part.spec([Spec((10,), dtype)], {"start": 4, "stop": 10}) == Spec((6,), dtype)
    assert parts.join.spec([Spec((4,), dtype), Spec((6,), dtype)], {}) == Spec((10,), dtype)


def test_the_ops_can_be_found_by_name_elsewhere():
    """Workers and caches know an op by the module that it is in."""
    assert (parts.part.name, parts.join.name) == ("node.learn.parts:part", "node.learn.parts:join")
