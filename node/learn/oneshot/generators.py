"""Clients that upload something which makes samples like theirs: the decoder of a conditional variational autoencoder.

FedCVAE: Heinbaugh, Luz-Ricca, Shao: Data-Free One-Shot Federated Learning Under Very High Statistical Heterogeneity,
ICLR 2023. Autoencoder: Kingma, Welling: Auto-Encoding Variational Bayes, ICLR 2014; conditional: Sohn, Lee, Yan, NIPS
2015. All networks here have one hidden layer. A decoder of few samples has learned them by heart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, linear, mse_loss, one_hot
from torch.nn.init import trunc_normal_

from node.assumptions import Assumptions
from node.learn.cost import training_flops
from node.learn.oneshot.algorithm import Assets, Client, OwnTraining, Task, Upload
from node.learn.oneshot.datafree import is_standardised
from node.learn.oneshot.given import SampleTaught, shuffled
from node.learn.training import Adam
from node.op import Spec


class Network(NamedTuple):
    """One hidden layer of rectified units, as a function of one flat vector of parameters."""

    inputs: int
    hidden: int
    outputs: int

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of weights and biases, layer by layer."""
        return (self.hidden, self.inputs), (self.hidden,), (self.outputs, self.hidden), (self.outputs,)

    @property
    def dimension(self) -> int:
        """Parameters."""
        return sum(map(math.prod, self.shapes))

    def initial(self, draws: torch.Generator) -> Tensor:
        """Uniform within one over the root of a layer's inputs: [dimension]."""
        widths = self.inputs, self.inputs, self.hidden, self.hidden
        parts = [
            (torch.rand(math.prod(shape), generator=draws) * 2 - 1) / math.sqrt(width)
            for shape, width in zip(self.shapes, widths, strict=True)
        ]
        return torch.cat(parts)

    def __call__(self, flat: Tensor, inputs: Tensor) -> Tensor:
        """Outputs [samples, outputs] of inputs [samples, inputs]."""
        parts = torch.split(flat, [*map(math.prod, self.shapes)])
        first, shift, second, bias = (part.view(shape) for part, shape in zip(parts, self.shapes, strict=True))
        return linear(linear(inputs, first, shift).relu(), second, bias)


