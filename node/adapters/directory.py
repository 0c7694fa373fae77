"""An adapter's folder, as PEFT saves it: which files it has, and whether they are what they should be."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from node.adapters.configuration import FILE_NAME as CONFIG_FILE
from node.adapters.configuration import LORA, Settings, read_settings
from node.adapters.headers import Extent, read_extents
from node.errors import ConfigError, Corrupt

WEIGHTS_FILE = "adapter_model.safetensors"
MOST_FILES = 64
MOST_NAME_BYTES = 200
"""Of a file's name."""
MOST_TENSOR_NAME = 500
"""Characters of a tensor's name."""
FLOATS = ("F64", "F32", "F16", "BF16")

_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_LAYER = re.compile(r"\.(\d{1,9})\.")
REST = "rest"
"""The layer of modules that are in none, such as the output of the whole model."""


@dataclass(frozen=True)
class Directory:
    """An adapter's folder that has been looked through. Its weights have not been read."""

    folder: Path
    settings: Settings
    files: tuple[str, ...]
    """The names of all its files, sorted; they are kept as they are."""
    extents: tuple[Extent, ...]
    """The tensors, sorted by name."""


def read_directory(folder: Path) -> Directory:
    """Look through an adapter's folder.

    Raises:
        ConfigError: it has pickles, folders or links, or it asks for what is not served.
        Corrupt: its tensors are no adapter's, or not those that its settings promise.
    """
    files = _files(folder)
    settings = read_settings(folder / CONFIG_FILE)
    path = folder / WEIGHTS_FILE
    if WEIGHTS_FILE not in files:
        raise ConfigError(f"{path}: is missing; an adapter's folder has {WEIGHTS_FILE}, as PEFT saves it")
    try:
        with path.open("rb") as file:
            extents = tuple(read_extents(file))
        check_pairs(extents, settings)
    except Corrupt as error:
        raise Corrupt(f"{path}: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    return Directory(folder, settings, files, extents)


def module_of(tensor: str) -> tuple[str, str]:
    """The module that a tensor adapts, by its name in the base model, and which side it is: A or B.

    Raises:
        Corrupt: no LoRA tensor of a linear module has such a name.
    """
    match = _TENSOR.fullmatch(tensor) if len(tensor) <= MOST_TENSOR_NAME else None
    if match is None:
        raise Corrupt(f"tensor {tensor[:100]!r} is not served; allowed: base_model.model.MODULE.lora_A|lora_B.weight")
    return match["module"], match["side"]


def layer_of(module: str) -> str:
    """The number of the transformer layer that a module is in, as text; ``rest`` where it is in none."""
    match = _LAYER.search(f".{module}.")
    return str(int(match[1])) if match else REST


def layer_order(layer: str) -> tuple[bool, int]:
    """Sorts layers as a forward pass comes through them, the rest last."""
    return layer == REST, 0 if layer == REST else int(layer)


def check_pairs(extents: tuple[Extent, ...], settings: Settings) -> None:
    """Corrupt unless each module has A [rank, in] and B [out, rank] and every target is there.

    For fused experts these are A [experts * rank, in] and B [out, experts * rank].
    """
    pairs: dict[str, dict[str, Extent]] = defaultdict(dict)
    for extent in extents:
        module, side = module_of(extent.name)
        pairs[module][side] = extent
        if extent.dtype not in FLOATS or len(extent.shape) != 2 or not extent.size_bytes:
            raise Corrupt(
                f"tensor {extent.name[:100]!r} is {extent.dtype}{list(extent.shape)}; allowed: matrices of"
                f" {', '.join(FLOATS)}"
            )
    if not pairs:
        raise Corrupt("it has no tensors; was the adapter trained?")
    for module, pair in pairs.items():
        if pair.keys() != {"A", "B"}:
            raise Corrupt(f"module {module[:100]!r} has only lora_{min(pair)}")
        ranks = pair["A"].shape[0], pair["B"].shape[1]
        fits = ranks[0] == settings.rank if settings.layout == LORA else ranks[0] % settings.rank == 0
        if ranks[0] != ranks[1] or not fits:
            raise Corrupt(f"module {module[:100]!r}: rank {ranks[0]} in A, {ranks[1]} in B; r is {settings.rank}")
    endings = {ending for module in pairs for ending in _endings(module)}
    for target in settings.targets:
        if target not in endings:
            raise Corrupt(f"{CONFIG_FILE} names the target {target[:100]!r}, and no tensor is for it")


def is_file_name(name: str) -> bool:
    """Whether this can be the name of an adapter's file: one in its folder, that can be shown and written anywhere."""
    is_plain = name.isprintable() and "/" not in name and name not in ("", ".", "..")
    return is_plain and len(name.encode()) <= MOST_NAME_BYTES


def _endings(module: str) -> list[str]:
    """a.b.c: a.b.c, b.c and c."""
    parts = module.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _files(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is no folder; name an adapter's folder, as PEFT saves it")
    paths = sorted(folder.iterdir())
    if len(paths) > MOST_FILES:
        raise ConfigError(f"{folder}: has {len(paths)} files; allowed: {MOST_FILES}, those that PEFT saves")
    for path in paths:
        if path.suffix.lower() in _PICKLES:
            raise ConfigError(
                f"{path}: is a pickle, which may run code when it is read; load the adapter with PEFT where you trust"
                f" it, save it with save_pretrained(FOLDER, safe_serialization=True), and keep only {WEIGHTS_FILE}"
            )
        if not is_file_name(path.name):
            raise ConfigError(f"{folder}: has a file {path.name!r}; allowed: names of up to {MOST_NAME_BYTES} bytes")
        if path.is_symlink() or not path.is_file():
            raise ConfigError(f"{path}: is no plain file; an adapter's folder has only files, as PEFT saves them")
    return tuple(path.name for path in paths)
