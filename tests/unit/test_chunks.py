"""Shatter: what a partition is, who can tell what from it, and how chunks are merged."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import ConfigError, ProtocolError
from node.op import Key, Spec, Task
from node.privacy.chunks import chunk_size, cut, merge, merged, partition

SIZES = (12, 3, 40, 1, 7)
DIMENSION = sum(SIZES)
sizes_of = st.lists(st.integers(1, 60), min_size=1, max_size=6).map(tuple)


def solve(op, *values, **static):
    return op.solve(Task(values, static, Key(0, 0, 0)))


def where(round=0, chunks=4, beacon="net"):
    return {"sizes": SIZES, "chunks": chunks, "beacon": beacon, "round": round}


# Partitions


@given(sizes_of, st.data(), st.text(max_size=8), st.integers(0, 2**40))
@settings(max_examples=60)
def test_every_coordinate_is_in_one_chunk_and_chunks_are_alike(sizes, data, beacon, round):
    chunks = data.draw(st.integers(1, sum(sizes)))
    parts = partition(sizes, chunks, beacon, round)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(sum(sizes)))
    assert [len(part) for part in parts] == [
        chunk_size(sum(sizes), chunks, number, beacon, round) for number in range(chunks)
    ]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all((np.diff(part) > 0).all() for part in parts)


@given(sizes_of, st.data(), st.integers(0, 99))
@settings(max_examples=40)
def test_every_chunk_has_its_share_of_every_tensor(sizes, data, round):
    chunks = data.draw(st.integers(1, sum(sizes)))
    ends = np.cumsum(sizes)
    for part in partition(sizes, chunks, "net", round):
        shares = np.histogram(part, [0, *ends])[0]
        assert all(size // chunks <= share <= -(-size // chunks) for share, size in zip(shares, sizes, strict=True))


def test_all_nodes_cut_alike_and_anew_in_every_round():
    def seen(**changed):
        partition.cache_clear()
        return [part.tolist() for part in partition(**where(**changed))]

    assert seen() == seen()
    others = [seen(), seen(round=1), seen(beacon="other"), seen(beacon="")]
    assert all(one != other for i, one in enumerate(others) for other in others[:i])


def test_beacon_and_round_are_told_apart():
    assert not np.array_equal(partition(SIZES, 4, "12", 3)[0], partition(SIZES, 4, "2", 13)[0])


def test_even_a_tensor_of_one_moves_from_chunk_to_chunk():
    lonely = sum(SIZES[:3])
    holders = {next(i for i, part in enumerate(partition(**where(round))) if lonely in part) for round in range(60)}
    assert holders == {0, 1, 2, 3}


def test_a_coordinate_is_in_every_chunk_equally_often():
    rounds = 400
    counts = np.zeros((4, DIMENSION))
    for round in range(rounds):
        for number, part in enumerate(partition(**where(round))):
            counts[number, part] += 1
    # Six standard deviations of a binomial count.
    assert np.abs(counts - rounds / 4).max() < 6 * np.sqrt(rounds * 3 / 16)


def test_nobody_can_change_a_partition_that_others_use():
    with pytest.raises(ValueError, match="read-only"):
        partition(**where())[0][0] = 5


@pytest.mark.parametrize("chunks", [0, -1, DIMENSION + 1])
def test_numbers_of_chunks_without_a_meaning_are_refused(chunks):
    with pytest.raises(ConfigError, match=f"chunks: {chunks} of a model with 63 parameters; allowed are 1 to 63"):
        partition(**where(chunks=chunks))


# Merging


@given(st.integers(1, 12), st.integers(0, 4), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_each_coordinate_is_the_mean_of_its_own_and_all_received_values(chunks, copies, seed):
    rng = np.random.default_rng(seed)
    own = rng.standard_normal(DIMENSION)
    parts = partition(**where(chunks=chunks))
    heard = [(number, rng.standard_normal(len(parts[number]))) for number in rng.integers(0, chunks, copies)]
    found = merge(torch.tensor(own), [(parts[number], torch.tensor(values)) for number, values in heard])
    for i in range(DIMENSION):
        known = [own[i]]
        for number, values in heard:
            known += list(values[parts[number] == i])
        assert float(found[i]) == pytest.approx(np.mean(known), abs=1e-12)


def test_without_anything_received_a_model_stays_as_it_is():
    own = torch.randn(DIMENSION, generator=torch.Generator().manual_seed(0))
    found = merge(own, [])
    assert torch.equal(found, own)
    assert found.data_ptr() != own.data_ptr()


def test_a_chunk_of_another_partition_is_refused():
    with pytest.raises(ProtocolError, match=r"a chunk of 9 values, where the round's partition has 1[56]"):
        merge(torch.zeros(DIMENSION), [(partition(**where())[0], torch.zeros(9))])


# Ops


@given(st.integers(1, 20), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_what_is_cut_can_be_put_together_again(chunks, round):
    model = torch.arange(float(DIMENSION))
    pieces = [solve(cut, model, chunk=number, **where(round, chunks)) for number in range(chunks)]
    for number, piece in enumerate(pieces):
        assert cut.spec([Spec((DIMENSION,))], {"chunk": number, **where(round, chunks)}) == Spec(tuple(piece.shape))
    twice = solve(merged, torch.zeros(DIMENSION), *pieces, numbers=tuple(range(chunks)), **where(round, chunks))
    assert torch.equal(twice, model / 2)


def test_several_copies_of_a_chunk_count_each():
    own = torch.zeros(DIMENSION)
    first, second, *rest = partition(**where())
    pieces = [torch.full((len(part),), value) for part, value in ((first, 3.0), (first, 6.0), (second, 8.0))]
    found = solve(merged, own, *pieces, numbers=(0, 0, 1), **where())
    assert (found[torch.tensor(first)] == 3.0).all()
    assert (found[torch.tensor(second)] == 4.0).all()
    assert all((found[torch.tensor(part)] == 0.0).all() for part in rest)
    assert not own.any()


def test_chunks_without_a_number_are_refused():
    with pytest.raises(ValueError):
        solve(merged, torch.zeros(DIMENSION), torch.zeros(16), numbers=(), **where())
