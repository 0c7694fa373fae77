"""Models in fewer bytes: what compression does to numbers, as ops on values of any tensor library.

Numbers are taken as float32, and come back in the library and type of a model that the receiver has.

All packed models are unsigned bytes, little-endian, of a size that follows from the model's alone. What comes from a
peer may be any bytes: unpacking gives a model, or changes nothing, and never fails.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from node.arrays import as_array, bytes_like, like
from node.op import Spec, Static, Value, op

Array: TypeAlias = npt.NDArray[Any]

_SCALE_BYTES = 4
_SEED_BYTES = 8
_VALUE_BYTES = _INDEX_BYTES = 4
_LARGEST = 127


def bf16_bytes(elements: int) -> int:
    """Two bytes an element."""
    return 2 * elements


def int8_bytes(elements: int) -> int:
    """A byte an element, and the scale."""
    return elements + _SCALE_BYTES


def top_k_bytes(elements: int, kept: int) -> int:
    """A float each, and which: by their places or by a bit for each element, whichever is shorter."""
    return _VALUE_BYTES * kept + min(_INDEX_BYTES * kept, -(-elements // 8))


def random_k_bytes(elements: int, kept: int) -> int:
    """A float each, and the seed that says which."""
    return _VALUE_BYTES * kept + _SEED_BYTES


def kept_of(elements: int, share: float) -> int:
    """How many elements a share is: one at least."""
    return max(1, math.ceil(share * elements))


def _spec(size_bytes: int) -> Spec:
    return Spec((size_bytes,), "uint8")


def _bf16_spec(inputs: Sequence[Spec], static: Static) -> Spec:
    return _spec(bf16_bytes(inputs[0].shape[0]))


def _int8_spec(inputs: Sequence[Spec], static: Static) -> Spec:
    return _spec(int8_bytes(inputs[0].shape[0]))


def _top_k_spec(inputs: Sequence[Spec], static: Static) -> Spec:
    return _spec(top_k_bytes(inputs[0].shape[0], static["kept"]))


def _random_k_spec(inputs: Sequence[Spec], static: Static) -> Spec:
    return _spec(random_k_bytes(inputs[0].shape[0], static["kept"]))


def _dense_spec(inputs: Sequence[Spec], static: Static) -> Spec:
    return inputs[0]._replace(shape=(static["elements"],))


# Every element, in fewer bits


@op(spec=_bf16_spec)
def bf16_packed(model: Value) -> Value:
    """The upper half of every float32, rounded to nearest, ties to even; NaN stays NaN."""
    bits = _floats(model).view("<u4")
    half = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    is_nan = bits & 0x7FFFFFFF > 0x7F800000
    half[is_nan] = bits[is_nan] >> 16 | 0x40
    return bytes_like(model, half.astype("<u2").view(np.uint8))


@op(spec=_dense_spec)
def bf16_unpacked(kind: Value, packed: Value, *, elements: int) -> Value:
    """The model again; ``kind`` is any model."""
    halves = _bytes(packed).view("<u2")
    return like(kind, (halves.astype("<u4") << 16).view("<f4"))


@op(spec=_int8_spec, seeded=True)
def int8_packed(model: Value, *, rng: np.random.Generator) -> Value:
    """Every element as one of 255 multiples of a scale, the largest in magnitude as 127 of it; rounded at random.

    Stochastic rounding as in QSGD (Alistarh et al., NeurIPS 2017), by the maximum norm: right in the mean. A model with
    a NaN or an infinity becomes all NaN.
    """
    floats = _floats(model)
    largest = np.abs(floats).max(initial=0.0)
    packed = np.zeros(int8_bytes(len(floats)), np.uint8)
    scale = np.float32(largest / _LARGEST if np.isfinite(largest) else np.nan)
    if scale > 0:
        steps = np.floor(floats / scale + rng.random(len(floats), np.float32))
        packed[:-_SCALE_BYTES] = np.clip(steps, -_LARGEST, _LARGEST).astype(np.int8).view(np.uint8)
    packed[-_SCALE_BYTES:] = np.frombuffer(scale.astype("<f4").tobytes(), np.uint8)
    return bytes_like(model, packed)


@op(spec=_dense_spec)
def int8_unpacked(kind: Value, packed: Value, *, elements: int) -> Value:
    """The model again, rounded; ``kind`` is any model."""
    received = _bytes(packed)
    scale = received[-_SCALE_BYTES:].view("<f4")
    with np.errstate(all="ignore"):  # a scale from elsewhere may be anything
        return like(kind, received[:-_SCALE_BYTES].view(np.int8).astype(np.float32) * scale)


# Few elements, as they are


@op(spec=_dense_spec)
def nothing(kind: Value, *, elements: int) -> Value:
    """What a receiver knows that has missed the beginning: zeros. ``kind`` is any model."""
    return like(kind, np.zeros(elements, "<f4"))


@op(spec=_top_k_spec)
def top_k_packed(model: Value, known: Value, *, kept: int) -> Value:
    """The elements of a model that are furthest from what the receiver knows."""
    floats = _floats(model)
    with np.errstate(all="ignore"):
        distance = np.abs(floats - _floats(known))
    places = np.sort(np.argpartition(distance, len(floats) - kept)[len(floats) - kept :])
    return bytes_like(model, np.concatenate([_as_bytes(floats[places]), _places_packed(places, len(floats))]))


@op
def top_k_unpacked(known: Value, packed: Value, *, kept: int) -> Value:
    """What the receiver knows from now on; as before, where the bytes do not say which elements they are."""
    received, elements = _bytes(packed), len(known)
    places = _places(received[_VALUE_BYTES * kept :], elements, kept)
    return known if places is None else _told(known, places, received)


@op(spec=_random_k_spec, seeded=True)
def random_k_packed(model: Value, *, kept: int, rng: np.random.Generator) -> Value:
    """Elements of a model drawn at random."""
    floats = _floats(model)
    seed = rng.bytes(_SEED_BYTES)
    values = floats[_drawn(seed, len(floats), kept)]
    return bytes_like(model, np.concatenate([_as_bytes(values), np.frombuffer(seed, np.uint8)]))


@op
def random_k_unpacked(known: Value, packed: Value, *, kept: int) -> Value:
    """What the receiver knows from now on."""
    received = _bytes(packed)
    return _told(known, _drawn(received[_VALUE_BYTES * kept :].tobytes(), len(known), kept), received)


def _told(known: Value, places: Array, received: Array) -> Value:
    """A model with the floats that the received bytes begin with at some places."""
    floats = _floats(known).copy()
    floats[places] = received[: _VALUE_BYTES * len(places)].view("<f4")
    return like(known, floats)


def _drawn(seed: bytes, elements: int, kept: int) -> Array:
    """Places that follow from a seed, sorted: the bits of Philox are the same in every version of numpy."""
    raw = np.random.Philox(key=int.from_bytes(seed, "little")).random_raw(elements)
    return np.sort(np.argpartition(raw, kept - 1)[:kept])


def _has_short_places(elements: int, kept: int) -> bool:
    return _INDEX_BYTES * kept <= -(-elements // 8)


def _places_packed(places: Array, elements: int) -> Array:
    if _has_short_places(elements, len(places)):
        return _as_bytes(places.astype("<u4"))
    bits = np.zeros(elements, np.bool_)
    bits[places] = True
    return np.packbits(bits, bitorder="little")


def _places(packed: Array, elements: int, kept: int) -> Array | None:
    if not _has_short_places(elements, kept):
        places: Array = np.flatnonzero(np.unpackbits(packed, count=elements, bitorder="little"))
        return places if len(places) == kept else None
    places = packed.view("<u4").astype(np.int64)
    is_sorted = bool(np.all(places[1:] > places[:-1]))
    return places if is_sorted and places[-1] < elements else None


def _floats(value: Value) -> Array:
    return np.ascontiguousarray(as_array(value), "<f4")


def _bytes(value: Value) -> Array:
    # A copy: what came from the network may begin at any address, which views of wider types do not allow.
    return np.array(as_array(value), np.uint8)


def _as_bytes(array: Array) -> Array:
    return np.frombuffer(array.tobytes(), np.uint8)
