"""Messages to bytes and back: a small msgpack header, and the raw elements of what the Refs stand for.

The header is a version byte, the length of the wire name in a byte, the wire name, and a msgpack array of the fields,
in which each Ref is replaced by an extension that announces ``[dtype, shape, names]``. The payloads follow outside the
header, in the order of the Refs, uncopied. Reading goes the other way in two steps: :func:`decode_header` checks every
bound before a byte of payload is allocated, and :func:`decode` puts the message together once the payloads are there.
Whatever is wrong with bytes from elsewhere is a BadFrame or a FrameTooLarge.
"""

from __future__ import annotations

import functools
import operator
import struct
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import msgspec

from node.errors import BadFrame, FrameTooLarge, ProtocolError
from node.message import Message, message_type
from node.op import Ref, Spec

VERSION = 1
"""Version of the header's layout: its first byte."""

DIMENSIONS = 16
"""No tensor on the wire has more dimensions."""

_REF = 1
_CORRELATION = 0x80
"""Flag in the version byte: the numbers of a request and of what it answers follow."""
_CORRELATED = struct.Struct("<BII")
_nowhere: deque[int] = deque(maxlen=0)


@dataclass(frozen=True)
class Limits:
    """What one peer may ask of a node. Every number bounds memory before it is allocated."""

    message_bytes: int = 1 << 30
    """Header and payload of one message."""
    header_bytes: int = 1 << 20
    """Header of one message: all its fields except what the Refs stand for."""
    transfers: int = 4
    """Messages of one peer that may be arriving in chunks at a time."""
    arriving_bytes: int = 2 << 30
    """Announced bytes of those messages together."""
    all_arriving_bytes: int = 16 << 20
    """Announced bytes of all peers together that come at a time, so that many models at once cost no more than a few.
    The next wait; one that is larger comes alone."""
    queue_bytes: int = 64 << 20
    """Bytes that wait to be sent to one peer before ``send`` waits too (the last message may exceed it)."""
    backlog_bytes: int = 16 << 20
    """Received bytes, of all peers, that wait for the event loop before no more is read."""
    refusals: int = 100
    """Bad frames of one peer after which its link is cut."""


class Encoded(NamedTuple):
    """A message on its way out."""

    header: bytes
    buffers: list[memoryview]
    """The payloads: flat views of bytes that must not change until they have left."""
    size_bytes: int
    """Header and payloads: what the message costs on any network, real or simulated."""
    kind: str
    """The wire name of the message."""


class Header(NamedTuple):
    """A message announced: everything but its payloads, all bounds checked."""

    type: type[Message]
    values: tuple[Any, ...]
    """One value per field; each Ref is a placeholder that knows only its spec."""
    specs: tuple[Spec, ...]
    """What the payloads will be, in order."""
    size_bytes: int
    """Header and payloads."""
    request: int = 0
    """Number of the request that this is, for the answer to name; 0: none is expected."""
    reply: int = 0
    """Number of the request that this answers; 0: of none."""


class _Layout(NamedTuple):
    kind: type[Message]
    prefix: bytes
    """Version and wire name, as every header of the kind begins."""
    names: tuple[str, ...]
    values: Callable[[Message], Any]
    decoder: msgspec.msgpack.Decoder[Any]
    has_refs: bool
    """Whether a Ref may be among the values."""


_layouts: dict[type[Message], _Layout] = {}
_known: dict[bytes, _Layout] = {}


def encode(message: Message, buffer_of: Callable[[Ref], memoryview], request: int = 0, reply: int = 0) -> Encoded:
    """Encode a message; ``buffer_of`` gives the contiguous elements of a Ref's value, which are not copied."""
    header, refs = _header_and_refs(message)
    if request or reply:
        header = _CORRELATED.pack(VERSION | _CORRELATION, request, reply) + header[1:]
    buffers = [_flat(buffer_of(ref)) for ref in refs]
    for ref, buffer in zip(refs, buffers, strict=True):
        if buffer.nbytes != ref.spec.size_bytes:
            raise ProtocolError(
                f"{type(message).__qualname__}: a value of {buffer.nbytes} bytes for a Ref of {ref.spec.size_bytes} "
                f"({ref.spec.dtype}{list(ref.spec.shape)}); the op's spec must give what the op returns"
            )
    return Encoded(header, buffers, len(header) + sum(buffer.nbytes for buffer in buffers), message.wire_name)


def refs(message: Message) -> list[Ref]:
    """The Refs of a message, wherever in its fields they are, in the order of its payloads."""
    return [ref for _, ref in placed(message)]


