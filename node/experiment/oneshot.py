"""What an experiment lets a one-shot algorithm have, and what of the two does not fit together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from node.assumptions import Allowed, Asked, Assumptions, refusal
from node.config import ExperimentConfig
from node.errors import ConfigError
from node.experiment.plugins import by_path
from node.learn.data import Federation
from node.learn.models import Model
from node.learn.oneshot.algorithm import Algorithm, Task
from node.learn.oneshot.catalogue import configured
from node.protocol import Protocol


def check(config: ExperimentConfig, protocol: type[Protocol], options: Any) -> None:
    """Raise ConfigError for a one-shot algorithm that there is not, or that needs what the experiment forbids."""
    if config.public.labelled and not config.public.name:
        raise ConfigError("public.labelled: there are no public samples; set public.name")
    asked = protocol.asked(options)
    if asked is None:
        if config.public.labelled:
            raise ConfigError(f"public.labelled: protocol {config.protocol.use!r} has no use for labels; leave it out")
        own: Assumptions | None = getattr(protocol, "declares", None)
        if own is not None and (reason := refusal(config.protocol.use, own, _allowed(config))):
            raise ConfigError(f"protocol.use: {reason}")
        return
    needs = _algorithm(asked).declares
    if reason := refusal(asked.algorithm, needs, replace(_allowed(config), reveal=asked.reveal)):
        raise ConfigError(f"protocol.algorithm: {reason}")
    if getattr(options, "cover", 0) and not needs.tells("histogram"):
        raise ConfigError(
            f"protocol.cover: {asked.algorithm!r} does not let clients tell which classes they have; allowed with it: 0"
        )


def _allowed(config: ExperimentConfig) -> Allowed:
    """What an experiment offers, whatever clients may reveal."""
    return Allowed(
        public=bool(config.public.name),
        labelled=config.public.labelled,
        proxy=config.data.local_test_fraction > 0,
        private=config.privacy.mechanism != "none",
    )


def check_model(model: Model, federation: Federation, protocol: type[Protocol], options: Any) -> None:
    """Raise ConfigError for a one-shot algorithm that can make nothing of models of an architecture."""
    asked = protocol.asked(options)
    if asked is not None:
        train, public = federation.train, federation.public
        shared = 0 if public is None else len(public.features)
        task = Task(model, tuple(train.features.shape[1:]), train.classes, shared)
        clients = int((federation.shards.sizes > 0).sum())
        _algorithm(asked).result(task, clients)


def statement(protocol: type[Protocol], options: Any) -> Mapping[str, Any]:
    """What the algorithm of a one-shot protocol assumes, for its part of a summary; empty where there is none."""
    asked = protocol.asked(options)
    if asked is None:
        return {}
    own = _algorithm(asked)
    return {"cell": own.declares.cell, "assumes": asdict(own.declares), "streams": own.streams}


def _algorithm(asked: Asked) -> Algorithm:
    if ":" in asked.algorithm:
        by_path(asked.algorithm, "protocol.algorithm")
    return configured(asked.algorithm, json.dumps(asked.options, sort_keys=True))
