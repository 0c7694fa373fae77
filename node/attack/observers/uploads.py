"""What an upload gives away of the records behind it: membership inference on what has crossed to the aggregator.

A model is attacked by its loss on each record (Yeom, Giacomelli, Fredrikson, Jha: Privacy Risk in Machine Learning,
CSF 2018), samples by each record's distance to the nearest of them (Chen, Yu, Zhang, Fritz: GAN-Leaks, CCS 2020).
Statistics and predictions are not attacked. Members and non-members of a client are of its own distribution
(:mod:`node.attack.truth`); the records of all clients are judged together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, cat

from node import codec
from node.attack import metrics
from node.attack.attacker import Attack, Scene
from node.attack.observers.membership import Membership
from node.config import ProtocolSection
from node.learn import oneshot
from node.learn.oneshot.algorithm import Algorithm, Assets, OwnTraining, Upload
from node.learn.oneshot.algorithm import Task as Known
from node.learn.oneshot.catalogue import configured
from node.learn.oneshot.given import SampleGiving, nearest_distances
from node.learn.oneshot.precision import narrowed_spec, widened
from node.message import Message
from node.mods import Observer
from node.op import Key, Op, Spec, Task

if TYPE_CHECKING:
    from node.context import Context

ATTACK: Mapping[str, Any] = {"kind": f"{__name__}:UploadLeakage", "nodes": [0]}
"""The ``[[attackers]]`` table: the aggregator follows the protocol, and is curious."""
NAME = "leakage"
"""Begins the names of what is found."""
FIGURES = ("auc", "auc_low", "auc_high", "tpr", "tpr_low", "tpr_high")
"""Area under the attack's curve, and true positive rate at 1 % false positives, each with the ends of the interval
that 95 % of resamples lie in: of records, each with the scores that all clients' uploads give it. That scores by one
model are not quite independent is left out."""
_RESAMPLES = 200
_LEAST_OTHERS = 100
"""Non-members below which a true positive rate at 1 % false positives would be one at none."""


def unattacked(own: Algorithm) -> str:
    """Why nothing that clients of an algorithm upload is attacked; empty where something is."""
    if isinstance(own, SampleGiving):
        return ""
    if isinstance(own, OwnTraining):
        return "a network of the algorithm's own, on which the attack has no loss"
    if own.sends_model:
        return ""
    if own.declares.reveals == "predictions":
        return "predictions on public samples alone, from which the attack has no loss of a client's records"
    return "statistics alone, which the attack has no score for"


class UploadLeakage(Attack):
    """What all uploads together tell of who was a member: one set of figures for a run."""

    def __init__(self, config: Attack.Config, nodes: tuple[int, ...], scene: Scene) -> None:
        super().__init__(config, nodes, scene)
        self._by_loss = Membership(Membership.Config(scores=("loss",)), nodes, scene)
        spec = Spec((len(FIGURES),), "float64", FIGURES)
        basis = _basis(scene)
        self._op: Op[...] = Op("attack:upload-leakage", self._solve, spec=lambda *_: spec, basis=lambda key: basis)
        self.ops.append(self._op)

    def wrapping(self, node: int) -> Sequence[Observer]:
        """The observer of uploads, on the attackers."""
        return (_Uploads(self._judge),) if node in self.nodes else ()

    def _judge(self, ctx: Context, uploads: Mapping[int, Any]) -> None:
        """Attack all uploads at once, by client."""
        given = {client: [ref for _, ref in codec.placed(upload)] for client, upload in sorted(uploads.items())}
        if not given:
            return
        told = tuple(
            (client, len(given[client]), int(getattr(uploads[client], "samples", 0)), *_counts(uploads[client]))
            for client in given
        )
        refs = [ref for sent in given.values() for ref in sent]
        options = self.scene.options
        algorithm, its = getattr(options, "algorithm", ""), getattr(options, "options", {})
        static = {"algorithm": algorithm, "options": json.dumps(its, sort_keys=True), "told": told}
        ctx.record(round=0, **{NAME: ctx.apply(self._op, *refs, **static)})

    def _solve(self, task: Task) -> dict[str, float]:
        own = configured(task.static["algorithm"], task.static["options"]) if task.static["algorithm"] else None
        tensors, scores, members, records = iter(task.inputs), [], [], []
        for client, count, samples, *counts in task.static["told"]:
            sent = [next(tensors) for _ in range(count)]
            if isinstance(own, SampleGiving):
                given = self._samples(own, task, (client, samples, tuple(counts)), sent)
                scores.append(-nearest_distances(self._records(client), given).numpy())
            else:
                scores.append(self._by_loss.scored(self._model(sent[0]), client).scores["loss"])
            records.append(self._records(client))
            members.append(np.arange(len(records[-1])) < self.scene.federation.shards.size(client))
        _, same = np.unique(cat(records).flatten(1).numpy(), axis=0, return_inverse=True)
        return self._figures(np.concatenate(scores), np.concatenate(members), same)

    def _model(self, sent: Tensor) -> Tensor:
        """A model in single precision, whatever it was uploaded in."""
        spec = self.scene.model.spec
        arrived = Spec(tuple(sent.shape), str(sent.dtype).removeprefix("torch."))
        return next(widened(sent, how) for how in ("float32", "float16", "int8") if narrowed_spec(spec, how) == arrived)

    def _samples(
        self, own: SampleGiving, task: Task, told: tuple[int, int, tuple[int, ...]], sent: list[Tensor]
    ) -> Tensor:
        """What one upload gives away."""
        name, (client, samples, counts) = task.static["algorithm"], told
        train, public = self.scene.federation.train, self.scene.federation.public
        known = Known(self.scene.model, tuple(train.features.shape[1:]), train.classes)
        model = sent.pop(0) if own.sends_model else None
        parts = dict(zip(own.parts(known, counts), sent, strict=True)) if sent else {}  # type: ignore[attr-defined]
        upload = Upload(name, own.declares, client, model, parts, samples, counts, 0.0)
        shown = None if public is None else (public.features, public.labels)
        seed = self.scene.config.seed
        start = self.scene.model.initial(seed)
        assets = Assets(name, own.declares, known, start, shown, Key(seed, self.nodes[0], 0), seed)
        return own.samples([upload], assets.beside(client))[0]

    def _records(self, client: int) -> Tensor:
        """Features of a client's members, then of as many others as there are."""
        truth = self.scene.truth
        return cat([truth.members(client).features, truth.non_members(client).features])

    def _figures(self, scores: np.ndarray, members: np.ndarray, same: np.ndarray) -> dict[str, float]:
        """Each figure with the ends of its interval; not a number where there is none."""
        if not np.isfinite(scores).all():
            return dict.fromkeys(FIGURES, np.nan)
        rng = np.random.default_rng([self.scene.config.seed, *NAME.encode()])
        found = np.array(
            [_rates(scores, members), *(_rates(*drawn) for drawn in resampled(scores, members, same, rng))]
        )
        if len(np.unique(same[~members])) < _LEAST_OTHERS:
            found[:, 1] = np.nan
        ends = np.quantile(found[1:], [(1 - metrics.LEVEL) / 2, (1 + metrics.LEVEL) / 2], axis=0)
        return dict(zip(FIGURES, np.concatenate([found[:1], ends]).T.ravel().tolist(), strict=True))


