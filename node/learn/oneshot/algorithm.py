"""What a one-shot algorithm is: what a client uploads, and what an aggregator makes of it, as pure functions.

A new algorithm is a file with one such class. It sees what it has declared and nothing else: a client's labels only
where clients reveal them, public samples only where it says that it needs them, the test set never.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from torch import Tensor

from node.assumptions import Assumptions, Reveal
from node.config import Section
from node.errors import ConfigError
from node.learn.models import Model
from node.op import Key, Spec

_ROWS = 512
"""Samples that go through a model at a time."""

_ONE_BY_ONE = 3 << 30
"""Counters of randomness for single uploads begin here: no node's own reach them."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What is to be told apart, and by which architecture: known to everybody."""

    model: Model
    shape: tuple[int, ...]
    """Of one sample."""
    classes: int
    public_samples: int = 0
    """How many samples everybody has."""

    @torch.no_grad()
    def logits(self, flat: Tensor, features: Tensor) -> Tensor:
        """What a model says of samples, [samples, classes]."""
        return torch.cat([self.model.logits(flat, part) for part in torch.split(features, _ROWS)])

    def probabilities(self, flat: Tensor, features: Tensor) -> Tensor:
        """The same as probabilities."""
        return self.logits(flat, features).softmax(1)


class Guarded:
    """Something that is there only for algorithms that have declared it."""

    def __init__(self, algorithm: str, declares: Assumptions) -> None:
        self._algorithm = algorithm
        self._declares = declares

    def _demand(self, is_declared: bool, asset: str, how: str) -> None:
        if not is_declared:
            self._refuse(asset, how)

    def _demand_reveal(self, least: Reveal, asset: str) -> None:
        self._demand(self._declares.tells(least), asset, f"reveals={least!r}")

    def _refuse(self, asset: str, how: str) -> NoReturn:
        raise ConfigError(f"{self._algorithm}: takes {asset}, which it has not declared; declare {how}")


class Client(Guarded):
    """One client, to an algorithm: its own data, and what everybody has."""

    def __init__(
        self,
        algorithm: str,
        declares: Assumptions,
        task: Task,
        data: tuple[Tensor, Tensor],
        held: tuple[Tensor, Tensor],
        start: Tensor,
        public: Tensor | None,
        key: Key,
        public_seed: int,
    ) -> None:
        """``data`` and ``held``: features and labels that it trains on, and holds out."""
        super().__init__(algorithm, declares)
        self.task = task
        self._data = data
        self._held = held
        self.shared_seed = public_seed
        """Public randomness: the same at all clients and the aggregator."""
        self._start = start
        self._public = public
        self._key = key

    @property
    def features(self) -> Tensor:
        """What it trains on [samples, *shape]."""
        return self._own()[0]

    @property
    def labels(self) -> Tensor:
        """Their labels, int64 [samples]."""
        return self._own()[1]

    @property
    def held_features(self) -> Tensor:
        """What it holds out [samples, *shape]."""
        return self._held_out()[0]

    @property
    def held_labels(self) -> Tensor:
        """Their labels, int64 [samples]."""
        return self._held_out()[1]

    def _own(self) -> tuple[Tensor, Tensor]:
        speaks_only = self._declares.reveals == "predictions" and not self._declares.own_training
        self._demand(not speaks_only, "a client's own samples", "reveals='statistics'")
        return self._data

    def _held_out(self) -> tuple[Tensor, Tensor]:
        is_declared = self._declares.proxy or self._declares.selection == "clients"
        self._demand(is_declared, "samples that clients hold out", "proxy=True")
        return self._held

    @cached_property
    def rng(self) -> np.random.Generator:
        """The client's own randomness."""
        return self._key.rng()

    @cached_property
    def generator(self) -> torch.Generator:
        """The same for tensors."""
        return torch.Generator().manual_seed(int(self.rng.integers(2**63)))

    @property
    def start(self) -> Tensor:
        """The model that all clients start from."""
        self._demand(self._declares.shared_start, "the common initial model", "shared_start=True")
        return self._start

    @property
    def public(self) -> Tensor:
        """Features of the public samples."""
        self._demand(self._declares.public != "none", "public samples", "public='unlabelled'")
        assert self._public is not None  # the experiment has been checked against what the algorithm declares
        return self._public


class Upload(Guarded):
    """What one client has sent, to an algorithm."""

    def __init__(
        self,
        algorithm: str,
        declares: Assumptions,
        client: int,
        model: Tensor | None,
        parts: Mapping[str, Tensor],
        samples: int,
        counts: Sequence[int],
        score: float,
    ) -> None:
        super().__init__(algorithm, declares)
        self.client = client
        self._model = model
        self._parts = parts
        self._samples = samples
        self._counts = counts
        self._score = score

    @property
    def model(self) -> Tensor:
        """Its model's parameters [dimension], float32."""
        self._demand_reveal("model", "a client's model")
        if self._model is None:
            self._refuse("a client's model", "sends_model=True")
        return self._model

    @property
    def samples(self) -> int:
        """How many it says that it has trained on."""
        self._demand_reveal("scalars", "a client's number of samples")
        return self._samples

    @property
    def score(self) -> float:
        """The accuracy of its model on what it holds out."""
        self._demand_reveal("scalars", "a client's score")
        return self._score

    @property
    def counts(self) -> Tensor:
        """Its samples of each class, float64 [classes]."""
        self._demand_reveal("histogram", "a client's label histogram")
        return torch.tensor(self._counts, dtype=torch.float64)

    def part(self, name: str) -> Tensor:
        """Something else that the algorithm lets clients send."""
        return self._parts[name]


