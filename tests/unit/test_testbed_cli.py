"""``starling testbed``: what it prints, where it keeps what it has trained, and what it refuses."""

import functools
import importlib.util
import json

import pytest

from node.cli.main import main
from node.testbed import preparing
from node.testbed.recipe import Recipe
from node.testbed.spelling.languages import SERVED

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = Recipe(hidden=8, layers=1, heads=2, base_steps=4, base_rows=2, adapter_steps=4, adapter_rows=1, judged=2)


@pytest.fixture
def starling(monkeypatch, capfd):
    monkeypatch.setattr(preparing, "prepare", functools.partial(preparing.prepare, recipe=TINY))

    def run(*arguments):
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["testbed", *map(str, arguments)])
        return ended.value.code or 0, *capfd.readouterr()

    return run


def test_it_says_where_everything_is_and_how_good(starling, tmp_path):
    code, out, err = starling("--out", tmp_path / "beds", "--json")
    assert code == 0
    found = json.loads(out)
    assert list(found["adapters"]) == list(SERVED)
    assert set(found["scores"]) == {"base", "right", "wrong"}
    for folder in (found["base"], *found["adapters"].values()):
        assert folder.startswith(str(tmp_path / "beds" / f"testbed-{TINY.digest(0)}"))
    assert "base: step 4 of 4" in err
    assert "adapters: step 4 of 4" in err
    code, out, err = starling("--out", tmp_path / "beds")
    assert code == 0
    assert "held-out numbers spelled exactly" in out
    assert f"base: {found['base']}" in out
    assert err == ""


def test_by_default_it_is_in_the_users_cache_and_seeds_have_their_own(starling, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code, out, _ = starling("--seed", 3, "--json")
    assert code == 0
    assert json.loads(out)["base"] == str(tmp_path / "starling" / f"testbed-{TINY.digest(3)}" / "base")


def test_what_cannot_be_is_refused_in_one_line(starling, tmp_path, monkeypatch):
    code, out, err = starling("--seed", -1)
    assert (code, out, err) == (2, "", "starling: --seed -1: allowed: 0 and above\n")
    (tmp_path / "file").write_text("")
    code, _, err = starling("--out", tmp_path / "file")
    assert code == 2
    assert err.startswith(f"starling: {tmp_path / 'file'}: cannot be written to")
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else known(name))
    code, _, err = starling()
    assert code == 2
    assert err.endswith("pip install 'starling-node[serve]'\n")
