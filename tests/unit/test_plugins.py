"""Finding classes by name: bundled, by entry point, or anywhere on the path."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from node import Mod, Protocol
from node.errors import ConfigError
from node.experiment import plugins
from node.experiment.plugins import by_path, find, registered

GROUP = "starling.protocols"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder; modules found in it are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        del sys.modules[name]


@pytest.fixture
def installed(monkeypatch):
    """Pretends that some entry points are installed."""

    def install(**values):
        entries = {name: EntryPoint(name, value, GROUP) for name, value in values.items()}
        monkeypatch.setattr(plugins, "registered", lambda group: entries)

    return install


def refusal(use, kind=Protocol, key="protocol.use", group=GROUP):
    with pytest.raises(ConfigError) as refused:
        find(use, kind, key, group)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_every_bundled_protocol_is_found():
    names = registered(GROUP)
    assert {"adpsgd", "cpfl", "dpsgd", "epidemic", "fedavg", "local", "pushsum"} <= set(names)
    assert {"pens", "dac", "facade", "oracle"} <= set(names)
    assert {"finetuned", "fedper", "deprl", "ditto", "pfedme", "dispfl"} <= set(names)
    assert {"decor", "muffliato", "secagg", "shatter", "zipdl"} <= set(names)
    for name in names:
        found = find(name, Protocol, "protocol.use", GROUP)
        assert issubclass(found, Protocol)
        assert found.__doc__


def test_a_class_in_the_current_folder_is_found(here):
    (here / "plugin_mine.py").write_text("from node import Protocol\nclass Mine(Protocol):\n    pass\n")
    assert find("plugin_mine:Mine", Protocol, "protocol.use", GROUP).__name__ == "Mine"
    assert sys.path[-1] == ""  # last: nothing of ours is hidden by a folder of the user's
    find("plugin_mine:Mine", Protocol, "protocol.use", GROUP)
    assert sys.path.count("") == 1


def test_a_class_in_a_package_is_found(here):
    (here / "plugin_pack" / "inner").mkdir(parents=True)
    (here / "plugin_pack" / "inner" / "deep.py").write_text("from node import Mod\nclass Mine(Mod):\n    pass\n")
    assert issubclass(by_path("plugin_pack.inner.deep:Mine", "mods[0].use"), Mod)


def test_a_plug_in_is_found_by_its_name(here, installed):
    (here / "plugin_named.py").write_text("from node import Protocol\nclass Mine(Protocol):\n    pass\n")
    installed(mine="plugin_named:Mine")
    assert find("mine", Protocol, "protocol.use", GROUP).__module__ == "plugin_named"


def test_an_unknown_name_offers_the_nearest_and_the_other_way(installed):
    installed(gossip="a:B", server="c:D")
    assert refusal("gosip") == (
        "protocol.use: no protocol is called 'gosip'; did you mean 'gossip'?; known: gossip, server, or module:Class"
    )


def test_a_plug_in_that_cannot_be_loaded_says_why(here, installed):
    (here / "plugin_torn.py").write_text("import plugin_absent\n")
    installed(torn="plugin_torn:Mine", gone="plugin_gone:Mine")
    assert "'plugin_torn' cannot be imported: ModuleNotFoundError: No module named 'plugin_absent'" in refusal("torn")
    assert "No module named 'plugin_gone'" in refusal("gone")


@pytest.mark.parametrize(
    ("use", "told"),
    [
        (":Mine", "protocol.use: '' cannot be imported: ValueError: Empty module name"),
        ("node:", "protocol.use: module 'node' has no ''"),
        ("node:Protocl", "protocol.use: module 'node' has no 'Protocl'"),
        ("node:op", "protocol.use: node:op is not a subclass of node.Protocol"),
        ("node:Mod", "protocol.use: node:Mod is not a subclass of node.Protocol"),
        (".relative:Mine", "protocol.use: '.relative' cannot be imported: TypeError"),
    ],
)
def test_what_is_no_protocol_is_refused(use, told):
    assert refusal(use).startswith(told)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("x = 1\ny = x / 0\n", "ZeroDivisionError: division by zero (plugin_bad.py, line 2)"),
        ("def f(:\n", "SyntaxError"),
        ("import sys\nsys.exit('no')\n", "SystemExit: no (plugin_bad.py, line 2)"),
        ("import json\njson.loads('{')\n", "(plugin_bad.py, line 2)"),
    ],
)
def test_the_error_of_a_broken_module_is_in_the_line(here, code, told):
    (here / "plugin_bad.py").write_text(code)
    message = refusal("plugin_bad:Mine")
    assert message.startswith("protocol.use: 'plugin_bad' cannot be imported: ")
    assert told in message
