"""Headers of safetensors files: what the library writes is read, what nobody should have written is refused."""

import io
import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from node.adapters import headers
from node.adapters.headers import Extent, read_extents, size_bytes
from node.errors import Corrupt
from peft_folders import safetensors_bytes


def read(tmp_path, data):
    path = tmp_path / "some.safetensors"
    path.write_bytes(data)
    with path.open("rb") as file:
        return read_extents(file)


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_what_the_library_writes_is_found_in_its_place(tmp_path):
    tensors = {
        "b": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "a": torch.arange(5, dtype=torch.bfloat16),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.zeros(0, 4),
        "flags": torch.tensor([True, False]),
    }
    path = tmp_path / "some.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    with path.open("rb") as file:
        extents = read_extents(file)
    data = path.read_bytes()
    assert [extent.name for extent in extents] == sorted(tensors)
    for extent in extents:
        tensor = tensors[extent.name]
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        assert tuple(tensor.shape) == extent.shape
        assert data[extent.offset : extent.offset + extent.size_bytes] == raw


def test_sizes_are_those_of_torch():
    kinds = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "BOOL": 1, "F8_E4M3": 1}
    assert {kind: size_bytes(kind, (3, 5)) for kind in kinds} == {kind: 15 * size for kind, size in kinds.items()}
    assert size_bytes("F32", ()) == 4


def test_a_file_of_no_tensors_is_one(tmp_path):
    assert read(tmp_path, safetensors_bytes({})) == []
    assert read(tmp_path, safetensors_bytes({"__metadata__": {"format": "pt"}})) == []


def test_padding_behind_the_header_is_allowed(tmp_path):
    found = read(tmp_path, safetensors_bytes(json.dumps({"a": entry()}).encode() + b"   ", bytes(8)))
    assert [extent.name for extent in found] == ["a"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "a header of 0 bytes"),
        (b"\x08\0\0", "a header of 0 bytes"),
        (struct.pack("<Q", 0), "a header of 0 bytes"),
        (struct.pack("<Q", 1 << 62) + b"{}", "where at most 2 can be"),
        (struct.pack("<Q", 3) + b"{}", "where at most 2 can be"),
        (safetensors_bytes(b"[]"), "its header is not"),
        (safetensors_bytes(b"\xff\xfe"), "its header is not"),
        (safetensors_bytes(b"[" * 100_000), "its header is not"),
        (safetensors_bytes(b'{"a":' * 50_000), "its header is not"),
        (safetensors_bytes({"a": 1}), "its header is not"),
        (safetensors_bytes({"a": {"dtype": "F32", "shape": [2]}}), "data_offsets"),
        (safetensors_bytes({"a": {**entry(), "more": 1}}), "more"),
        (safetensors_bytes({"a": entry(shape=(-2,))}), "its header is not"),
        (safetensors_bytes({"a": entry(shape=(1.5,))}), "its header is not"),
        (safetensors_bytes({"a": entry(shape=(True,))}), "its header is not"),
        (safetensors_bytes({"a": entry(shape=(1,) * 9)}), "its header is not"),
        (safetensors_bytes({"a": entry(shape=(1 << 60,))}), "its header is not"),
        (safetensors_bytes({"a": entry(offsets=(0, 8, 16))}), "its header is not"),
        (safetensors_bytes({"a": entry(dtype="F128")}, bytes(8)), "'F128' is none of"),
        (safetensors_bytes({"a": entry(shape=(3,))}, bytes(8)), "its shape says 12"),
        (safetensors_bytes({"a": entry(shape=(1 << 47, 1 << 47))}, bytes(8)), "its shape says"),
        (safetensors_bytes({"a": entry(offsets=(8, 0))}, bytes(8)), "begins at byte 8"),
        (safetensors_bytes({"a": entry(offsets=(4, 12))}, bytes(12)), "begins at byte 4, the one before ends at 0"),
        (safetensors_bytes({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)), "'b' begins at byte 4"),
        (safetensors_bytes({"a": entry(), "b": entry()}, bytes(8)), "'b' begins at byte 0"),
        (safetensors_bytes({"a": entry()}, bytes(7)), "is it cut off"),
        (safetensors_bytes({"a": entry()}, bytes(9)), "is it cut off"),
        (safetensors_bytes({"a": entry(offsets=(0, 1 << 47))}, bytes(8)), "its shape says 8"),
    ],
)
def test_what_is_no_such_file_is_refused_in_one_line(tmp_path, data, says):
    with pytest.raises(Corrupt) as refused:
        read(tmp_path, data)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_name_that_comes_twice_leaves_a_hole(tmp_path):
    one = json.dumps({"a": entry(), "b": entry(offsets=(8, 16))})
    twice = one.replace('"b"', '"a"').encode()
    with pytest.raises(Corrupt, match="begins at byte 8"):
        read(tmp_path, safetensors_bytes(twice, bytes(16)))


def test_a_header_beyond_the_bound_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(headers, "MOST_HEADER_BYTES", 100)
    data = safetensors_bytes({"a" * 100: entry()}, bytes(8))
    with pytest.raises(Corrupt, match="at most 100"):
        read(tmp_path, data)


@given(st.binary(max_size=200))
def test_bytes_of_all_kinds_are_refused_or_read(tmp_path_factory, data):
    try:
        found = read(tmp_path_factory.getbasetemp(), struct.pack("<Q", len(data)) + data)
    except Corrupt:
        return
    assert found == []


@given(st.data())
def test_what_a_changed_byte_leaves_readable_is_still_within_the_file(tmp_path_factory, data):
    good = safetensors_bytes({"a": entry(), "b": entry("I8", (3, 1), (8, 11))}, bytes(11))
    at = data.draw(st.integers(0, len(good) - 1))
    changed = good[:at] + bytes([data.draw(st.integers(0, 255))]) + good[at + 1 :]
    try:
        found = read(tmp_path_factory.getbasetemp(), changed)
    except Corrupt:
        return
    assert all(each.offset >= 8 and each.offset + each.size_bytes <= len(good) for each in found)
    assert sum(each.size_bytes for each in found) == 11


def test_whatever_is_read_the_library_reads_alike(tmp_path):
    rng = np.random.default_rng(3)
    for _ in range(20):
        tensors = {
            f"t{i}": torch.from_numpy(rng.normal(size=rng.integers(1, 4, size=rng.integers(0, 4))))
            for i in range(rng.integers(1, 6))
        }
        path = tmp_path / "each.safetensors"
        save_file(tensors, path)
        with path.open("rb") as file, safe_open(path, "pt") as theirs:
            ours = {extent.name: extent.shape for extent in read_extents(file)}
            assert ours == {name: tuple(theirs.get_slice(name).get_shape()) for name in theirs.keys()}  # noqa: SIM118


def test_reading_begins_at_the_beginning_wherever_the_file_stands(tmp_path):
    path = tmp_path / "some.safetensors"
    path.write_bytes(safetensors_bytes({"a": entry()}, bytes(8)))
    with path.open("rb") as file:
        file.seek(0, io.SEEK_END)
        assert read_extents(file) == [Extent("a", "F32", (2,), path.stat().st_size - 8, 8)]