class FedCVAE(SampleTaught, OwnTraining):
    """FedCVAE-Ens: a decoder from each client; the model learns from what all of them make."""

    declares = Assumptions(reveals="generator", own_training=True, mixed_architectures=True)

    class Config(SampleTaught.Config):
        """Options."""

        steps: int = Field(780, ge=1)
        """Of the model: ten passes over what is made."""
        batch_size: int = Field(64, ge=1)
        """Samples a step of the model."""
        latent: int = Field(10, ge=1)
        """Numbers that a sample is made from, besides its class."""
        hidden: int = Field(256, ge=1)
        """Width of encoder and decoder."""
        client_epochs: int = Field(60, ge=1)
        """Passes of an autoencoder over a client's samples."""
        client_batch_size: int = Field(64, ge=1)
        """Samples a step of an autoencoder, or of the one decoder where all are made one."""
        made: int = Field(5000, ge=1)
        """Samples that the aggregator makes, of each client as its share of all samples is."""
        truncation: float = Field(3.0, gt=0)
        """The numbers that samples are made from are normal, and no further from 0 than this."""

    config: Config

    def fitted(self, task: Task) -> Spec:
        """A decoder, flat."""
        return Spec((self.decoder(task).dimension,))

    def fit_samples(self, task: Task, samples: int) -> float:
        """Each sample of each epoch, and as much more as an autoencoder is larger than the model."""
        flops = 6.0 * (self.decoder(task).dimension + self.encoder(task).dimension)
        return self.config.client_epochs * samples * flops / training_flops(task.model, task.shape)

    def fit(self, client: Client) -> Tensor:
        """Decoder [dimension], trained with an encoder that stays at home."""
        decoder, encoder = self.decoder(client.task), self.encoder(client.task)
        flats = [decoder.initial(client.generator), encoder.initial(client.generator)]
        members = one_hot(client.labels, client.task.classes).float()
        values = client.features.flatten(1)
        distance = reconstruction(client.task)

        def loss(rows: Tensor, leaves: Sequence[Tensor]) -> Tensor:
            mean, logarithm = encoder(leaves[1], torch.cat([values[rows], members[rows]], 1)).chunk(2, 1)
            noise = torch.randn(mean.shape, generator=client.generator)
            drawn = mean + noise * (logarithm / 2).exp()
            made = decoder(leaves[0], torch.cat([drawn, members[rows]], 1))
            divergence = (mean**2 + logarithm.exp() - logarithm - 1).sum() / 2
            return (distance(made, values[rows]) + divergence) / len(rows)

        minimised(loss, flats, self.batches(len(values), self.config.client_epochs, client.rng), self.config.lr)
        return flats[0]

    def samples(self, uploads: Sequence[Upload], assets: Assets) -> tuple[Tensor, Tensor]:
        """What all decoders make, and the classes that it is of."""
        _, made, labels = self.made_by(uploads, self.config.made, self.config.truncation, assets)
        return made, labels

    def made_by(
        self, uploads: Sequence[Upload], count: int, truncation: float, assets: Assets
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Latent vectors, what clients' decoders make of them, and of which classes: of each client by its samples."""
        total = float(torch.stack([upload.counts for upload in uploads]).sum())
        drawn = [
            self.drawn(upload.counts, round(count * float(upload.counts.sum()) / total), truncation, assets)
            for upload in uploads
        ]
        made = [self.made(upload.model, *each, assets) for upload, each in zip(uploads, drawn, strict=True)]
        latent, labels = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        return latent, torch.cat(made), labels

    def drawn(self, counts: Tensor, count: int, truncation: float, assets: Assets) -> tuple[Tensor, Tensor]:
        """So many latent vectors [count, latent], and classes by how many samples there are of each [count]."""
        latent = torch.empty(count, self.config.latent)
        trunc_normal_(latent, a=-truncation, b=truncation, generator=assets.generator)
        if not count:
            return latent, torch.zeros(0, dtype=torch.int64)
        return latent, torch.multinomial(counts, count, replacement=True, generator=assets.generator)

    def made(self, flat: Tensor, latent: Tensor, labels: Tensor, assets: Assets) -> Tensor:
        """What a decoder makes of latent vectors and classes, [samples, *shape]."""
        task = assets.task
        members = one_hot(labels, task.classes).float()
        values = self.decoder(task)(flat, torch.cat([latent, members], 1))
        return (values if is_standardised(task) else values.sigmoid()).view(-1, *task.shape)

    def batches(self, samples: int, epochs: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """Rows of so many passes over samples."""
        size = self.config.client_batch_size
        return shuffled(samples, size, epochs * math.ceil(samples / size), rng)

    def decoder(self, task: Task) -> Network:
        """From latent vectors and classes to samples, before the sigmoid of images."""
        return Network(self.config.latent + task.classes, self.config.hidden, math.prod(task.shape))

    def encoder(self, task: Task) -> Network:
        """From samples and classes to the means, and the logarithms of the variances, of latent vectors."""
        return Network(math.prod(task.shape) + task.classes, self.config.hidden, 2 * self.config.latent)


class FedCVAEKD(FedCVAE):
    """FedCVAE-KD: all decoders made one first, which then makes the samples."""

    class Config(FedCVAE.Config):
        """Options."""

        lessons: int = Field(5000, ge=1)
        """Samples of all decoders that the one learns to make."""
        lesson_epochs: int = Field(7, ge=1)
        """Its passes over them."""
        lesson_truncation: float = Field(1.0, gt=0)
        """As ``truncation``, for the samples that it learns."""

    config: Config

    def samples(self, uploads: Sequence[Upload], assets: Assets) -> tuple[Tensor, Tensor]:
        """What the one decoder makes, and the classes that it is of."""
        counts = torch.stack([upload.counts for upload in uploads]).sum(0)
        latent, labels = self.drawn(counts, self.config.made, self.config.truncation, assets)
        return self.made(self.distilled(uploads, assets), latent, labels, assets), labels

    def distilled(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """One decoder [dimension] that makes of a latent vector and a class what the clients' make of them."""
        config, task = self.config, assets.task
        latent, made, labels = self.made_by(uploads, config.lessons, config.lesson_truncation, assets)
        inputs, values = torch.cat([latent, one_hot(labels, task.classes)], 1), made.flatten(1)
        decoder, distance = self.decoder(task), reconstruction(task)
        flat = decoder.initial(assets.generator)
        minimised(
            lambda rows, leaves: distance(decoder(leaves[0], inputs[rows]), values[rows]) / len(rows),
            [flat],
            self.batches(len(labels), config.lesson_epochs, assets.rng),
            config.lr,
        )
        return flat


def reconstruction(task: Task) -> Callable[[Tensor, Tensor], Tensor]:
    """How far a decoder's outputs are from samples, summed up: of images cross-entropy, of others half the squares."""
    if is_standardised(task):
        return lambda made, values: mse_loss(made, values, reduction="sum") / 2
    return lambda made, values: binary_cross_entropy_with_logits(made, values, reduction="sum")


def minimised(
    loss: Callable[[Tensor, Sequence[Tensor]], Tensor], flats: Sequence[Tensor], batches: Iterator[Tensor], lr: float
) -> None:
    """Let flat vectors take a step of Adam for each batch, in place; ``loss`` is of rows and vectors."""
    rule = Adam()
    leaves = [flat.detach().requires_grad_() for flat in flats]
    for rows in batches:
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss(rows, leaves), leaves)
        with torch.no_grad():
            rule.step(leaves, list(gradients), lr)
