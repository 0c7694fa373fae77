"""How many cohorts for a budget: outcomes and their costs, the recommendation, gradient noise, pictures."""

from __future__ import annotations

import pytest

from node.cli import cohort_plots
from node.cli.cohort_budget import Budget, advice, advised, budget, default, outcomes, within
from node.cli.cohort_noise import scales
from node.errors import ConfigError
from node.experiment.axes import grids
from node.experiment.loading import load
from node.experiment.noise_scale import NoiseScale, noise_scale
from node.experiment.setup import find_protocol
from node.experiment.sweep import points
from study_runs import made, run, rung

SMALL = ["nodes=6", "public.name=", "protocol.unify=average", "protocol.compare=[]", "model.hidden=[8]"]


def test_what_becomes_of_cohorts_costs_what_it_takes_besides_training():
    one, ensemble, average, student = outcomes(made(run(1, 1), run(1, 4, scale=0.5)).cells)
    assert [each.result for each in (one, ensemble, average, student)] == ["one", "ensemble", "average", "student"]
    assert (one.time_s, one.device_hours, one.bytes) == pytest.approx((100, 0.5, 30e6 + 500))
    assert (average.time_s, average.device_hours) == pytest.approx((52, 0.25))
    assert (student.time_s, student.device_hours) == pytest.approx((52 + 360, 0.25 + 0.1))
    assert student.bytes == pytest.approx(15e6 + 500 + 4000)
    assert student.accuracy == pytest.approx(0.88)


def test_the_best_within_a_budget_and_the_cheaper_of_equal_ones():
    found = outcomes(made(run(1, 1), run(1, 2, scale=0.8), run(1, 4, scale=0.5)).cells)
    assert within(found, Budget("time_s", 1000)).cell.first.cohorts == 4
    assert within(found, Budget("time_s", 51)) is None
    assert within(found, Budget("bytes", 29e6)).accuracy == pytest.approx(0.9)


def test_the_recommendation_names_a_number_and_what_it_costs():
    found = made(run(1, 1, accuracy=0.95), run(1, 4, accuracy=0.93, scale=0.5))
    assert default(found, "") == Budget("device_hours", pytest.approx(0.375))
    (said,) = advice(found, "")
    assert said.startswith("Within 0.375 device hours: K = 4 is recommended (4 cohorts: ensemble): accuracy 0.930 for")
    (said,) = advice(found, "", Budget("time_s", 500))
    assert "K = 1" in said
    (said,) = advice(found, "", Budget("time_s", 5))
    assert "no number of cohorts trains until it stops; the least is 52" in said


def test_stopping_earlier_may_do_better_than_any_number_of_cohorts():
    found = made(
        run(1, 1, accuracy=0.95), run(1, 4, accuracy=0.9, scale=0.5), rung(1, 60, 0.94, 8), rung(1, 20, 0.8, 8)
    )
    said = advice(found, "", Budget("time_s", 80))
    assert "K = 4" in said[0]
    assert said[1].startswith("Stopping earlier does better: one network, 8 a round, 60 rounds reaches 0.940")


@pytest.mark.parametrize("text", ["", "hours=3", "time_s", "time_s=", "time_s=-1", "bytes=0", "bytes=nan", "bytes=inf"])
def test_a_wrong_budget_is_one_line(text):
    with pytest.raises(
        ConfigError, match=r"--budget .*allowed: time_s=NUMBER, device_hours=NUMBER, bytes=NUMBER, above 0"
    ):
        budget(text)


def test_a_budget_needs_runs_that_differ_in_their_cohorts():
    assert budget("bytes=2e8") == Budget("bytes", 2e8)
    with pytest.raises(ConfigError, match="different numbers of cohorts"):
        advised([run(1, 4)], "bytes=2e8")
    skews = [run(1, cohorts, alpha=alpha) for cohorts in (1, 4) for alpha in (0.1, 1.0)]
    said = advised(skews, "time_s=1000")
    assert ["alpha=0.1" in said[0], "alpha=1)" in said[1]] == [True, True]


def test_the_noise_scale_follows_from_the_experiment_alone():
    config = load("cpfl", SMALL, {})
    first = noise_scale(config, rounds=1)
    assert first == noise_scale(config, rounds=1)
    assert first.participants > 0
    assert 1 <= first.advised_cohorts <= 6


def test_skewed_nodes_agree_less():
    skewed, even = (
        noise_scale(load("cpfl", [*SMALL, *sets], {}), 1) for sets in (["data.alpha=0.1"], ["data.partition=iid"])
    )
    assert skewed.participants > even.participants
    assert skewed.advised_cohorts <= even.advised_cohorts


def test_every_setting_has_the_mean_scale_of_its_seeds(monkeypatch):
    told = {(1, 0.1): NoiseScale(4.0, 6), (2, 0.1): NoiseScale(8.0, 3), (1, 1.0): NoiseScale(2.0, 12)}
    monkeypatch.setattr("node.experiment.noise_scale.noise_scale", lambda config: told[config.seed, config.data.alpha])
    found = made(run(1, 1), run(2, 1), run(1, 4), run(1, 1, alpha=1.0))
    assert scales(found) == {"alpha=0.1": NoiseScale(6.0, 4), "alpha=1": NoiseScale(2.0, 12)}


def test_a_setting_whose_data_are_gone_has_none(monkeypatch):
    def gone(config):
        raise ConfigError("data.name: there is no file 'gone.npz'")

    monkeypatch.setattr("node.experiment.noise_scale.noise_scale", gone)
    assert scales(made(run(1, 1), run(1, 4))) == {}


def test_the_pictures_have_a_front_and_name_everything(monkeypatch):
    monkeypatch.setattr(cohort_plots, "scales", lambda study: {"": NoiseScale(6.0, 4)})
    baseline = run(1, 1, {"use": "dpsgd", "rounds": 20})
    html = cohort_plots.section(
        [run(1, 1), run(1, 4, scale=0.5), baseline], lambda head, rows: "|".join(map("/".join, rows))
    )
    assert html.count("<svg") == 3
    for told in (
        "K = 1",
        "K = 4",
        "dpsgd",
        "student",
        "ensemble",
        "Accuracy against bytes sent, MB",
        "published/skewed/4",
    ):
        assert told in html
    assert cohort_plots.section([run(1, 4)], lambda head, rows: "") == ""


# The bundled experiment


def test_the_bundled_study_has_every_baseline_and_one_real_run():
    swept = points("cpfl", [], [], {}, "virtual")
    uses = {point.config.protocol.use for point in swept}
    cohorts = {point.config.protocol.options.get("cohorts") for point in swept}
    assert uses == {"cpfl", "dpsgd", "epidemic"}
    assert cohorts >= {1, 2, 4, 8, 24}
    assert {point.config.seed for point in swept} == {1, 2, 3}
    for point in swept:
        find_protocol(point.config)
    assert grids("cpfl", "real") == []


def test_a_section_in_brackets_is_whole(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[protocol]\nuse = "cpfl"\ncohorts = 2\n'
        '[[sweep]]\n"[protocol]" = [{ use = "dpsgd", rounds = 3 }]\nseed = [1, 2]\n'
    )
    assert [point.config.protocol.options for point in points(str(path), [], [], {})] == [{"rounds": 3}] * 2
    path.write_text('[[sweep]]\n"[protocol]" = ["dpsgd"]\n')
    with pytest.raises(ConfigError, match=r"sweep.\[protocol\]: must be a list of tables"):
        points(str(path), [], [], {})
