"""The bundled network architectures, as plain modules; both convolutional ones normalise by groups, not by batches.

Batch statistics are neither exchanged nor meaningful where nodes hold different labels (Hsieh et al., ICML 2020).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from node.errors import ConfigError


def multilayer(widths: tuple[int, ...]) -> nn.Module:
    """Fully connected layers with ReLU between them; features of any shape are flattened."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def lenet(shape: tuple[int, ...], classes: int) -> nn.Module:
    """GN-LeNet (Hsieh et al., ICML 2020): three 5x5 convolutions with GroupNorm; 89,834 parameters for 3x32x32."""
    channels = _channels("lenet", shape, 8)
    layers: list[nn.Module] = []
    for inputs, outputs in ((channels, 32), (32, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 5, padding=2), nn.GroupNorm(2, outputs), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * (shape[1] // 8) * (shape[2] // 8), classes))


def resnet8(shape: tuple[int, ...], classes: int) -> nn.Module:
    """ResNet-8 (He et al., CVPR 2016, n = 1) with GroupNorm; 77,850 parameters for 3x32x32 and 10 classes."""
    channels = _channels("resnet8", shape, 4)
    first = [nn.Conv2d(channels, 16, 3, padding=1, bias=False), nn.GroupNorm(8, 16), nn.ReLU()]
    blocks = [_Block(16, 16, 1), _Block(16, 32, 2), _Block(32, 64, 2)]
    return nn.Sequential(*first, *blocks, _Mean(), nn.Linear(64, classes))


class _Block(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(8, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(8, outputs)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        hidden = relu(self.norm1(self.conv1(features)))
        return relu(self.norm2(self.conv2(hidden)) + self.shortcut(features))


class _Mean(nn.Module):
    """Average over the image: pooling whose gradient is deterministic on every device."""

    def forward(self, features: Tensor) -> Tensor:
        return torch.mean(features, (2, 3))


def _channels(name: str, shape: tuple[int, ...], smallest: int) -> int:
    """Check that samples are images that are large enough; gives their channels."""
    if len(shape) != 3 or min(shape[1:]) < smallest:
        raise ConfigError(
            f"model.name: {name!r} needs images of shape [channels, height, width] of at least {smallest}x{smallest}; "
            f"the samples have shape {list(shape)}"
        )
    return shape[0]
