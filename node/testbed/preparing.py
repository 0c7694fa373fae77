"""The test bed in a folder: trained once, and found there ever after."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from node.adapters.attaching import Attached
from node.adapters.configuration import Settings
from node.adapters.kernels import Stack
from node.adapters.writing import Pair, write_directory
from node.errors import ConfigError
from node.testbed.judging import Scores, judged
from node.testbed.recipe import Recipe
from node.testbed.spelling.languages import SERVED
from node.testbed.tokens import tokenizer
from node.testbed.training import Progress, train_adapters, train_base

FULL = Recipe()
_SUMMARY = "testbed.json"


@dataclass(frozen=True)
class Testbed:
    """Where the parts of a trained test bed are, and how good they are."""

    folder: Path
    scores: Scores

    @property
    def base(self) -> Path:
        """The model with its tokenizer, for transformers."""
        return self.folder / "base"

    @property
    def adapters(self) -> dict[str, Path]:
        """A folder for each language, for PEFT."""
        return {language: self.folder / "adapters" / language for language in SERVED}


def prepare(folder: Path, seed: int = 0, recipe: Recipe = FULL, progress: Progress = lambda *_: None) -> Testbed:
    """The test bed of a recipe and a seed, in a folder of its own under ``folder``; trained if it is not there yet.

    Raises:
        ConfigError: the folder cannot be written to.
    """
    place = folder / f"testbed-{recipe.digest(seed)}"
    if not (place / _SUMMARY).is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=f".{place.name}.", ignore_cleanup_errors=True) as name:
                _train(Path(name), seed, recipe, progress)
                _install(Path(name), place)
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be written to: {error.strerror or error}; name another") from None
    scores = json.loads((place / _SUMMARY).read_text(encoding="utf-8"))["scores"]
    return Testbed(place, Scores(**scores))


def _train(folder: Path, seed: int, recipe: Recipe, progress: Progress) -> None:
    with _one_thread():
        model = train_base(recipe, seed, progress)
        adapters = train_adapters(recipe, model, seed, progress)
        attached = Attached(model, _stacks(recipe, adapters))
        scores = judged(model, attached, recipe.judged)
        attached.detach()
    model.save_pretrained(folder / "base")
    tokenizer().save_pretrained(folder / "base")
    settings = Settings(recipe.rank, recipe.alpha)
    for language, pairs in adapters.items():
        write_directory(folder / "adapters" / language, settings, pairs)
    summary = {"seed": seed, "recipe": asdict(recipe), "scores": scores._asdict()}
    (folder / _SUMMARY).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def _install(new: Path, place: Path) -> None:
    """Another process may have been faster: theirs is as good."""
    new.chmod(0o755)
    try:
        new.rename(place)
    except OSError:
        if not (place / _SUMMARY).is_file():
            shutil.rmtree(place)  # somebody has taken files out of it
            new.rename(place)


def _stacks(recipe: Recipe, adapters: dict[str, dict[str, Pair]]) -> dict[str, Stack]:
    """All adapters, in the order of their languages, and the base in the last slot."""
    scale = torch.tensor([recipe.alpha / recipe.rank] * len(adapters) + [0.0])
    every = list(adapters.values())
    return {
        module: Stack(
            torch.stack([*(pairs[module].a for pairs in every), torch.zeros_like(every[0][module].a)]),
            torch.stack([*(pairs[module].b for pairs in every), torch.zeros_like(every[0][module].b)]),
            scale,
        )
        for module in every[0]
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    """The model is so small that a second thread costs more than it does; and results do not depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
