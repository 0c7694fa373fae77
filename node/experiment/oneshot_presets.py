"""Who meets where: the settings and entrants of ``starling bench oneshot``, by the name of a preset.

Settings of algorithms are fixed, and none is tuned; a variant is a row of its own, with a name that tells it apart.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from node.assumptions import Allowed, refusal
from node.errors import ConfigError
from node.experiment.oneshot_damage import is_of_uploads
from node.experiment.oneshot_grid import CLIENTS, REFERENCES, Cell, Entrant, Setting
from node.experiment.plugins import by_path

PARTITIONS = ("iid", "dirichlet(0.5)", "dirichlet(0.1)", "shards(2)", "quantity(0.5)")
_SKEWED = "dirichlet(0.1)"

ENTRANTS: tuple[Entrant, ...] = (
    Entrant("average", "average"),
    Entrant("weighted average", "weighted-average"),
    Entrant("trimmed average", "trimmed-average"),
    Entrant("task arithmetic 0.3", "task-arithmetic"),
    Entrant("TIES", "ties"),
    Entrant("DARE", "dare"),
    Entrant("Fisher", "fisher"),
    Entrant("FedFisher", "fedfisher"),
    Entrant("FedFisher K-FAC", "fedfisher-kronecker", is_slow=True),
    Entrant("FedLPA", "fedlpa"),
    Entrant("RegMean 0.9", "regmean"),
    Entrant("RegMean 0.1", "regmean", {"share": 0.1}),
    Entrant("MA-Echo", "ma-echo"),
    Entrant("weight matching", "weight-matching"),
    Entrant("OT fusion", "ot-fusion"),
    Entrant("PFNM", "pfnm"),
    Entrant("ensemble logits", "ensemble-logits"),
    Entrant("ensemble probabilities", "ensemble-probabilities"),
    Entrant("ensemble vote", "ensemble-vote"),
    Entrant("ensemble median", "ensemble-median"),
    Entrant("ensemble trimmed", "ensemble-trimmed"),
    Entrant("ensemble best 5 by score", "ensemble-selected"),
    Entrant("ensemble 5 largest", "ensemble-selected", {"by": "samples"}),
    Entrant("ensemble 5 at random", "ensemble-selected", {"by": "chance"}),
    Entrant("ensemble of 5 kinds", "dedes"),
    Entrant("ensemble size-weighted logits", "ensemble-size-logits"),
    Entrant("ensemble size-weighted probabilities", "ensemble-size-probabilities"),
    Entrant("ensemble label-weighted logits", "ensemble-label-logits"),
    Entrant("ensemble label-weighted probabilities", "ensemble-label-probabilities"),
    Entrant("ensemble masked probabilities", "ensemble-masked-probabilities"),
    Entrant("FedDF", "feddf"),
    Entrant("FedKD", "fedkd"),
    Entrant("distillation KL", "distillation"),
    Entrant("distillation hard labels", "distillation", {"loss": "hard"}),
    Entrant("FedBE", "fedbe"),
    Entrant("FedET", "fedet"),
    Entrant("FedKT", "fedkt", is_slow=True),
    Entrant("prediction upload", "predictions"),
    Entrant("FedOV", "fedov"),
    Entrant("FedOV best 3", "fedov", {"voters": 3}, is_slow=True),
    Entrant("DENSE", "dense"),
    Entrant("Co-Boosting", "co-boosting"),
    Entrant("F-DAFL", "f-dafl", is_slow=True),
    Entrant("F-ADI", "f-adi", is_slow=True),
    Entrant("ridge", "ridge"),
    Entrant("Gaussian head", "gaussian-head"),
    Entrant("class prototypes", "prototypes"),
    Entrant("FedPFT", "fedpft"),
    Entrant("FedCVAE-Ens", "fedcvae"),
    Entrant("FedCVAE-KD", "fedcvae-kd", is_slow=True),
    Entrant("DOSFL", "dosfl", is_slow=True),
    Entrant("centroids", "centroids"),
    Entrant("FENS", sets={"protocol": {"use": "fens"}, "data": {"local_test_fraction": 0.1}}, is_slow=True),
)
"""In the order of the table. Registered algorithms that have no row here come after them, with their defaults."""

VARIANTS: tuple[Entrant, ...] = (
    Entrant("FedDF probabilities", "feddf", {"teacher": "probabilities"}),
    Entrant("FedKD alike", "fedkd", {"weights": "alike"}),
    Entrant("distillation KL sharper", "distillation", {"sharpen": 4.0}),
    Entrant("distillation KL from the average", "distillation", {"start": "average"}),
    Entrant("distillation hard labels from the average", "distillation", {"loss": "hard", "start": "average"}),
)
"""Rows that figures are known of, and that no table needs."""

_LOSSES = ("drop 1", "drop 3", "owner 1", "deadline 50", "deadline 80", "deadline 95")
_LIES = ("sign-flip 2", "nonfinite 2", "over-claim 1", "capped 1")
_EACH = 20
"""Samples a client where there are as many for each, however many clients: fifty find enough in digits."""


@dataclass(frozen=True)
class Preset:
    """What a benchmark covers."""

    main: tuple[Setting, ...]
    """Where entrants are ranked, each with its seeds."""
    beside: tuple[Setting, ...]
    """Other numbers of clients, damage, and protected uploads: for the entrants that are quick."""
    slow_seeds: int
    """Seeds of each main setting for entrants that take long."""
    variants: tuple[Entrant, ...] = ()
    """Who takes part besides, where nobody is named."""

    def cells(self, entrants: Sequence[Entrant]) -> Iterator[Cell]:
        """Every entrant where it has a place, setting by setting: what a setting's entrants share is made once."""
        for setting in (*self.main, *self.beside):
            for entrant in entrants:
                is_time_for = not entrant.is_slow or (setting in self.main and setting.seed < self.slow_seeds)
                if is_time_for and _has_place(entrant, setting):
                    yield Cell(entrant, setting)


