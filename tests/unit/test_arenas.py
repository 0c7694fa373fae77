"""Shared slots: each belongs to the tensors on it, and to nobody else."""

import itertools
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.learn.arenas import ALIGNMENT, Arenas, Layout, View, can_share, layout_of


@pytest.fixture
def arenas():
    arenas = Arenas()
    yield arenas
    arenas.close()


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 300), st.booleans()), max_size=200))
def test_no_two_living_tensors_share_a_byte(steps):
    """Whatever comes and goes, in whatever order."""
    arenas = Arenas()
    living = []
    for number, (size, drops) in enumerate(steps):
        living.append((number, arenas.copy(torch.full((size,), number, dtype=torch.int32))))
        if drops:
            del living[number % len(living)]
    assert all(bool((tensor == number).all()) for number, tensor in living)
    slots = [arenas.place(tensor)[0] for _, tensor in living if tensor.numel()]
    for before, after in itertools.pairwise(sorted(slots, key=lambda slot: (slot.slab, slot.at))):
        assert before.slab < after.slab or before.at + before.room <= after.at
    living.clear()
    assert arenas.used_slots == 0
    arenas.close()


def test_what_one_side_writes_the_other_sees(arenas):
    view = View(arenas.file)
    there = arenas.copy(torch.arange(10.0))
    here = view.tensor(arenas.place(there))
    assert torch.equal(here, torch.arange(10.0))
    held = arenas.reserve(40)
    layout = view.fill(held.slot, torch.arange(10.0) * 2)
    assert torch.equal(held.tensor(layout), torch.arange(10.0) * 2)


def test_slabs_that_are_added_later_are_seen_too(arenas):
    view = View(arenas.file)
    tensors = [arenas.copy(torch.full((1000,), float(i))) for i in range(500)]
    assert len({arenas.place(tensor)[0].slab for tensor in tensors}) > 2
    assert all(torch.equal(view.tensor(arenas.place(tensor)), tensor) for tensor in tensors)


def test_a_view_of_a_tensor_has_a_place_and_holds_the_slot(arenas):
    whole = arenas.copy(torch.arange(100.0))
    part = whole[37:50]
    del whole
    assert arenas.used_slots == 1
    assert torch.equal(View(arenas.file).tensor(arenas.place(part)), torch.arange(37.0, 50.0))
    del part
    assert arenas.used_slots == 0


def test_other_tensors_have_no_place(arenas):
    arenas.copy(torch.ones(3))
    other = Arenas()
    assert arenas.place(torch.ones(3)) is None
    assert arenas.place(other.copy(torch.ones(3))) is None
    other.close()


@pytest.mark.parametrize("shift", [0, 1, 7, 15])
def test_a_copy_begins_where_in_a_line_of_the_cache_the_tensor_does(arenas, shift):
    tensor = torch.arange(100.0)[shift:]
    assert layout_of(tensor) == Layout(shift * 4, "float32", (100 - shift,))
    copy = arenas.copy(tensor)
    assert copy.data_ptr() % ALIGNMENT == tensor.data_ptr() % ALIGNMENT
    assert torch.equal(copy, tensor)


def test_a_tensor_that_does_not_fit_is_not_written(arenas):
    held = arenas.reserve(40)
    view = View(arenas.file)
    assert view.fill(held.slot, torch.ones(17)) is None
    assert view.fill(held.slot, torch.ones(2, 3).t()) is None
    assert view.fill(held.slot, torch.ones(16)) is not None, "a slot's size is rounded up"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.ones(3), True),
        (torch.ones(3)[1:], True),
        (torch.empty(0), True),
        (torch.ones(4)[::2], False),
        (torch.ones(2, 3).t(), False),
        (torch.ones(3, requires_grad=True), False),
        (torch.nn.Parameter(torch.ones(3)), False),
        (torch.ones(3, device="meta"), False),
        (torch.eye(2).to_sparse(), False),
        (torch.tensor([1j]).conj(), False),
        (1.0, False),
        (None, False),
    ],
)
def test_what_can_be_shared(value, expected):
    assert can_share(value) is expected


def test_tensors_outlive_the_arenas():
    arenas = Arenas()
    tensor = arenas.copy(torch.arange(5.0))
    file = arenas.file
    arenas.close()
    with pytest.raises(OSError):
        os.fstat(file)
    assert torch.equal(tensor, torch.arange(5.0))
