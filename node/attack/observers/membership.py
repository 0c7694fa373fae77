"""Was this sample in a node's training data? Membership inference on received messages and on final models.

Scores: :mod:`node.attack.scores`; reference models: :mod:`node.attack.lira` (Carlini et al., S&P 2022) and
:mod:`node.attack.rmia` (Zarifzadeh et al., ICML 2024), which sources say more. Members are what a node trains on,
non-members are of the same distribution (:mod:`node.attack.truth`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field
from torch import Tensor, cat

from node.attack import lira, metrics, references, rmia
from node.attack.attacker import Scene
from node.attack.audit import audit
from node.attack.sampling import Curious, Own, Seen, record
from node.attack.scores import SCORES, label_probability, loss, phi, trajectory
from node.attack.truth import Labelled
from node.config import ExperimentConfig
from node.errors import ConfigError
from node.mods import Observer
from node.op import Ref, Spec, Task, Value

if TYPE_CHECKING:
    from node.context import Context

_CURVE_POINTS = 60
_MOST_TRIALS = 20_000
"""Drawn from all, for a bound on epsilon: it tries every threshold."""
_MOST_RESAMPLED, _RESAMPLES = 5_000, 200
"""Samples drawn from all for intervals, and how often; with fewer samples, intervals are wider."""
_TRAJECTORY = "membership_trajectory_auc"
_LEAST_ROUNDS, _LEAST_KNOWN = 3, 20
"""Messages of a victim, and known samples of either side, below which there is no course to learn from."""
_KNOWN = 0.7


class Scored(NamedTuple):
    """Every score of every audited sample of one model."""

    scores: dict[str, np.ndarray]
    """By name, [samples], higher for members."""
    members: np.ndarray
    """bool [samples]."""


class _Reference(NamedTuple):
    """What the reference models say of one victim's samples."""

    inside: np.ndarray
    """Which of them were trained on what, bool [models, samples]."""
    phi: np.ndarray
    probability: np.ndarray
    """Both [models, samples]."""
    population: Labelled
    of_population: np.ndarray
    """Probability of the population's labels, [models, points]."""
    a: float
    """Of RMIA offline."""


