"""Requests: popularity, arrivals, recorded traces, and what becomes of them together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from node.errors import ConfigError
from node.workloads import arrivals, popularity, requests, traces
from node.workloads.arrivals import ArrivalSection
from node.workloads.popularity import PopularitySection
from node.workloads.requests import WorkloadSection

KINDS = PopularitySection.model_fields["kind"].annotation.__args__
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
ROWS = "2023-11-16 18:17:03.9799600,4808,10\r\n2023-11-16 18:17:04.0319569,3180,8\r\n2023-11-16 18:17:05.1,110,27"


def rng(seed=0):
    return np.random.default_rng(seed)


def draw(kind, adapters=50, count=20_000, seed=0, **options):
    return popularity.draw(PopularitySection(kind=kind, **options), rng(seed), adapters, count)


# Popularity


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_as_many_keys_as_requests_and_the_same_for_the_same_seed(kind):
    keys = draw(kind, count=3_000)
    assert keys.shape == (3_000,)
    assert keys.min() >= 0
    assert keys.tolist() == draw(kind, count=3_000).tolist()


@pytest.mark.parametrize("alpha", [0.6, 0.9, 1.2])
def test_zipf_follows_its_law(alpha):
    counts = np.bincount(draw("zipf", adapters=20, count=200_000, alpha=alpha), minlength=20)
    expected = np.arange(1, 21) ** -alpha
    expected *= counts.sum() / expected.sum()
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_after_a_drift_another_adapter_is_the_most_popular_and_the_law_is_the_same():
    keys = draw("zipf", adapters=1_000, count=40_000, alpha=1.2, drifts=3)
    parts = np.split(keys, 4)
    favourites = [np.bincount(part).argmax() for part in parts]
    assert favourites[0] == 0
    assert len(set(favourites)) == 4
    top = [np.sort(np.bincount(part))[::-1][:1] / len(part) for part in parts]
    assert np.ptp(top) < 0.02


def test_without_a_drift_the_law_stays_as_it_was():
    assert draw("zipf", drifts=0).tolist() == popularity.zipf(rng(), 50, 20_000, 0.9).tolist()


def test_a_scan_brings_a_hundred_new_adapters_after_every_nine_hundred_requests():
    keys = draw("scan", adapters=50, count=3_000)
    scanned = keys >= 50
    assert np.flatnonzero(scanned).tolist() == [k * 1_000 + i for k in range(3) for i in range(900, 1_000)]
    assert keys[scanned].tolist() == list(range(50, 350))


def test_the_four_of_punica():
    assert draw("distinct", count=5).tolist() == [0, 1, 2, 3, 4]
    assert set(draw("identical", count=50).tolist()) == {0}
    assert set(draw("square-root", count=100).tolist()) == set(range(10))
    counts = np.bincount(draw("skewed", count=90_000), minlength=3)
    assert counts[0] / counts[1] == pytest.approx(1.5, rel=0.05)
    assert counts[1] / counts[2] == pytest.approx(1.5, rel=0.05)


def test_the_power_distribution_prefers_the_last_and_never_leaves_the_adapters():
    counts = np.bincount(draw("power", adapters=10, alpha=2.0), minlength=10)
    assert len(counts) == 10
    assert counts[9] > 3 * counts[1]


def test_cyclic_keys_come_one_after_another():
    assert draw("cyclic", adapters=3, count=7).tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_an_unknown_kind_of_popularity_is_refused():
    with pytest.raises(ValidationError, match="zipf"):
        PopularitySection(kind="pareto")


# Arrivals


@pytest.mark.parametrize("cv", [1.0, 3.0, 8.0])
def test_gamma_gaps_have_their_mean_and_variation(cv):
    gaps = np.diff(arrivals.gamma(rng(1), 200_000, rate_per_s=4.0, cv=cv), prepend=0.0)
    assert gaps.mean() == pytest.approx(0.25, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_poisson_is_gamma_without_more_variation_whatever_cv_says():
    section = ArrivalSection(kind="poisson", rate_per_s=2.0, cv=5.0)
    assert arrivals.draw(section, rng(), 50).tolist() == arrivals.gamma(rng(), 50, 2.0, 1.0).tolist()


def test_paced_requests_come_at_equal_distances():
    assert arrivals.draw(ArrivalSection(kind="paced", rate_per_s=2.0), rng(), 3).tolist() == [0.5, 1.0, 1.5]


def test_exact_arrivals_end_when_the_rate_says():
    section = ArrivalSection(kind="gamma", rate_per_s=5.0, cv=4.0, exact=True)
    assert arrivals.draw(section, rng(), 100)[-1] == pytest.approx(20.0)


@given(st.floats(0.1, 100), st.floats(0.2, 8), st.integers(1, 200), st.integers(0, 2**32))
def test_times_rise(rate, cv, count, seed):
    times = arrivals.gamma(rng(seed), count, rate, cv)
    assert len(times) == count
    assert (np.diff(times) >= 0).all()
    assert times[0] >= 0


# Traces


def write(tmp_path, text):
    path = tmp_path / "trace.csv"
    path.write_text(text, newline="")
    return path


def test_the_azure_format_to_the_last_digit(tmp_path):
    trace = traces.read(write(tmp_path, AZURE + ROWS))
    assert trace.arrival_s.tolist() == pytest.approx([0, 0.0519969, 1.12004], abs=1e-12)
    assert trace.prompt_tokens.tolist() == [4808, 3180, 110]
    assert trace.output_tokens.tolist() == [10, 8, 27]


def test_the_splitwise_and_burstgpt_formats(tmp_path):
    splitwise = (
        "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n"
        "0,2,0,0.5,1,374,44\n1,2,0,2.25,1,396,109\n"
    )
    burst = (
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,,1.2,ChatGPT,472,18,490,Conversation log\n45,,1.0,GPT-4,1087,230,1317,Conversation log\n"
    )
    assert traces.read(write(tmp_path, splitwise)).arrival_s.tolist() == [0, 1.75]
    trace = traces.read(write(tmp_path, burst))
    assert trace.arrival_s.tolist() == [0, 40]
    assert trace.output_tokens.tolist() == [18, 230]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a,b\n1,2\n", "no known header"),
        ("", "no known header"),
        (AZURE, "has no rows"),
        (AZURE + "yesterday,1,2\r\n", "line 2: not a time"),
        (AZURE + ROWS + "\r\n2023-11-16 18:17:06.0,many,2\r\n", "line 5: not a time"),
        (AZURE + "2023-11-16 18:17:06.0,1\r\n", "line 2: not a time"),
        (AZURE + "2023-11-16 18:17:06.0,1,-2\r\n", "fewer than 0"),
        (AZURE + "2023-11-16 18:17:06.x,1,2\r\n", "line 2: not a time"),
        (AZURE + ROWS + "\r\n2022-11-16 18:17:03.9,1,2\r\n", "line 5: comes before the row above"),
    ],
)
def test_a_wrong_trace_is_refused_with_its_line(tmp_path, text, problem):
    with pytest.raises(ConfigError, match=problem) as refused:
        traces.read(write(tmp_path, text))
    assert "trace.csv" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_trace_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        traces.read(tmp_path / "missing.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not text"):
        traces.read(tmp_path / "binary.csv")


def test_a_trace_can_be_cut_and_hurried(tmp_path):
    trace = traces.read(write(tmp_path, AZURE + ROWS))
    assert len(trace.first(2)) == 2
    assert trace.faster(2.0).arrival_s.tolist() == pytest.approx([0, 0.02599845, 0.56002])
    assert trace.faster(2.0).cv == pytest.approx(trace.cv)


# Workloads


def test_a_drawn_workload_keeps_to_its_lengths_and_clients():
    section = WorkloadSection(requests=500, prompt_tokens=(8, 12), output_tokens=(1, 3), clients=4)
    made = requests.generate(section, 20, rng())
    assert len(made) == 500
    assert {each.prompt_tokens for each in made} == {8, 9, 10, 11}
    assert {each.output_tokens for each in made} == {1, 2}
    assert {each.client for each in made} == {0, 1, 2, 3}
    assert [each.arrival_s for each in made] == sorted(each.arrival_s for each in made)
    assert all(each.adapter < 20 for each in made)


def test_a_recorded_workload_takes_times_and_lengths_from_the_file_and_draws_adapters(tmp_path):
    section = WorkloadSection(requests=2, trace=write(tmp_path, AZURE + ROWS), time_scale=10.0)
    first, second = requests.generate(section, 5, rng())
    assert (first.prompt_tokens, first.output_tokens, second.prompt_tokens) == (4808, 10, 3180)
    assert second.arrival_s == pytest.approx(0.00519969)


def test_the_same_seed_gives_the_same_workload_and_another_another():
    section = WorkloadSection(requests=50)
    assert requests.generate(section, 9, rng(3)) == requests.generate(section, 9, rng(3))
    assert requests.generate(section, 9, rng(3)) != requests.generate(section, 9, rng(4))


@pytest.mark.parametrize("lengths", [(0, 5), (5, 5), (9, 2)])
def test_lengths_that_do_not_rise_are_refused(lengths):
    with pytest.raises(ValidationError, match="two rising numbers"):
        WorkloadSection(prompt_tokens=lengths)
