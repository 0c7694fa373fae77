"""Tensors as bytes: shared with the network without a copy, and kept in files by parameter name."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from node.errors import ComputeError, Corrupt, Missing, StoreError
from node.learn.models import Model
from node.op import Spec


def to_buffer(value: Tensor) -> memoryview:
    """The tensor's elements as bytes, without a copy; read-only in spirit, as every solved value is."""
    elements = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return elements.data.toreadonly()


def from_buffer(buffer: memoryview | bytearray, spec: Spec) -> Tensor:
    """A tensor on top of bytes, without a copy: it keeps the buffer alive, and nobody may write to either.

    Raises ComputeError where the length is not the spec's.
    """
    size = memoryview(buffer).nbytes
    if size != spec.size_bytes:
        raise ComputeError(f"{size} bytes for a {spec.dtype}{list(spec.shape)} tensor, which has {spec.size_bytes}")
    if not size:
        return torch.empty(spec.shape, dtype=getattr(torch, spec.dtype))
    return torch.frombuffer(buffer, dtype=getattr(torch, spec.dtype)).view(spec.shape)


def save_model(path: Path, model: Model, flat: Tensor) -> None:
    """Write the parameters by name as safetensors, whole or not at all."""
    parts = {name: part.clone() for name, part in model.named(flat).items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(parts, temporary, metadata={"model": model.name})
        temporary.replace(path)
    except SafetensorError as error:
        raise StoreError(f"{path}: cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def load_model(path: Path, model: Model) -> Tensor:
    """Read what :func:`save_model` wrote, as a flat vector [dimension].

    Raises:
        Missing: there is no such file.
        Corrupt: it is no safetensors file, or not of this model; the message names the parameter.
    """
    try:
        parts = load_file(path)
    except FileNotFoundError as error:
        raise Missing(f"{path}: no such model file") from error
    except SafetensorError as error:
        raise Corrupt(f"{path}: not a whole safetensors file: {error}") from error
    flat = torch.zeros(model.dimension)
    wanted = model.named(flat)
    if parts.keys() != wanted.keys():
        odd = min(parts.keys() ^ wanted.keys())
        raise Corrupt(f"{path}: not a {model.name} model: parameter {odd!r} is in only one of the two")
    for name, part in wanted.items():
        if parts[name].shape != part.shape or parts[name].dtype != part.dtype:
            found = f"{parts[name].dtype}{list(parts[name].shape)}"
            raise Corrupt(f"{path}: parameter {name!r} is {found}, where {model.name} has {list(part.shape)}")
        part.copy_(parts[name])
    return flat


def _accept_read_only_buffers() -> None:
    """Frames from the network are read-only; torch says once per process that it cannot enforce that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.frombuffer(b"\0", dtype=torch.uint8)


_accept_read_only_buffers()
