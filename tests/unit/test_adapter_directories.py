"""Adapters' folders: read as PEFT saves them, or refused by the name of what is wrong."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from node.adapters import configuration
from node.adapters.configuration import FUSED_EXPERTS, LORA, Settings, read_settings
from node.adapters.directory import layer_of, layer_order, module_of, read_directory
from node.adapters.fingerprint import base_fingerprint
from node.errors import ConfigError, Corrupt
from peft_folders import ALL, change_config, safetensors_bytes, save_adapter, tiny_llama


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_adapter(tiny_llama(), tmp_path_factory.mktemp("saved") / "good", rank=4, alpha=8)


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "adapter")


def weights(folder):
    return folder / "adapter_model.safetensors"


def change_tensors(folder, change):
    tensors = load_file(weights(folder))
    change(tensors)
    save_file(tensors, weights(folder))


# Read


def test_what_peft_saves_is_read(folder):
    found = read_directory(folder)
    assert found.settings == Settings(rank=4, alpha=8.0, use_rslora=False, targets=tuple(sorted(ALL)), layout=LORA)
    assert found.settings.scale == 2.0
    assert found.files == ("README.md", "adapter_config.json", "adapter_model.safetensors")
    assert len(found.extents) == 2 * len(ALL) * 2
    assert [extent.name for extent in found.extents] == sorted(load_file(weights(folder)))


def test_rank_stabilised_scaling_divides_by_the_root(folder):
    change_config(folder, use_rslora=True)
    assert read_directory(folder).settings.scale == 4.0


def test_a_pattern_in_the_place_of_targets_is_not_run_and_the_tensors_tell(folder):
    change_config(folder, target_modules="(a+)+$")
    assert read_directory(folder).settings.targets == ()


def test_settings_without_what_older_versions_did_not_have(folder):
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8.5, "target_modules": ALL, "bias": "none"})
    )
    assert read_directory(folder).settings == Settings(4, 8.5, False, tuple(sorted(ALL)))


@pytest.mark.parametrize("way", [True, False, "gaussian", "orthogonal"])
def test_how_training_began_does_not_matter_where_it_left_the_base_alone(folder, way):
    change_config(folder, init_lora_weights=way, lora_dropout=0.3, exclude_modules=["lm_head"])
    assert read_directory(folder).settings.rank == 4


def test_fused_experts_have_their_layout(tmp_path):
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_parameters": ["mlp.experts.gate_up_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    name = "base_model.model.model.layers.0.mlp.experts.lora_"
    save_file(
        {f"{name}A.weight": torch.ones(6, 5), f"{name}B.weight": torch.ones(7, 6)},
        tmp_path / "adapter_model.safetensors",
    )
    assert read_directory(tmp_path).settings.layout == FUSED_EXPERTS


def test_names_say_module_side_and_layer():
    assert module_of("base_model.model.model.layers.10.mlp.up_proj.lora_A.weight") == (
        "model.layers.10.mlp.up_proj",
        "A",
    )
    assert layer_of("model.layers.10.mlp.up_proj") == "10"
    assert layer_of("transformer.h.3.attn") == "3"
    assert layer_of("model.layers.2.mlp.experts.7.up_proj") == "2"
    assert layer_of("lm_head") == "rest"
    assert sorted(["rest", "10", "9", "0"], key=layer_order) == ["0", "9", "10", "rest"]


# Refused: settings


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"peft_type": "IA3"}, "peft_type: 'IA3'"),
        ({"peft_type": None}, "peft_type: None"),
        ({"use_dora": True}, "use_dora: True"),
        ({"bias": "all"}, "bias: 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: ['lm_head']"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out: True"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern: {'q_proj': 2}"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"lora_bias": True}, "lora_bias"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"something_of_next_year": 0.5}, "something_of_next_year: 0.5"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: 'pissa'"),
        ({"r": 0}, "r: 0 is no rank"),
        ({"r": True}, "r: True is no rank"),
        ({"r": "8"}, "r: '8' is no rank"),
        ({"r": 1 << 40}, "is no rank"),
        ({"lora_alpha": None}, "lora_alpha: None"),
        ({"lora_alpha": float("nan")}, "lora_alpha: nan"),
        ({"lora_alpha": float("inf")}, "lora_alpha: inf"),
        ({"use_rslora": 1}, "use_rslora: 1"),
        ({"target_modules": [1]}, "target_modules: [1]"),
        ({"target_modules": {"q": 1}}, "target_modules"),
    ],
)
def test_settings_that_are_not_served_are_refused_by_name(folder, change, says):
    change_config(folder, **change)
    with pytest.raises(ConfigError) as refused:
        read_directory(folder)
    assert says in str(refused.value)
    assert str(folder / "adapter_config.json") in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"{", "is no JSON:"), (b"[1]", "is no JSON object"), (b"\xff", "is no JSON:"), (b"[" * 99_999, "is no JSON:")],
)
def test_settings_that_cannot_be_read_are_refused(folder, content, says):
    (folder / "adapter_config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        read_settings(folder / "adapter_config.json")


def test_a_long_file_of_settings_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(configuration, "MOST_BYTES", 100)
    with pytest.raises(ConfigError, match="more than 100 bytes"):
        read_directory(folder)


# Refused: files


@pytest.mark.parametrize("name", ["adapter_model.bin", "optimizer.PT", "scheduler.pkl", "training_args.bin"])
def test_pickles_are_refused_with_how_to_convert(folder, name):
    (folder / name).write_bytes(b"\x80\x04.")
    with pytest.raises(ConfigError, match=r"is a pickle.*save_pretrained\(FOLDER, safe_serialization=True\)"):
        read_directory(folder)


def test_a_folder_that_lacks_a_file_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="is no folder"):
        read_directory(tmp_path / "nowhere")
    weights(folder).unlink()
    with pytest.raises(ConfigError, match=r"adapter_model.safetensors: is missing"):
        read_directory(folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ConfigError, match=r"adapter_config.json: is missing"):
        read_directory(folder)


def test_folders_links_and_crowds_are_refused(folder, tmp_path):
    (folder / "checkpoint-1").mkdir()
    with pytest.raises(ConfigError, match="checkpoint-1: is no plain file"):
        read_directory(folder)
    (folder / "checkpoint-1").rmdir()
    (tmp_path / "elsewhere").write_text("secret")
    (folder / "secrets").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="secrets: is no plain file"):
        read_directory(folder)
    (folder / "secrets").unlink()
    for i in range(64):
        (folder / f"{i}.txt").touch()
    with pytest.raises(ConfigError, match="has 67 files; allowed: 64"):
        read_directory(folder)


def test_files_whose_names_cannot_be_shown_are_refused(folder):
    (folder / "READ\nME").touch()
    with pytest.raises(ConfigError, match=r"has a file 'READ\\nME'; allowed"):
        read_directory(folder)
    (folder / "READ\nME").rename(folder / ("ü" * 101))
    with pytest.raises(ConfigError, match="names of up to 200 bytes"):
        read_directory(folder)


# Refused: tensors


def test_targets_may_be_endings_of_several_parts(folder):
    change_config(folder, target_modules=["self_attn.q_proj", "model.layers.0.mlp.up_proj"])
    assert read_directory(folder).settings.rank == 4
    change_config(folder, target_modules=["proj"])
    with pytest.raises(Corrupt, match="names the target 'proj'"):
        read_directory(folder)


def test_many_targets_and_long_names_take_no_time(folder):
    change_config(folder, target_modules=[f"t{i}" for i in range(90_000)])
    with pytest.raises(Corrupt, match="names the target 't0'"):
        read_directory(folder)
    with pytest.raises(Corrupt, match="is not served"):
        module_of("base_model.model." + "." * 1_000_000 + ".lora_A.weight")


def first(tensors, ending):
    return next(name for name in sorted(tensors) if name.endswith(ending))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.clear(), "it has no tensors"),
        (lambda t: t.pop(first(t, "lora_B.weight")), "has only lora_A"),
        (lambda t: t.update({"model.embed_tokens.weight": torch.ones(2)}), "'model.embed_tokens.weight' is not served"),
        (
            lambda t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(2, 2)}),
            "lora_embedding_A' is not served",
        ),
        (lambda t: t.update({first(t, "A.weight"): torch.ones(4)}), r"is F32\[4\]; allowed: matrices"),
        (lambda t: t.update({first(t, "A.weight"): torch.ones(4, 2, dtype=torch.int8)}), r"is I8\[4, 2\]"),
        (lambda t: t.update({first(t, "A.weight"): torch.ones(4, 0)}), r"is F32\[4, 0\]"),
        (lambda t: t.update({first(t, "A.weight"): torch.ones(5, 64)}), "rank 5 in A, 4 in B; r is 4"),
        (lambda t: [t.pop(name) for name in list(t) if "q_proj" in name], "target 'q_proj', and no tensor is for it"),
    ],
)
def test_tensors_that_are_no_adapters_are_refused(folder, change, says):
    change_tensors(folder, change)
    with pytest.raises(Corrupt, match=says) as refused:
        read_directory(folder)
    assert str(weights(folder)) in str(refused.value)


def test_another_rank_than_the_settings_say_is_refused(folder):
    change_config(folder, r=8)
    with pytest.raises(Corrupt, match="rank 4 in A, 4 in B; r is 8"):
        read_directory(folder)


def test_a_file_that_is_cut_off_is_refused(folder):
    data = weights(folder).read_bytes()
    weights(folder).write_bytes(data[:-1])
    with pytest.raises(Corrupt, match=r"adapter_model.safetensors: .*cut off"):
        read_directory(folder)


# The base


def test_a_fingerprint_is_that_of_the_tensors_however_they_are_divided(tmp_path):
    tensors = {"a": torch.arange(4.0), "b": torch.ones(2, 2)}
    for name, parts in {"one": [tensors], "two": [{"a": tensors["a"]}, {"b": tensors["b"]}]}.items():
        (tmp_path / name).mkdir()
        for number, part in enumerate(parts):
            save_file(part, tmp_path / name / f"model-{number}.safetensors", metadata={"format": name})
    print_of_one = base_fingerprint(tmp_path / "one")
    assert print_of_one == base_fingerprint(tmp_path / "two")
    assert len(print_of_one) == 64


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.arange(4.0), "c": torch.ones(2, 2)},
        {"a": torch.arange(4.0), "b": torch.ones(4)},
        {"a": torch.arange(4.0), "b": torch.zeros(2, 2)},
        {"a": torch.arange(4.0), "b": torch.ones(2, 2, dtype=torch.int32)},
        {"a": torch.arange(4.0)},
    ],
)
def test_every_difference_is_another_base(tmp_path, other):
    for name, tensors in {"one": {"a": torch.arange(4.0), "b": torch.ones(2, 2)}, "two": other}.items():
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    assert base_fingerprint(tmp_path / "one") != base_fingerprint(tmp_path / "two")


def test_a_base_that_cannot_be_told_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"has no .safetensors file"):
        base_fingerprint(tmp_path)
    for name in ("one", "two"):
        save_file({"a": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(Corrupt, match="'a' is in two files"):
        base_fingerprint(tmp_path)
    (tmp_path / "two.safetensors").write_bytes(safetensors_bytes({}, b"more"))
    with pytest.raises(Corrupt, match=r"two.safetensors: "):
        base_fingerprint(tmp_path)