class Assets(Guarded):
    """What an aggregator has besides uploads."""

    def __init__(
        self,
        algorithm: str,
        declares: Assumptions,
        task: Task,
        start: Tensor,
        public: tuple[Tensor, Tensor | None] | None,
        key: Key,
        public_seed: int,
    ) -> None:
        """``public``: features, and labels where there are some."""
        super().__init__(algorithm, declares)
        self.task = task
        self.shared_seed = public_seed
        """Public randomness: the same at all clients and the aggregator."""
        self._start = start
        self._public = public
        self._key = key

    @cached_property
    def rng(self) -> np.random.Generator:
        """The aggregator's randomness."""
        return self._key.rng()

    @cached_property
    def generator(self) -> torch.Generator:
        """The same for tensors."""
        return torch.Generator().manual_seed(int(self.rng.integers(2**63)))

    def beside(self, client: int) -> Assets:
        """The same with other randomness, for what is done with one client's upload, whenever that comes."""
        key = self._key._replace(counter=_ONE_BY_ONE + client)
        return Assets(self._algorithm, self._declares, self.task, self._start, self._public, key, self.shared_seed)

    @property
    def start(self) -> Tensor:
        """The model that all clients have started from."""
        self._demand(self._declares.shared_start, "the common initial model", "shared_start=True")
        return self._start

    @property
    def public(self) -> Tensor:
        """Features of the public samples."""
        self._demand(self._declares.public != "none", "public samples", "public='unlabelled'")
        assert self._public is not None  # the experiment has been checked against what the algorithm declares
        return self._public[0]

    @property
    def labels(self) -> Tensor:
        """Labels of the public samples."""
        self._demand(self._declares.public == "labelled", "labels of public samples", "public='labelled'")
        assert self._public is not None
        assert self._public[1] is not None
        return self._public[1]


class Algorithm(ABC):
    """Base of all one-shot algorithms."""

    declares: Assumptions
    """What it needs: of a class, with its own settings; of an instance, with its options."""
    sends_model: ClassVar[bool] = True
    """Whether clients upload what they have trained."""
    trains: ClassVar[bool] = True
    """Whether clients train anything; if not, what they have trained is the model that they have started from."""
    streams: ClassVar[bool] = False
    """Whether the aggregator adds uploads up as they come (:class:`Streaming`), and need not hold them all."""

    class Config(Section):
        """The algorithm's own options: keys of ``[protocol.options]``."""

    config: Any

    def __init__(self, config: Section | None = None) -> None:
        self.config = self.Config() if config is None else config

    def result(self, task: Task, uploads: int) -> Spec:
        """What :meth:`aggregate` gives for so many uploads."""
        return task.model.spec

    def aggregation_flops(self, task: Task, uploads: int, public_samples: int) -> float:
        """What :meth:`aggregate` takes of so many uploads: here, to add them up."""
        return 2.0 * uploads * task.model.dimension

    @abstractmethod
    def aggregate(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """One predictor, as a flat tensor, of uploads in the order of their clients' numbers."""

    def predict(self, state: Tensor, features: Tensor, assets: Assets) -> Tensor:
        """What the predictor says of samples: probabilities [samples, classes]."""
        return assets.task.probabilities(state, features)


class Streaming(Algorithm):
    """One that needs no more of all uploads than a state to which they are added one by one.

    The aggregator lets each upload go once it is added. It adds them in the order of their clients' numbers, so that
    the result has the bits of :meth:`aggregate` over all of them. Both add sound uploads only.
    """

    streams = True

    @abstractmethod
    def state(self, task: Task) -> Spec:
        """What is kept of uploads; before the first it is all zeros."""

    @abstractmethod
    def add(self, state: Tensor, upload: Upload, assets: Assets) -> Tensor:
        """A new state, with one more upload in it; the old one must stay as it is."""

    @abstractmethod
    def finish(self, state: Tensor, assets: Assets) -> Tensor:
        """The predictor, as a flat tensor, of all that has been added."""

    def nothing(self, task: Task) -> Tensor:
        """The state before the first upload."""
        spec = self.state(task)
        return torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype))

    def aggregate(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """One after another."""
        state = self.nothing(assets.task)
        for upload in uploads:
            state = self.add(state, upload, assets.beside(upload.client))
        return self.finish(state, assets)


class OwnTraining(Algorithm):
    """One whose clients train something else than the experiment's model, or by another loss."""

    @abstractmethod
    def fitted(self, task: Task) -> Spec:
        """What :meth:`fit` gives: flat."""

    @abstractmethod
    def fit_samples(self, task: Task, samples: int) -> float:
        """Samples that the experiment's model could be trained on during :meth:`fit` at a client with so many."""

    @abstractmethod
    def fit(self, client: Client) -> Tensor:
        """A client's training; what it gives is sent in the model's place."""


class Measuring(Algorithm):
    """One whose clients send something besides what they have trained, or in its place."""

    def measuring_flops(self, task: Task, samples: int) -> float:
        """What it takes a client of so many samples to find out what it sends: here, next to nothing."""
        return 0.0

    @abstractmethod
    def parts(self, task: Task, counts: Sequence[int]) -> Mapping[str, Spec]:
        """What a client with so many samples of each class sends: in this order, each flat or not."""

    @abstractmethod
    def part(self, name: str, client: Client, trained: Tensor) -> Tensor:
        """One of these, from a client's data and its trained model."""
