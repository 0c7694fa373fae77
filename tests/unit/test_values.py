"""Values within a budget: counting, spilling, coming back, and the file behind it."""

import ctypes
import errno
import gc
import math
import os
from collections import namedtuple
from ctypes import c_size_t, c_void_p

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import values as values_module
from node.errors import ComputeError, ConfigError, StoreError
from node.op import Spec
from node.values import SpillFile, Values, size_bytes

VECTOR = Spec((4,), "float64")
SIZE = VECTOR.size_bytes
METRICS = Spec((2,), "float64", ("accuracy", "loss"))
NUMBER = Spec((), "float64")
Usage = namedtuple("Usage", "total used free")


def to_buffer(value):
    return memoryview(value).cast("B")


def from_buffer(buffer, spec):
    return np.frombuffer(buffer, dtype=spec.dtype).reshape(spec.shape)


def vector(number):
    return np.full(4, float(number))


@pytest.fixture
def make(tmp_path):
    """Values under a budget of so many vectors."""
    made = []

    def make(vectors):
        made.append(Values(vectors * SIZE, str(tmp_path), to_buffer, from_buffer))
        return made[-1]

    yield make
    for values in made:
        values.close()


def filled(values, count):
    for i in range(count):
        values.put(i, vector(i), VECTOR)
    return values


def resident(values):
    return [i for i in values if values.is_resident(i)]


# A mapping


def test_without_a_budget_it_is_a_mapping_of_what_was_put():
    values = filled(Values(), 3)
    assert list(values) == [0, 1, 2]
    assert 2 in values
    assert 3 not in values
    assert values.spec_of(1) == VECTOR
    del values[1]
    assert len(values) == 2
    with pytest.raises(KeyError):
        values[1]
    with pytest.raises(KeyError):
        del values[1]


def test_only_tensors_count():
    assert [size_bytes(spec) for spec in (VECTOR, METRICS, NUMBER, Spec((0,)))] == [32, 0, 0, 0]
    values = Values()
    values.put(0, {"accuracy": 1.0, "loss": 0.0}, METRICS)
    values.put(1, 2.0, NUMBER)
    assert values.resident_bytes == 0
    values.put(2, vector(2), VECTOR)
    assert values.resident_bytes == values.peak_resident_bytes == SIZE


def test_one_object_counts_once_and_lasts_until_its_last_id():
    values = Values()
    one = vector(1)
    values.put(0, one, VECTOR)
    values.put(1, one, VECTOR)
    values.share(2, 0)
    values.put(3, vector(1), VECTOR)
    assert values.resident_bytes == 2 * SIZE
    for id in (0, 1):
        del values[id]
        assert values.resident_bytes == 2 * SIZE
    assert values[2] is one
    del values[2]
    assert values.resident_bytes == SIZE
    assert values.peak_resident_bytes == 2 * SIZE


def test_another_form_takes_a_values_place():
    values = Values()
    values.put(0, "a handle", METRICS)
    values.replace(0, {"accuracy": 0.5, "loss": 1.0})
    assert values[0] == {"accuracy": 0.5, "loss": 1.0}
    assert values.spec_of(0) == METRICS


def test_closing_forgets_everything_and_may_be_done_twice(make):
    values = filled(make(2), 5)
    values.close()
    values.close()
    assert len(values) == values.resident_bytes == 0


# The budget


def test_what_does_not_fit_is_spilled_and_comes_back_as_it_was(make):
    values = filled(make(3), 10)
    assert values.resident_bytes == values.peak_resident_bytes == 3 * SIZE
    assert values.spilled_bytes == 7 * SIZE
    for i in range(10):
        assert np.array_equal(values[i], vector(i))
        assert values.resident_bytes == 3 * SIZE
    assert values.unspilled_bytes == 10 * SIZE
    assert values.spilled_bytes == 10 * SIZE


def test_what_was_not_used_for_longest_goes_first(make):
    values = filled(make(3), 3)
    values.admit([0], 0)
    values.put(3, vector(3), VECTOR)
    assert resident(values) == [0, 2, 3]


def test_what_is_needed_last_goes_before_that(make):
    values = filled(make(4), 4)
    for id, place in ((0, 5.0), (1, 9.0), (2, 7.0)):
        values.expect(id, place)
    for new, left in ((4, [0, 1, 2, 4]), (5, [0, 1, 2, 5]), (6, [0, 1, 2, 6])):
        values.put(new, vector(new), VECTOR)  # 3, 4 and 5 are not needed at all
        assert resident(values) == left
    values.expect(6, 1.0)
    values.put(7, vector(7), VECTOR)
    assert resident(values) == [0, 2, 6, 7]
    values.expect(0, math.inf)
    values.expect(7, 2.0)
    values.put(8, vector(8), VECTOR)
    assert resident(values) == [2, 6, 7, 8]


def test_a_value_that_came_back_is_not_written_again(make):
    values = filled(make(1), 2)
    assert values.spilled_bytes == SIZE
    for _ in range(5):
        assert values[0][0] == 0.0
        assert values[1][0] == 1.0
    assert values.spilled_bytes == 2 * SIZE