def placed(message: Message) -> Iterator[tuple[str, Ref]]:
    """The same with their places: the field, and what leads from there to the Ref (``model``, ``heads.1``)."""
    layout = _layouts.get(type(message)) or _layout(type(message))
    if layout.has_refs:
        for name, value in zip(layout.names, layout.values(message), strict=True):
            yield from _placed(value, name)


def with_refs(message: Message, refs: Iterable[Ref]) -> Message:
    """The message with as many other Refs in the places of its own, in their order."""
    layout = _layouts.get(type(message)) or _layout(type(message))
    values = _filled(layout.values(message), iter(refs))
    return type(message)(**dict(zip(layout.names, values, strict=True)))


def size_bytes(message: Message, request: int = 0, reply: int = 0) -> int:
    """Bytes of the header and payloads of the encoded message, found without any value."""
    payload_bytes = 0

    def announce(value: Any) -> msgspec.msgpack.Ext:
        nonlocal payload_bytes
        announced, size_bytes = _announced(_ref(value).spec)
        payload_bytes += size_bytes
        return announced

    header_bytes = len(_header(message, announce)) + (_CORRELATED.size - 1 if request or reply else 0)
    return header_bytes + payload_bytes


def decode_header(header: bytes | memoryview, limits: Limits) -> Header:
    """Read and check a header. FrameTooLarge beyond the limits; BadFrame for anything else that is wrong."""
    if len(header) > limits.header_bytes:
        raise FrameTooLarge(f"a header of {len(header)} bytes; at most {limits.header_bytes} are allowed")
    if len(header) >= _CORRELATED.size and header[0] == VERSION | _CORRELATION:
        _, request, reply = _CORRELATED.unpack_from(header)
        plain = decode_header(bytes([VERSION]) + bytes(header[_CORRELATED.size :]), limits)
        total = plain.size_bytes + _CORRELATED.size - 1
        return plain._replace(size_bytes=total, request=request, reply=reply)
    if not header or header[0] != VERSION:
        raise BadFrame(f"header version {header[0] if header else 'missing'}; this program reads version {VERSION}")
    prefix = bytes(header[: 2 + header[1]]) if len(header) > 1 else b""
    layout = _known.get(prefix)
    if layout is None or message_type(layout.kind.wire_name) is not layout.kind:  # a class may be defined anew
        try:
            layout = _named(prefix)
        except ProtocolError as error:  # a message that this program knows, and that nobody can send
            raise BadFrame(str(error)) from None
    kind = layout.kind
    try:
        values = layout.decoder.decode(header[len(prefix) :])
    except (ValueError, RecursionError, MemoryError) as error:
        raise BadFrame(f"malformed header: {error}") from None
    if not layout.has_refs:
        return Header(kind, values, (), len(header))
    specs = tuple([ref.spec for _, ref in _placed(values, "")])
    total = len(header) + sum([spec.size_bytes for spec in specs])
    if total > limits.message_bytes:
        raise FrameTooLarge(f"{kind.wire_name}: {total} bytes; at most {limits.message_bytes} are allowed")
    return Header(kind, values, specs, total)


def decode(
    header: Header, buffers: Sequence[bytes | bytearray | memoryview], ref_of: Callable[[memoryview, Spec], Ref]
) -> Message:
    """The message whose header was announced, now that its payloads are there; ``ref_of`` makes a Ref of each."""
    views = [_flat(memoryview(buffer)) for buffer in buffers]
    if [view.nbytes for view in views] != [spec.size_bytes for spec in header.specs]:
        raise BadFrame(f"{header.type.wire_name}: payloads of other sizes than announced")
    refs = iter([ref_of(view, spec) for view, spec in zip(views, header.specs, strict=True)])
    values = _filled(header.values, refs) if header.specs else header.values
    return header.type(**dict(zip(_layout(header.type).names, values, strict=True)))


def _flat(view: memoryview) -> memoryview:
    return view.cast("B") if view.nbytes else memoryview(b"")  # an empty view cannot be cast


def _header_and_refs(message: Message) -> tuple[bytes, list[Ref]]:
    refs: list[Ref] = []

    def announce(value: Any) -> msgspec.msgpack.Ext:
        refs.append(_ref(value))
        return _announced(value.spec)[0]

    return _header(message, announce), refs


def _header(message: Message, announce: Callable[[Any], msgspec.msgpack.Ext]) -> bytes:
    layout = _layouts.get(type(message)) or _layout(type(message))
    try:
        return layout.prefix + msgspec.msgpack.encode(layout.values(message), enc_hook=announce)
    except (TypeError, OverflowError, ValueError, RecursionError) as error:
        raise ProtocolError(f"{type(message).__qualname__}: a field cannot be sent: {error}; {_ALLOWED}") from error


