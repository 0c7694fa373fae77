"""Values of whatever tensor library as numpy arrays, and back: for ops that need to know none."""

from __future__ import annotations

import numpy as np

from node.op import Value


def as_array(value: Value) -> np.ndarray:
    """A value's numbers, without a copy where they are in main memory; nobody may write to them."""
    return np.asarray(value.cpu() if hasattr(value, "cpu") else value)


def like(value: Value, array: np.ndarray) -> Value:
    """An array's numbers in the library, type and place of a value."""
    return value.new_tensor(array) if hasattr(value, "new_tensor") else array.astype(value.dtype)


def bytes_like(value: Value, array: np.ndarray) -> Value:
    """An array of unsigned bytes in the library and place of a value."""
    empty = value[:0]
    return like(empty.byte() if hasattr(empty, "byte") else empty.astype(np.uint8), array)
