"""What the routes of a serving node share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from node.serving.loop import Serving
from node.serving.registry import Registry
from node.serving.selecting import Selector
from node.store.objects import Store

AUTO = "auto"
"""The model's name with which adapters are selected."""


@dataclass(frozen=True)
class Updates:
    """Where adapters may be loaded from while the node serves; their files are kept in the store."""

    store: Store
    store_folder: Path
    allowed: Path
    """A ``lora_path`` is inside of this folder, or the id of an object of the store."""


@dataclass(frozen=True)
class Surface:
    """A node that serves."""

    name: str
    """Of the base model."""
    serving: Serving
    registry: Registry
    selector: Selector
    updates: Updates | None = None
    """None: nobody changes what is served."""
    most_waiting: int = 4096
    """Requests that have not begun; more are refused at once."""
    created_s: int = 0
    """Since when it serves, in seconds since 1970."""
    patience_s: float = 30.0
    """How long a client may leave unread what was sent."""
