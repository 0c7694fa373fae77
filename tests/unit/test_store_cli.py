"""``starling store``: adapters and files go in and come out byte for byte."""

import json

import pytest
from safetensors.torch import save_file

from node.adapters.fingerprint import base_fingerprint
from node.cli.main import main
from peft_folders import save_adapter, tiny_llama


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base model and two adapters for it."""
    folder = tmp_path_factory.mktemp("made")
    model = tiny_llama()
    model.save_pretrained(folder / "base")
    for seed, name in enumerate(("german", "french")):
        save_adapter(model, folder / name, seed=seed)
    return folder


@pytest.fixture
def starling(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def put(starling, made, name, *more):
    code, out, err = starling("store", "put", made / name, "--base", made / "base", "--json", *more)
    assert code == 0, err
    return json.loads(out)


def test_an_adapter_comes_out_as_it_went_in(starling, made, tmp_path):
    facts = put(starling, made, "german")
    assert (facts["name"], facts["kind"]) == ("german", "adapter")
    code, out, _ = starling("store", "get", "german", "copy")
    assert (code, out) == (0, "german: written to copy\n")
    assert contents(tmp_path / "copy") == contents(made / "german")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "store"]


def test_a_file_comes_out_as_it_went_in(starling, tmp_path):
    import torch

    save_file({"a": torch.arange(9.0)}, tmp_path / "w.safetensors")
    assert starling("store", "put", "w.safetensors", "--name", "weights")[0] == 0
    assert starling("store", "get", "weights", "again.safetensors")[0] == 0
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "w.safetensors").read_bytes()


def test_the_list_says_what_is_kept_and_how_much_it_takes(starling, made):
    first, second = (put(starling, made, name) for name in ("german", "french"))
    again = put(starling, made, "german", "--name", "deutsch")
    assert again["version"] != first["version"]  # the name is in the artifact; the weights are shared
    listed = json.loads(starling("store", "ls", "--json")[1])
    assert [entry["name"] for entry in listed["entries"]] == ["deutsch", "french", "german"]
    assert listed["used_bytes"] < first["size_bytes"] + second["size_bytes"] + again["size_bytes"]
    code, out, _ = starling("store", "ls")
    assert code == 0
    assert out.splitlines()[-1].startswith("3 kept, ")
    assert first["version"][:16] in out


def test_removing_frees_what_no_other_name_leads_to(starling, made):
    put(starling, made, "german")
    put(starling, made, "german", "--name", "deutsch")
    put(starling, made, "french")
    assert starling("store", "rm", "french", "german")[0] == 0
    assert json.loads(starling("store", "ls", "--json")[1])["entries"][0]["name"] == "deutsch"
    assert starling("store", "get", "deutsch", "copy")[0] == 0
    assert starling("store", "rm", "deutsch")[0] == 0
    assert json.loads(starling("store", "ls", "--json")[1])["used_bytes"] == 0


def test_of_several_names_all_are_removed_or_none(starling, made):
    put(starling, made, "german")
    code, _, err = starling("store", "rm", "german", "klingon")
    assert code == 3
    assert "'klingon' is not in" in err
    assert len(json.loads(starling("store", "ls", "--json")[1])["entries"]) == 1


def test_damage_is_found_and_not_given_out(starling, made, tmp_path):
    put(starling, made, "german")
    objects = len(contents(made / "german")) + 1
    assert starling("store", "verify") == (0, f"{objects} objects, 0 damaged\n", "")
    largest = max((tmp_path / "store" / "objects").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    code, out, _ = starling("store", "verify", "--json")
    assert code == 3
    assert list(json.loads(out)["damaged"]) == [largest.name]
    code, _, err = starling("store", "get", "german", "copy")
    assert code == 3
    assert "damaged" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


def test_the_base_is_found_where_the_adapter_names_it(starling, made, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, content in contents(made / "german").items():
        (folder / name).write_bytes(content)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(made / "base")}))
    assert starling("store", "put", "mine")[0] == 0
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "org/model"}))
    code, _, err = starling("store", "put", "mine")
    assert code == 2
    assert "its base model 'org/model' is not on this machine; say --base DIR" in err


def test_the_base_is_what_the_adapter_was_trained_for(starling, made, tmp_path):
    from node.adapters.publishing import adapter_of
    from node.store.catalogue import Catalogue
    from node.store.objects import Store

    put(starling, made, "german")
    with Catalogue(Store(tmp_path / "store"), tmp_path / "store", lambda: 0.0) as catalogue:
        assert adapter_of(catalogue, "german").base_fingerprint == base_fingerprint(made / "base")


def test_beyond_the_quota_nothing_is_kept(starling, made):
    code, _, err = starling("store", "put", made / "german", "--base", made / "base", "--quota-bytes", 1_000)
    assert code == 3
    assert "within the quota of 1000" in err
    assert json.loads(starling("store", "ls", "--json")[1]) == {"used_bytes": 0, "entries": []}


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (("ls",), 2, "is no storage folder"),
        (("put", "nothing"), 2, "nothing: is not there"),
        (("get", "x", "y"), 2, "is no storage folder"),
    ],
)
def test_bad_input_gets_one_line(starling, arguments, code, problem):
    found, _, err = starling("store", *arguments)
    assert found == code
    assert problem in err
    assert err.count("\n") == 1


def test_nothing_is_overwritten(starling, made, tmp_path):
    put(starling, made, "german")
    (tmp_path / "copy").write_text("mine")
    code, _, err = starling("store", "get", "german", "copy")
    assert code == 2
    assert "copy: is there already" in err
    assert (tmp_path / "copy").read_text() == "mine"


def test_a_folder_with_a_pickle_is_refused(starling, made, tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "adapter_model.bin").write_bytes(b"")
    code, _, err = starling("store", "put", "bad", "--base", made / "base")
    assert code == 2
    assert "pickle" in err
