"""What Byzantine nodes send in place of their models: pure functions, one vector for each receiver.

Each takes what the attacker knows (:class:`View`) and gives a model [d]. Distances, means and deviations are float64
inside. Which nodes lie, and when, is :mod:`node.attack.liar`'s; lies in the data are :mod:`node.attack.poisoning`'s.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from statistics import NormalDist
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from node.errors import ConfigError
from node.learn.robust import PREAGGREGATIONS, RULES, aggregate, code_digest
from node.op import Key, op

_FACTORS = tuple(np.geomspace(0.1, 100, 16).tolist())
"""Where an optimal attack looks for the factor that does the most harm."""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What an attacker knows when it lies to one receiver."""

    own: Tensor
    """The model that it would send if it were honest, [d]."""
    honest: Tensor
    """Models of honest nodes, [k, d] with k at least 1, by node number: all of them, or those that it has heard."""
    nodes: int
    """How many nodes there are."""
    byzantine: int
    """How many of them lie together."""
    to: int = 0
    """The receiver's number, for attacks that tell each receiver something else."""
    target: int | None = None
    """Which row of ``honest`` is the receiver's; None: its model is not known."""

    @property
    def mean(self) -> Tensor:
        """Of the honest models, float64 [d]."""
        return self.honest.double().mean(0)

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of the honest models (of a sample, so one less in the denominator), float64 [d]."""
        return self.honest.double().std(0, correction=min(1, len(self.honest) - 1))


def sign_flip(view: View, of: str = "own") -> Tensor:
    """The own model with the opposite sign, or the honest mean's (``of = "mean"``)."""
    return -(view.own if of == "own" else view.mean)


def gaussian(view: View, rng: np.random.Generator, sigma: float = 10.0, around: str = "own") -> Tensor:
    """Noise N(0, sigma^2) on top of the own model, or alone (``around = "zero"``)."""
    noise = torch.from_numpy(rng.normal(0, sigma, view.own.shape)).to(view.own.device)
    return view.own.double() + noise if around == "own" else noise


def inner_product_manipulation(view: View, epsilon: float = 0.1) -> Tensor:
    """Against the honest mean: ``-epsilon`` times it. Xie, Koyejo, Gupta, UAI 2019; above 1 it is "fall of empires"."""
    return -epsilon * view.mean


def little_is_enough(view: View, z: float | None = None) -> Tensor:
    """ALIE: the honest mean less ``z`` standard deviations. Baruch, Baruch, Goldberg, NeurIPS 2019.

    Args:
        z: None: as large as still hides among the honest, :func:`alie_z`.
    """
    factor = alie_z(view.nodes, view.byzantine) if z is None else z
    return view.mean - factor * view.deviation


def alie_z(nodes: int, byzantine: int) -> float:
    """The largest z at which enough honest nodes are farther from the mean than the lie to make it a majority's view.

    Raises ConfigError where the liars are a majority already, or alone.
    """
    honest, supporters = nodes - byzantine, nodes // 2 + 1 - byzantine
    if byzantine < 0 or not 0 < supporters < honest:
        raise ConfigError(
            f"ALIE: {byzantine} of {nodes} nodes are no minority with honest nodes to persuade; give it z"
        )
    return NormalDist().inv_cdf((honest - supporters) / honest)


def optimal_alie(view: View, rule: str = "mean", pre: Sequence[str] = ()) -> Tensor:
    """ALIE with the z that moves a defender's rule farthest from the honest mean.

    Shejwalkar, Houmansadr, NDSS 2021.
    """
    mean, deviation = view.mean, view.deviation
    return _most_harmful(view, lambda factor: mean - factor * deviation, rule, pre)


def optimal_ipm(view: View, rule: str = "mean", pre: Sequence[str] = ()) -> Tensor:
    """Inner product manipulation with the epsilon that moves a defender's rule farthest from the honest mean."""
    mean = view.mean
    return _most_harmful(view, lambda factor: -factor * mean, rule, pre)


def mimic(view: View, victim: int = 0) -> Tensor:
    """The model of one honest node, whose voice is thereby multiplied. Karimireddy, He, Jaggi, ICLR 2022."""
    return view.honest[victim % len(view.honest)]


def not_finite(view: View, value: str = "nan") -> Tensor:
    """Nothing but NaN, or infinity (``value = "inf"``)."""
    return torch.full_like(view.own, float(value))


def dissensus(view: View, epsilon: float = 1.0) -> Tensor:
    """Push a target away from its honest neighbours, as hard as they pull it. He, Karimireddy, Jaggi, arXiv 2202.01545.

    Takes the mixing weights of all senders for equal. A receiver whose model is not known gets the own model.
    """
    if view.target is None:
        return view.own
    target = view.honest[view.target].double()
    return target - epsilon * (view.honest.double() - target).sum(0) / max(view.byzantine, 1)


def two_faced(view: View, z: float = 1.5) -> Tensor:
    """The honest mean plus ``z`` standard deviations to receivers of even number, minus as much to all others."""
    return view.mean + (z if view.to % 2 == 0 else -z) * view.deviation


