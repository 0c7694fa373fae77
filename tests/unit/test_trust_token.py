"""Invitations: they fit into one line, lead back to what they say, and a slip of the hand is told from all else."""

from __future__ import annotations

import base64

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import ConfigError
from node.trust.certificate import Role
from node.trust.refusal import Reason
from node.trust.token import MOST_TEXT, PREFIX, Bootstrap, Token
from trust_parties import ADMISSION, BOOTSTRAP, FOUNDER, NETWORK, NOW_S, refused

SECRET = bytes(range(100, 116))
TOKEN = Token(NETWORK, ADMISSION.signing_public, BOOTSTRAP, Role.learner, NOW_S, 1, b"\x01" * 8, SECRET)
TEXT = TOKEN.to_text()
OPEN = msgspec.structs.replace(TOKEN, id=None, secret=None, expires_s=0, uses=0)


def complaint(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        Token.from_text(text)
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith("token: ")
    return said


tokens = st.builds(
    Token,
    st.binary(min_size=20, max_size=20),
    st.binary(min_size=32, max_size=32),
    st.lists(
        st.builds(
            Bootstrap,
            st.from_regex(r"(\[[0-9a-f:]{2,20}\]|[a-z0-9.-]{1,40}):[0-9]{1,5}", fullmatch=True),
            st.binary(min_size=32, max_size=32),
        ),
        min_size=1,
        max_size=4,
    ).map(tuple),
    st.sampled_from(Role),
    st.integers(0, 2**40 - 1),
    st.integers(0, 1_000_000),
    st.binary(min_size=8, max_size=8),
    st.binary(min_size=16, max_size=16),
)


@settings(max_examples=60)
@given(tokens)
def test_what_is_written_is_read(token):
    text = token.to_text()
    assert Token.from_text(text) == token
    assert Token.from_text(text).to_text() == text
    assert len(text) <= MOST_TEXT


def test_it_can_be_pasted():
    assert len(TEXT) <= 230
    assert TEXT.startswith(PREFIX)
    assert TEXT.isascii()
    assert TEXT.replace("_", "").replace("-", "").isalnum()
    assert Token.from_text(f"  {TEXT}\n") == TOKEN


def test_an_open_networks_has_no_secret():
    assert Token.from_text(OPEN.to_text()) == OPEN
    assert repr(OPEN).startswith("<Token open of network ")


@pytest.mark.parametrize("place", range(len(PREFIX), len(TEXT)))
def test_any_wrong_character_is_found(place):
    wrong = "A" if TEXT[place] != "A" else "B"
    said = complaint(TEXT[:place] + wrong + TEXT[place + 1 :])
    assert "checksum does not fit" in said


@pytest.mark.parametrize("length", [len(PREFIX), len(PREFIX) + 1, 50, len(TEXT) - 5, len(TEXT) - 1])
def test_a_part_of_it_is_found(length):
    assert "its end is missing" in complaint(TEXT[:length])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it is empty"),
        ("   ", "it is empty"),
        ("hello", "must begin with 'starling1_'"),
        (TEXT.upper(), "must begin with"),
        (TEXT + "=", "only letters, digits"),
        (TEXT[:60] + "\n" + TEXT[60:], "a space or line break"),
        (TEXT[:60] + " " + TEXT[60:], "a space or line break"),
        (TEXT.replace("starling1", "starling2"), "has version 2; this program reads 1"),
        (PREFIX + "A" * 2000, f"at most {MOST_TEXT}"),
        (PREFIX + "ä" * 20, "only letters, digits"),
        (PREFIX, "checksum"),
    ],
)
def test_what_is_no_token_is_told_why(text, says):
    assert says in complaint(text)


def with_content(*fields: object) -> str:
    """A token with a right checksum, whatever it says."""
    import zlib

    content = msgspec.msgpack.encode(fields)
    check = zlib.crc32(PREFIX.encode() + content).to_bytes(4, "big")
    return PREFIX + base64.urlsafe_b64encode(content + check).decode().rstrip("=")


FIELDS = list(msgspec.structs.astuple(TOKEN))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, bytes(19)),
        (1, bytes(31)),
        (2, ()),
        (2, [("host:1", bytes(32))] * 5),
        (2, [("no port", bytes(32))]),
        (2, [("host:1\n", bytes(32))]),
        (2, [("host:1", bytes(31))]),
        (3, "emperor"),
        (4, -1),
        (5, 2_000_000),
        (6, bytes(7)),
        (6, None),
        (7, None),
        (7, bytes(15)),
    ],
)
def test_content_beyond_its_bounds_is_refused(place, value):
    fields = [*FIELDS[:place], value, *FIELDS[place + 1 :]]
    assert "its content is wrong" in complaint(with_content(*fields))
    assert Token.from_text(with_content(*FIELDS)) == TOKEN


@pytest.mark.parametrize("fields", [(), FIELDS[:-1], [*FIELDS, 1], [[[[]]]]])
def test_more_or_less_content_is_refused(fields):
    assert "its content is wrong" in complaint(with_content(*fields))


@pytest.mark.parametrize("shown", [repr, str, "{}".format, "{!r}".format, lambda token: repr([token])])
def test_its_secret_does_not_show(shown):
    said = shown(TOKEN)
    assert "0101010101010101" in said
    for secret in (SECRET.hex(), repr(SECRET), base64.urlsafe_b64encode(SECRET).decode().rstrip("="), TEXT):
        assert secret not in said


def test_a_complaint_does_not_repeat_it():
    assert TEXT[20:60] not in complaint(TEXT[:-1] + ("A" if TEXT[-1] != "A" else "B"))


def test_its_end_is_known_to_its_holder():
    TOKEN.check(NOW_S)
    OPEN.check(NOW_S * 10)
    with refused(Reason.EXPIRED, "ended 5 s ago; ask for a new one"):
        TOKEN.check(NOW_S + 5)


def test_it_names_the_key_that_must_be_found_there():
    assert TOKEN.bootstrap[0].curve_key == FOUNDER.curve_public


@given(st.text(max_size=400) | st.text("abcXYZ019_-", max_size=300).map(PREFIX.__add__))
def test_any_text_is_a_token_or_one_line(text):
    try:
        token = Token.from_text(text)
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert token.to_text() == text.strip()
