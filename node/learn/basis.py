"""What the values of a workload's ops follow from, besides what their tasks say: for values that are kept on disk."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from node.config import TrainingSection
from node.learn.data import Federation
from node.learn.models import Model
from node.op import Key

_DIGEST_BYTES = 16
_PLAIN = (bool, int, float, str, tuple, type(None))
_NOT_IN_TRAINING = {"lr", "schedule", "schedule_rounds", "schedule_factor", "local_steps", "local_epochs"}
"""Keys that reach a task as its own learning rate and number of steps."""


class Basis:
    """Digests of data, model, training, code and arithmetic.

    Args:
        arithmetic: names the kernel, since two of them differ by rounding.
        student: what learns from teachers; None: the model.
        private: digest of what makes training private; empty where nothing does.
    """

    def __init__(
        self,
        federation: Federation,
        model: Model,
        training: TrainingSection,
        arithmetic: str,
        private: bytes = b"",
        student: Model | None = None,
    ) -> None:
        self._federation = federation
        self._code = _digest(arithmetic.encode(), _machine(), _sources())
        self._model = _digest(self._code, *_definition(model))
        self._training = _digest(self._model, training.model_dump_json(exclude=_NOT_IN_TRAINING).encode(), private)
        self._test = _digest(self._model, *map(_bytes, (federation.test.features, federation.test.labels)))
        public = federation.public
        told = () if public is None else (public.features, public.labels)
        common = (_bytes(tensor) for tensor in told if tensor is not None)
        checked = 0 if federation.public is None else federation.public.check_samples
        self._unified = _digest(self._test, *_definition(student or model), str(checked).encode(), *common)
        self._shards: dict[int, bytes] = {}
        self._own_tests: dict[int, bytes] = {}

    def of_mix(self, key: Key) -> bytes:
        """Of a sum of models."""
        return self._code

    def of_fresh(self, key: Key) -> bytes:
        """Of a model drawn anew."""
        return _digest(self._model, str(key.seed).encode())

    def of_train(self, key: Key) -> bytes:
        """Of training on a node's data."""
        return _digest(self._training, self._shard(key.node))

    def of_evaluate(self, key: Key) -> bytes:
        """Of evaluating on the test set, on the one of a node's own distribution, or on a node's data."""
        return _digest(self._test, self._own_test(key.node), self._shard(key.node))

    def of_unification(self, key: Key) -> bytes:
        """Of what models become together: on public samples, on the test set, and on a node's own."""
        return _digest(self._unified, str(key.seed).encode(), self._shard(key.node))

    def _own_test(self, node: int) -> bytes:
        group = self._federation.group_of(node)
        if group not in self._own_tests:
            own = self._federation.own_test(node)
            self._own_tests[group] = _digest(_bytes(own.features), _bytes(own.labels))
        return self._own_tests[group]

    def _shard(self, node: int) -> bytes:
        if node not in self._shards:
            data = self._federation.train
            rows = [shards.of(node) for shards in (self._federation.shards, self._federation.local_tests)]
            parts = [_bytes(tensor[row]) for row in rows for tensor in (data.features, data.labels)]
            self._shards[node] = _digest(*parts)
        return self._shards[node]


def _digest(*parts: bytes | memoryview) -> bytes:
    """A hash of some parts, each by itself: where one ends and the next begins makes a difference."""
    return blake2b(b"".join(blake2b(part).digest() for part in parts), digest_size=_DIGEST_BYTES).digest()


def _bytes(tensor: Tensor) -> bytes:
    return repr((tensor.dtype, tuple(tensor.shape))).encode() + tensor.contiguous().numpy().tobytes()


def _machine() -> bytes:
    """What results may differ by from machine to machine."""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{torch.__version__} {capability} {torch.get_num_threads()} {torch.backends.mkldnn.enabled}".encode()


def _sources() -> bytes:
    """All of this package: too much rather than too little."""
    return b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py")))


def _definition(model: Model) -> Iterator[bytes]:
    """The layers, their plain attributes, and the files that they and what builds them are written in."""
    yield repr(model.module).encode()
    for part in model.module.modules():
        plain = {name: value for name, value in vars(part).items() if isinstance(value, _PLAIN)}
        yield repr(sorted(plain.items())).encode()
    kinds: list[Any] = [model.factory, *[type(part) for part in model.module.modules()]]
    files = {inspect.getsourcefile(kind) for kind in kinds if inspect.isclass(kind) or inspect.isroutine(kind)}
    for path in sorted(path for path in files if path is not None):
        yield Path(path).read_bytes()
