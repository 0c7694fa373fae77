"""Bytes of tensors that are alive at once, and products, of work whose sums can be told by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap

from node.learn.footprint import footprint

UNIT = 4


def peak(call, *given):
    return footprint(call, given)[1].peak_bytes


def test_what_is_let_go_counts_no_more():
    def in_turn():
        total = 0.0
        for _ in range(50):
            total += float(torch.ones(100).sum())
        return total

    found, taken = footprint(in_turn)
    assert found == 5000
    assert taken.peak_bytes == (100 + 1) * UNIT  # the vector and its sum


def test_what_is_kept_adds_up():
    assert peak(lambda: [torch.ones(100) for _ in range(50)]) == 50 * 100 * UNIT


def test_views_are_no_memory_of_their_own():
    assert peak(lambda: torch.ones(100).view(10, 10)[3:7].mT) == 100 * UNIT


def test_what_was_there_before_counts_only_where_it_is_said_to_be_needed():
    data = torch.ones(1000)
    assert peak(lambda: data[:10] * 2) == 10 * UNIT
    assert peak(lambda: data[:10] * 2, data) == 1010 * UNIT


def test_changes_in_place_take_nothing():
    assert peak(lambda: torch.zeros(100).add_(1).mul_(3)) == 100 * UNIT


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8))
def test_a_product_counts_two_for_each_multiply_add(rows, inner, columns):
    left, right = torch.ones(rows, inner), torch.ones(inner, columns)
    product, taken = footprint(lambda: left @ right)
    assert torch.equal(product, torch.full((rows, columns), float(inner)))
    assert taken.flops == 2 * rows * inner * columns
    assert taken.peak_bytes == rows * columns * UNIT


def test_the_way_back_counts_too():
    weights, inputs = torch.ones(5, 3, requires_grad=True), torch.ones(7, 5)
    forward = footprint(lambda: inputs @ weights)[1]
    both = footprint(lambda: torch.autograd.grad((inputs @ weights).sum(), weights))[1]
    assert both.flops == 2 * forward.flops  # inputs need no gradient
    assert both.peak_bytes > forward.peak_bytes


def test_work_inside_a_transform_is_seen():
    inputs = torch.ones(7, 5)
    taken = footprint(lambda: vmap(grad(lambda weights: (inputs @ weights).sum()))(torch.ones(4, 5)))[1]
    assert taken.flops > 0
    assert taken.peak_bytes >= 4 * 5 * UNIT


def test_lists_of_tensors_are_tensors():
    assert peak(lambda: torch.cat([torch.ones(10), torch.ones(20)])) == 60 * UNIT
    assert peak(lambda: torch.ones(40).split(10)) == 40 * UNIT


def test_the_same_work_takes_the_same():
    def work():
        torch.manual_seed(3)
        return torch.linalg.svd(torch.randn(20, 20) @ torch.randn(20, 20))

    assert footprint(work)[1] == footprint(work)[1]


def test_an_error_ends_the_watch():
    with pytest.raises(ZeroDivisionError):
        footprint(lambda: torch.ones(3).sum() / (1 // 0))
    assert peak(lambda: torch.ones(3)) == 3 * UNIT