def test_room_is_made_for_what_is_about_to_come(make):
    values = filled(make(4), 4)
    values.admit([0], 2 * SIZE)
    assert resident(values) == [0, 3]
    assert values.resident_bytes == 4 * SIZE
    values.put(4, vector(4), VECTOR)
    values.put(5, vector(5), VECTOR)
    assert resident(values) == [0, 3, 4, 5]
    values.admit([], 3 * SIZE)
    values.unreserve()
    assert values.resident_bytes == SIZE
    assert values.peak_resident_bytes == 4 * SIZE


def test_what_a_batch_reads_stays_while_it_is_admitted(make):
    values = filled(make(4), 8)
    for ids in ([0, 1, 2], [5, 6, 7], [0, 7, 3]):
        values.admit(ids, SIZE)
        assert set(ids) <= set(resident(values))
        assert values.resident_bytes <= 4 * SIZE
        assert [values[i][0] for i in ids] == ids


def test_metrics_and_numbers_stay(make):
    values = make(1)
    values.put(0, {"accuracy": 1.0, "loss": 0.0}, METRICS)
    values.put(1, 2.5, NUMBER)
    filled_ids = range(2, 6)
    for i in filled_ids:
        values.put(i, vector(i), VECTOR)
    assert resident(values) == [0, 1, 5]


def test_a_shared_value_is_spilled_once(make):
    values = make(1)
    values.put(0, vector(0), VECTOR)
    values.share(1, 0)
    values.put(2, vector(2), VECTOR)
    assert resident(values) == [2]
    assert values.spilled_bytes == SIZE
    del values[0]
    assert values[1][0] == 0.0
    values.put(3, values[1], VECTOR)
    assert values.unspilled_bytes == SIZE


@pytest.mark.parametrize("use", [lambda values: values.admit([0, 1], SIZE), lambda values: values.check(3 * SIZE)])
def test_too_little_for_one_task_is_refused_with_what_would_do(make, use):
    values = filled(make(2), 2)
    with pytest.raises(ConfigError, match=r"executor\.memory_bytes: 64 is too little .* at least 96, or 0 for no"):
        use(values)
    assert [values[i][0] for i in range(2)] == [0.0, 1.0]


def test_without_a_budget_nothing_is_too_much():
    values = Values()
    values.check(2**60)
    values.admit([], 2**60)
    assert values.resident_bytes == 2**60


def test_a_value_that_is_not_what_its_spec_says_is_named(make):
    values = make(1)
    values.put(0, np.zeros(3), VECTOR)
    with pytest.raises(ComputeError, match=r"24 bytes, but its spec float64\[4\] means 32: .*@op\(spec=...\)"):
        values.put(1, vector(1), VECTOR)


def test_a_row_of_a_slab_is_copied_only_under_a_budget(make):
    slab = np.zeros((5, 4))
    assert Values().apart(slab[1], VECTOR).base is slab
    values = make(2)
    copy = values.apart(slab[1], VECTOR)
    slab[1] = 7.0
    assert np.array_equal(copy, np.zeros(4))
    values.put(0, copy, VECTOR)
    assert values.apart(copy, VECTOR) is copy
    metrics = {"accuracy": 1.0, "loss": 0.0}
    assert values.apart(metrics, METRICS) is metrics


def test_values_come_back_aligned(make):
    """Some kernels round by alignment, so an unspilled model has to start where any other does."""
    values = make(1)
    for size in (1, 13, 32):
        values.put(size, np.arange(size, dtype=np.uint8), Spec((size,), "uint8"))
    for size in (1, 13, 32):
        assert values[size].ctypes.data % 64 == 0
        assert values[size].tolist() == list(range(size))


@pytest.fixture
def given_back(monkeypatch):
    """How often freed memory was given back: one element for each time."""
    times = []
    monkeypatch.setattr(values_module, "_give_back_freed_memory", lambda: times.append(1))
    return times


def test_freed_memory_is_given_back_each_time_that_half_a_budget_was_made(make, given_back):
    values = make(8)
    for made in range(1, 16):
        values.admit((), SIZE)
        assert len(given_back) == made // 5, "at the first byte above four of eight vectors"


def test_without_a_budget_freed_memory_is_kept(given_back):
    Values().admit((), 2**40)
    assert not given_back


def test_where_the_c_library_cannot_give_memory_back_it_is_kept(make, monkeypatch):
    monkeypatch.setattr(values_module.ctypes, "CDLL", lambda name: object())
    values = make(1)
    values.admit((), SIZE)
    assert values.resident_bytes == SIZE


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc alone can give memory back")
def test_gaps_between_what_is_kept_are_given_back(make):
    values = make(1)
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = c_void_p, [c_size_t], [c_void_p]
    kept, gaps = [], []
    for _ in range(400):
        gaps.append(libc.malloc(100_000))
        ctypes.memset(gaps[-1], 1, 100_000)
        kept.append(libc.malloc(2_000))
    for gap in gaps:
        libc.free(gap)
    before_bytes = psutil.Process().memory_info().rss
    values.admit((), SIZE)
    assert before_bytes - psutil.Process().memory_info().rss > 20_000_000
    for block in kept:
        libc.free(block)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=60), st.integers(1, 6))
