"""Pickles of plain data are read; anything that would call, look up or blow up is refused in one line."""

from __future__ import annotations

import os
import pickle
import struct
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import ConfigError
from node.sim.traces import plain_pickle
from node.sim.traces.plain_pickle import load

ATOMS = st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False) | st.text(max_size=5)
KEYS = st.integers() | st.text(max_size=5) | st.tuples(st.integers(), st.text(max_size=3))
PLAIN = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=20,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Writes bytes to a file and gives its path."""
    path = tmp_path_factory.mktemp("pickles") / "file.pkl"

    def write(content: bytes) -> str:
        path.write_bytes(content)
        return str(path)

    return write


def refusal(path, **bounds) -> str:
    with pytest.raises(ConfigError) as refused:
        load(path, "devices.trace", **bounds)
    message = str(refused.value)
    assert message.startswith(f"devices.trace: {path}: ")
    assert "\n" not in message
    assert len(message) < len(path) + 300
    return message


def outcome(path) -> str:
    """What is said of a file that may be sound or not; any other error comes through."""
    try:
        load(path, "devices.trace")
    except ConfigError as error:
        return str(error)
    return ""


# What is read


@given(PLAIN, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_data_comes_back(written, value, protocol):
    assert load(written(pickle.dumps(value, protocol)), "devices.trace") == value


def test_shared_values_stay_shared(written):
    shared = [1.5, 2.5]
    one, other = load(written(pickle.dumps([shared, shared])), "devices.trace")
    assert one is other


def test_a_value_that_holds_itself_is_read(written):
    endless: list = []
    endless.append(endless)
    value = load(written(pickle.dumps(endless)), "devices.trace")
    assert value[0] is value


# What is refused


class Calls:
    """Reduces to a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Own:
    def __init__(self):
        self.x = 1


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_calls_never_does(written, tmp_path, protocol):
    trap = tmp_path / "trap"
    evil = pickle.dumps({1: Calls(os.system, f"touch {trap}")}, protocol)
    assert "is not plain data" in refusal(written(evil))
    assert not trap.exists()
    pickle.loads(evil)
    assert trap.exists()  # the trap works


ODD = {
    "an object": Own(),
    "a class": Own,
    "a function": os.getcwd,
    "bytes": b"abc",
    "a bytearray": bytearray(b"abc"),
    "a set": {1, 2},
    "a frozenset": frozenset({1}),
    "a complex number": 1j,
    "a numpy number": np.float64(1.5),
    "an array": np.zeros(3),
    "evaluated text": Calls(eval, "1 + 1"),
    "an import": Calls(__import__, "os"),
    "a huge number": 2**4000,
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("what", ODD)
def test_anything_but_plain_data_is_refused(written, what, protocol):
    assert "allowed: a pickle of plain dicts, lists, texts and numbers" in refusal(
        written(pickle.dumps({"a": ODD[what]}, protocol))
    )


def test_the_error_names_what_was_asked_for(written):
    assert "GLOBAL 'os system'" in refusal(written(b"cos\nsystem\n(S'true'\ntR."))
    assert "INST 'os system'" in refusal(written(b"(S'true'\nios system\n.".replace(b"os s", b"os\ns")))


@pytest.mark.parametrize(
    "content",
    [b"Pwhoever\n.", b"U\x03abcQ.", b"\x82\x01.", b"}b.", b"(o.", b"\x81.", b"\x92.", b"\x97.", b"\x93."],
    ids=["persid", "binpersid", "ext1", "build", "obj", "newobj", "newobj_ex", "next_buffer", "stack_global"],
)
def test_instructions_that_reach_outside_are_refused(written, content):
    assert "is not plain data" in refusal(written(content))


def test_the_second_defence_holds_alone(written, monkeypatch):
    """Were an instruction let through, the unpickler would still find nothing."""
    monkeypatch.setattr(plain_pickle, "_scan", lambda content, most_instructions: None)
    trap = pickle.dumps(Calls(os.system, "true"), 2)
    assert "not a readable pickle: it asks for posix.system" in refusal(written(trap))
    assert "outside the file" in refusal(written(b"Pwhoever\n."))


# Bombs


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_depth_is_bounded(written):
    assert load(written(pickle.dumps(nested(16))), "devices.trace") == nested(16)
    assert "more than 16 deep" in refusal(written(pickle.dumps(nested(17))))
    assert "more than 2 deep" in refusal(written(pickle.dumps(nested(3))), most_depth=2)
    assert "more than 2 deep" in refusal(written(pickle.dumps({1: {2: ((),)}})), most_depth=2)


def test_values_that_multiply_by_reference_are_looked_at_once(written):
    laughs: list = ["ha"]
    for _ in range(14):
        laughs = [laughs] * 100  # 100^14 of them, if each were looked at
    assert len(load(written(pickle.dumps(laughs)), "devices.trace")) == 100


def test_a_tower_of_tuples_as_a_key_is_refused_before_it_is_hashed(written):
    tower = b"\x80\x04})" + b"\x85" * 1_000_000 + b"K\x01s."
    assert "more than 10000 tuples" in refusal(written(tower))


def test_instructions_and_bytes_are_bounded(written):
    path = written(pickle.dumps(list(range(1000))))
    assert "more than 1000 instructions" in refusal(path, most_instructions=1000)
    assert "a pickle may have 10" in refusal(path, most_bytes=10)
    assert load(path, "devices.trace", most_instructions=1100, most_bytes=10_000) == list(range(1000))


@pytest.mark.parametrize("memo", [b"r" + struct.pack("<I", 2**32 - 1), b"p4294967295\n"], ids=["binary", "text"])
def test_a_memo_number_cannot_ask_for_memory(written, memo):
    assert "before there are so many" in refusal(written(b"\x80\x02]" + memo + b"."))


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"a.",
        b"\x80\x04\x95" + struct.pack("<Q", 2**63) + b".",
        b"\x80\xff.",
    ],
    ids=["text of 4 EiB", "frame of 8 EiB", "protocol 255"],
)
def test_lengths_that_the_file_does_not_have(written, content):
    assert "not a readable pickle" in refusal(written(content))


# Broken files


@given(PLAIN, st.data())
def test_a_truncated_file_is_refused(written, value, data):
    content = pickle.dumps(value)
    kept = data.draw(st.integers(0, len(content) - 1))
    assert "not a readable pickle" in refusal(written(content[:kept]))


@given(st.binary(max_size=60), st.booleans())
def test_noise_is_read_or_refused_and_nothing_else(written, noise, framed):
    path = written(b"\x80\x04" + noise + b"." if framed else noise)
    assert "\n" not in outcome(path)


@given(PLAIN, st.data())
def test_a_changed_byte_is_read_or_refused_and_nothing_else(written, value, data):
    content = bytearray(pickle.dumps(value))
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    assert "\n" not in outcome(written(bytes(content)))


def test_instructions_that_do_not_fit_together(written):
    for content in (b"a.", b"]K\x01s.", b"}(K\x01u.", b"K\x01K\x02a.", b"h\x05.", b"0.", b".", b"}]K\x01s."):
        assert "not a readable pickle" in refusal(written(content))


def test_files_that_are_none(tmp_path):
    assert "there is no such file" in refusal(str(tmp_path / "none.pkl"))
    assert "there is no such file" in refusal(str(tmp_path))
    assert "there is no such file" in refusal("/dev/zero" if sys.platform != "win32" else "nul")
    text = tmp_path / "notes.txt"
    text.write_text("node,seconds\n")
    assert "not a readable pickle" in refusal(str(text))
