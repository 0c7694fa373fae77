"""Checks that hold for every protocol and op; each raises AssertionError with what broke."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from node.op import Key, Op, Spec, Task, Value
from node.protocol import Protocol
from node.solver import BatchedExecutor, InlineExecutor
from node.tape import first_difference
from node.testing.simulate import run_protocol


def check_protocol(protocol: Protocol, nodes: int = 8, **options: Any) -> None:
    """Run a protocol twice and under another executor and window: events and final models must be the same.

    ``options`` are those of :func:`~node.testing.run_protocol`.
    """
    first = run_protocol(protocol, nodes, **options)
    again = run_protocol(protocol, nodes, **options)
    if difference := first_difference(first.events, again.events):
        number, one, other = difference
        raise AssertionError(f"two runs differ first at event {number}: {one} and {other}")
    _same_models(first.models, again.models, "two runs", exact=True)
    windowed = run_protocol(protocol, nodes, **{**options, "window_tasks": 1})
    assert windowed.event_hash == first.event_hash, "the events depend on when values are solved"
    _same_models(first.models, windowed.models, "two windows", exact=True)
    batched = run_protocol(protocol, nodes, **{**options, "executor": BatchedExecutor()})
    _same_models(first.models, batched.models, "inline and batched", exact=False)


def check_op(op: Op[...], inputs: Sequence[Value], seed: int = 0, **static: Any) -> None:
    """An op must be pure and seeded, leave its inputs alone, keep to its spec, and equal its batched form."""
    before = [_array(value).copy() for value in inputs]
    tasks = [Task(tuple(inputs), static, Key(seed, node, 1)) for node in range(4)]
    single = InlineExecutor().solve(op, tasks)
    again = InlineExecutor().solve(op, tasks[::-1])[::-1]
    assert all(map(np.array_equal, map(np.asarray, inputs), before)), f"{op.name} changed one of its inputs"
    assert all(map(_equal, single, again)), f"{op.name} gives another value the second time"
    promised = op.spec([_spec_of(value) for value in inputs], static)
    for value in single:
        assert _spec_of(value) == promised, f"{op.name} promises {promised} and gives {_spec_of(value)}"
    batched = BatchedExecutor().solve(op, tasks)
    assert len(batched) == len(tasks), f"{op.name}: {len(batched)} values for a batch of {len(tasks)}"
    assert all(map(_close, single, batched)), f"{op.name}: batch is not single"
    differs = any(not _equal(single[0], other) for other in single[1:])
    if op.seeded:
        assert differs, f"{op.name} is seeded, yet every key gives the same value"
    else:
        assert not differs, f"{op.name} reads its key, yet is not declared seeded"


def _same_models(one: dict[int, Value], other: dict[int, Value], what: str, exact: bool) -> None:
    assert one.keys() == other.keys(), f"{what}: other nodes ended with a model"
    for node, model in one.items():
        a, b = _array(model), _array(other[node])
        same = np.array_equal(a, b) if exact else np.allclose(a, b, rtol=1e-4, atol=1e-5)
        assert same, f"{what}: the final models of node {node} differ by up to {np.abs(a - b).max():g}"


def _numbers(value: Value) -> np.ndarray:
    return np.array(list(value.values()), dtype=np.float64) if isinstance(value, Mapping) else _array(value)


def _spec_of(value: Value) -> Spec:
    numbers = _numbers(value)
    return Spec(numbers.shape, str(numbers.dtype), tuple(value) if isinstance(value, Mapping) else ())


def _equal(one: Value, other: Value) -> bool:
    return np.array_equal(_numbers(one), _numbers(other), equal_nan=True)


def _close(one: Value, other: Value) -> bool:
    return np.allclose(_numbers(one), _numbers(other), rtol=1e-5, atol=1e-6, equal_nan=True)


def _array(value: Value) -> np.ndarray:
    """A tensor of whatever library as an array; torch's own way out, where it has one, spares numpy's guesses."""
    return np.asarray(value.numpy() if hasattr(value, "numpy") else value)
