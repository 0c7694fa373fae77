"""Adapters as folders that PEFT reads: for those that were trained here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import save_file
from torch import Tensor

from node.adapters.configuration import FILE_NAME as CONFIG_FILE
from node.adapters.configuration import Settings
from node.adapters.directory import WEIGHTS_FILE


class Pair(NamedTuple):
    """What one linear module is adapted by."""

    a: Tensor
    """[rank, in]"""
    b: Tensor
    """[out, rank]"""


def write_directory(folder: Path, settings: Settings, pairs: Mapping[str, Pair], base: str = "") -> None:
    """Write an adapter's folder; it must not be there yet.

    ``pairs`` are by the modules' names in the base model; ``base`` is its folder or name, for who reads the adapter
    with PEFT. ``settings.targets`` are told by ``pairs``.
    """
    folder.mkdir(parents=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or None,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "use_rslora": settings.use_rslora,
        "target_modules": sorted({module.rpartition(".")[2] for module in pairs}),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tensors = {
        f"base_model.model.{module}.lora_{side}.weight": tensor.detach().contiguous()
        for module, pair in sorted(pairs.items())
        for side, tensor in (("A", pair.a), ("B", pair.b))
    }
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
