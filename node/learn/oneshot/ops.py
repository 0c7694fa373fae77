"""One-shot algorithms as ops: the place where each is handed what it has declared, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from node.assumptions import Assumptions, Precision
from node.errors import ComputeError
from node.learn.cost import training_flops
from node.learn.data import Federation
from node.learn.models import Model
from node.learn.oneshot import judging
from node.learn.oneshot.algorithm import Algorithm, Assets, Client, Measuring, OwnTraining, Streaming, Task, Upload
from node.learn.oneshot.catalogue import configured
from node.learn.oneshot.precision import narrowed, narrowed_spec, widened
from node.learn.oneshot.stacking import StackingOps
from node.learn.partition import Shards
from node.oneshot import LARGEST
from node.op import Key, Op, Spec, Static
from node.op import Task as Solved

_SOUND = Spec((1,), "float64", ("sound",))


class OneShotOps:
    """The ops of :class:`node.oneshot.OneShotOps` for one experiment, and what they need to know.

    Args:
        seed: the experiment's: what all nodes draw alike follows from it.
        basis: what a value follows from besides its task (:attr:`node.op.Op.basis`).
    """

    def __init__(self, federation: Federation, model: Model, seed: int, basis: Callable[[Key], bytes]) -> None:
        self._federation = federation
        self._seed = seed
        self._basis = basis
        train, public = federation.train, federation.public
        shared = 0 if public is None else len(public.features)
        self._task = Task(model, tuple(train.features.shape[1:]), train.classes, shared)
        self.fit = self._op("fit", self._fit, self._fitted)
        self.part = self._op("part", self._part, self._of_part)
        self.aggregate = self._op("aggregate", self._aggregate, self._result)
        self.add = self._op("add", self._add, self._state)
        self.finish = self._op("finish", self._finish, self._result)
        self.sound = self._op("sound", _sound, lambda inputs, static: _SOUND)
        self.narrow = self._op("narrow", _narrow, lambda inputs, static: narrowed_spec(inputs[0], static["precision"]))
        self.widen = self._op("widen", _widen, lambda inputs, static: self.sent(static["algorithm"], static["options"]))
        self.judge = self._op("judge", self._judge, lambda inputs, static: judging.names(self._task.classes))
        self.stacking = StackingOps(federation, self._task, seed, self._op)

    def _op(
        self,
        name: str,
        solve: Callable[[Solved], Tensor | dict[str, float]],
        spec: Callable[[Sequence[Spec], Static], Spec],
    ) -> Op[...]:
        return Op(f"learn:oneshot-{name}", solve, spec=spec, seeded=True, basis=self._basis)

    @property
    def ops(self) -> tuple[Op[...], ...]:
        """All of them."""
        clients = self.fit, self.part, self.narrow
        sums = self.aggregate, self.add, self.finish
        return *clients, self.sound, self.widen, *sums, self.judge, *self.stacking.ops

    @property
    def classes(self) -> int:
        """How many there are."""
        return self._task.classes

    # What algorithms say of themselves

    def declared(self, algorithm: str, options: str) -> Assumptions:
        """What an algorithm assumes. Raises ConfigError for one that does not exist, or does not take the options."""
        return configured(algorithm, options).declares

    def sends_model(self, algorithm: str, options: str) -> bool:
        """Whether clients upload what they have trained."""
        return configured(algorithm, options).sends_model

    def trains(self, algorithm: str, options: str) -> bool:
        """Whether clients train anything."""
        return configured(algorithm, options).trains

    def trains_itself(self, algorithm: str, options: str) -> bool:
        """Whether clients train by ``fit``."""
        return isinstance(configured(algorithm, options), OwnTraining)

    def fit_samples(self, algorithm: str, options: str, node: int) -> float:
        """Samples that the experiment's model could be trained on during a client's ``fit``."""
        own = configured(algorithm, options)
        return own.fit_samples(self._task, self._federation.shards.size(node)) if isinstance(own, OwnTraining) else 0.0

    def parts(self, algorithm: str, options: str, counts: Sequence[int]) -> dict[str, Spec]:
        """What a client with so many samples of each class sends besides, by name."""
        own = configured(algorithm, options)
        return dict(own.parts(self._task, counts)) if isinstance(own, Measuring) else {}

    def sent(self, algorithm: str, options: str, precision: Precision = "float32") -> Spec:
        """What clients send as what they have trained."""
        own = configured(algorithm, options)
        spec = own.fitted(self._task) if isinstance(own, OwnTraining) else self._task.model.spec
        return narrowed_spec(spec, precision)

    def streams(self, algorithm: str, options: str) -> bool:
        """Whether uploads can be added up as they come."""
        return isinstance(configured(algorithm, options), Streaming)

    def measuring_samples(self, algorithm: str, options: str, node: int) -> float:
        """Samples that the experiment's model could be trained on while a client's parts are computed."""
        own = configured(algorithm, options)
        if not isinstance(own, Measuring):
            return 0.0
        return own.measuring_flops(self._task, self._federation.shards.size(node)) / self._flops

    def aggregation_samples(self, algorithm: str, options: str, uploads: int) -> float:
        """Samples that the experiment's model could be trained on while so many uploads are aggregated."""
        public = self._federation.public
        flops = configured(algorithm, options).aggregation_flops(
            self._task, uploads, 0 if public is None else len(public.features)
        )
        return flops / self._flops

    @cached_property
    def _flops(self) -> float:
        return training_flops(self._task.model, self._task.shape)

    # Specs

    def _fitted(self, inputs: Sequence[Spec], static: Static) -> Spec:
        return self.sent(static["algorithm"], static["options"])

    def _of_part(self, inputs: Sequence[Spec], static: Static) -> Spec:
        return self.parts(static["algorithm"], static["options"], static["counts"])[static["name"]]

    def _result(self, inputs: Sequence[Spec], static: Static) -> Spec:
        return _algorithm(static).result(self._task, static["uploads"])

    def _state(self, inputs: Sequence[Spec], static: Static) -> Spec:
        own = _algorithm(static)
        assert isinstance(own, Streaming)
        return own.state(self._task)

    # One task

    def _fit(self, task: Solved) -> Tensor:
        own = _algorithm(task.static)
        assert isinstance(own, OwnTraining)
        with torch.enable_grad():
            return own.fit(self._client(task, own, task.inputs[0]))

    def _part(self, task: Solved) -> Tensor:
        own = _algorithm(task.static)
        assert isinstance(own, Measuring)
        trained, start = task.inputs
        return own.part(task.static["name"], self._client(task, own, start), trained)

    def _aggregate(self, task: Solved) -> Tensor:
        own = _algorithm(task.static)
        start, *sent = task.inputs
        return own.aggregate([*self._uploads(task, own, sent)], self._assets(task, own, start)).float()

    def _add(self, task: Solved) -> Tensor:
        own = _algorithm(task.static)
        assert isinstance(own, Streaming)
        start, *sent = task.inputs
        state = sent.pop(0) if task.static["has_state"] else own.nothing(self._task)
        if not _is_sound(sent):
            return state.clone()
        (upload,) = self._uploads(task, own, sent)
        return own.add(state, upload, self._assets(task, own, start).beside(upload.client))

    def _finish(self, task: Solved) -> Tensor:
        own = _algorithm(task.static)
        assert isinstance(own, Streaming)
        start, state = task.inputs
        return own.finish(state, self._assets(task, own, start)).float()

    def _uploads(self, task: Solved, own: Algorithm, sent: Sequence[Tensor]) -> Iterator[Upload]:
        """What clients have sent, as the algorithm may see it."""
        name, tensors = task.static["algorithm"], iter(sent)
        for (client, samples, counts, score), has_model in zip(task.static["told"], task.static["sent"], strict=True):
            model = next(tensors) if has_model else None
            parts = {part: next(tensors) for part in self.parts(name, task.static["options"], counts)}
            yield Upload(name, own.declares, client, model, parts, samples, counts, score)

    @torch.no_grad()
    def _judge(self, task: Solved) -> dict[str, float]:
        own = _algorithm(task.static)
        start, state = task.inputs
        test = self._federation.test
        said = own.predict(state, test.features, self._assets(task, own, start))
        asked = len(test.labels), self._task.classes
        if said.shape != asked:
            raise ComputeError(f"{task.static['algorithm']}: predict gives {[*said.shape]}; asked for: {[*asked]}")
        return judging.judged(said, test.labels)

    # What they are handed

    def _client(self, task: Solved, own: Algorithm, start: Tensor) -> Client:
        node = task.key.node
        if not self._federation.shards.size(node):
            raise ComputeError(f"oneshot: node {node} has no data: its role is not learner")
        data, held = (self._rows(shards, node) for shards in (self._federation.shards, self._federation.local_tests))
        public = self._federation.public
        features = None if public is None else public.features
        name = task.static["algorithm"]
        return Client(name, own.declares, self._task, data, held, start, features, task.key, self._seed)

    def _rows(self, shards: Shards, node: int) -> tuple[Tensor, Tensor]:
        train, rows = self._federation.train, shards.of(node)
        return train.features[rows], train.labels[rows]

    def _assets(self, task: Solved, own: Algorithm, start: Tensor) -> Assets:
        public = self._federation.public
        shown = None if public is None else (public.features, public.labels)
        return Assets(task.static["algorithm"], own.declares, self._task, start, shown, task.key, self._seed)


def _algorithm(static: Static) -> Algorithm:
    return configured(static["algorithm"], static["options"])


def _is_sound(sent: Sequence[Tensor]) -> bool:
    """Whether all numbers are finite, and none is beyond ``LARGEST``; whole numbers may be packed bits, any of them."""
    return all(bool((tensor.float().abs() <= LARGEST).all()) for tensor in sent if tensor.is_floating_point())


def _sound(task: Solved) -> dict[str, float]:
    return {"sound": float(_is_sound(task.inputs))}


def _narrow(task: Solved) -> Tensor:
    return narrowed(task.inputs[0], task.static["precision"])


def _widen(task: Solved) -> Tensor:
    return widened(task.inputs[0], task.static["precision"])
