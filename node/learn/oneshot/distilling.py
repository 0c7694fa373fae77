"""One model that has learned, from public samples without labels, what all clients' models say of them together.

FedDF: Lin, Kong, Stich, Jaggi: Ensemble Distillation for Robust Model Fusion in Federated Learning, NeurIPS 2020; many
rounds there, one here. FedKD: Gong, Sharma, Karanam, Wu, Chen, Doermann, Innanje: Preserving Privacy in Federated
Learning with Ensemble Cross-Domain Knowledge Distillation, AAAI 2022.

Under strong skew, and with samples of the same kind, the classes that label-weighted probabilities choose teach best;
with samples of another kind, soft targets do, for a student that starts as the average.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from node.assumptions import Assumptions
from node.config import Section
from node.errors import ConfigError
from node.learn.cost import inference_flops, training_flops
from node.learn.oneshot.algorithm import Algorithm, Assets, Task, Upload
from node.learn.oneshot.ensembles import label_weights
from node.learn.unify.combining import combined
from node.learn.unify.distillation import lessons, objective, sharpened
from node.op import Key
from node.unifiers import Loss, Rule

_VALIDATED = 0.2
"""Share of the public samples that a student is judged on, where it is judged."""
_JUDGED_EVERY = 50
"""Steps."""


class Lessons(Section):
    """How a student learns what is said of samples."""

    loss: Loss = "kl"
    """Kullback-Leibler divergence; distance of logits, or of logarithms of probabilities; cross-entropy with the class
    that is said, of all samples alike or by how surely it is said."""
    temperature: float = Field(1.0, gt=0)
    """What logits of both sides are divided by, for ``kl``."""
    steps: int = Field(1500, ge=1)
    """Of Adam. Few public samples still take this many."""
    batch_size: int = Field(64, ge=1)
    """Samples a step."""
    lr: float = Field(1e-3, gt=0)
    """Learning rate at the start."""
    decay: Literal["constant", "cosine"] = "constant"
    """How it falls: not at all, or to 0."""

    def rate(self, step: int) -> float:
        """Of one step, counted from 0."""
        return self.lr if self.decay == "constant" else self.lr * (1 + math.cos(math.pi * step / self.steps)) / 2


class Distillation(Algorithm):
    """A student of any teacher, by any loss, from any start; what is needed depends on which."""

    declares = Assumptions(reveals="histogram", public="unlabelled", mixed_architectures=True)

    class Config(Lessons):
        """Options."""

        teacher: Rule = "probabilities"
        """What the mean is of: logits, probabilities, or votes."""
        weights: Literal["labels", "alike"] = "labels"
        """Whether a model counts for a class as much as it has seen of it."""
        sharpen: float = Field(1.0, gt=0)
        """What the teacher's own logits are multiplied by: above 1 it is surer than the models are."""
        start: Literal["random", "average"] = "random"
        """Where the student starts: from a model of its own, or the mean of all, weighted by their samples."""
        patience: int = Field(0, ge=0)
        """Stop after so many steps without gain on labelled public samples, and keep the best; 0: take all steps."""

    config: Config

    def __init__(self, config: Section | None = None) -> None:
        super().__init__(config)
        averages, counts = self.config.start == "average", self.config.weights == "labels"
        self.declares = Assumptions(
            reveals="histogram" if counts else "scalars" if averages else "model",
            public="labelled" if self.config.patience else "unlabelled",
            shared_start=averages,
            mixed_architectures=not averages,
            selection="labelled" if self.config.patience else "fixed",
        )

    def aggregation_flops(self, task: Task, uploads: int, public_samples: int) -> float:
        """All models' answers, and the student's steps."""
        answers = uploads * public_samples * inference_flops(task.model, task.shape)
        return answers + lesson_flops(self.config, task, public_samples)

    def aggregate(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """Model [dimension]."""
        config = self.config
        logits = [assets.task.logits(upload.model, assets.public) for upload in uploads]
        targets = self.taught(logits, uploads, assets)
        rule: Rule = config.teacher
        if config.sharpen != 1:
            targets, rule = sharpened(targets, config.teacher, config.sharpen), "probabilities"
        start = mean_model(uploads) if config.start == "average" else fresh(assets)
        return self._student(start, targets, rule, assets)

    def taught(self, logits: Sequence[Tensor], uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """What the teacher says of the public samples, of the ``logits`` of each model, all [samples, classes]."""
        weights = label_weights(uploads).tolist() if self.config.weights == "labels" else ()
        return combined(logits, self.config.teacher, weights)

    def _student(self, start: Tensor, targets: Tensor, rule: Rule, assets: Assets) -> Tensor:
        patience = self.config.patience
        if not patience:
            return student(start, targets, rule, assets, self.config)
        held = round(_VALIDATED * len(targets))
        if not 0 < held < len(targets):
            raise ConfigError(
                f"protocol.options.patience: {len(targets)} public samples are too few to judge a student"
            )
        features, labels = assets.public[-held:], assets.labels[-held:]

        def score(flat: Tensor) -> float:
            return float((assets.task.logits(flat, features).argmax(1) == labels).double().mean())

        return student(start, targets[:-held], rule, assets, self.config, Patience(patience, score))


class FedDF(Distillation):
    """A student that starts as the size-weighted average, and learns the mean of all models' logits (Lin et al.)."""

    declares = Assumptions(reveals="scalars", public="unlabelled", shared_start=True)

    class Config(Distillation.Config):
        """Options: the paper's, but for the steps, 10,000 there, and its validation, which ``patience`` asks for."""

        teacher: Rule = "logits"
        """What the mean is of."""
        weights: Literal["labels", "alike"] = "alike"
        """Whether a model counts for a class as much as it has seen of it."""
        start: Literal["random", "average"] = "average"
        """Where the student starts."""
        batch_size: int = Field(128, ge=1)
        """Samples a step."""
        decay: Literal["constant", "cosine"] = "cosine"
        """How the learning rate falls."""

    config: Config


class FedKD(Distillation):
    """A student that learns label-weighted logits by their mean distance (Gong et al.).

    There, clients tell what their models say of public samples, quantised and with noise. Here they upload the models:
    the options show what quantising and noise cost, and hide nothing.
    """

    declares = Assumptions(reveals="histogram", public="unlabelled", mixed_architectures=True)

    class Config(Distillation.Config):
        """Options; the paper takes 200 passes in batches of 512."""

        teacher: Rule = "logits"
        """What the sum is of."""
        loss: Loss = "l1"
        """What the student minimises."""
        levels: int = Field(0, ge=0)
        """Values that a model's logits are rounded to, between its least and largest, 100 in the paper; 0: all."""
        noise: Literal["none", "laplace", "gaussian"] = "none"
        """What is added to each logit."""
        noise_scale: float = Field(1.0, gt=0)
        """Scale of Laplace's distribution, or standard deviation."""
        majority_only: bool = False
        """Whether only models count, all alike, that put the class first which most do."""

    config: Config

    def taught(self, logits: Sequence[Tensor], uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """What the teacher says, of what is left of the logits."""
        told = [self._told(each, assets) for each in logits]
        if not self.config.majority_only:
            return super().taught(told, uploads, assets)
        stacked = torch.stack(told)
        chosen = stacked.argmax(2)
        votes = one_hot(chosen, stacked.shape[2]).sum(0)
        agrees = (chosen == votes.argmax(1)).to(stacked.dtype).unsqueeze(2)
        return (agrees * stacked).sum(0) / agrees.sum(0)

    def _told(self, logits: Tensor, assets: Assets) -> Tensor:
        config = self.config
        if config.levels > 1:
            least, largest = logits.min(), logits.max()
            width = ((largest - least) / (config.levels - 1)).clamp_min(torch.finfo(logits.dtype).tiny)
            logits = least + ((logits - least) / width).round() * width
        if config.noise == "none":
            return logits
        draw = assets.rng.laplace if config.noise == "laplace" else assets.rng.normal
        return logits + torch.from_numpy(draw(0.0, config.noise_scale, tuple(logits.shape))).to(logits.dtype)


class Patience:
    """Keeps the student with the highest score, and says when there has been no gain for too long."""

    def __init__(self, steps: int, score: Callable[[Tensor], float]) -> None:
        self._steps = steps
        self._score = score
        self._highest, self._at = -math.inf, 0
        self.best: Tensor | None = None

    def ends(self, step: int, flat: Tensor) -> bool:
        """Whether to stop after a step, counted from 1, that has made this student."""
        if step % _JUDGED_EVERY == 0 and (score := self._score(flat)) > self._highest:
            self._highest, self._at, self.best = score, step, flat.clone()
        return step - self._at >= self._steps


def student(
    start: Tensor, targets: Tensor, rule: Rule, assets: Assets, how: Lessons, patience: Patience | None = None
) -> Tensor:
    """A student, from the flat vector ``start`` on, of what is said of the first public samples.

    Args:
        targets: logits or probabilities [samples, classes], as ``rule`` has it.
        patience: where its steps may end early.
    """
    loss = objective(how.loss, rule, targets, how.temperature)
    features = assets.public[: len(targets)]
    course = {"steps": how.steps, "batch_size": how.batch_size}
    trained = start
    for step, trained in enumerate(
        lessons(assets.task.model, start, features, loss, drawn_key(assets), **course, lr=how.rate), start=1
    ):
        if patience is not None and patience.ends(step, trained):
            break
    return trained if patience is None or patience.best is None else patience.best


def lesson_flops(how: Lessons, task: Task, public_samples: int) -> float:
    """What a student's steps take."""
    return how.steps * min(how.batch_size, public_samples) * training_flops(task.model, task.shape)


def mean_model(uploads: Sequence[Upload]) -> Tensor:
    """The mean of all models, weighted by their clients' samples, [dimension]."""
    samples = torch.tensor([upload.samples for upload in uploads], dtype=torch.float32)
    return (samples / samples.sum()) @ torch.stack([upload.model for upload in uploads])


def fresh(assets: Assets) -> Tensor:
    """A model of the experiment's architecture that has learned nothing yet, [dimension]."""
    return assets.task.model.initial(int(assets.rng.integers(2**63)))


def drawn_key(assets: Assets) -> Key:
    """What a student's batches follow from."""
    return Key(int(assets.rng.integers(2**63)), 0, 0)
