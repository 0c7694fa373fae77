"""The node's file: what it means, what overrides it, and the one line that each mistake costs."""

from pathlib import Path

import pytest

from node.daemon.nodefile import Address, NodeFile, load_node
from node.errors import ConfigError

EXPERIMENT = 'name = "tiny"\nnodes = 3\nclock = "virtual"\n[topology]\nkind = "full"\n'


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tiny.toml").write_text(EXPERIMENT)
    return tmp_path


def written(folder, text=""):
    path = folder / "node.toml"
    path.write_text(f'experiment = "tiny.toml"\n{text}')
    return path


def loaded(folder, text="", environ=None):
    return load_node(written(folder, text), environ or {})


class TestWhatItMeans:
    def test_paths_are_relative_to_the_file(self, folder, monkeypatch, tmp_path_factory):
        monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
        settings, config = loaded(folder, 'state = "mine"\ncards = "/shared/cards"')
        assert config.name == "tiny"
        assert settings.state == folder / "mine"
        assert settings.cards == Path("/shared/cards")

    def test_also_where_they_are_the_defaults(self, folder):
        settings, _ = loaded(folder)
        assert (settings.state, settings.cards) == (folder / "state", folder / "cards")

    def test_the_clock_is_real_whatever_the_experiment_says(self, folder):
        assert loaded(folder)[1].clock == "real"

    def test_a_bundled_experiment_has_a_name(self, folder):
        path = folder / "node.toml"
        path.write_text('experiment = "digits-gossip"\nnode = 15\n')
        settings, config = load_node(path, {})
        assert (settings.node, config.name, config.nodes) == (15, "digits-gossip", 16)

    def test_every_key_has_a_default_and_a_reason(self):
        assert NodeFile().node == 0
        assert all(field.description for field in NodeFile.model_fields.values())


class TestEnvironment:
    def test_overrides_the_file(self, folder):
        settings, _ = loaded(folder, 'node = 1\nlisten = "127.0.0.1:1"', {"STARLING_NODE__NODE": "2"})
        assert (settings.node, settings.listen) == (2, "127.0.0.1:1")

    def test_of_the_experiment_is_not_the_nodes(self, folder):
        environ = {"STARLING_NODE__LINGER_S": "1.5", "STARLING_TRAINING__LR": "0.25"}
        settings, config = loaded(folder, environ=environ)
        assert (settings.linger_s, config.training.lr) == (1.5, 0.25)

    def test_a_mistake_names_the_variable(self, folder):
        with pytest.raises(ConfigError, match=r"^environment STARLING_NODE__LISTN: listn: there is no such key"):
            loaded(folder, environ={"STARLING_NODE__LISTN": "127.0.0.1:1"})


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("node = 3", r"node: tiny has no node 3; allowed: 0 to 2"),
            ("node = -1", r"node: input should be greater than or equal to 0"),
            ("state = 7", r"state: input is not a valid path"),
            ('network = ["here"]', r"network: input is not a valid path"),
            ("listn = 1", r"listn: there is no such key; did you mean 'listen'\?"),
            ('listen = "here"', r"listen: 'here' is not an address; write host:port"),
            ('listen = "127.0.0.1:70000"', r"listen: '127.0.0.1:70000' is not an address"),
            ('listen = "::1:7600"', r"listen: .* an IPv6 host in brackets"),
            ('admin = "7601"', r"admin: '7601' is not an address"),
            ('listen = "0.0.0.0:7600"', r"advertise: listen = '0.0.0.0:7600' means every address.*advertise = '192"),
            ('listen = "[::]:7600"', r"advertise: listen = '\[::\]:7600' means every address"),
            ('advertise = "0.0.0.0:7600"', r"advertise: '0.0.0.0:7600' is no address that peers can connect to"),
            ("linger_s = 60", r"linger_s: input should be less than or equal to 3"),
            ("stuck_s = 0", r"stuck_s: input should be greater than 0"),
            ("node = ", r"not valid TOML"),
        ],
    )
    def test_is_one_line_with_the_key_and_what_is_allowed(self, folder, text, said):
        with pytest.raises(ConfigError, match=said) as error:
            loaded(folder, text)
        assert "\n" not in str(error.value)
        assert str(folder / "node.toml") in str(error.value)

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(ConfigError, match=r"node.toml: cannot be read: No such file or directory; .*--config"):
            load_node(tmp_path / "node.toml", {})

    def test_a_missing_experiment(self, folder):
        path = folder / "node.toml"
        path.write_text('experiment = "other.toml"')
        with pytest.raises(ConfigError, match=r"other.toml: cannot be read: No such file"):
            load_node(path, {})

    def test_an_experiment_that_is_not_bundled(self, folder):
        path = folder / "node.toml"
        path.write_text('experiment = "digits-gosip"')
        with pytest.raises(ConfigError, match=r"did you mean 'digits-gossip'"):
            load_node(path, {})

    def test_a_file_that_is_not_text(self, folder):
        (folder / "node.toml").write_bytes(b"\xff\xfe")
        with pytest.raises(ConfigError, match="not UTF-8 text"):
            load_node(folder / "node.toml", {})

    def test_a_wildcard_is_fine_with_an_address_to_tell(self, folder):
        settings, _ = loaded(folder, 'listen = "0.0.0.0:7600"\nadvertise = "node-1.example:7600"')
        assert settings.advertise == "node-1.example:7600"


class TestAddress:
    @pytest.mark.parametrize(
        ("text", "host", "port"),
        [
            ("127.0.0.1:0", "127.0.0.1", 0),
            ("[::1]:7600", "::1", 7600),
            ("node-1.example:65535", "node-1.example", 65535),
        ],
    )
    def test_is_read_and_written(self, text, host, port):
        address = Address.parse(text)
        assert address == (host, port)
        assert str(address) == text

    @pytest.mark.parametrize("text", ["", ":1", "host", "host:", "host:x", "a b:1", "host:99999", "http://host:1"])
    def test_anything_else_is_refused(self, text):
        with pytest.raises(ValueError, match="is not an address"):
            Address.parse(text)

    @pytest.mark.parametrize(("text", "wildcard"), [("0.0.0.0:1", True), ("[::]:1", True), ("host:1", False)])
    def test_knows_a_wildcard(self, text, wildcard):
        assert Address.parse(text).is_wildcard is wildcard
