"""What cannot be unified is one line, before anything is trained."""

import re

import pytest

from node import ConfigError
from node.experiment.loading import validated
from node.experiment.setup import prepare
from protocols.cpfl import CPFL


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"compare": ("kd-hart",)}, "protocol.compare: 'kd-hart' cannot be compared; allowed: average, fisher,"),
        ({"compare": ("logit-exchange",)}, "protocol.compare: 'logit-exchange' cannot be compared"),
        ({"unify": "fisher", "compare": ("fisher",)}, "protocol.compare: ['fisher'] names a unifier twice"),
        ({"unify_at": "split"}, "protocol.unify: 'auto' needs the models, but no model leaves its cohort; allowed: kd"),
        ({"unify_at": "split", "unify": "average"}, "protocol.unify: 'average' needs the models"),
        ({"unify_at": "split", "unify": "kd-generated"}, "protocol.unify: 'kd-generated' needs the models"),
        (
            {"unify_at": "split", "unify": "kd-hard", "compare": ("fisher",)},
            "protocol.compare: 'fisher' needs the models, but no model leaves its cohort; allowed: kd-uniform,",
        ),
        (
            {"unify_at": "split", "unify": "kd-hard", "distillation": {"start": "average"}},
            "protocol.distillation.start: 'average' needs the models, but no model leaves its cohort; allowed: fresh",
        ),
        ({"unify": "logit-exchange", "unify_at": "split"}, "protocol.unify_at: 'split' is for one student"),
        ({"unify": "logit-exchange", "late": "fold"}, "protocol.late: 'fold' is for one student, and 'logit-exchange'"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(config, says):
    with pytest.raises(ConfigError, match=re.escape(says)) as refused:
        CPFL.check(CPFL.Config(**config), 8)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("protocol", "tables", "says"),
    [
        ({"unify": "average"}, {"student": {"name": "softmax"}}, "protocol.unify: 'average' averages parameters, and"),
        ({}, {"student": {"name": "softmax"}}, "protocol.unify: 'average' averages parameters, and the student has"),
        (
            {"unify": "kd-hard", "compare": ["fisher"]},
            {"student": {"name": "softmax"}, "public": {"name": "held-out"}},
            "protocol.compare: 'fisher' averages parameters, and the student has another architecture",
        ),
        ({"compare": ["kd-hard"]}, {}, "protocol.compare: 'kd-hard' teaches a student on public data, and there is no"),
        ({"unify": "fisher"}, {"privacy": {"mechanism": "record"}}, "protocol.unify: 'fisher' needs what no privacy"),
        ({}, {"public": {"name": "breast_cancer"}}, "public.name: samples of 'breast_cancer' have shape [30]; allowed"),
    ],
)
def test_what_the_experiment_lacks_is_one_line_before_anything_is_trained(protocol, tables, says):
    options = {"use": "cpfl", "cohorts": 2, "stopping": {"rule": "budget", "most_rounds": 2}, "checkpoint": "last"}
    with pytest.raises(ConfigError, match=re.escape(says)) as refused:
        prepare(validated({"nodes": 4, "protocol": {**options, **protocol}, **tables}, "here"))
    assert "\n" not in str(refused.value)
