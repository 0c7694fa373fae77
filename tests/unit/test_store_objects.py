"""Objects on disk: whole or not there, damage found, and memory that does not grow with them."""

import io
import os
import tracemalloc

import numpy as np
import pytest

from node.errors import Corrupt, FrameTooLarge, Missing, StoreError
from node.store.objects import Store
from node.transfer import manifest as manifests
from node.transfer.manifest import CHUNK_BYTES, Manifest

RNG = np.random.default_rng(5)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def add(store, size):
    data = RNG.bytes(size)
    return data, store.add(io.BytesIO(data))


def data_path(store, manifest):
    return store._objects / manifest.id


def names(store):
    return sorted(path.name for path in store._objects.parent.rglob("*") if path.is_file())


# Whole


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES + 3])
def test_what_is_added_is_there(store, size):
    data, manifest = add(store, size)
    assert manifest.id in store
    assert store.ids() == [manifest.id]
    assert store.manifest(manifest.id) == manifest
    with store.open(manifest.id) as stored:
        stored.verify()
        assert bytes(stored.view()) == data
        room = memoryview(bytearray(CHUNK_BYTES))
        assert b"".join(bytes(room[: stored.read(i, room)]) for i in range(manifest.chunks)) == data
    assert names(store) == sorted([manifest.id, f"{manifest.id}.manifest"])


def test_a_file_is_added_by_its_path_and_stays(store, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"weights")
    manifest = store.add(path)
    assert path.read_bytes() == b"weights"
    assert manifest.id == store.add(io.BytesIO(b"weights")).id
    assert len(store.ids()) == 1


def test_another_process_finds_it(store, tmp_path):
    _, manifest = add(store, 10)
    assert Store(tmp_path / "store").manifest(manifest.id) == manifest


def test_a_view_lives_longer_than_the_file_is_open_and_cannot_be_written(store):
    data, manifest = add(store, 100)
    with store.open(manifest.id) as stored:
        view = stored.view()
    store.remove(manifest.id)
    assert bytes(view) == data
    assert view.readonly


def test_adding_takes_a_chunk_of_memory_whatever_the_size(store, tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(40 * CHUNK_BYTES)
    tracemalloc.start()
    manifest = store.add(path)
    with store.open(manifest.id) as stored:
        stored.verify()
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert manifest.chunks == 40
    assert peak_bytes < 4 * CHUNK_BYTES


def test_removed_is_gone_and_removing_again_is_nothing(store):
    _, manifest = add(store, 10)
    store.remove(manifest.id)
    store.remove(manifest.id)
    store.remove("../../precious")
    assert manifest.id not in store
    assert names(store) == []


# Missing and damaged


@pytest.mark.parametrize("id", ["0" * 64, "", "../secret", "Z" * 64])
def test_what_is_not_there_is_missing(store, id):
    assert id not in store
    with pytest.raises(Missing):
        store.manifest(id)
    with pytest.raises(Missing):
        store.open(id)


def test_a_damaged_manifest_is_corrupt(store):
    _, manifest = add(store, 10)
    path = store._manifest_path(manifest.id)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Corrupt, match=f"not that of object {manifest.id[:16]}"):
        store.open(manifest.id)


def test_a_wrong_byte_is_found_at_its_chunk(store):
    _, manifest = add(store, 3 * CHUNK_BYTES)
    with data_path(store, manifest).open("r+b") as file:
        file.seek(CHUNK_BYTES + 5)
        file.write(b"\xff\x00")
    with store.open(manifest.id) as stored, pytest.raises(Corrupt, match="chunk 1 of object"):
        stored.verify()


@pytest.mark.parametrize("size", [0, 9, 11])
def test_another_size_is_corrupt_at_once(store, size):
    _, manifest = add(store, 10)
    os.truncate(data_path(store, manifest), size)
    with pytest.raises(Corrupt, match="another size on disk"):
        store.open(manifest.id)


def test_one_that_shrinks_while_it_is_read_is_corrupt(store):
    _, manifest = add(store, 10)
    with store.open(manifest.id) as stored:
        os.truncate(data_path(store, manifest), 5)
        with pytest.raises(Corrupt, match="ends in chunk 0"):
            stored.read(0, memoryview(bytearray(CHUNK_BYTES)))


def test_lost_content_is_corrupt(store):
    _, manifest = add(store, 10)
    data_path(store, manifest).unlink()
    with pytest.raises(Corrupt, match="has lost its content"):
        store.open(manifest.id)


