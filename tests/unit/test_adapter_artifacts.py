"""Artifacts: folders in a store and back, layers cut from files, and every lie about them found."""

import hashlib
import io
import json
import subprocess
import sys

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from node.adapters.artifact import Artifact, describe
from node.adapters.directory import read_directory
from node.adapters.keeping import check_layer, keep, kept, layer_bytes, restore
from node.errors import ConfigError, Corrupt, Missing
from node.store.objects import Store
from peft_folders import save_adapter, tiny_llama

BASE = "ab" * 32


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    root = tmp_path_factory.mktemp("stored")
    folder = save_adapter(tiny_llama(), root / "good", rank=4, alpha=8)
    store = Store(root / "store")
    return store, folder, keep(store, folder, "team/good", BASE)


@pytest.fixture(scope="module")
def artifact(stored):
    store, _, version = stored
    return kept(store, version)


# Kept


def test_an_artifact_says_what_the_adapter_is(stored, artifact):
    _, folder, _ = stored
    assert (artifact.name, artifact.base_fingerprint, artifact.rank, artifact.alpha) == ("team/good", BASE, 4, 8.0)
    assert artifact.settings.scale == 2.0
    assert artifact.targets == ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    assert [file.name for file in artifact.files] == sorted(path.name for path in folder.iterdir())
    assert [layer.name for layer in artifact.layers] == ["0", "1"]
    assert artifact.shapes()["model.layers.1.mlp.down_proj"] == (32, 64)
    tensors = load_file(folder / "adapter_model.safetensors")
    assert artifact.size_bytes == sum(tensor.nbytes for tensor in tensors.values())


def test_a_layer_is_its_tensors_in_the_order_of_their_names(stored, artifact):
    store, folder, _ = stored
    tensors = load_file(folder / "adapter_model.safetensors")
    for layer in artifact.layers:
        data = layer_bytes(store, artifact, layer)
        names = sorted(name for name in tensors if f".layers.{layer.name}." in name)
        assert data == b"".join(tensors[name].numpy().tobytes() for name in names)
        assert [tensor.name for tensor in layer.tensors] == names
        assert hashlib.sha256(data).hexdigest() == layer.sha256
        assert layer.size_bytes == len(data)


def test_chunks_divide_a_layer(stored):
    store, folder, _ = stored
    directory = read_directory(folder)
    objects = {name: store.add(folder / name).id for name in directory.files}
    small = describe(directory, "good", BASE, objects, chunk_bytes=1000)
    for layer in small.layers:
        data = layer_bytes(store, small, layer)
        pieces = [data[at : at + 1000] for at in range(0, len(data), 1000)]
        assert list(layer.chunks) == [hashlib.sha256(piece).hexdigest() for piece in pieces]
        assert len(pieces[-1]) == layer.size_bytes - 1000 * (len(pieces) - 1)


def test_the_version_follows_from_the_content_alone(stored, tmp_path):
    store, folder, version = stored
    assert keep(store, folder, "team/good", BASE) == version
    assert keep(Store(tmp_path / "other"), folder, "team/good", BASE) == version
    assert keep(store, folder, "team/good", "cd" * 32) != version
    other = save_adapter(tiny_llama(), tmp_path / "other-weights", seed=1, rank=4, alpha=8)
    assert keep(store, other, "team/good", BASE) != version


