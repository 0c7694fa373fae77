"""What algorithms assume: where they stand, which may be compared, and why one is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.assumptions import REVEALS, Allowed, Assumptions, refusal

ALL = Allowed(public=True, labelled=True, proxy=True)
kinds = st.builds(
    Assumptions,
    reveals=st.sampled_from(REVEALS),
    public=st.sampled_from(["none", "unlabelled", "labelled"]),
    proxy=st.booleans(),
    own_training=st.booleans(),
    shared_start=st.booleans(),
    extractor=st.booleans(),
    mixed_architectures=st.booleans(),
    result=st.sampled_from(["model", "ensemble", "head"]),
    rounds=st.integers(1, 5),
    selection=st.sampled_from(["fixed", "clients", "labelled"]),
)


@pytest.mark.parametrize(
    ("assumptions", "cell"),
    [
        (Assumptions(), "R0 D0 W0 H0 M1 F1 S0"),
        (Assumptions(reveals="predictions", public="unlabelled"), "R- D1 W0 H0 M1 F1 S0"),
        (Assumptions(reveals="histogram", mixed_architectures=True, result="ensemble"), "R2 D0 W0 H1 M2 F1 S0"),
        (Assumptions(shared_start=True, own_training=True, rounds=7), "R0 D0 W1W2 H0 M1 F3 S0"),
        (Assumptions(public="labelled", selection="labelled", result="head"), "R0 D3 W0 H0 M3 F1 S2"),
        (Assumptions(reveals="samples", proxy=True, extractor=True, selection="clients"), "R5 D4 W3 H0 M1 F1 S1"),
    ],
)
def test_where_it_stands(assumptions, cell):
    assert assumptions.cell == cell


@given(kinds, kinds)
def test_who_assumes_less_may_be_held_against_who_assumes_more(one, other):
    assert one.is_within(one)
    if one.is_within(other) and other.is_within(one):
        assert one.cell.split()[:2] == other.cell.split()[:2] or one.proxy == other.proxy
    if one.is_within(other):
        assert REVEALS.index(one.reveals) <= REVEALS.index(other.reveals)
        assert one.rounds <= other.rounds


@given(kinds)
def test_nothing_is_refused_where_all_is_allowed(needs):
    assert refusal("it", needs, ALL) == ""


@pytest.mark.parametrize("reveal", REVEALS)
@pytest.mark.parametrize("least", REVEALS)
def test_what_clients_may_tell_is_a_ladder(reveal, least):
    reason = refusal("it", Assumptions(reveals=least), Allowed(reveal=reveal))
    assert bool(reason) == (REVEALS.index(least) > REVEALS.index(reveal))
    assert not reason or (f"protocol.reveal = {reveal!r}" in reason and f"set it to {least!r}" in reason)


@pytest.mark.parametrize(
    ("needs", "missing", "says"),
    [
        ({"public": "unlabelled"}, {"public": False, "labelled": False}, "set public.name"),
        ({"public": "labelled"}, {"labelled": False}, "set public.labelled = true"),
        ({"selection": "labelled"}, {"labelled": False}, "set public.labelled = true"),
        ({"proxy": True}, {"proxy": False}, "set data.local_test_fraction above 0"),
        ({"selection": "clients"}, {"proxy": False}, "set data.local_test_fraction above 0"),
        ({}, {"mixed_architectures": True}, "same architecture"),
        ({"own_training": True}, {"private": True}, "loss of their own"),
        ({"reveals": "histogram"}, {"private": True}, "'histogram' of their data, without noise"),
        ({"reveals": "generator"}, {"private": True}, "'generator' of their data, without noise"),
        ({"selection": "clients"}, {"private": True}, "records that nothing protects"),
    ],
)
def test_a_refusal_says_in_one_line_what_would_help(needs, missing, says):
    reason = refusal("it", Assumptions(**needs), replace(ALL, **missing))
    assert reason.startswith("'it'")
    assert says in reason
    assert "\n" not in reason
    assert refusal("it", Assumptions(**needs), ALL) == ""


def test_noise_covers_a_model_and_what_is_public_anyway():
    for reveals in ("predictions", "model", "scalars"):
        assert refusal("it", Assumptions(reveals=reveals), replace(ALL, private=True)) == ""
