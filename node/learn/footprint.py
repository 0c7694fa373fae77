"""How many bytes of tensors some work has alive at a time, and the products in it: the same on every machine."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

T = TypeVar("T")


class Footprint(NamedTuple):
    """Of one call."""

    peak_bytes: int
    """Of tensors that were alive at once: what it was given and what it made. Arrays of other libraries do not count,
    nor do the data sets that a call reads parts of."""
    flops: float
    """Of products and convolutions, as torch's own counter has them; a multiply-add is 2."""


def footprint(call: Callable[[], T], given: Sequence[Tensor] = ()) -> tuple[T, Footprint]:
    """What a call gives, and what it took; ``given``: tensors that it needs from outside, whole."""
    with _Watch() as watch:
        found = call()
    return found, Footprint(watch.peak_bytes + sum(tensor.nbytes for tensor in given), float(watch.flops))


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation on tensors, and follows the memory that each makes until it is let go."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes = 0
        self.flops = 0
        self._alive_bytes = 0
        self._known: dict[int, weakref.ref[UntypedStorage]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to ask the compiler not to look into this would import it: over a CPU-second, and 70 MB

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors(args):
            self._follow(tensor, is_new=False)  # what no operation here has made was there before
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors((out,)):
            self._follow(tensor, is_new=True)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out

    def _follow(self, tensor: Tensor, *, is_new: bool) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if is_new else 0
        if key in self._known:
            return

        def let_go(_: object) -> None:
            del self._known[key]
            self._alive_bytes -= size

        self._known[key] = weakref.ref(storage, let_go)
        self._alive_bytes += size
        self.peak_bytes = max(self.peak_bytes, self._alive_bytes)


def _tensors(arguments: Iterable[Any]) -> Iterator[Tensor]:
    """Those among what an operation takes or gives: single ones, and lists of them."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from _tensors(argument)
