import pytest
import torch
from safetensors.torch import load_file, save_file

from node.config import ModelSection
from node.errors import ComputeError, Corrupt, Missing
from node.learn.models import build
from node.learn.tensors import from_buffer, load_model, save_model, to_buffer
from node.op import Spec

MODEL = build(ModelSection(name="mlp", hidden=(8,)), (1, 4, 4), 3)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int64", "uint8"])
def test_a_tensor_survives_as_bytes(dtype):
    value = torch.arange(12).reshape(3, 4).to(getattr(torch, dtype))
    buffer = to_buffer(value)
    spec = Spec((3, 4), dtype)
    assert len(buffer) == spec.size_bytes
    assert torch.equal(from_buffer(buffer, spec), value)


def test_neither_way_copies():
    value = torch.zeros(4)
    buffer = to_buffer(value)
    back = from_buffer(buffer, Spec((4,)))
    value[2] = 7.0
    assert back[2] == 7.0
    assert back.data_ptr() == value.data_ptr()


def test_a_buffer_is_read_only():
    with pytest.raises(TypeError):
        to_buffer(torch.zeros(2))[0] = 1


def test_bytes_from_the_network_are_taken_without_a_warning():
    sent = bytes(to_buffer(torch.tensor([1.0, -2.5])))
    assert from_buffer(memoryview(sent), Spec((2,))).tolist() == [1.0, -2.5]


def test_a_row_of_a_slab_is_only_itself():
    slab = torch.arange(12.0).reshape(3, 4)
    assert len(to_buffer(slab[1])) == 16
    assert from_buffer(to_buffer(slab[1]), Spec((4,))).tolist() == [4.0, 5.0, 6.0, 7.0]


def test_an_odd_stride_is_made_contiguous_first():
    column = torch.arange(6.0).reshape(2, 3)[:, 1]
    assert from_buffer(to_buffer(column), Spec((2,))).tolist() == [1.0, 4.0]


def test_an_empty_tensor_is_no_bytes():
    assert from_buffer(to_buffer(torch.zeros(0, 3)), Spec((0, 3))).shape == (0, 3)


@pytest.mark.parametrize("length", [0, 15, 17, 32])
def test_a_wrong_length_is_refused_with_both_numbers(length):
    with pytest.raises(ComputeError, match=rf"{length} bytes for a float32\[4\] tensor, which has 16"):
        from_buffer(bytearray(length), Spec((4,)))


def test_a_saved_model_comes_back_bit_for_bit(tmp_path):
    flat = MODEL.initial(5)
    save_model(tmp_path / "0.safetensors", MODEL, flat)
    assert torch.equal(load_model(tmp_path / "0.safetensors", MODEL), flat)
    assert [path.name for path in tmp_path.iterdir()] == ["0.safetensors"]


def test_the_file_has_the_parameters_by_name(tmp_path):
    path = tmp_path / "0.safetensors"
    save_model(path, MODEL, MODEL.initial(5))
    assert {name: tuple(part.shape) for name, part in load_file(path).items()} == {
        "1.weight": (8, 16),
        "1.bias": (8,),
        "3.weight": (3, 8),
        "3.bias": (3,),
    }


def test_a_row_of_a_slab_is_saved_alone(tmp_path):
    slab = torch.stack([MODEL.initial(seed) for seed in range(50)])
    save_model(tmp_path / "0", MODEL, slab[7])
    assert torch.equal(load_model(tmp_path / "0", MODEL), slab[7])
    assert (tmp_path / "0").stat().st_size < 2 * MODEL.spec.size_bytes


def test_saving_replaces_what_was_there(tmp_path):
    path = tmp_path / "0.safetensors"
    for seed in (1, 2):
        save_model(path, MODEL, MODEL.initial(seed))
    assert torch.equal(load_model(path, MODEL), MODEL.initial(2))


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "0.safetensors"
    save_model(path, MODEL, MODEL.initial(1))

    def full(parts, file, metadata):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("node.learn.tensors.save_file", full)
    with pytest.raises(OSError, match="no space"):
        save_model(path, MODEL, MODEL.initial(2))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert torch.equal(load_model(path, MODEL), MODEL.initial(1))


def test_a_missing_file(tmp_path):
    with pytest.raises(Missing, match=r"0\.safetensors: no such model file"):
        load_model(tmp_path / "0.safetensors", MODEL)


@pytest.mark.parametrize("length", [0, 4, 100, 400])
def test_a_truncated_file(tmp_path, length):
    path = tmp_path / "0.safetensors"
    save_model(path, MODEL, MODEL.initial(1))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(Corrupt, match="not a whole safetensors file"):
        load_model(path, MODEL)


def test_a_file_of_another_model(tmp_path):
    path = tmp_path / "0.safetensors"
    other = build(ModelSection(name="softmax"), (1, 4, 4), 3)
    save_model(path, other, other.initial(0))
    with pytest.raises(Corrupt, match=r"not a mlp model: parameter '3\.bias' is in only one"):
        load_model(path, MODEL)


@pytest.mark.parametrize("wrong", [torch.zeros(9), torch.zeros(8, dtype=torch.float64)])
def test_a_parameter_of_another_kind(tmp_path, wrong):
    path = tmp_path / "0.safetensors"
    parts = {name: part.clone() for name, part in MODEL.named(MODEL.initial(0)).items()}
    save_file({**parts, "1.bias": wrong}, path)
    with pytest.raises(Corrupt, match=r"parameter '1\.bias' is torch\.float"):
        load_model(path, MODEL)
