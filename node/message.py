"""What nodes say to each other: typed, versioned records.

::

    class Model(Message, name="dpsgd/model/1", key=("round",)):
        round: int
        model: Ref

Fields are numbers, strings, bytes, :class:`~node.op.Ref`, and tuples, lists and string-keyed dicts of these. The wire
name ends in the version: a message whose fields change gets a new one. The key fields say which ``collect`` a message
belongs to; where there is one, keys are collected in rising order, so that what comes late can be told from what comes
early. Refs are models, of the shape that all nodes of the experiment share, unless the message says ``any_shape=True``:
a live node refuses anything else before a protocol sees it. With ``whole=True`` they are told once, to a node that has
nothing to go by: no compression touches them, and where nodes have stores, large ones pass between these.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, ClassVar, TypeAlias, dataclass_transform

from node.errors import ProtocolError

_WIRE_NAME = re.compile(r"[a-z0-9_.-]+(/[a-z0-9_.-]+)*/[0-9]+")
_registry: dict[str, type[Message]] = {}

Slot: TypeAlias = tuple[Any, ...]
"""Where a message waits to be collected: its class, then the values of its key fields."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Message:
    """Base of all messages: subclass it with a wire name, and the fields become an immutable record."""

    wire_name: ClassVar[str] = ""
    key_fields: ClassVar[tuple[str, ...]] = ()
    any_shape: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    slot: ClassVar[Slot]  # set on each instance: a class variable only to the dataclass

    def __init_subclass__(
        cls, *, name: str, key: tuple[str, ...] = (), any_shape: bool = False, whole: bool = False, **kwargs: Any
    ) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True, kw_only=True, eq=False)(cls)
        fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if not _WIRE_NAME.fullmatch(name):
            raise ProtocolError(f"{cls.__qualname__}: the wire name {name!r} must look like 'protocol/kind/1'")
        if unknown := set(key) - fields:
            raise ProtocolError(f"{cls.__qualname__}: key field {min(unknown)!r} is not one of its fields")
        known = _registry.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ProtocolError(f"{cls.__qualname__}: the wire name {name!r} already belongs to {known.__qualname__}")
        cls.wire_name, cls.key_fields, cls.any_shape, cls.whole = name, key, any_shape, whole
        _registry[name] = cls

    def __post_init__(self) -> None:
        # Once per message, not once per delivery: simulations deliver one object to many nodes.
        object.__setattr__(self, "slot", (type(self), *[getattr(self, field) for field in self.key_fields]))


def message_type(name: str) -> type[Message] | None:
    """The class that carries a wire name, or None where this process knows no such message."""
    return _registry.get(name)
