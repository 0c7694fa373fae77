"""Reading pickles that hold plain data only: nothing in the file is ever called, looked up or allocated unseen.

A pickle is a program. This one may only push numbers, texts, None and booleans and put them into lists, tuples and
dicts; every instruction is checked before the first one is carried out.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from node.errors import ConfigError

_ATOMS = """NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8"""
_CONTAINERS = "EMPTY_LIST APPEND APPENDS LIST EMPTY_DICT DICT SETITEM SETITEMS"
_TUPLES = frozenset({"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"})
_STRUCTURE = "PROTO FRAME MARK STOP POP POP_MARK DUP PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET"
_ALLOWED = frozenset(f"{_ATOMS} {_CONTAINERS} {_STRUCTURE}".split()) | _TUPLES
_MOST_BYTES = 512 * 2**20
_MOST_INSTRUCTIONS = 50_000_000
_MOST_TUPLES = 10_000
"""Bounds how deep tuples nest: where one is a key, hashing it recurses without a look at the stack."""
_MOST_DEPTH = 16
_BROKEN = (
    pickle.UnpicklingError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    OverflowError,
    MemoryError,
)
"""What reading raises when instructions do not fit together, or the file ends among them."""


class _Unpickler(pickle.Unpickler):
    """Finds nothing, so that even an instruction that slipped through could call nothing."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it asks for an object outside the file")


def load(
    path: str,
    key: str,
    *,
    most_bytes: int = _MOST_BYTES,
    most_instructions: int = _MOST_INSTRUCTIONS,
    most_depth: int = _MOST_DEPTH,
) -> Any:
    """What a pickle file holds: dicts, lists, tuples, texts, numbers, None and booleans.

    Raises:
        ConfigError: the file cannot be read, is no pickle, holds anything else, or is beyond a bound; names ``key``,
            the key of the experiment that gave the path.
    """
    where = f"{key}: {path}"
    content = _read(Path(path), where, most_bytes)
    try:
        _scan(content, most_instructions)
        value = _Unpickler(io.BytesIO(content)).load()
        _check_depth(value, most_depth)
    except _Refused as error:
        raise ConfigError(f"{where}: {error}; allowed: a pickle of plain dicts, lists, texts and numbers") from None
    except _BROKEN as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ConfigError(f"{where}: not a readable pickle: {reason:.120}") from None
    return value


class _Refused(Exception):
    """The pickle may be sound, but it is more than plain data."""


def _read(path: Path, where: str, most_bytes: int) -> bytes:
    if not path.is_file():
        raise ConfigError(f"{where}: there is no such file")
    try:
        size = path.stat().st_size
        if size > most_bytes:
            raise ConfigError(f"{where}: has {size} bytes; a pickle may have {most_bytes}")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {error.strerror}") from None


def _scan(content: bytes, most_instructions: int) -> None:
    """Check every instruction; also that memo numbers stay small, because the largest one is allocated at once."""
    tuples = 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content), 1):
        name = opcode.name
        if name not in _ALLOWED:
            asked = f" {argument!r:.60}" if argument is not None else ""
            raise _Refused(f"has the instruction {name}{asked}, which is not plain data")
        tuples += name in _TUPLES
        if tuples > _MOST_TUPLES:
            raise _Refused(f"has more than {_MOST_TUPLES} tuples")
        if count > most_instructions:
            raise _Refused(f"has more than {most_instructions} instructions")
        if name in ("PUT", "LONG_BINPUT") and int(argument or 0) > count:
            raise _Refused(f"numbers value {argument} before there are so many")


def _check_depth(value: Any, most_depth: int) -> None:
    """Look at every container once, however often and from wherever it is referred to."""
    seen: set[int] = set()
    level: Iterable[Any] = [value]
    for _ in range(most_depth + 1):
        new = {id(item): item for item in level if isinstance(item, (dict, list, tuple)) and id(item) not in seen}
        if not new:
            return
        seen.update(new)
        level = chain.from_iterable(item.values() if isinstance(item, dict) else item for item in new.values())
    raise _Refused(f"nests its values more than {most_depth} deep")