class _Uploads(Observer):
    """Keeps the first upload of each client until the end."""

    def __init__(self, judge: Callable[[Context, Mapping[int, Any]], None]) -> None:
        super().__init__()
        self._judge = judge
        self._first: dict[int, Message] = {}

    def received(self, ctx: Context, sender: int, message: Message) -> None:
        """Whatever carries a model, or may, is an upload."""
        if hasattr(message, "model"):
            self._first.setdefault(sender, message)

    def ended(self, ctx: Context) -> None:
        """All are there."""
        self._judge(ctx, self._first)


def resampled(
    scores: np.ndarray, members: np.ndarray, same: np.ndarray, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Scores and members of resamples, each of as many distinct members and distinct others as there are.

    Args:
        scores: [scores].
        members: bool [scores].
        same: int64 [scores], equal where the record is; all scores of a record are drawn together.
    """
    sides = []
    for side in (np.flatnonzero(members), np.flatnonzero(~members)):
        order = side[np.argsort(same[side], kind="stable")]
        sides.append(np.split(order, np.flatnonzero(np.diff(same[order])) + 1))
    for _ in range(_RESAMPLES):
        rows = np.concatenate([groups[i] for groups in sides for i in rng.integers(len(groups), size=len(groups))])
        yield scores[rows], members[rows]


def _rates(scores: np.ndarray, members: np.ndarray) -> tuple[float, float]:
    """Area under the curve, and true positive rate at 1 % false positives."""
    curve = metrics.curve(scores, members)
    return curve.auc, curve.tpr_at(0.01)


def _counts(upload: Any) -> tuple[int, ...]:
    return tuple(getattr(upload, "counts", ()))


def _basis(scene: Scene) -> bytes:
    """What the figures follow from besides uploads: not from the protocol, so that equal uploads are attacked once."""
    sources = sorted(Path(oneshot.__file__).parent.glob("*.py"))
    alike = replace(scene, config=scene.config.model_copy(update={"protocol": ProtocolSection()}))
    return blake2b(b"".join([alike.basis, *(path.read_bytes() for path in sources)]), digest_size=16).digest()
