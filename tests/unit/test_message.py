"""Messages: records with a wire name, a version and a key."""

import dataclasses

import pytest

from node.errors import ProtocolError
from node.message import Message, message_type


class Hello(Message, name="test.message/hello/1", key=("round", "part")):
    round: int
    part: str = "all"
    weight: float = 1.0


class Plain(Message, name="test.message/plain/1"):
    text: str


# Records


def test_fields_are_keywords_with_defaults():
    hello = Hello(round=3)
    assert (hello.round, hello.part, hello.weight) == (3, "all", 1.0)
    assert "round=3" in repr(hello)


@pytest.mark.parametrize("arguments", [{}, {"round": 1, "colour": 2}])
def test_missing_and_unknown_fields_are_errors(arguments):
    with pytest.raises(TypeError):
        Hello(**arguments)


def test_fields_are_not_positional():
    with pytest.raises(TypeError):
        Hello(3)


def test_messages_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Hello(round=3).round = 4


def test_messages_are_told_apart_by_identity():
    """One object is delivered to many nodes: comparing fields, some of them Refs, would be no comparison."""
    assert Hello(round=3) != Hello(round=3)
    assert len({Hello(round=3), Hello(round=3)}) == 2


def test_a_changed_copy():
    changed = dataclasses.replace(Hello(round=3), round=4)
    assert changed.round == 4
    assert changed.slot == (Hello, 4, "all")


# Slots


def test_the_slot_is_the_class_and_the_key_in_order():
    assert Hello(round=3, part="a").slot == (Hello, 3, "a")
    assert Plain(text="x").slot == (Plain,)


def test_the_slot_is_not_a_field():
    assert [field.name for field in dataclasses.fields(Hello)] == ["round", "part", "weight"]
    assert "slot" not in repr(Hello(round=1))


# Names


def test_a_wire_name_finds_its_class():
    assert message_type("test.message/hello/1") is Hello
    assert message_type("test.message/hello/2") is None
    assert Hello.wire_name == "test.message/hello/1"
    assert Hello.key_fields == ("round", "part")


@pytest.mark.parametrize(
    "name", ["", "hello", "hello/", "hello/v1", "Hello/1", "a b/1", "/1", "hello/1/", "hello/1\n", "héllo/1"]
)
def test_a_wire_name_ends_in_a_version(name):
    with pytest.raises(ProtocolError, match="must look like 'protocol/kind/1'"):
        type("Bad", (Message,), {"__annotations__": {}}, name=name)


@pytest.mark.parametrize("name", ["test.message/ok/1", "test.message/a/b-c/d_e/12", "test.message.ok/0"])
def test_wire_names_that_are_allowed(name):
    assert message_type(name) in (None, type("Good", (Message,), {"__annotations__": {}}, name=name))


def test_a_key_must_name_fields():
    with pytest.raises(ProtocolError, match="key field 'epoch' is not one of its fields"):

        class Bad(Message, name="test.message/bad/1", key=("round", "epoch")):
            round: int


def test_two_classes_cannot_share_a_wire_name():
    with pytest.raises(ProtocolError, match="already belongs to Hello"):

        class Other(Message, name="test.message/hello/1"):
            round: int

    assert message_type("test.message/hello/1") is Hello


def test_a_class_may_be_defined_again():
    """Reloading a module, or running a notebook cell twice, gives the new class."""

    def define():
        class Again(Message, name="test.message/again/1"):
            round: int

        return Again

    old, new = define(), define()
    assert old is not new
    assert message_type("test.message/again/1") is new


def test_a_class_without_a_wire_name_is_an_error():
    with pytest.raises(TypeError, match="name"):

        class Nameless(Message):
            round: int


def test_a_message_may_extend_another():
    class More(Hello, name="test.message/more/1", key=("round",)):
        extra: int = 0

    more = More(round=1, extra=5)
    assert more.slot == (More, 1)
    assert (more.part, more.extra) == ("all", 5)
    assert message_type("test.message/hello/1") is Hello