class Membership(Curious):
    """Membership inference by several scores at once."""

    class Config(Curious.Config):
        """Options of the attack."""

        scores: tuple[Literal["loss", "entropy", "modified-entropy", "gap"], ...] = Field(
            ("loss", "entropy", "modified-entropy", "gap"), min_length=1
        )
        """Scores that need no other model; the first one is the main one."""
        references: int = Field(0, ge=0, multiple_of=2)
        """Reference models for each victim, for LiRA and RMIA: in pairs that share out the samples; 0: neither."""
        online: bool = False
        """Train the reference models on the audited samples themselves (each on a half), not on a pool apart."""
        reference_epochs: int = Field(20, ge=1)
        """Passes over its samples that a reference model is trained for."""
        tune_rmia: bool = False
        """Tune RMIA's ``a``, from 0 to 1, on a reference model, whose members are known, rather than take 0.3. Of use
        where no reference model was trained on the audited samples; needs four."""
        trajectory: bool = False
        """Judge each victim's messages together at the end too, by what each sample's loss did from one to the next.
        For an attacker that knows the membership of 70% of the samples; keeps all attacked models until then."""
        final: bool = True
        """Attack every node's final model too."""

    config: Config

    def __init__(self, config: Config, nodes: tuple[int, ...], scene: Scene) -> None:
        super().__init__(config, nodes, scene)
        calibrated = ("lira", "rmia") if config.references else ()
        self._names = tuple(name.replace("-", "_") for name in (*config.scores, *calibrated))
        figures = ("auc", "accuracy", "tpr_1pct", "tpr_01pct", "best_auc")
        self.metrics = tuple(f"membership_{figure}" for figure in figures)
        self.metrics += tuple(f"membership_{name}_auc" for name in self._names[1:])
        self._op = self.op("membership", self._solve, Spec((len(self.metrics),), "float64", self.metrics))
        self._references: dict[int, _Reference] = {}
        self._latest_pool = b""
        self._latest_models: tuple[Sequence[Tensor], np.ndarray] = ((), np.zeros((0, 0), dtype=np.bool_))
        self._attacked: dict[int, dict[int, Sequence[Seen]]] = {}
        if config.trajectory:
            self._course = self.op("trajectory", self._solve_course, Spec((1,), "float64", (_TRAJECTORY,)))

    @classmethod
    def check(cls, config: Config, nodes: tuple[int, ...], experiment: ExperimentConfig) -> None:
        """Raise ConfigError for reference models that RMIA cannot be tuned on."""
        if config.tune_rmia and (config.online or config.references < 4):
            raise ConfigError(
                f"attackers.tune_rmia: with references = {config.references} and online = {config.online}; "
                "allowed with 4 references or more that are not online"
            )

    def wrapping(self, node: int) -> Sequence[Observer]:
        """An attacker that is started again has none of the messages that its earlier life has attacked."""
        self._attacked.pop(node, None)
        return super().wrapping(node)

    def attack(self, ctx: Context, round: int, seen: Sequence[Seen], own: Own) -> Sequence[Ref]:
        """One op for each message."""
        if self.config.trajectory:
            self._attacked.setdefault(ctx.me, {})[round] = seen
        return [ctx.apply(self._op, message.model, victim=message.sender) for message in seen]

    def conclude(self, ctx: Context) -> None:
        """One op for each victim who was attacked often enough; it belongs to the last attacked round."""
        attacked, heard = self._attacked.get(ctx.me, {}), dict[int, list[Ref]]()
        for message in [message for seen in attacked.values() for message in seen]:
            heard.setdefault(message.sender, []).append(message.model)
        victims = [victim for victim, models in sorted(heard.items()) if len(models) >= _LEAST_ROUNDS]
        if victims:
            leaks = [ctx.apply(self._course, *heard[victim], victim=victim) for victim in victims]
            record(ctx, max(attacked), victims, leaks, (_TRAJECTORY,))

    def _solve_course(self, task: Task) -> dict[str, float]:
        features, labels, members = self._audited(task.static["victim"])
        losses = -np.stack([loss(said, labels) for said in self._logits(task.inputs, features)], axis=-1)
        rng = np.random.default_rng([self.scene.config.seed, task.static["victim"], *b"trajectory"])
        known = np.zeros(len(members), dtype=np.bool_)
        for side in (np.flatnonzero(members), np.flatnonzero(~members)):
            known[rng.permutation(side)[: int(_KNOWN * len(side))]] = True
        fewest = min(np.count_nonzero(known & members), np.count_nonzero(known & ~members))
        if fewest < _LEAST_KNOWN or not np.isfinite(losses).all():
            return {_TRAJECTORY: math.nan}
        scores = trajectory(losses, members, known, int(rng.integers(2**31)))
        return {_TRAJECTORY: metrics.auc(scores[~known], members[~known])}

    def _solve(self, task: Task) -> dict[str, float]:
        return self.leakage(self.scored(task.inputs[0], task.static["victim"]))

    def scored(self, model: Tensor, victim: int) -> Scored:
        """What a flat model tells of a node's members and of as many others as there are."""
        features, labels, members = self._audited(victim)
        said = self._logits([model], features)[0]
        scores = {name.replace("-", "_"): SCORES[name](said, labels) for name in self.config.scores}
        if self.config.references:
            reference = self._reference(victim)
            scores["lira"] = self._lira(phi(said, labels), reference)
            scores["rmia"] = self._rmia(model, label_probability(said, labels), reference)
        return Scored(scores, members)

    def leakage(self, scored: Scored) -> dict[str, float]:
        """The figures of all scores; nothing is a number where the model says nothing that is one."""
        if not all(np.isfinite(scores).all() for scores in scored.scores.values()):
            return dict.fromkeys(self.metrics, math.nan)
        main, *others = [metrics.measure(scores, scored.members) for scores in scored.scores.values()]
        rates = [math.nan if rate is None else rate for rate in (main.tpr_at_1_percent, main.tpr_at_01_percent)]
        aucs = [main.auc, *(other.auc for other in others)]
        return dict(zip(self.metrics, [main.auc, main.balanced_accuracy, *rates, max(aucs), *aucs[1:]], strict=True))

    def judge(self, models: Mapping[int, Value]) -> dict[str, Any]:
        """The same of every node's final model: for each node, the mean, the worst node and each group."""
        victims = [node for node in sorted(models) if self.scene.truth.has_data(node)]
        if not self.config.final or not victims:
            return {}
        scored = {node: self.scored(models[node], node) for node in victims}
        nodes = {node: self.leakage(found) for node, found in scored.items()}
        groups: dict[int, list[dict[str, float]]] = {}
        for node in victims:
            groups.setdefault(self.scene.truth.group_of(node), []).append(nodes[node])
        worst = max(victims, key=lambda node: np.nan_to_num(nodes[node]["membership_best_auc"], nan=-1))
        return {
            "final": {
                "nodes": {str(node): _plain(leakage) for node, leakage in nodes.items()},
                "mean": _mean(list(nodes.values())),
                "worst": {"node": worst, **_plain(nodes[worst])},
                "groups": {str(group): {"nodes": len(of), **_mean(of)} for group, of in sorted(groups.items())},
                **self._pooled(list(scored.values())),
            }
        }

    def _pooled(self, scored: Sequence[Scored]) -> dict[str, Any]:
        """The curve of the main score over the samples of all nodes, and the epsilon that it would refute.

        The bound takes samples for independent trials, which those of one model are not quite.
        """
        name, delta = self._names[0], self.scene.config.privacy.delta
        known = [found for found in scored if np.isfinite(found.scores[name]).all()]
        if not known:
            return {}
        scores = np.concatenate([found.scores[name] for found in known])
        members = np.concatenate([found.members for found in known])
        rng = np.random.default_rng([self.scene.config.seed, *b"bound"])
        trials = rng.permutation(len(scores))[:_MOST_TRIALS]
        found = audit(scores[trials], members[trials], delta, rng)
        fpr, tpr = metrics.curve(scores, members).log_log(_CURVE_POINTS)
        roc = {"fpr": fpr.tolist(), "tpr": tpr.tolist()}
        few = trials[:_MOST_RESAMPLED]
        pooled = self._intervals(scores[few], members[few], rng)
        return {"roc": roc, "pooled": pooled, "epsilon_at_least": found.epsilon, "delta": delta}

    def _intervals(self, scores: np.ndarray, members: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """AUC and true positive rates of the main score, each with its interval; those that mean something."""
        measured = metrics.measure(scores, members)
        told: dict[str, Callable[[metrics.Curve], float]] = {"membership_auc": lambda curve: curve.auc}
        if measured.tpr_at_1_percent is not None:
            told["membership_tpr_1pct"] = lambda curve: curve.tpr_at(0.01)
        if measured.tpr_at_01_percent is not None:
            told["membership_tpr_01pct"] = lambda curve: curve.tpr_at(0.001)
        found = metrics.intervals(told, scores, members, rng, resamples=_RESAMPLES)
        return {name: interval._asdict() for name, interval in found.items()}

    def _audited(self, victim: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
        truth = self.scene.truth
        inside, outside = truth.members(victim), truth.non_members(victim)
        labels = cat([inside.labels, outside.labels]).numpy()
        members = np.arange(len(labels)) < len(inside.labels)
        return cat([inside.features, outside.features]), labels, members

    def _logits(self, models: Sequence[Tensor], features: Tensor) -> np.ndarray:
        # Matrix products round by where in a cache line a model lies: a copy lies where every other copy does.
        return np.stack([references.logits(self.scene.model, flat.cpu().clone()[None], features)[0] for flat in models])

    # Reference models

    def _reference(self, victim: int) -> _Reference:
        if victim not in self._references:
            self._references[victim] = self._trained(victim)
        return self._references[victim]

    def _trained(self, victim: int) -> _Reference:
        truth, config = self.scene.truth, self.config
        features, labels, _ = self._audited(victim)
        pool = Labelled(features, cat([truth.members(victim).labels, truth.non_members(victim).labels]))
        pool = pool if config.online else truth.pool(victim)
        models, halves = self._models(pool)
        said, population = self._logits(models, features), truth.population(victim)
        inside = halves if config.online else np.zeros((len(halves), len(labels)), dtype=np.bool_)
        of_population = label_probability(self._logits(models, population.features), population.labels.numpy())
        a = self._tuned_a(models, pool, halves, of_population) if config.tune_rmia else rmia.DEFAULT_A
        return _Reference(inside, phi(said, labels), label_probability(said, labels), population, of_population, a)

    def _models(self, pool: Labelled) -> tuple[Sequence[Tensor], np.ndarray]:
        """Reference models of a pool, and who was trained on what; victims of one distribution have both in common."""
        content = b"".join(part.numpy().tobytes() for part in pool)
        digest = blake2b(content, digest_size=16).digest()
        if digest != self._latest_pool:
            config, scene = self.config, self.scene
            rng = np.random.default_rng([scene.config.seed, *digest, *b"references"])
            halves = references.complementary_halves(len(pool.labels), config.references // 2, rng)
            training, seed = scene.config.training, int(rng.integers(2**31))
            models = references.train(scene.model, training, *pool, halves, config.reference_epochs, seed).unbind()
            self._latest_pool, self._latest_models = digest, (models, halves)
        return self._latest_models

    def _tuned_a(
        self, models: Sequence[Tensor], pool: Labelled, halves: np.ndarray, of_population: np.ndarray
    ) -> float:
        """What does best on a reference model, as a model of the pool that it was trained on a half of."""
        of_pool = label_probability(self._logits(models, pool.features), pool.labels.numpy())
        return rmia.tuned_a(of_pool, halves, of_population)

    def _lira(self, target: np.ndarray, reference: _Reference) -> np.ndarray:
        attack = lira.online if self.config.online else lira.offline
        return attack(target, reference.phi, reference.inside)

    def _rmia(self, model: Tensor, target: np.ndarray, reference: _Reference) -> np.ndarray:
        points = reference.population
        of_target = label_probability(self._logits([model], points.features)[0], points.labels.numpy())
        population = rmia.Population(of_target, reference.of_population)
        if self.config.online:
            return rmia.online(target, reference.probability, reference.inside, population)
        return rmia.offline(target, reference.probability, reference.inside, population, a=reference.a)


def _mean(leakages: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    known = {name: [leak[name] for leak in leakages if not math.isnan(leak[name])] for name in leakages[0]}
    return {name: float(np.mean(values)) if values else None for name, values in known.items()}


def _plain(leakage: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in leakage.items()}