def test_artifacts_are_canonical_and_read_as_they_were_written(artifact):
    data = artifact.to_bytes()
    assert Artifact.from_bytes(data) == artifact
    assert data == json.dumps(json.loads(data), sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(Corrupt, match="not canonical"):
        Artifact.from_bytes(b" " + data)
    with pytest.raises(Corrupt, match="not canonical"):
        Artifact.from_bytes(json.dumps(json.loads(data)).encode())


def test_restoring_over_something_is_refused(stored, artifact, tmp_path):
    store, folder, _ = stored
    restore(store, artifact, tmp_path / "copy")
    assert (tmp_path / "copy" / "README.md").read_bytes() == (folder / "README.md").read_bytes()
    with pytest.raises(ConfigError, match="is there already"):
        restore(store, artifact, tmp_path / "copy")


@pytest.mark.parametrize("name", ["", "a b", "../up", "-x", "x" * 201, "ü"])
def test_names_that_cannot_be_are_refused(stored, name):
    store, folder, _ = stored
    with pytest.raises(ConfigError, match="allowed: up to 200 letters"):
        keep(store, folder, name, BASE)


# Damaged


def test_what_is_missing_or_damaged_in_the_store_is_found(stored, artifact, tmp_path):
    _, folder, _ = stored
    store = Store(tmp_path / "store")
    version = keep(store, folder, "good", BASE)
    found = kept(store, version)
    with pytest.raises(Missing):
        kept(store, "0" * 64)
    weights = next(file for file in found.files if file.name == "adapter_model.safetensors")
    path = store._objects / weights.object
    data = bytearray(path.read_bytes())
    data[found.layers[1].ranges[0][0]] ^= 1
    path.write_bytes(data)
    assert layer_bytes(store, found, found.layers[0])
    with pytest.raises(Corrupt, match="layer 1 is damaged"):
        layer_bytes(store, found, found.layers[1])
    with pytest.raises(Corrupt, match="is damaged"):
        restore(store, found, tmp_path / "copy")
    store.remove(weights.object)
    with pytest.raises(Missing):
        layer_bytes(store, found, found.layers[0])


def test_an_object_that_is_no_artifact_is_refused(stored):
    store, folder, _ = stored
    with pytest.raises(Corrupt, match="no adapter"):
        kept(store, store.add(folder / "README.md").id)
    with pytest.raises(Corrupt, match="no adapter: it has"):
        kept(store, store.add(io.BytesIO(bytes((16 << 20) + 1))).id)


def test_a_layer_of_other_bytes_is_refused(stored, artifact):
    store, *_ = stored
    data = layer_bytes(store, artifact, artifact.layers[0])
    with pytest.raises(Corrupt, match="adapter team/good: layer 1 is damaged"):
        check_layer(artifact, artifact.layers[1], data)
    with pytest.raises(Corrupt, match="layer 0 is damaged"):
        check_layer(artifact, artifact.layers[0], data[:-1])


# Lies


def changed(artifact, change):
    content = msgspec.json.decode(artifact.to_bytes())
    change(content)
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def in_layer(**values):
    return lambda content: content["layers"][0].update(values)


def move_range(content):
    content["layers"][0]["ranges"][0][0] = 1 << 40


def lengthen_range(content):
    content["layers"][0]["ranges"][0][1] += 4
    content["layers"][0]["size_bytes"] += 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.update(schema=2), "schema"),
        (lambda c: c.update(kind="expert"), "kind"),
        (lambda c: c.update(layout="other"), "layout"),
        (lambda c: c.update(extra=1), "extra"),
        (lambda c: c.pop("rank"), "rank"),
        (lambda c: c.update(rank=0), "rank"),
        (lambda c: c.update(rank=2), "rank 4 in A"),
        (lambda c: c.update(base_fingerprint="xyz"), "base_fingerprint"),
        (lambda c: c.update(chunk_bytes=0), "chunk_bytes"),
        (lambda c: c.update(targets=["lm_head"]), "target 'lm_head'"),
        (lambda c: c.update(name="../x"), "cannot be the name of one"),
        (lambda c: c["files"][0].update(name="../x"), "names that cannot be"),
        (lambda c: c["files"][0].update(name="A\n"), "names that cannot be"),
        (lambda c: c["files"][0].update(name="A" * 201), "names that cannot be"),
        (lambda c: c["files"].reverse(), "not sorted by name"),
        (lambda c: c["files"][0].update(name=".."), "names that cannot be"),
        (lambda c: c["files"][0].update(name=c["files"][1]["name"]), "names that cannot be"),
        (lambda c: c["files"][0].update(object="/etc/passwd"), "object"),
        (lambda c: c.update(layers=[]), "has no tensors"),
        (lambda c: c["layers"].reverse(), "not in the order"),
        (lambda c: c["layers"].append(c["layers"][1]), "not in the order"),
        (in_layer(name="1"), "is of another layer"),
        (in_layer(file="elsewhere"), "no file of the adapter"),
        (in_layer(ranges=[]), "not as many as ranges"),
        (in_layer(tensors=[], ranges=[], size_bytes=0, chunks=[]), "are missing"),
        (lambda c: c["layers"][0]["tensors"].reverse(), "not sorted by name"),
        (in_layer(size_bytes=1), "do not add up"),
        (in_layer(chunks=[]), "0 chunks"),
        (in_layer(sha256="0"), "sha256"),
        (lambda c: c["layers"][0].update(sha256=c["layers"][0]["sha256"] + "\n"), "sha256"),
        (move_range, "ends behind its file"),
        (lengthen_range, "not as many bytes as its shape"),
        (lambda c: c["layers"][0]["tensors"][0].update(dtype="F99"), "'F99' is none of"),
        (lambda c: c["layers"][0]["tensors"][0].update(name="a"), "is not served"),
        (lambda c: c["layers"][0]["tensors"][0].update(name="a" * 501), "is not served"),
        (lambda c: c["layers"][0]["tensors"][0].update(shape=[-1, 4]), "no adapter"),
    ],
)
def test_what_does_not_add_up_is_refused_in_one_line(artifact, change, says):
    with pytest.raises(Corrupt) as refused:
        Artifact.from_bytes(changed(artifact, change))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b"[" * 99_999, bytes((16 << 20) + 1)])
def test_bytes_of_other_kinds_are_refused(data):
    with pytest.raises(Corrupt, match="no adapter"):
        Artifact.from_bytes(data)


@given(st.data())
def test_a_changed_byte_never_makes_an_artifact_that_reaches_out_of_its_files(artifact, data):
    good = artifact.to_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    try:
        found = Artifact.from_bytes(good[:at] + bytes([data.draw(st.integers(32, 126))]) + good[at + 1 :])
    except Corrupt:
        return
    sizes = {file.name: file.size_bytes for file in found.files}
    assert all(offset + length <= sizes[each.file] for each in found.layers for offset, length in each.ranges)
    assert torch.tensor([each.size_bytes for each in found.layers]).sum() == found.size_bytes


def test_who_keeps_adapters_needs_no_torch():
    code = "import sys, node.adapters.keeping, node.adapters.fingerprint; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