@dataclass(frozen=True, slots=True)
class Attack:
    """A lie, and what it takes."""

    function: Callable[..., Tensor]
    """From a :class:`View` (and a generator, if it is random) to what is sent, [d]."""
    is_random: bool = False
    """Takes ``rng``."""
    needs_honest: bool = True
    """Reads the models of honest nodes: all of them where the attacker is omniscient, else those that it has heard."""
    is_per_receiver: bool = False
    """Tells each receiver something else."""

    def check(self, name: str, options: Mapping[str, Any]) -> None:
        """Raise ConfigError, in one line, for an option that there is not, or that cannot have this value."""
        known = [option for option in inspect.signature(self.function).parameters if option not in ("view", "rng")]
        for option, value in options.items():
            if option not in known:
                raise ConfigError(f"mods.{option}: no option of {name!r} (there are {', '.join(known) or 'none'})")
            if allowed := _why_not(option, value):
                raise ConfigError(f"mods.{option}: {value!r} means nothing to {name!r}; allowed: {allowed}")


_CHOICES: Mapping[str, Sequence[str]] = {
    "of": ("own", "mean"),
    "around": ("own", "zero"),
    "value": ("nan", "inf"),
    "rule": tuple(name for name, rule in RULES.items() if not rule.needs_losses),
    "pre": tuple(name for name in PREAGGREGATIONS if name != "bucketing"),
}


def _why_not(option: str, value: Any) -> str:
    """What an option allows, if that is not this value; empty: it is."""
    if option in _CHOICES:
        chosen = value if option == "pre" and isinstance(value, tuple) else (value,)
        return "" if all(each in _CHOICES[option] for each in chosen) else ", ".join(_CHOICES[option])
    if option == "victim":
        return "" if type(value) is int and value >= 0 else "0, 1, 2, ..."
    is_number = type(value) in (int, float) and math.isfinite(value) and (option != "sigma" or value >= 0)
    return "" if is_number else "finite numbers"


ATTACKS: Mapping[str, Attack] = MappingProxyType(
    {
        "sign-flip": Attack(sign_flip),
        "gaussian": Attack(gaussian, is_random=True, needs_honest=False),
        "alie": Attack(little_is_enough),
        "optimal-alie": Attack(optimal_alie),
        "ipm": Attack(inner_product_manipulation),
        "foe": Attack(partial(inner_product_manipulation, epsilon=10.0)),
        "optimal-ipm": Attack(optimal_ipm),
        "mimic": Attack(mimic),
        "nonfinite": Attack(not_finite, needs_honest=False),
        "dissensus": Attack(dissensus, is_per_receiver=True),
        "two-faced": Attack(two_faced, is_per_receiver=True),
    }
)


def lie(view: View, attack: str, rng: np.random.Generator | None = None, **options: Any) -> Tensor:
    """What an attack sends, [d], in the own model's dtype; ``options`` are its function's."""
    chosen = ATTACKS[attack]
    drawn = {"rng": rng} if chosen.is_random else {}
    return chosen.function(view, **drawn, **options).to(view.own.dtype, copy=True)


def _basis(key: Key) -> bytes:
    return _code()


@functools.cache
def _code() -> bytes:
    return blake2b(code_digest() + Path(__file__).read_bytes(), digest_size=16).digest()


@partial(replace, basis=_basis)
@op
def told(own: Tensor, *honest: Tensor, attack: str, **knowledge: Any) -> Tensor:
    """:func:`lie` as an op; ``knowledge`` are :class:`View`'s numbers, and the attack's options. No ``honest``: own."""
    return lie(_view(own, honest, knowledge), attack, **knowledge)


@partial(replace, basis=_basis)
@op(seeded=True)
def told_at_random(own: Tensor, *honest: Tensor, attack: str, rng: np.random.Generator, **knowledge: Any) -> Tensor:
    """The same for a random attack."""
    return lie(_view(own, honest, knowledge), attack, rng, **knowledge)


def _view(own: Tensor, honest: Sequence[Tensor], knowledge: dict[str, Any]) -> View:
    """Takes out of ``knowledge`` what is not the attack's."""
    numbers = {name: knowledge.pop(name) for name in ("nodes", "byzantine", "to", "target") if name in knowledge}
    return View(own, torch.stack([model.to(own.device) for model in honest or (own,)]), **numbers)


def _most_harmful(view: View, make: Callable[[float], Tensor], rule: str, pre: Sequence[str]) -> Tensor:
    """Of lies with different factors, the one with which a rule ends farthest from the honest mean; ties: the first.

    An attacker that knows too few honest models for the rule tries it with fewer liars, as far as that goes.
    """
    count = len(view.honest) + view.byzantine
    tolerated = [f for f in range(view.byzantine, -1, -1) if not RULES[rule].requires(count, f)]
    if not tolerated:
        return make(_FACTORS[0])
    first = view.target or 0
    receiver_first = [first, *[i for i in range(len(view.honest)) if i != first]]
    honest = view.honest[receiver_first]
    worst, farthest = make(_FACTORS[0]), -math.inf
    for lied in map(make, _FACTORS):
        lies = lied.to(honest.dtype).expand(view.byzantine, -1)
        reached = aggregate(torch.cat([honest, lies]), rule, tolerated[0], pre)
        distance = float(torch.linalg.vector_norm(reached.double() - view.mean))
        if distance > farthest:
            worst, farthest = lied, distance
    return worst