def test_any_use_is_that_of_a_dictionary(steps, budget):
    """Put, read, share, delete at random: the same contents, never above the budget, and every slot comes back."""
    values = Values(budget * SIZE, "", to_buffer, from_buffer)
    plain = {}
    for step, (kind, id) in enumerate(steps):
        if kind == 0 and id not in plain:
            plain[id] = vector(step)
            values.put(id, plain[id].copy(), VECTOR)
        elif kind == 1 and id in plain:
            assert np.array_equal(values[id], plain[id])
        elif kind == 2 and id in plain and id + 10 not in plain:
            plain[id + 10] = plain[id]
            values.share(id + 10, id)
        elif kind == 3 and id in plain:
            del plain[id], values[id]
        assert values.resident_bytes <= budget * SIZE
    assert list(values) == list(plain)
    assert all(np.array_equal(values[id], plain[id]) for id in plain)
    for id in plain:
        del values[id]
    assert values.resident_bytes == 0
    values.close()


# The file


def test_what_the_system_moves_in_parts_is_moved_whole(make, monkeypatch):
    values = filled(make(1), 1)
    write, read = os.pwritev, os.preadv
    monkeypatch.setattr(values_module.os, "pwritev", lambda file, parts, at: write(file, [parts[0][:5]], at))
    monkeypatch.setattr(values_module.os, "preadv", lambda file, parts, at: read(file, [parts[0][:3]], at))
    values.put(1, np.array([1.5, -0.0, math.pi, 1e-300]), VECTOR)
    assert values[0].tolist() == [0.0] * 4
    assert values[1].tobytes() == np.array([1.5, -0.0, math.pi, 1e-300]).tobytes()


def test_the_file_has_no_name(tmp_path, make):
    filled(make(2), 6)
    assert list(tmp_path.iterdir()) == []


def test_the_file_goes_with_its_owner(tmp_path):
    spill = SpillFile(str(tmp_path))
    handle = spill._file
    os.fstat(handle)
    del spill
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handle)


def test_slots_are_used_again_size_by_size(tmp_path, monkeypatch):
    monkeypatch.setattr(values_module, "_GROWTH_BYTES", 64)
    spill = SpillFile(str(tmp_path))
    small = [spill.write(memoryview(bytes([i]) * 16)) for i in range(6)]
    large = spill.write(memoryview(b"x" * 100))
    assert len({*small, large}) == 7
    spill.free(small[2], 16)
    spill.free(large, 100)
    assert spill.write(memoryview(b"y" * 100)) == large
    assert spill.write(memoryview(b"z" * 16)) == small[2]
    buffer = memoryview(bytearray(16))
    spill.read(small[5], buffer)
    assert bytes(buffer) == b"\5" * 16
    spill.close()


@pytest.mark.parametrize("folder", ["missing", "file"])
def test_a_folder_that_cannot_be_used_is_refused_at_once(tmp_path, folder):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"executor\.spill_folder: no file can be made in .*; name a folder"):
        Values(100, str(tmp_path / folder), to_buffer, from_buffer)


def test_without_a_budget_no_file_is_made():
    Values(0, "/there/is/no/such/folder")


def test_a_full_disk_is_one_line_and_changes_nothing(make, monkeypatch):
    values = filled(make(2), 2)
    monkeypatch.setattr(values_module.shutil, "disk_usage", lambda path: Usage(1000, 1000 - SIZE, SIZE))
    with pytest.raises(StoreError, match=r"32 more bytes are needed .* 32 are free: make room, raise") as error:
        values.put(2, vector(2), VECTOR)
    assert "\n" not in str(error.value)
    assert list(values) == [0, 1]
    assert values.resident_bytes == 2 * SIZE
    assert values.spilled_bytes == 0
    monkeypatch.undo()
    values.put(2, vector(2), VECTOR)
    assert [values[i][0] for i in range(3)] == [0.0, 1.0, 2.0]


def test_a_disk_that_fills_up_while_the_file_grows_is_the_same_error(make, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    values = filled(make(1), 1)
    monkeypatch.setattr(values_module.os, "posix_fallocate", fail)
    with pytest.raises(StoreError, match=r"executor\.spill_folder"):
        values.put(1, vector(1), VECTOR)
    assert values[0][0] == 0.0


def test_a_nearly_full_disk_takes_what_it_can(make, monkeypatch):
    monkeypatch.setattr(values_module.shutil, "disk_usage", lambda path: Usage(1000, 0, 5 * SIZE))
    values = filled(make(1), 9)
    assert [values[i][0] for i in range(9)] == list(range(9))


def test_a_write_that_fails_gives_its_slot_back(make, monkeypatch):
    values = filled(make(1), 2)

    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    free = len(values._file._free[SIZE])
    with monkeypatch.context() as patch:
        patch.setattr(values_module.os, "pwritev", fail)
        with pytest.raises(StoreError, match=r"the file for values past .*: .*Input/output error"):
            values.put(2, vector(2), VECTOR)
    assert len(values._file._free[SIZE]) == free
    assert [values[i][0] for i in range(2)] == [0.0, 1.0]