def preset(name: str, datasets: Sequence[str] = (), seeds: int = 0) -> Preset:
    """A preset by its name, perhaps with other data sets, or another number of seeds.

    Raises:
        ConfigError: no preset has that name.
    """
    match name:
        case "small":
            found = _small()
        case "orderings":
            found = Preset(tuple(_settings(["digits"], PARTITIONS[:4], 5)), (), 5, VARIANTS)
        case "full":
            found = _full()
        case _:
            raise ConfigError(f"--preset: {name!r} is none; allowed: small, full, orderings")
    main, beside = found.main, found.beside
    if datasets:
        partitions = tuple(dict.fromkeys(setting.partition for setting in main))
        most = 1 + max(setting.seed for setting in main)
        main = tuple(_settings(datasets, partitions, most))
        # How many samples there are for each of many clients is counted for digits.
        beside = tuple(dict.fromkeys(replace(each, data=datasets[0]) for each in beside if not each.each))
    if seeds:
        main = tuple(dict.fromkeys(replace(each, seed=seed) for seed in range(seeds) for each in main))
        beside = tuple(setting for setting in beside if setting.seed < seeds)
    return replace(found, main=main, beside=beside)


def entrants(names: Iterable[str] = (), variants: Iterable[Entrant] = ()) -> list[Entrant]:
    """Lines of reference, then the rows of some names: of a row, of an algorithm, or module:Class; none: all there are.

    Args:
        variants: rows that come after all others where nobody is named.

    Raises:
        ConfigError: there is no row and no algorithm of that name.
    """
    from node.learn.oneshot.catalogue import known

    covered = {entrant.algorithm for entrant in ENTRANTS}
    every = [*ENTRANTS, *(Entrant(name, name) for name in known() if name not in covered)]
    chosen = [entrant for name in names for entrant in _named(name, every)] or [*every, *variants]
    return [*REFERENCES, *{entrant.name: _equipped(entrant) for entrant in chosen}.values()]


def _named(name: str, every: Sequence[Entrant]) -> list[Entrant]:
    rows = [entrant for entrant in every if name in (entrant.name, entrant.algorithm)]
    rows = rows or [entrant for entrant in VARIANTS if name == entrant.name]
    if not rows and ":" in name:
        by_path(name, "--algorithms")
        rows = [Entrant(name, name)]
    if rows:
        return rows
    near = difflib.get_close_matches(name, [word for row in every for word in (row.algorithm, row.name)], 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"--algorithms: no row or algorithm is called {name!r}{hint}; see starling list algorithms")


