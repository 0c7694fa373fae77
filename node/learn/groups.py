"""Groups of nodes whose data are of different kinds: turned images, other labels, or another range of one feature.

The clustered settings of personalization and fairness: turned images are those of Ghosh, Chung, Yin, Ramchandran (IFCA,
NeurIPS 2020).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from node.config import DataSection
from node.errors import ConfigError
from node.learn.partition import Shards, partition

if TYPE_CHECKING:
    from node.learn.data import Dataset

_QUARTER_TURNS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Which group's nodes each training sample is for, and what models of each group are tested on."""

    of_sample: np.ndarray
    """int64 [samples]."""
    tests: tuple[Dataset, ...]
    """By group: test samples from the group's own distribution."""


def divide(section: DataSection, train: Dataset, test: Dataset, nodes: int, seed: int) -> tuple[Groups, Shards]:
    """Divide a training set among the groups, and each group's part among its nodes: those of group 0 come first.

    Training images that belong to a turned group are turned in place.

    Raises ConfigError where groups and nodes, or groups and data, do not fit together.
    """
    _check_sizes(section, nodes)
    match section.group_by:
        case "rotation":
            _check_images(section, train)
            of_sample = _at_random(section, train, nodes, seed)
            tests = _turned(section, train, test, of_sample)
        case "labels":
            of_label = _of_label(section, train.classes)
            of_sample = of_label[train.labels.numpy()]
            tests = _rows_by_group(section, test, of_label[test.labels.numpy()])
        case "features":
            _check_column(section, train)
            cuts = _quantiles(section, train)
            of_sample, of_test = (np.searchsorted(cuts, _column(section, part), side="right") for part in (train, test))
            tests = _rows_by_group(section, test, of_test)
    return Groups(of_sample, tests), _within(section, train, of_sample, seed)


def check_idle(section: DataSection) -> None:
    """Raise ConfigError for keys that say how to make groups, where there are none."""
    for key, idle in (("group_by", "rotation"), ("group_column", 0)):
        if getattr(section, key) != idle:
            raise ConfigError(f"data.{key}: there are no groups; write data.groups, or leave {key} out")


# What fits together


def _check_sizes(section: DataSection, nodes: int) -> None:
    sizes = list(section.groups)
    if len(sizes) < 2:
        raise ConfigError(f"data.groups: {sizes} is one group; write the sizes of 2 or more, or leave groups out")
    if sum(sizes) != nodes:
        raise ConfigError(
            f"data.groups: {sizes} are {sum(sizes)} nodes, but {nodes} nodes hold data; sizes must add up"
        )
    if section.partition == "natural" and section.group_by != "rotation":
        raise ConfigError(
            f"data.group_by: {section.group_by!r} would divide the samples of one owner, whom partition = 'natural' "
            "keeps whole; allowed with it: 'rotation'"
        )
    if section.group_column and section.group_by != "features":
        raise ConfigError(f"data.group_column: {section.group_by!r} reads no column; allowed with it: 0")


def _check_images(section: DataSection, train: Dataset) -> None:
    groups, shape = len(section.groups), list(train.features.shape[1:])
    if len(shape) != 3:
        others = "'labels' or 'features'" if len(shape) == 1 else "'labels'"
        raise ConfigError(
            f"data.group_by: 'rotation' turns images [channels, height, width]; samples of {section.name} have shape "
            f"{shape}; allowed: {others}"
        )
    if _QUARTER_TURNS % groups:
        raise ConfigError(
            f"data.groups: {groups} groups would be {360 / groups:g} degrees apart, and images turn by multiples of "
            "90; allowed for 'rotation': 2 or 4 groups"
        )
    if groups == _QUARTER_TURNS and shape[1] != shape[2]:
        raise ConfigError(f"data.groups: images {shape} turn by 90 degrees only if they are square; allowed: 2 groups")


def _check_column(section: DataSection, train: Dataset) -> None:
    shape = list(train.features.shape[1:])
    if len(shape) != 1:
        raise ConfigError(
            f"data.group_by: 'features' needs samples with columns; those of {section.name} have shape {shape}; "
            "allowed: 'rotation' or 'labels'"
        )
    if section.group_column >= shape[0]:
        raise ConfigError(
            f"data.group_column: {section.name} has no column {section.group_column}; allowed: 0 to {shape[0] - 1}"
        )