def _ref(value: Any) -> Ref:
    if not isinstance(value, Ref):
        raise TypeError(f"{type(value).__qualname__} {value!r:.60}")
    return value


@functools.lru_cache(maxsize=4096)
def _announced(spec: Spec) -> tuple[msgspec.msgpack.Ext, int]:
    if len(spec.shape) > DIMENSIONS:
        raise ValueError(f"a tensor of {len(spec.shape)} dimensions")
    return msgspec.msgpack.Ext(_REF, msgspec.msgpack.encode((spec.dtype, spec.shape, spec.names))), spec.size_bytes


_ALLOWED = "allowed are numbers, strings, bytes, None, Ref, and tuples, lists and str-keyed dicts of these"
_PLAIN = (int, float, bool, str, bytes, types.NoneType, Ellipsis)
_spec_decoder = msgspec.msgpack.Decoder(
    tuple[
        str,
        Annotated[tuple[Annotated[int, msgspec.Meta(ge=0)], ...], msgspec.Meta(max_length=DIMENSIONS)],
        tuple[str, ...],
    ]
)


def _named(prefix: bytes) -> _Layout:
    name = str(prefix[2:], "ascii", "replace")
    kind = message_type(name)
    if kind is None:
        raise BadFrame(f"no message is called {name[:80]!r} here; do both nodes run the same protocol?")
    return _layout(kind)


def _layout(kind: type[Message]) -> _Layout:
    layout = _layouts.get(kind)
    if layout is None:
        layout = _layouts[kind] = _laid_out(kind)
        _known[layout.prefix] = layout
    return layout


def _laid_out(kind: type[Message]) -> _Layout:
    names = tuple(field.name for field in fields(kind))  # type: ignore[arg-type]
    try:
        hints = get_type_hints(kind, include_extras=True)
        for name in kind.key_fields:
            if hints[name] not in (int, str):
                raise ProtocolError(f"{kind.__qualname__}.{name}: a key field is an int or a str, not {hints[name]}")
        with_refs = [name for name in names if _may_hold_ref(kind, name, hints[name])]
        types_ = tuple[tuple(hints[name] for name in names)] if names else tuple[()]  # type: ignore[misc]
        decoder = msgspec.msgpack.Decoder(types_, ext_hook=_placeholder, dec_hook=_ref_only)
        prefix = bytes([VERSION, len(kind.wire_name)]) + kind.wire_name.encode("ascii")
    except (NameError, TypeError, ValueError) as error:
        raise ProtocolError(f"{kind.__qualname__}: cannot be sent: {error}; {_ALLOWED}") from error
    return _Layout(kind, prefix, names, _getter(names), decoder, bool(with_refs))


def _getter(names: tuple[str, ...]) -> Callable[[Message], Any]:
    if len(names) > 1:
        return operator.attrgetter(*names)
    return lambda message: tuple([getattr(message, name) for name in names])


def _may_hold_ref(kind: type[Message], name: str, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if hint in _PLAIN or origin is Literal:
        return False
    if hint in (Ref, Any, tuple, list, dict):
        return True
    if origin is Annotated:
        parts = parts[:1]
    elif origin is dict and parts[0] is str:
        parts = parts[1:]
    elif origin not in (tuple, list, Union, types.UnionType):
        raise ProtocolError(f"{kind.__qualname__}.{name}: {hint} cannot be sent; {_ALLOWED}")
    return bool([part for part in parts if _may_hold_ref(kind, name, part)])


def _placeholder(code: int, data: memoryview) -> Ref:
    if code != _REF:
        raise BadFrame(f"malformed header: unknown extension {code}")
    dtype, shape, names = _spec_decoder.decode(data)
    spec = Spec(shape, dtype, names)
    try:
        _ = spec.size_bytes
    except KeyError:
        raise BadFrame(f"malformed header: unknown dtype {dtype[:40]!r}") from None
    return Ref(0, spec, _nowhere)


def _ref_only(wanted: type, value: Any) -> Any:
    return value


def _placed(value: Any, place: str) -> Iterator[tuple[str, Ref]]:
    if isinstance(value, Ref):
        yield place, value
    elif isinstance(value, tuple | list):
        for i, part in enumerate(value):
            yield from _placed(part, f"{place}.{i}")
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _placed(part, f"{place}.{name}")


def _filled(value: Any, refs: Iterator[Ref]) -> Any:
    if isinstance(value, Ref):
        return next(refs)
    if isinstance(value, tuple | list):
        return type(value)(_filled(part, refs) for part in value)
    if isinstance(value, dict):
        return {name: _filled(part, refs) for name, part in value.items()}
    return value
