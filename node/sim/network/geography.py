"""Where simulated nodes are on Earth, and how long a signal takes from one to another."""

from __future__ import annotations

import bisect
import csv
import itertools
import math
from collections.abc import Callable
from importlib import resources
from typing import NamedTuple

from node.config import Distribution, Geography
from node.sim.draws import per_node

EARTH_RADIUS_KM = 6371.0088
FIBRE_KM_PER_S = 200_000.0
"""Speed of light in glass."""
SCATTER_KM = 30.0
"""How far from the middle of its city a node may be."""


class Place(NamedTuple):
    """A point on Earth, in degrees."""

    latitude: float
    longitude: float


class City(NamedTuple):
    """A row of the bundled table of large cities."""

    name: str
    place: Place
    population: int


def great_circle_km(a: Place, b: Place) -> float:
    """Kilometres over the surface (haversine formula: Sinnott, Sky and Telescope, 1984)."""
    latitude_a, latitude_b = math.radians(a.latitude), math.radians(b.latitude)
    across = math.sin((latitude_b - latitude_a) / 2) ** 2
    along = math.sin(math.radians(b.longitude - a.longitude) / 2) ** 2
    h = across + math.cos(latitude_a) * math.cos(latitude_b) * along
    return 2 * EARTH_RADIUS_KM * math.asin(min(1.0, math.sqrt(h)))


def displaced(place: Place, distance_km: float, bearing: float) -> Place:
    """The place that lies so far away, along a great circle that leaves in a direction (radians from north)."""
    angle, latitude = distance_km / EARTH_RADIUS_KM, math.radians(place.latitude)
    sine = math.sin(latitude) * math.cos(angle) + math.cos(latitude) * math.sin(angle) * math.cos(bearing)
    east = math.sin(bearing) * math.sin(angle) * math.cos(latitude)
    longitude = place.longitude + math.degrees(math.atan2(east, math.cos(angle) - math.sin(latitude) * sine))
    return Place(math.degrees(math.asin(max(-1.0, min(1.0, sine)))), longitude)


def cities() -> list[City]:
    """The bundled table: large cities of all continents and some hubs, with approximate metropolitan populations."""
    text = (resources.files(__package__) / "cities.csv").read_text(encoding="utf-8")
    return [
        City(row["name"], Place(float(row["latitude"]), float(row["longitude"])), int(row["population"]))
        for row in csv.DictReader(text.splitlines())
    ]


def homes(nodes: int, seed: int) -> list[Place]:
    """Where each node lives: near a city that is drawn by its population."""
    table = cities()
    up_to = list(itertools.accumulate(city.population for city in table))
    drawn = [
        per_node(Distribution(distribution="uniform", high=high), nodes, seed, stream)
        for stream, high in (("city", up_to[-1]), ("scatter", SCATTER_KM), ("bearing", 2 * math.pi))
    ]
    return [
        displaced(table[bisect.bisect_right(up_to, inhabitant)].place, distance_km, bearing)
        for inhabitant, distance_km, bearing in zip(*drawn, strict=True)
    ]


def build(section: Geography, nodes: int, seed: int) -> Callable[[int, int], float]:
    """One-way latency in seconds from one node to another: light in glass, and the last mile at both ends."""
    places = homes(nodes, seed)
    last_mile_s = per_node(section.last_mile_s, nodes, seed, "last_mile_s")
    s_per_km = section.path_factor / FIBRE_KM_PER_S

    def between(a: int, b: int) -> float:
        return s_per_km * great_circle_km(places[a], places[b]) + last_mile_s[a] + last_mile_s[b]

    return between
