"""Adapters beside the linear modules of a transformers model, whose own modules and weights stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from node.adapters.directory import REST, layer_of
from node.adapters.kernels import Composed, Composition, Kernel, Rows, Stack
from node.errors import ConfigError

Adds = Callable[[Tensor, Tensor, Stack], Tensor]
"""(y, x, stack): what a module gives, with what the batch's adapters add to it."""
Wait = Callable[[str], None]
"""Returns when the layer of that name can be computed with (:meth:`node.adapters.loading.Loading.wait`)."""


def linear_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(out, in) of each linear module in a transformer layer, by name, sorted: what adapters may adapt.

    Raises:
        ConfigError: the model has none.
    """
    shapes = {
        name: (module.out_features, module.in_features)
        for name, module in sorted(model.named_modules())
        if isinstance(module, nn.Linear) and layer_of(name) != REST
    }
    if not shapes:
        raise ConfigError(f"model: {type(model).__name__} has no linear modules in numbered layers; adapters need some")
    return shapes


class Attached:
    """Adds adapters to a model's forward passes. For one thread at a time, the one that computes."""

    def __init__(self, model: nn.Module, stacks: Mapping[str, Stack]) -> None:
        """``stacks``: one for each linear module, as :class:`node.adapters.stacks.Stacks` has them."""
        self._adds: Adds | None = None
        self._waits: Sequence[Wait] = ()
        modules = dict(model.named_modules())
        self._hooks = [
            modules[name].register_forward_hook(partial(self._after, layer_of(name), stacks[name])) for name in stacks
        ]

    @contextmanager
    def selecting(self, rows: Rows, kernel: Kernel, waits: Sequence[Wait] = ()) -> Iterator[None]:
        """Within: row i of a batch uses the adapter in slot ``rows.slots[i]``, as far as ``waits`` say it is there."""
        with self._adding(partial(_selected, kernel, rows) if rows.used else None, waits):
            yield

    @contextmanager
    def composing(self, composed: Composed, composition: Composition, waits: Sequence[Wait] = ()) -> Iterator[None]:
        """Within: each row of a batch uses several adapters at once."""
        with self._adding(partial(_composed, composition, composed), waits):
            yield

    def detach(self) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()

    @contextmanager
    def _adding(self, adds: Adds | None, waits: Sequence[Wait]) -> Iterator[None]:
        self._adds, self._waits = adds, waits
        try:
            yield
        finally:
            self._adds, self._waits = None, ()

    def _after(self, layer: str, stack: Stack, module: nn.Module, inputs: tuple[Any, ...], y: Tensor) -> Tensor:
        """The module has computed its own product: add to it."""
        if self._adds is None:
            return y
        for wait in self._waits:
            wait(layer)
        return self._adds(y, inputs[0], stack)


def _selected(kernel: Kernel, rows: Rows, y: Tensor, x: Tensor, stack: Stack) -> Tensor:
    return kernel(y, x, stack, rows)


def _composed(composition: Composition, composed: Composed, y: Tensor, x: Tensor, stack: Stack) -> Tensor:
    return composition(y, x, stack, composed)
