"""The weights of all resident adapters: for each linear module of a model a stack, with a slot for each adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from node.adapters.artifact import Artifact, Layer
from node.adapters.configuration import LORA
from node.adapters.directory import layer_of, module_of
from node.adapters.kernels import Stack
from node.errors import ConfigError, Corrupt
from node.learn.tensors import from_buffer
from node.op import Spec

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Stacks(Mapping[str, Stack]):
    """Zero-padded A, B and scale of every module, and one more slot, which stays zero: the base."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, int]], slots: int, most_rank: int, dtype: torch.dtype = torch.float32
    ) -> None:
        """``shapes``: (out, in) of each module that adapters may adapt, by its name."""
        if slots < 1 or most_rank < 1:
            raise ConfigError(f"slots: {slots}, most_rank: {most_rank}; allowed: at least 1 each")
        self.most_rank = most_rank
        self._scale = torch.zeros(slots + 1, dtype=dtype)
        self._of_module = {
            module: Stack(
                torch.zeros(slots + 1, most_rank, inward, dtype=dtype),
                torch.zeros(slots + 1, outward, most_rank, dtype=dtype),
                self._scale,
            )
            for module, (outward, inward) in shapes.items()
        }

    def __getitem__(self, module: str) -> Stack:
        return self._of_module[module]

    def __iter__(self) -> Iterator[str]:
        return iter(self._of_module)

    def __len__(self) -> int:
        return len(self._of_module)

    @property
    def size_bytes(self) -> int:
        """Of all slots together."""
        return sum(stack.a.nbytes + stack.b.nbytes for stack in self._of_module.values()) + self._scale.nbytes

    def of_layer(self, layer: str) -> list[Stack]:
        """The stacks of one layer's modules, sorted by name."""
        return [self._of_module[module] for module in sorted(self._of_module) if layer_of(module) == layer]

    def check(self, artifact: Artifact, base_fingerprint: str) -> None:
        """Whether an adapter can be loaded here.

        Raises:
            ConfigError: it is for another base model, of too high a rank, or for modules that this model does not have.
        """
        what = f"adapter {artifact.name}"
        if artifact.layout != LORA:
            raise ConfigError(f"{what}: layout: {artifact.layout} is kept, not served; allowed: {LORA}")
        if artifact.base_fingerprint != base_fingerprint:
            raise ConfigError(
                f"{what}: is for the base model {artifact.base_fingerprint[:16]}, and this one is"
                f" {base_fingerprint[:16]}; serve it with its own"
            )
        if artifact.rank > self.most_rank:
            raise ConfigError(f"{what}: r: rank {artifact.rank} is above the limit; allowed: at most {self.most_rank}")
        for module, (outward, inward) in artifact.shapes().items():
            stack = self._of_module.get(module)
            if stack is None:
                allowed = ", ".join(sorted({name.rpartition(".")[2] for name in self._of_module}))
                raise ConfigError(f"{what}: the model has no linear module {module[:100]!r}; allowed: {allowed}")
            if (outward, inward) != (stack.b.shape[1], stack.a.shape[2]):
                raise ConfigError(f"{what}: module {module}: {inward} to {outward} is not the model's shape")

    def clear(self, slot: int) -> None:
        """Make a slot the base: what it had before must not show through a smaller adapter."""
        self._scale[slot] = 0
        for stack in self._of_module.values():
            stack.a[slot] = 0
            stack.b[slot] = 0

    def write(self, slot: int, artifact: Artifact, layer: Layer, data: bytes | bytearray | memoryview) -> None:
        """Put one layer of an adapter, which was checked, into a slot, which was cleared.

        Raises:
            Corrupt: it has numbers that are not finite, which would spoil other rows of a batch.
        """
        self._scale[slot] = artifact.settings.scale
        view, start = memoryview(data), 0
        for tensor, (_, size_bytes) in zip(layer.tensors, layer.ranges, strict=True):
            spec = Spec(tensor.shape, _DTYPES[tensor.dtype])
            weights = from_buffer(view[start : start + size_bytes], spec)
            if not bool(torch.isfinite(weights).all()):
                raise Corrupt(f"adapter {artifact.name}: tensor {tensor.name!r} has numbers that are not finite")
            self._part(slot, tensor.name, weights).copy_(weights)
            start += size_bytes

    def _part(self, slot: int, tensor: str, weights: Tensor) -> Tensor:
        """Where a tensor goes: the first of its slot's ranks."""
        module, side = module_of(tensor)
        stack = self._of_module[module]
        return stack.a[slot, : len(weights)] if side == "A" else stack.b[slot, :, : weights.shape[1]]
