import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.learn.batches import batches_per_pass, draw, samples
from node.op import Key


def drawn(keys, shards, batch_size, steps, width=None):
    return draw(keys, np.array(shards), batch_size, steps, width or min(batch_size, max(shards)))


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 30), st.integers(0, 2**63 - 1))
@settings(max_examples=60, deadline=None)
def test_each_pass_reads_every_sample_once(shard, batch_size, passes, seed):
    per_pass = batches_per_pass(shard, batch_size)
    places, sizes = drawn([Key(seed, 3, 5)], [shard], batch_size, passes * per_pass)
    read = [list(row[0, :size]) for row, size in zip(places, sizes[:, 0], strict=True)]
    for number in range(passes):
        whole = [place for batch in read[number * per_pass : (number + 1) * per_pass] for place in batch]
        assert sorted(whole) == list(range(shard))


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_samples_counts_what_short_batches_hold(shard, batch_size, steps):
    _, sizes = drawn([Key(1, 2, 3)], [shard], batch_size, steps)
    assert samples(shard, batch_size, steps) == sizes.sum()
    assert (sizes <= min(batch_size, shard)).all()


@given(st.lists(st.integers(1, 90), min_size=1, max_size=12), st.integers(1, 20), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_a_task_draws_the_same_alone_and_among_others(shards, batch_size, steps):
    keys = [Key(7, node, 40 + node) for node in range(len(shards))]
    places, sizes = drawn(keys, shards, batch_size, steps, width=batch_size)
    for i, shard in enumerate(shards):
        alone, alone_sizes = drawn([keys[i]], [shard], batch_size, steps, width=batch_size)
        np.testing.assert_array_equal(places[:, i], alone[:, 0])
        np.testing.assert_array_equal(sizes[:, i], alone_sizes[:, 0])


def test_more_tasks_than_fit_in_one_block_draw_the_same():
    shards = [1, 2, 5_000, 70_000, 3, 40_000, 5_000]
    keys = [Key(1, node, 0) for node in range(len(shards))]
    places, _ = drawn(keys, shards, 16, 8)
    for i, shard in enumerate(shards):
        width = min(16, shard)
        np.testing.assert_array_equal(places[:, i, :width], drawn([keys[i]], [shard], 16, 8)[0][:, 0])


@pytest.mark.parametrize("other", [Key(2, 1, 1), Key(1, 2, 1), Key(1, 1, 2)])
def test_every_part_of_the_key_matters(other):
    first, _ = drawn([Key(1, 1, 1)], [100], 10, 10)
    second, _ = drawn([other], [100], 10, 10)
    assert (first != second).mean() > 0.9


def test_passes_have_orders_of_their_own():
    places, _ = drawn([Key(1, 1, 1)], [64], 64, 4)
    assert len({tuple(row) for row in places[:, 0]}) == 4


def test_more_steps_only_append():
    few, _ = drawn([Key(1, 1, 1)], [50], 16, 6)
    many, _ = drawn([Key(1, 1, 1)], [50], 16, 30)
    np.testing.assert_array_equal(few, many[:6])


def test_every_place_comes_first_equally_often():
    keys = [Key(3, node, 0) for node in range(8_000)]
    places, _ = draw(keys, np.full(8_000, 8), 4, 1, 4)
    counts = np.bincount(places[0].ravel(), minlength=8)
    # 4,000 expected in each; the standard deviation is 45.
    assert abs(counts - 4_000).max() < 5 * 45


def test_places_beyond_a_batch_are_zero():
    places, sizes = drawn([Key(1, 0, 0), Key(1, 1, 0)], [3, 10], 10, 2)
    assert sizes.tolist() == [[3, 10], [3, 10]]
    assert (places[:, 0, 3:] == 0).all()


def test_the_largest_seed_and_counter_are_accepted():
    places, _ = drawn([Key(2**63 - 1, 2**31, 2**32 - 1)], [5], 5, 1)
    assert sorted(places[0, 0]) == [0, 1, 2, 3, 4]
