"""Manifests: names that follow from content, and bytes from elsewhere that must not be believed."""

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import BadFrame, Corrupt, FrameTooLarge, StarlingError
from node.transfer import manifest as module
from node.transfer.manifest import CHUNK_BYTES, LEAST_CHUNK_BYTES, Manifest, is_id

SMALL = LEAST_CHUNK_BYTES


def cut(data, chunk_bytes=SMALL):
    return [data[i : i + chunk_bytes] for i in range(0, len(data), chunk_bytes)]


def of(data, chunk_bytes=SMALL):
    return Manifest.of(cut(data, chunk_bytes), chunk_bytes)


def rename(data):
    """The id that would belong to an encoded manifest."""
    return hashlib.sha256(b"starling/object/1\0" + data).hexdigest()


@pytest.mark.parametrize("size", [0, 1, SMALL - 1, SMALL, SMALL + 1, 3 * SMALL, 3 * SMALL + 5])
def test_the_chunks_make_up_the_object(size):
    data = bytes(i % 251 for i in range(size))
    manifest = of(data)
    assert manifest.size_bytes == size
    assert manifest.chunks == -(-size // SMALL)
    assert sum(map(manifest.chunk_size, range(manifest.chunks))) == size
    for index in range(manifest.chunks):
        chunk = data[manifest.offset(index) :][: manifest.chunk_size(index)]
        assert manifest.matches(index, chunk)
        assert not manifest.matches(index, chunk + b"x")
        assert not manifest.matches(index, bytes([chunk[0] ^ 1]) + chunk[1:])


def test_an_id_is_of_the_content_alone():
    assert of(b"abc").id == of(b"abc").id
    assert len({of(data).id for data in (b"", b"abc", b"abd", b"abc\0", bytes(SMALL), bytes(SMALL + 1))}) == 6


def test_the_id_is_what_is_documented():
    digest = hashlib.sha256(b"abc").digest()
    encoded = struct.pack("<BQI", 1, 3, SMALL) + digest
    assert of(b"abc").to_bytes() == encoded
    assert of(b"abc").id == rename(encoded)


def test_equal_chunks_in_another_order_are_another_object():
    a, b = bytes(SMALL), b"\1" * SMALL
    assert of(a + b).id != of(b + a).id


@given(st.binary(max_size=3), st.integers(0, 4))
def test_a_manifest_comes_back(tail, chunks):
    manifest = of(bytes(SMALL) * chunks + tail)
    again = Manifest.from_bytes(manifest.to_bytes(), manifest.id)
    assert again == manifest
    assert again.id == manifest.id
    assert Manifest.from_bytes(memoryview(manifest.to_bytes()), manifest.id) == manifest


@given(st.data())
def test_no_changed_byte_passes(data):
    manifest = of(bytes(2 * SMALL + 1))
    encoded = bytearray(manifest.to_bytes())
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Corrupt, match="not that of object"):
        Manifest.from_bytes(bytes(encoded), manifest.id)


@given(st.binary(max_size=200))
def test_whatever_comes_is_a_manifest_or_an_error_of_ours(data):
    try:
        manifest = Manifest.from_bytes(data, rename(data))
    except StarlingError:
        return
    assert manifest.to_bytes() == data


def encoded(version=1, size=3, chunk=SMALL, digests=1):
    return struct.pack("<BQI", version, size, chunk) + bytes(32 * digests)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\1",
        encoded(version=2),
        encoded(digests=0),
        encoded(digests=2),
        encoded()[:-1],
        encoded(size=0),
        encoded(chunk=0),
        encoded(chunk=SMALL - 1),
        encoded(chunk=CHUNK_BYTES + 1),
        encoded(size=2**64 - 1),
        encoded(size=SMALL + 1),
    ],
)
def test_one_that_does_not_add_up_is_refused_though_its_name_is_right(data):
    with pytest.raises(BadFrame, match="not a manifest"):
        Manifest.from_bytes(data, rename(data))


def test_too_many_chunks_are_refused_at_both_ends(monkeypatch):
    monkeypatch.setattr(module, "MOST_CHUNKS", 2)
    with pytest.raises(FrameTooLarge, match="more than 2 chunks"):
        of(bytes(2 * SMALL + 1))
    data = encoded(size=3 * SMALL, digests=3)
    with pytest.raises(BadFrame):
        Manifest.from_bytes(data, rename(data))


def test_a_manifest_of_the_most_chunks_fits_a_message_header():
    assert len(encoded(digests=module.MOST_CHUNKS)) < (1 << 20) - 200


@pytest.mark.parametrize("text", ["", "a" * 63, "a" * 65, "A" * 64, "../" + "a" * 61, "a" * 63 + "/", "a" * 64 + "\n"])
def test_what_is_no_id(text):
    assert not is_id(text)


def test_what_is_an_id():
    assert is_id("0123456789abcdef" * 4)
    assert is_id(of(b"").id)
