"""What ``adapter_config.json`` of PEFT asks for: honoured, or refused by name; nothing in it is passed over in silence.

LoRA is y = Wx + s B(Ax), with s = alpha / r (Hu et al., ICLR 2022) or alpha / sqrt(r) (rsLoRA: Kalajdzievski, 2023).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from node.errors import ConfigError

FILE_NAME = "adapter_config.json"
MOST_BYTES = 1 << 20
MOST_RANK = 4096

Layout: TypeAlias = Literal["peft-lora", "peft-lora-fused-experts"]
LORA: Layout = "peft-lora"
FUSED_EXPERTS: Layout = "peft-lora-fused-experts"
"""The layouts: one pair A, B for each linear module; or also such pairs for all experts of a layer in one."""

_READ = {"peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "target_parameters", "init_lora_weights"}
_OF_TRAINING = {
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("lora_dropout", "megatron_core", "qalora_group_size", "eva_config"),
}
"""These change nothing in what a trained adapter computes."""
_TOLD_BY_TENSORS = {"exclude_modules", "layers_to_transform", "layers_pattern"}
"""These say which modules have tensors; the tensors themselves say it, too."""
_KEEPS_BASE = (True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin that leave the weights of the base as they are; PiSSA, OLoRA and others change them."""


@dataclass(frozen=True)
class Settings:
    """What an adapter's numbers mean."""

    rank: int
    alpha: float
    use_rslora: bool = False
    targets: tuple[str, ...] = ()
    """Endings of the modules' names, sorted; empty where the file has a pattern in their place."""
    layout: Layout = LORA

    @property
    def scale(self) -> float:
        """What B(Ax) is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


def read_settings(path: Path) -> Settings:
    """Read an ``adapter_config.json``.

    Raises:
        ConfigError: it asks for what is not served here; the message names file, key and what is allowed.
    """
    found = _object(path)
    if found.get("peft_type") != "LORA":
        raise ConfigError(f"{path}: peft_type: {_shown(found.get('peft_type'))} is not served; allowed: 'LORA'")
    for key in sorted(found.keys() - _READ - _OF_TRAINING - _TOLD_BY_TENSORS):
        if found[key] not in (None, False, "none", [], {}, ""):
            raise ConfigError(f"{path}: {key}: {_shown(found[key])} is not served; leave it out, or train without it")
    if found.get("init_lora_weights", True) not in _KEEPS_BASE:
        raise ConfigError(
            f"{path}: init_lora_weights: {_shown(found['init_lora_weights'])} changes the base model's weights; convert"
            " the adapter with PEFT's path_initial_model_for_weight_conversion"
        )
    return Settings(
        rank=_rank(path, found.get("r")),
        alpha=_alpha(path, found.get("lora_alpha")),
        use_rslora=_flag(path, "use_rslora", found.get("use_rslora", False)),
        targets=_targets(path, found.get("target_modules")),
        layout=FUSED_EXPERTS if found.get("target_parameters") else LORA,
    )


def _object(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: is missing; an adapter's folder has {FILE_NAME}, as PEFT saves it") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{path}: has more than {MOST_BYTES} bytes; is it the right file?")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: is no JSON object; allowed: the settings of one adapter, by name")
    return found


def _rank(path: Path, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_RANK:
        raise ConfigError(f"{path}: r: {_shown(value)} is no rank; allowed: 1 to {MOST_RANK}")
    return value


def _alpha(path: Path, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e9:
        raise ConfigError(f"{path}: lora_alpha: {_shown(value)} is no number; allowed: -1e9 to 1e9")
    return float(value)


def _flag(path: Path, key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{path}: {key}: {_shown(value)}; allowed: true, false")
    return value


def _targets(path: Path, value: object) -> tuple[str, ...]:
    """A list of names. In place of one a file may have a pattern, which is not run: the tensors tell the modules."""
    if value is None or isinstance(value, str):
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"{path}: target_modules: {_shown(value)}; allowed: a list of module names")
    return tuple(sorted(set(value)))


def _shown(value: object) -> str:
    return repr(value)[:80]