def _has_place(entrant: Entrant, setting: Setting) -> bool:
    """Whether a setting's damage can befall an entrant, and its privacy cover it."""
    if is_of_uploads(setting.damage) and not entrant.algorithm:
        return False
    return not setting.epsilon or _is_protected(entrant)


def _is_protected(entrant: Entrant) -> bool:
    """Whether noise in one local training covers all that an entrant's clients tell."""
    if not entrant.algorithm:
        return False
    from node.learn.oneshot.catalogue import configured

    everything = Allowed(public=True, labelled=True, proxy=True, private=True)
    return not refusal(entrant.algorithm, configured(entrant.algorithm, entrant.options_json).declares, everything)


def _equipped(entrant: Entrant) -> Entrant:
    """With what its algorithm has declared: samples that clients hold out, labels of the public ones."""
    if not entrant.algorithm:
        return entrant
    from node.learn.oneshot.catalogue import configured

    needs = configured(entrant.algorithm, entrant.options_json).declares
    sets = {table: dict(keys) for table, keys in entrant.sets.items()}
    if needs.proxy or needs.selection == "clients":
        sets.setdefault("data", {}).setdefault("local_test_fraction", 0.1)
    if needs.public == "labelled":
        sets.setdefault("public", {}).setdefault("labelled", True)
    return replace(entrant, sets=sets)


def _small() -> Preset:
    main = (*_settings(["digits"], PARTITIONS, 5), *_settings(["breast_cancer"], PARTITIONS, 2))
    scaled = _settings(["digits"], [_SKEWED], 2, clients=(5, 20, 50))
    each = _alike(_settings(["digits"], [_SKEWED], 1, clients=(5, 10, 20, 50)))
    hit = _settings(["digits"], [_SKEWED], 2, damages=(*_LOSSES, *_LIES))
    noised = _protected(_settings(["digits"], ["iid"], 1), (8.0, 1.0))
    return Preset(main, (*scaled, *each, *hit, *noised), slow_seeds=1)


def _full() -> Preset:
    main = tuple(_settings(["digits", "breast_cancer", "wine"], PARTITIONS, 5))
    scaled = _settings(["digits"], [_SKEWED], 3, clients=(5, 20, 50, 100, 200, 1000))
    each = _alike(_settings(["digits"], [_SKEWED], 3, clients=(5, 10, 20, 50)))
    kinds = ("drop", "owner", "sign-flip", "label-flip", "gaussian", "nonfinite", "over-claim", "capped")
    damages = [*(f"{kind} {count}" for kind in kinds for count in (1, 3, 5)), *_LOSSES[-3:]]
    noised = _protected(_settings(["digits"], ["iid", "dirichlet(0.5)"], 5), (8.0, 4.0, 2.0, 1.0))
    hit = _settings(["digits"], [_SKEWED], 5, damages=damages)
    return Preset(main, (*scaled, *each, *hit, *noised), slow_seeds=5)


def _alike(settings: Iterable[Setting]) -> Iterator[Setting]:
    """With as many samples for each client, however many clients there are."""
    for setting in settings:
        yield replace(setting, each=_EACH)


def _protected(settings: Iterable[Setting], epsilons: Sequence[float]) -> Iterator[Setting]:
    """Each with as many privacy budgets."""
    for setting, epsilon in product(settings, epsilons):
        yield replace(setting, epsilon=epsilon)


def _settings(
    datasets: Sequence[str],
    partitions: Sequence[str],
    seeds: int,
    clients: Sequence[int] = (CLIENTS,),
    damages: Sequence[str] = ("",),
) -> Iterator[Setting]:
    """All combinations, seed by seed, so that what is done first is a small benchmark of its own."""
    for seed, data, partition, count, damage in product(range(seeds), datasets, partitions, clients, damages):
        yield Setting(data, partition, count, seed, damage)
