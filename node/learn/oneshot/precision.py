"""Models in fewer bytes: half precision, or a byte a parameter.

An ``int8`` model is flat bytes: each parameter as a whole number from -127 to 127 times the model's largest magnitude
over 127, and that unit as 4 bytes at the end (Jacob et al., CVPR 2018; symmetric, rounded to nearest).
"""

from __future__ import annotations

import torch
from torch import Tensor

from node.assumptions import Precision
from node.op import Spec

_MOST = 127
_UNIT_BYTES = 4


def narrowed_spec(spec: Spec, precision: Precision) -> Spec:
    """What :func:`narrowed` gives of a flat float32 model."""
    match precision:
        case "float32":
            return spec
        case "float16":
            return spec._replace(dtype="float16")
        case "int8":
            return Spec((spec.shape[0] + _UNIT_BYTES,), "uint8")


def narrowed(flat: Tensor, precision: Precision) -> Tensor:
    """A flat float32 model [dimension] as it is uploaded. What is no finite number stays none."""
    match precision:
        case "float32":
            return flat
        case "float16":
            return flat.half()
        case "int8":
            unit = (flat.abs().max() / _MOST).reshape(1)
            whole = torch.round(torch.nan_to_num(flat / unit)).to(torch.int8)
            return torch.cat([whole.view(torch.uint8), unit.view(torch.uint8)])


def widened_spec(spec: Spec, precision: Precision) -> Spec:
    """What :func:`widened` gives of an upload."""
    return Spec((spec.shape[0] - (_UNIT_BYTES if precision == "int8" else 0),))


def widened(sent: Tensor, precision: Precision) -> Tensor:
    """The flat float32 model [dimension] of an upload."""
    match precision:
        case "float32":
            return sent
        case "float16":
            return sent.float()
        case "int8":
            unit = sent[-_UNIT_BYTES:].clone().view(torch.float32)  # a buffer from the network may begin anywhere
            return sent[:-_UNIT_BYTES].view(torch.int8).float() * unit
