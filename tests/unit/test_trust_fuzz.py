"""Bytes of strangers and members: they give a valid value or one StarlingError, and leave nothing behind."""

from __future__ import annotations

import gc
import itertools
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import StarlingError
from peer_surfaces import peer_surfaces
from surfaces import Surface, mutated, surfaces

SURFACES = [*surfaces(), *peer_surfaces()]
INPUTS = 400


def fed(surface: Surface, data: bytes) -> bool:
    """Whether the input was taken; one line of complaint where not."""
    try:
        surface.feed(data)
    except StarlingError as error:
        assert len(str(error).splitlines()) == 1, (surface.name, data)  # noqa: PT017
        assert str(error).isprintable(), (surface.name, data)  # noqa: PT017
        return False
    return True


def held_bytes(feed_all: Callable[[], None]) -> int:
    feed_all()
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@pytest.mark.parametrize("surface", SURFACES, ids=lambda surface: surface.name)
class TestSurfaces:
    def test_a_true_input_is_taken(self, surface):
        assert any(fed(surface, seed) for seed in surface.seeds)

    def test_mutated_inputs(self, surface):
        seed = 20261122
        rng = np.random.default_rng(seed)
        taken = 0
        for number in range(INPUTS):
            data = mutated(rng, surface.seeds)
            try:
                taken += fed(surface, data)
            except Exception as error:
                raise AssertionError(f"seed {seed}, input {number}: {data.hex()}") from error
        assert taken < INPUTS

    @settings(max_examples=150)
    @given(data=st.binary(max_size=300))
    def test_noise(self, surface, data):
        assert not fed(surface, data)

    @settings(max_examples=60)
    @given(start=st.integers(0, 2), tail=st.binary(max_size=200), keep=st.integers(0, 200))
    def test_a_true_beginning_with_another_end(self, surface, start, tail, keep):
        seed = surface.seeds[start % len(surface.seeds)]
        fed(surface, seed[:keep] + tail)

    def test_nested_and_huge_inputs(self, surface):
        for data in (
            b"\x01" + b"\x91" * 100_000,
            b"\x01" + b"\x81\xa1a" * 50_000,
            b"\x01\xdd\xff\xff\xff\xff",
            b"\x01\xc6\xff\xff\xff\xff",
            b"\x01\x9f" + b"\xcb" + b"\xff" * 100,
            bytes(1 << 20),
            b"\xff" * (1 << 20),
        ):
            assert not fed(surface, data)

    def test_nothing_stays(self, surface):
        rng = np.random.default_rng(7)
        inputs = [mutated(rng, surface.seeds) for _ in range(300)]

        def feed_all() -> None:
            for data in inputs:
                fed(surface, data)

        feed_all()
        tracemalloc.start()
        try:
            held = [held_bytes(feed_all) for _ in range(4)]
        finally:
            tracemalloc.stop()
        # A leak grows every time; the caches of the decoders hold now a little more, now a little less.
        assert min(after - before for before, after in itertools.pairwise(held)) < 4_096