# Which sample is for which group


def _at_random(section: DataSection, train: Dataset, nodes: int, seed: int) -> np.ndarray:
    """In proportion to the groups' sizes, int64 [samples]; the samples of one owner stay together."""
    kind = "natural" if section.partition == "natural" else "iid"
    shards = partition(section.model_copy(update={"partition": kind}), train, nodes, seed)
    of_node = np.arange(len(section.groups)).repeat(section.groups)
    of_sample = np.empty(len(train.labels), np.int64)
    of_sample[shards.indices] = of_node.repeat(shards.sizes)
    return of_sample


def _of_label(section: DataSection, classes: int) -> np.ndarray:
    """The group of each label, int64 [classes]: runs of equal length, to within one."""
    groups = len(section.groups)
    if groups > classes:
        raise ConfigError(f"data.groups: {groups} groups for {classes} labels; every group needs one of its own")
    return np.concatenate([np.full(len(run), g) for g, run in enumerate(np.array_split(np.arange(classes), groups))])


def _quantiles(section: DataSection, train: Dataset) -> np.ndarray:
    """The smallest value of each group but the first, in proportion to the groups' sizes: [groups - 1]."""
    ordered = np.sort(_column(section, train))
    ends = np.cumsum(section.groups)
    ends = ends[:-1] * len(ordered) // ends[-1]
    # Equal values belong together: a cut among them moves to where they begin, or to where the next value does.
    first, beyond = (np.searchsorted(ordered, ordered[ends], side=side) for side in ("left", "right"))
    nearest = np.where(ends - first <= beyond - ends, first, np.minimum(beyond, len(ordered) - 1))
    return np.asarray(ordered[nearest])


def _column(section: DataSection, data: Dataset) -> np.ndarray:
    return np.asarray(data.features[:, section.group_column])


# What each group is given


def _turned(section: DataSection, train: Dataset, test: Dataset, of_sample: np.ndarray) -> tuple[Dataset, ...]:
    """The test set turned like each group; turns the training samples."""
    step = _QUARTER_TURNS // len(section.groups)
    for group in range(1, len(section.groups)):
        rows = torch.from_numpy(np.flatnonzero(of_sample == group))
        train.features[rows] = _turn(train.features[rows], group * step)
    turned = [replace(test, features=_turn(test.features, g * step)) for g in range(1, len(section.groups))]
    return (test, *turned)


def _turn(images: torch.Tensor, quarters: int) -> torch.Tensor:
    return torch.rot90(images, quarters, (2, 3)).contiguous()


def _rows_by_group(section: DataSection, test: Dataset, of_test: np.ndarray) -> tuple[Dataset, ...]:
    tests = tuple(test.rows(np.flatnonzero(of_test == group)) for group in range(len(section.groups)))
    for group, own in enumerate(tests):
        if not len(own.labels):
            raise ConfigError(f"data.groups: the test set has no samples of group {group}; raise data.test_fraction")
    return tests


def _within(section: DataSection, train: Dataset, of_sample: np.ndarray, seed: int) -> Shards:
    """Each group's samples, divided among its nodes as ``data.partition`` says."""
    parts = list(_parts(section, train, of_sample, seed))
    sizes = np.concatenate([part.sizes for _, part in parts])
    return Shards(np.concatenate([[0], np.cumsum(sizes)]), np.concatenate([rows[part.indices] for rows, part in parts]))


def _parts(
    section: DataSection, train: Dataset, of_sample: np.ndarray, seed: int
) -> Iterator[tuple[np.ndarray, Shards]]:
    for group, nodes in enumerate(section.groups):
        rows = np.flatnonzero(of_sample == group)
        if len(rows) < nodes:
            raise ConfigError(
                f"data.groups: group {group} has {nodes} nodes, but only {len(rows)} training samples; "
                "every node needs one"
            )
        own_seed = np.random.SeedSequence([seed, group, *b"group"]).generate_state(1, np.uint64)
        yield rows, partition(section, train.rows(rows), nodes, int(own_seed[0]))
