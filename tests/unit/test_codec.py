"""Messages to bytes and back; and whatever the bytes are, a message or one clean error."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections import deque
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.codec import VERSION, Encoded, Limits, decode, decode_header, encode, placed, refs, size_bytes, with_refs
from node.errors import BadFrame, FrameTooLarge, ProtocolError
from node.message import Message
from node.op import Ref, Spec

LIMITS = Limits(message_bytes=10_000_000, header_bytes=100_000)
_released: deque[int] = deque()
_numbers = itertools.count()
_values: dict[int, np.ndarray] = {}


class Model(Message, name="codec/model/1", key=("round",)):
    round: int
    model: Ref


class Plain(Message, name="codec/plain/1"):
    number: int = 0
    loss: float = 0.0
    done: bool = False
    text: str = ""
    data: bytes = b""
    pair: tuple[int, float] = (0, 0.0)
    many: tuple[int, ...] = ()
    names: dict[str, list[int]] | None = None
    maybe: int | None = None


class Nested(Message, name="codec/nested/1"):
    one: Ref
    pair: tuple[str, Ref]
    more: list[Ref]
    named: dict[str, tuple[Ref, ...]]
    maybe: Ref | None
    free: Any


class Empty(Message, name="codec/empty/1"):
    pass


def ref(array: np.ndarray, names: tuple[str, ...] = ()) -> Ref:
    number = len(_values)
    _values[number] = array
    return Ref(number, Spec(array.shape, str(array.dtype), names), _released)


def encoded(message: Message) -> Encoded:
    return encode(message, lambda ref: memoryview(_values[ref.id]))


def round_trip(message: Message) -> Any:
    out = encoded(message)
    header = decode_header(out.header, LIMITS)
    assert header.size_bytes == out.size_bytes == size_bytes(message)
    assert [spec.size_bytes for spec in header.specs] == [buffer.nbytes for buffer in out.buffers]
    return decode(
        header, [bytes(buffer) for buffer in out.buffers], lambda view, spec: ref(_array(view, spec), spec.names)
    )


def _array(view: memoryview, spec: Spec) -> np.ndarray:
    return np.frombuffer(view, dtype=spec.dtype).reshape(spec.shape)


def header_of(name: bytes, fields: object) -> bytes:
    return bytes([VERSION, len(name)]) + name + msgspec.msgpack.encode(fields)


def announced(
    dtype: object = "float32", shape: object = (2,), names: object = (), code: int = 1
) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(code, msgspec.msgpack.encode((dtype, shape, names)))


def model_header(ext: object) -> bytes:
    return header_of(b"codec/model/1", (3, ext))


plain = st.builds(
    Plain,
    number=st.integers(-(2**63), 2**64 - 1),
    loss=st.floats(),
    done=st.booleans(),
    text=st.text(),
    data=st.binary(),
    pair=st.tuples(st.integers(0, 9), st.floats(allow_nan=False)),
    many=st.lists(st.integers(-5, 5)).map(tuple),
    names=st.dictionaries(st.text(), st.lists(st.integers(0, 300))),
    maybe=st.none() | st.integers(0, 5),
)


class TestRoundTrip:
    @given(plain)
    def test_plain_fields(self, message: Plain):
        again = round_trip(message)
        assert type(again) is Plain
        for field, value in vars(message).items():
            got = getattr(again, field)
            assert type(got) is type(value)
            assert got == value or (math.isnan(got) and math.isnan(value))

    @pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int32", "uint8", "bool"])
    @pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3, 4)])
    def test_values_of_every_dtype_and_shape(self, dtype: str, shape: tuple[int, ...]):
        array = (np.arange(math.prod(shape)) % 2).astype(dtype).reshape(shape)
        again = round_trip(Model(round=4, model=ref(array)))
        assert again.round == 4
        assert again.model.spec == Spec(shape, dtype)
        np.testing.assert_array_equal(_values[again.model.id], array)

    def test_bfloat16_travels_as_raw_bytes(self):
        message = Model(round=0, model=Ref(0, Spec((3,), "bfloat16"), _released))
        out = encode(message, lambda ref: memoryview(b"abcdef"))
        assert decode_header(out.header, LIMITS).specs == (Spec((3,), "bfloat16"),)
        assert bytes(out.buffers[0]) == b"abcdef"

    def test_refs_anywhere_keep_their_places(self):
        refs = [ref(np.full(n + 1, n, np.float32)) for n in range(8)]
        message = Nested(
            one=refs[0],
            pair=("b", refs[1]),
            more=[refs[2], refs[3]],
            named={"z": (refs[4],), "a": (refs[5],)},
            maybe=None,
            free=[{"x": refs[6]}, (refs[7], 5)],
        )
        again = round_trip(message)

        def first(ref: Ref) -> float:
            return float(_values[ref.id][0])

        assert (first(again.one), again.pair[0], first(again.pair[1])) == (0, "b", 1)
        assert [first(ref) for ref in again.more] == [2, 3]
        assert list(again.named) == ["z", "a"]
        assert (first(again.named["z"][0]), first(again.named["a"][0])) == (4, 5)
        assert again.maybe is None
        assert (first(again.free[0]["x"]), first(again.free[1][0]), again.free[1][1]) == (6, 7, 5)

    def test_a_mapping_value_keeps_its_names(self):
        again = round_trip(Model(round=0, model=ref(np.array([0.5, 2.0]), ("accuracy", "loss"))))
        assert again.model.spec == Spec((2,), "float64", ("accuracy", "loss"))

    def test_a_message_without_fields(self):
        assert type(round_trip(Empty())) is Empty

    def test_payloads_are_not_copied(self):
        array = np.zeros(1000, np.float32)
        out = encoded(Model(round=1, model=ref(array)))
        array[0] = 7
        assert np.frombuffer(out.buffers[0], np.float32)[0] == 7

    def test_a_class_defined_anew_is_the_one_that_arrives(self):
        def define() -> type[Message]:
            class Again(Message, name="codec/again/1"):
                number: int

            return Again

        first = define()
        out = encoded(first(number=1))
        assert decode_header(out.header, LIMITS).type is first
        second = define()
        assert decode_header(out.header, LIMITS).type is second


class TestSize:
    @pytest.mark.parametrize("number", [0, 127, 128, 2**16, 2**32, -1, -(2**31)])
    def test_is_exact_whatever_the_numbers(self, number: int):
        message = Model(round=number, model=ref(np.zeros((7, 5), np.float32)))
        assert size_bytes(message) == encoded(message).size_bytes == len(encoded(message).header) + 140

    def test_needs_no_value(self):
        message = Model(round=0, model=Ref(10**9, Spec((1_000_000,)), _released))
        assert 4_000_000 < size_bytes(message) < 4_000_050


class TestSendersMistakes:
    def test_a_value_that_is_not_what_its_spec_says(self):
        message = Model(round=0, model=Ref(0, Spec((4,)), _released))
        with pytest.raises(ProtocolError, match=r"8 bytes for a Ref of 16 \(float32\[4\]\)"):
            encode(message, lambda ref: memoryview(bytes(8)))

    @pytest.mark.parametrize("value", [np.float64(1), np.zeros(3), object(), 2**64, 1 + 2j])
    def test_a_value_that_cannot_travel(self, value: object):
        for use in (encoded, size_bytes):
            with pytest.raises(ProtocolError, match=r"Nested: a field cannot be sent.*allowed are"):
                use(
                    Nested(one=ref(np.zeros(1)), pair=("", ref(np.zeros(1))), more=[], named={}, maybe=None, free=value)
                )

    @pytest.mark.parametrize("hint", [set[int], dict[int, str], complex, frozenset[Ref], list[set[str]]])
    def test_a_type_that_cannot_travel(self, hint: Any):
        namespace = {"__annotations__": {"first": int, "field": hint}, "__module__": __name__, "__qualname__": "Wrong"}
        kind = type(Message)("Wrong", (Message,), namespace, name=f"codec/wrong{next(_numbers)}/1")
        with pytest.raises(ProtocolError, match=r"Wrong\.field: .* cannot be sent; allowed are"):
            size_bytes(kind(first=1, field=None))


class TestBadBytes:
    def refused(self, header: bytes, match: str, error: type[Exception] = BadFrame) -> None:
        with pytest.raises(error, match=match):
            decode_header(header, LIMITS)

    def test_versions_and_names(self):
        self.refused(b"", "version missing")
        self.refused(b"\x02" + encoded(Empty()).header[1:], "version 2; this program reads version 1")
        self.refused(b"\x01", "no message is called ''")
        self.refused(header_of(b"codec/unknown/1", ()), "no message is called 'codec/unknown/1'")
        self.refused(header_of(b"\xff\xfe", ()), "no message is called")

    @pytest.mark.parametrize(
        "fields",
        [(), (1,), (1, 2), ("x", 2), (1, 2, 3), {"round": 1}, 5, None, (True, None), (1.5, b"")],
    )
    def test_fields_of_other_types(self, fields: object):
        self.refused(header_of(b"codec/model/1", fields), "malformed header")

    @pytest.mark.parametrize(
        ("ext", "match"),
        [
            (announced(dtype="float8"), "unknown dtype 'float8'"),
            (announced(dtype="object"), "unknown dtype"),
            (announced(dtype=3), "malformed"),
            (announced(shape=(-1,)), "malformed"),
            (announced(shape=(1.5,)), "malformed"),
            (announced(shape="abc"), "malformed"),
            (announced(shape=(1,) * 17), "malformed"),
            (announced(names=(1,)), "malformed"),
            (announced(code=2), "unknown extension 2"),
            (msgspec.msgpack.Ext(1, b""), "malformed"),
            (msgspec.msgpack.Ext(1, b"\xff"), "malformed"),
        ],
    )
    def test_announcements_of_impossible_values(self, ext: object, match: str):
        self.refused(model_header(ext), match)

    @pytest.mark.parametrize("shape", [(2**40,), (2**63, 2**63), (2**64 - 1,) * 16, (2_500_000,)])
    def test_more_than_the_limit_is_seen_before_it_is_allocated(self, shape: tuple[int, ...]):
        tracemalloc.start()
        try:
            self.refused(model_header(announced(shape=shape)), "at most 10000000", FrameTooLarge)
            assert tracemalloc.get_traced_memory()[1] < 100_000
        finally:
            tracemalloc.stop()

    def test_many_small_values_are_summed(self):
        half = announced(shape=(1_300_000,))
        assert decode_header(model_header(half), LIMITS).size_bytes > 5_200_000
        fields = (half, ("", half), [], {}, None, None)
        self.refused(header_of(b"codec/nested/1", fields), "at most", FrameTooLarge)

    def test_a_long_header(self):
        self.refused(encoded(Plain(data=bytes(100_001))).header, "at most 100000", FrameTooLarge)

    @pytest.mark.parametrize(
        "bomb", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 9999]
    )
    def test_claims_of_many_elements_cost_nothing(self, bomb: bytes):
        prefix = b"\x01\x0ecodec/nested/1\x96" + msgspec.msgpack.encode(announced())
        prefix += msgspec.msgpack.encode(("", announced())) + b"\x90\x80\xc0"
        tracemalloc.start()
        try:
            self.refused(prefix + bomb, "malformed header")
            assert tracemalloc.get_traced_memory()[1] < 3_000_000
        finally:
            tracemalloc.stop()

    def test_payloads_of_other_sizes(self):
        header = decode_header(model_header(announced()), LIMITS)
        for buffers in ([], [bytes(7)], [bytes(9)], [bytes(8), bytes(8)]):
            with pytest.raises(BadFrame, match="other sizes than announced"):
                decode(header, buffers, lambda view, spec: pytest.fail("a Ref of a refused payload"))

    @given(st.binary(max_size=200))
    def test_random_bytes(self, data: bytes):
        for header in (data, b"\x01" + data, b"\x01\x0dcodec/model/1" + data, b"\x01\x0ecodec/nested/1" + data):
            with pytest.raises((BadFrame, FrameTooLarge)):
                decode_header(header, LIMITS)

    @given(plain, st.integers(min_value=0), st.integers(1, 255))
    def test_flipped_bits(self, message: Plain, position: int, flip: int):
        data = bytearray(encoded(message).header)
        data[position % len(data)] ^= flip
        self.message_or_clean_error(bytes(data))

    @given(st.integers(min_value=0), st.integers(1, 255))
    def test_flipped_bits_of_announcements(self, position: int, flip: int):
        data = bytearray(model_header(announced(shape=(300, 2), names=("a",))))
        data[position % len(data)] ^= flip
        self.message_or_clean_error(bytes(data))

    @given(plain, st.integers(min_value=0))
    def test_truncations(self, message: Plain, length: int):
        data = encoded(message).header
        with pytest.raises(BadFrame):
            decode_header(data[: length % len(data)], LIMITS)

    def message_or_clean_error(self, data: bytes) -> None:
        try:
            header = decode_header(data, LIMITS)
        except (BadFrame, FrameTooLarge):
            return
        assert header.size_bytes <= LIMITS.message_bytes
        message = decode(
            header, [bytes(spec.size_bytes) for spec in header.specs], lambda view, spec: Ref(0, spec, _released)
        )
        assert type(message) is header.type


class TestRefs:
    """The Refs of a message, wherever they are."""

    def nested(self) -> Nested:
        a, b, c, d, e, f, g = (ref(np.array([float(i)])) for i in range(7))
        return Nested(one=a, pair=("x", b), more=[c, d], named={"k": (e,)}, maybe=f, free={"deep": [1, {"er": g}]})

    def test_each_has_a_place_and_its_turn_among_the_payloads(self):
        message = self.nested()
        places = ["one", "pair.1", "more.0", "more.1", "named.k.0", "maybe", "free.deep.1.er"]
        assert [place for place, _ in placed(message)] == places
        payloads: list[Ref] = []
        encode(message, lambda each: payloads.append(each) or memoryview(_values[each.id]))
        assert [each.id for each in refs(message)] == [each.id for each in payloads]

    def test_others_take_their_places_and_nothing_else_changes(self):
        message = self.nested()
        others = [ref(np.array([9.0])) for _ in range(7)]
        changed = with_refs(message, others)
        assert type(changed) is Nested
        assert all(one is two for one, two in zip(refs(changed), others, strict=True))
        assert (changed.pair[0], changed.free["deep"][0]) == ("x", 1)
        assert with_refs(Plain(number=3), []).number == 3
        assert list(placed(Empty())) == refs(Plain()) == []
