"""What an experiment has for one predictor to be made of several models, and what of it does not fit together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from node.config import ExperimentConfig, ModelSection
from node.errors import ConfigError
from node.experiment.plugins import by_path
from node.learn import models
from node.learn.data import Federation
from node.learn.public import PublicData
from node.protocol import Protocol
from node.unifiers import AUTO, Given, advised, refusal


def check(config: ExperimentConfig, protocol: type[Protocol], options: Any) -> None:
    """Raise ConfigError where a protocol's unifier lacks what the experiment would have to say."""
    private = config.privacy.mechanism != "none"
    given = Given(bool(config.public.name), other_student=_is_other(config), private=private)
    name = protocol.unifier(options)
    named = [("unify", advised(given.public) if name == AUTO else name)]
    for key, each in [*named, *(("compare", other) for other in protocol.compared(options))]:
        if reason := refusal(each, given):
            raise ConfigError(f"protocol.{key}: {reason}")


def student_of(config: ExperimentConfig, federation: Federation) -> models.Model | None:
    """What learns from teachers, where it is of another architecture than they.

    Raises ConfigError for a model that does not exist or does not take the samples.
    """
    if not _is_other(config):
        return None
    name = config.student.name
    if ":" in name:
        by_path(name, "student.name")
    section = ModelSection(name=name, hidden=config.student.hidden)
    try:
        return models.build(section, tuple(federation.train.features.shape[1:]), federation.train.classes)
    except ConfigError as error:
        raise ConfigError(str(error).replace("model.name", "student.name")) from None


def statement(public: PublicData | None) -> Mapping[str, Any]:
    """The ``public`` object of a summary; empty where there are no public samples."""
    if public is None:
        return {}
    return {
        "source": public.source,
        "samples": len(public.features),
        "check_samples": public.check_samples,
        "foreign_samples": public.foreign_samples,
    }


def _is_other(config: ExperimentConfig) -> bool:
    """Whether a student is told to be other than its teachers."""
    student, model = config.student, config.model
    if not student.name or student.name != model.name:
        return bool(student.name)
    return student.name == "mlp" and student.hidden != model.hidden
