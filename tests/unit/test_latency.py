"""One-way latency: numbers, draws for pairs, matrix files and geography."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from node.config import Distribution, Geography, LatencyMatrix, NetworkSection
from node.errors import ConfigError
from node.sim.draws import per_node, per_pair
from node.sim.network.geography import (
    EARTH_RADIUS_KM,
    SCATTER_KM,
    Place,
    cities,
    displaced,
    great_circle_km,
    homes,
)
from node.sim.network.latency import build, read

LOGNORMAL = Distribution(distribution="lognormal", median=0.05, sigma=0.8)
LONDON, NEW_YORK = Place(51.5074, -0.1278), Place(40.7128, -74.0060)
TOKYO, SYDNEY = Place(35.6762, 139.6503), Place(-33.8688, 151.2093)
ZURICH, SAO_PAULO, SINGAPORE = Place(47.3769, 8.5417), Place(-23.5505, -46.6333), Place(1.3521, 103.8198)

places = st.builds(Place, st.floats(-90, 90), st.floats(-180, 180))


# One number, or a draw for each pair


def test_a_number_is_the_latency_of_all():
    between = build(0.25, 10, 0)
    assert {between(a, b) for a in range(10) for b in range(10)} == {0.25}


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 2**63 - 1))
def test_the_draw_of_a_pair_is_the_same_both_ways(a, b, seed):
    between = build(LOGNORMAL, 100, seed)
    assert between(a, b) == between(b, a) == per_pair(LOGNORMAL, a, b, seed)


# Matrix files


@pytest.fixture
def matrix(tmp_path):
    def write(text):
        path = tmp_path / "matrix.txt"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


THREE = "# three places\n0 10 20.5\n\n11 0 30  # back\n21 31 0\n"


@pytest.mark.parametrize(
    "text",
    [THREE, "-,10,20.5\n11,-,30\n21,31,-\n", ",10,20.5\n11,,30\n21,31,\n", "nan 10 20.5\n11 -1 30\n21 31 inf"],
    ids=["words", "cells", "no diagonal", "any diagonal"],
)
def test_a_matrix_is_read_whatever_its_diagonal(matrix, text):
    assert read(matrix(text)).tolist() == [[0, 10, 20.5], [11, 0, 30], [21, 31, 0]]


@pytest.mark.parametrize(("trip", "factor"), [("one-way", 1.0), ("round-trip", 0.5)])
def test_milliseconds_of_the_way_from_row_to_column(matrix, trip, factor):
    between = build(LatencyMatrix(matrix=matrix(THREE), trip=trip), 3, 5)
    found = [[between(a, b) for b in range(3)] for a in range(3)]
    expected = np.array([[0, 10, 20.5], [11, 0, 30], [21, 31, 0]]) * factor / 1000
    assert np.allclose(found, expected, rtol=1e-12)


def test_fewer_nodes_than_places_are_at_different_ones(matrix):
    rows = [[abs(a - b) * 1.0 + 100 * (a != b) for b in range(30)] for a in range(30)]
    section = LatencyMatrix(matrix=matrix("\n".join(" ".join(map(str, row)) for row in rows)), trip="one-way")
    seen = set()
    for seed in range(20):
        between = build(section, 5, seed)
        drawn = [between(0, b) for b in range(1, 5)]
        assert min(between(a, b) for a in range(5) for b in range(a)) >= 0.1
        seen.add(tuple(drawn))
    assert len(seen) == 20
    assert drawn == [build(section, 5, 19)(0, b) for b in range(1, 5)]


def test_more_nodes_than_places_share_them_by_the_seed(matrix):
    section = LatencyMatrix(matrix=matrix("0 10\n20 0\n"), trip="one-way")
    between = build(section, 100, 3)
    found = np.array([[between(a, b) for b in range(100)] for a in range(100)])
    assert set(found.ravel().tolist()) == {0.0, 0.01, 0.02}
    at_first = int((found[0] == 0).sum())
    assert 30 < at_first < 70
    other = build(section, 100, 4)
    assert found.tolist() != [[other(a, b) for b in range(100)] for a in range(100)]
    wrapped = np.arange(100) % 2
    assert not np.array_equal(found[0] == 0, wrapped == wrapped[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "matrix.txt is empty; give n rows of n milliseconds"),
        ("# nothing\n\n", "matrix.txt is empty"),
        ("0 1 2\n1 0 2\n", "matrix.txt:1: 3 numbers, but there are 2 rows"),
        ("0 1\n\n1 0 2\n", "matrix.txt:3: 3 numbers, but there are 2 rows"),
        ("0 1\n-3 0\n", "matrix.txt:2: '-3' in column 1 is no latency; give milliseconds, 0 or more"),
        ("0 nan\n3 0\n", "matrix.txt:1: 'nan' in column 2 is no latency"),
        ("0 inf\n3 0\n", "matrix.txt:1: 'inf' in column 2 is no latency"),
        ("0,\n3,0\n", "matrix.txt:1: '' in column 2 is no latency"),
        ("0 1\nfar 0\n", "matrix.txt:2: 'far' in column 1 is no latency"),
    ],
)
def test_a_file_that_is_no_matrix_is_named_with_its_line(matrix, text, message):
    path = matrix(text)
    with pytest.raises(ConfigError) as raised:
        build(LatencyMatrix(matrix=path, trip="one-way"), 2, 0)
    assert str(raised.value).startswith(f"network.latency_s.matrix: {path.removesuffix('matrix.txt')}{message}")
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(ConfigError, match=r"^network\.latency_s\.matrix: cannot read .*gone\.txt: No such file"):
        read(str(tmp_path / "gone.txt"))
    with pytest.raises(ConfigError, match="cannot read"):
        read(str(tmp_path))
    (tmp_path / "picture.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"picture\.txt is not text"):
        read(str(tmp_path / "picture.txt"))


def test_a_matrix_needs_to_say_what_it_measures():
    with pytest.raises(ValidationError, match="trip"):
        NetworkSection(latency_s={"matrix": "file.txt"})


# Geography


@pytest.mark.parametrize(
    ("a", "b", "km", "ms"),
    [
        (LONDON, NEW_YORK, 5_570.2, (27.85, 41.78)),
        (LONDON, TOKYO, 9_558.6, (47.79, 71.69)),
        (LONDON, SYDNEY, 16_994.0, (84.97, 127.45)),
        (ZURICH, LONDON, 776.2, (3.88, 5.82)),
        (NEW_YORK, SAO_PAULO, 7_685.6, (38.43, 57.64)),
        (SINGAPORE, SYDNEY, 6_306.3, (31.53, 47.30)),
        (Place(0, 0), Place(0, 180), 20_015.1, (100.08, 150.11)),
    ],
)
def test_great_circles_and_light_in_fibre(a, b, km, ms, monkeypatch):
    assert great_circle_km(a, b) == pytest.approx(km, abs=0.05)
    monkeypatch.setattr("node.sim.network.geography.homes", lambda nodes, seed: [a, b])
    for path_factor, expected in zip((1.0, 1.5), ms, strict=True):
        section = Geography(geography="cities", path_factor=path_factor, last_mile_s=0.0)
        assert 1000 * build(section, 2, 0)(0, 1) == pytest.approx(expected, abs=0.0051)


@given(places, places, places)
def test_distance_is_a_metric(a, b, c):
    assert great_circle_km(a, a) == 0
    assert great_circle_km(a, b) == pytest.approx(great_circle_km(b, a), rel=1e-12)
    assert 0 <= great_circle_km(a, b) <= math.pi * EARTH_RADIUS_KM * (1 + 1e-12)
    assert great_circle_km(a, c) <= great_circle_km(a, b) + great_circle_km(b, c) + 1e-3


@given(places, st.floats(0, 3000), st.floats(0, 2 * math.pi))
def test_a_displaced_place_is_as_far_away_as_it_was_moved(place, distance_km, bearing):
    moved = displaced(place, distance_km, bearing)
    assert great_circle_km(place, moved) == pytest.approx(distance_km, abs=1e-3)


def test_north_and_east():
    degree_km = math.pi * EARTH_RADIUS_KM / 180
    assert displaced(Place(10, 20), degree_km, 0) == pytest.approx((11, 20))
    assert displaced(Place(0, 20), degree_km, math.pi / 2) == pytest.approx((0, 21))


def test_the_bundled_cities_are_large_distinct_and_on_earth():
    table = cities()
    assert 50 <= len(table) <= 80
    assert len({city.name for city in table}) == len({city.place for city in table}) == len(table)
    assert all(-60 < city.place.latitude < 70 and -180 <= city.place.longitude <= 180 for city in table)
    assert all(10**6 < city.population < 4 * 10**7 for city in table)
    apart = min(great_circle_km(a.place, b.place) for a in table for b in table if a is not b)
    assert apart > 20
    by_name = {city.name: city.place for city in table}
    assert by_name["London"] == LONDON
    assert by_name["Sao Paulo"] == SAO_PAULO


def test_nodes_live_near_cities_and_more_in_larger_ones():
    count = 6000
    table = cities()
    near = np.array([[great_circle_km(home, city.place) for city in table] for home in homes(count, 3)])
    nearest = near.argmin(axis=1)
    distance_km = near.min(axis=1)
    assert distance_km.max() <= SCATTER_KM + 1e-6
    assert 0.4 * SCATTER_KM < distance_km.mean() < 0.6 * SCATTER_KM
    population = np.array([city.population for city in table], dtype=float)
    expected = count * population / population.sum()
    found = np.bincount(nearest, minlength=len(table))
    assert (np.abs(found - expected) < 5 * np.sqrt(expected) + 3).all()


def test_more_nodes_do_not_move_the_first_ones():
    assert homes(50, 9)[:10] == homes(10, 9)
    assert homes(10, 9) != homes(10, 8)


def test_the_last_mile_is_paid_at_both_ends_and_the_same_both_ways():
    section = Geography(geography="cities", last_mile_s=LOGNORMAL)
    between = build(section, 20, 4)
    last_mile_s = per_node(LOGNORMAL, 20, 4, "last_mile_s")
    place = homes(20, 4)
    for a, b in [(0, 1), (5, 19), (7, 3)]:
        in_fibre_s = 1.5 * great_circle_km(place[a], place[b]) / 200_000
        assert between(a, b) == pytest.approx(in_fibre_s + last_mile_s[a] + last_mile_s[b], rel=1e-12)
        assert between(a, b) == pytest.approx(between(b, a), rel=1e-12)


@pytest.mark.parametrize("keys", [{"path_factor": 0.9}, {"geography": "villages"}, {"last_mile_s": -1}])
def test_impossible_geography(keys):
    with pytest.raises(ValidationError):
        TypeAdapter(Geography).validate_python({"geography": "cities", **keys})