def test_content_without_its_manifest_is_not_there(store):
    """As after a power failure between the two."""
    data, manifest = add(store, 10)
    store._manifest_path(manifest.id).unlink()
    assert manifest.id not in store
    assert store.ids() == []
    assert store.add(io.BytesIO(data)) == manifest
    assert manifest.id in store


# What the disk refuses


def test_a_file_that_is_not_there_is_one_line(store, tmp_path):
    with pytest.raises(StoreError, match="nowhere: No such file or directory") as raised:
        store.add(tmp_path / "nowhere")
    assert "\n" not in str(raised.value)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Not a directory; make room, or name another folder"):
        Store(tmp_path / "file" / "store")


def test_what_cannot_be_read_is_one_line(store):
    _, manifest = add(store, 10)
    store._manifest_path(manifest.id).unlink()
    store._manifest_path(manifest.id).mkdir()
    with pytest.raises(StoreError, match="Is a directory; make room, or name another folder"):
        store.manifest(manifest.id)


def test_a_file_that_is_too_large_for_the_disk_is_closed_again(store, monkeypatch):
    closed = []

    def full(descriptor, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "truncate", full)
    monkeypatch.setattr(os, "close", closed.append)
    with pytest.raises(StoreError, match="No space left on device"):
        store.begin(Manifest.of([b"abc"]))
    monkeypatch.undo()
    assert len(closed) == 1
    os.close(closed[0])


def test_a_failure_while_adding_leaves_nothing(store, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        store.add(io.BytesIO(b"abc"))
    assert names(store) == []


def test_too_many_chunks_leave_nothing(store, monkeypatch):
    monkeypatch.setattr(manifests, "MOST_CHUNKS", 1)
    with pytest.raises(FrameTooLarge):
        store.add(io.BytesIO(bytes(CHUNK_BYTES + 1)))
    assert names(store) == []


# In part


def chunks_of(data):
    return [data[i : i + CHUNK_BYTES] for i in range(0, len(data), CHUNK_BYTES)]


@pytest.fixture
def parts():
    data = RNG.bytes(4 * CHUNK_BYTES + 9)
    return chunks_of(data), Manifest.of(chunks_of(data))


def test_chunks_in_any_order_become_an_object(store, parts):
    chunks, manifest = parts
    with store.begin(manifest) as partial:
        assert partial.present == ()
        for index in (4, 0, 3, 1, 2):
            partial.write(index, chunks[index])
        assert manifest.id not in store
        partial.finish()
    with store.open(manifest.id) as stored:
        stored.verify()
    assert names(store) == sorted([manifest.id, f"{manifest.id}.manifest"])


def test_an_object_without_bytes_is_one_too(store):
    manifest = Manifest.of([])
    with store.begin(manifest) as partial:
        partial.finish()
    assert manifest.id in store


def test_another_life_finds_what_was_kept(store, parts, tmp_path):
    chunks, manifest = parts
    with store.begin(manifest) as partial:
        for index in (1, 4):
            partial.write(index, chunks[index])
    with Store(tmp_path / "store").begin(manifest) as again:
        assert again.present == (1, 4)


def test_a_torn_or_damaged_chunk_counts_as_missing(store, parts):
    chunks, manifest = parts
    with store.begin(manifest) as partial:
        partial.write(0, chunks[0])
        partial.write(1, chunks[1][: CHUNK_BYTES // 2])
        partial.write(2, bytes([chunks[2][0] ^ 1]) + chunks[2][1:])
        partial.write(3, chunks[3])
    with store.begin(manifest) as again:
        assert again.present == (0, 3)


def test_a_partial_that_was_cut_short_on_disk_is_still_of_use(store, parts):
    chunks, manifest = parts
    with store.begin(manifest) as partial:
        for index, chunk in enumerate(chunks):
            partial.write(index, chunk)
    os.truncate(store._partial / manifest.id, 2 * CHUNK_BYTES + 5)
    with store.begin(manifest) as again:
        assert again.present == (0, 1)


def test_a_short_write_is_a_full_disk(store, parts, monkeypatch):
    chunks, manifest = parts
    with store.begin(manifest) as partial:
        monkeypatch.setattr(os, "pwrite", lambda *_: 5)
        with pytest.raises(StoreError, match=f"only 5 of {CHUNK_BYTES} bytes were written"):
            partial.write(0, chunks[0])


def test_removing_takes_what_is_there_in_part_too(store, parts):
    chunks, manifest = parts
    with store.begin(manifest) as partial:
        partial.write(0, chunks[0])
    store.remove(manifest.id)
    with store.begin(manifest) as again:
        assert again.present == ()


def test_closing_twice_is_nothing(store, parts):
    _, manifest = parts
    partial = store.begin(manifest)
    partial.close()
    partial.close()
