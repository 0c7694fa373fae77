"""Operations on values, and references to values that may not be computed yet.

An *op* is a pure function: the same inputs, static arguments and key give the same value, wherever and whenever it is
solved. That is what lets a graph of ops be solved late, in batches, or elsewhere. A *value* is a tensor, or a mapping
of names to numbers (metrics). This module knows neither: it imports no tensor library.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, NoReturn, ParamSpec, TypeAlias, overload

import numpy as np

from node.errors import ProtocolError

Value: TypeAlias = Any
"""A solved value: a tensor (never changed in place once solved) or a mapping of metric names to floats."""

Static: TypeAlias = Mapping[str, Any]
"""The arguments of an op that are known when it is recorded: numbers, strings and tuples of them."""

P = ParamSpec("P")

_ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "uint8": 1, "bool": 1}


class Spec(NamedTuple):
    """What a value looks like, known without computing it."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    names: tuple[str, ...] = ()
    """Not empty: the value is a mapping with these names, not a tensor."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the raw elements."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


class Key(NamedTuple):
    """What all randomness of one task derives from; also says whose data the task may read."""

    seed: int
    node: int
    counter: int

    def rng(self) -> np.random.Generator:
        """A counter-based generator: independent of every other key, and of the order of execution."""
        return np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, self.counter, self.node]))


class Task(NamedTuple):
    """One recorded application of an op, with its inputs solved."""

    inputs: tuple[Value, ...]
    static: Static
    key: Key


class Ref:
    """A value that may not be computed yet. Hold it, send it, apply ops to it; ``await ctx.value(ref)`` reads it."""

    __slots__ = ("_released", "id", "spec")

    def __init__(self, id: int, spec: Spec, released: deque[int]) -> None:
        self.id = id
        self.spec = spec
        self._released = released

    def __del__(self) -> None:
        # Appending to a deque is atomic: the last handle may be dropped in any thread, or by the garbage collector.
        self._released.append(self.id)

    def __repr__(self) -> str:
        return f"<Ref {self.id} {self.spec.dtype}{list(self.spec.shape)}>"

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError("a Ref is not computed yet: read it with `await ctx.value(ref)`, or pass it to an op")

    __bool__ = __float__ = __int__ = __len__ = __iter__ = __add__ = __sub__ = __mul__ = __lt__ = __gt__ = _refuse


def _like_the_first(inputs: Sequence[Spec], static: Static) -> Spec:
    if not inputs:
        raise ProtocolError("an op without inputs yields something like no input: say what, with @op(spec=...)")
    return inputs[0]


@dataclass(frozen=True, slots=True, eq=False)
class Op(Generic[P]):
    """A pure, seeded function on values. Make one with :func:`op`; record it with ``ctx.apply``."""

    name: str
    solve: Callable[[Task], Value]
    """Solves one task."""
    solve_batch: Callable[[Sequence[Task]], list[Value]] | None = None
    """Solves many tasks in one call, in order; absent: one by one."""
    spec: Callable[[Sequence[Spec], Static], Spec] = _like_the_first
    """The output's spec, from the inputs' specs."""
    seeded: bool = False
    """Reads its key: two tasks that differ in nothing else differ in value."""
    basis: Callable[[Key], bytes] | None = None
    """What a value follows from besides inputs, static arguments and key (code, data, the kind of arithmetic), as a
    digest, for a cache on disk. Absent: the source of the module that the name begins with."""


@overload
def op(function: Callable[P, Value], /) -> Op[P]: ...
@overload
def op(
    *,
    batch: Callable[[Sequence[Task]], list[Value]] | None = None,
    spec: Callable[[Sequence[Spec], Static], Spec] | None = None,
    seeded: bool = False,
) -> Callable[[Callable[P, Value]], Op[P]]: ...
def op(
    function: Callable[P, Value] | None = None,
    /,
    *,
    batch: Callable[[Sequence[Task]], list[Value]] | None = None,
    spec: Callable[[Sequence[Spec], Static], Spec] | None = None,
    seeded: bool = False,
) -> Any:
    """Turn a pure function of values into an op.

    Positional parameters are values, keyword-only ones are static. A ``seeded`` function also takes ``rng``, a numpy
    Generator that is its only source of randomness. ``spec`` gives the output's spec where it is not the first input's.

    ::

        @op
        def difference(a, b):
            return a - b

        update = ctx.apply(difference, after, before)
    """

    def wrap(function: Callable[P, Value]) -> Op[P]:
        def solve(task: Task) -> Value:
            if seeded:
                return function(*task.inputs, **task.static, rng=task.key.rng())  # type: ignore[arg-type]
            return function(*task.inputs, **task.static)

        name = f"{function.__module__}:{function.__qualname__}"
        return Op(name, solve, batch, spec or _like_the_first, seeded)

    return wrap if function is None else wrap(function)
