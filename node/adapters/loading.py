"""An adapter on its way into a slot, layer by layer, and forward passes that wait for a layer and no longer.

The base's own product needs no adapter, so it is computed before the wait. With x_j the time that layer j takes to come
and c_l the time that layer l takes to compute, layer l is done at max(done_{l-1}, x_0 + ... + x_l) + c_l.
"""

from __future__ import annotations

import threading

from node.adapters.artifact import Artifact, Layer
from node.adapters.keeping import check_layer, kept, layer_bytes
from node.adapters.stacks import Stacks
from node.errors import DeadlineExceeded, StarlingError
from node.store.objects import Store
from node.transfer.manifest import ObjectId


class Loading:
    """One adapter and one slot. Writing and waiting are for any threads, never for the event loop."""

    def __init__(self, stacks: Stacks, slot: int, artifact: Artifact) -> None:
        """The artifact has been checked against the stacks, and the slot is claimed for it."""
        self.artifact = artifact
        self.slot = slot
        self._stacks = stacks
        self._missing = {layer.name for layer in artifact.layers}
        self._is_clear = False
        self._error: StarlingError | None = None
        self._changed = threading.Condition()

    @property
    def is_complete(self) -> bool:
        """Whether all layers are there."""
        return not self._missing

    def write(self, layer: Layer, data: bytes | bytearray | memoryview) -> None:
        """Put a layer in its place; layers may come in any order.

        Raises:
            Corrupt: these are not its bytes, or not numbers to compute with.
        """
        check_layer(self.artifact, layer, data)
        with self._changed:
            if not self._is_clear:
                self._stacks.clear(self.slot)
                self._is_clear = True
            self._stacks.write(self.slot, self.artifact, layer, data)
            self._missing.discard(layer.name)
            self._changed.notify_all()

    def fail(self, error: StarlingError) -> None:
        """No more will come: whoever waits gets the error."""
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def wait(self, layer: str, timeout_s: float | None = None) -> None:
        """Return when a layer can be computed with; at once where the adapter has nothing for it.

        Raises:
            StarlingError: what loading failed with.
            DeadlineExceeded: the layer did not come in time.
        """
        with self._changed:
            in_time = self._changed.wait_for(lambda: self._error or self._is_ready(layer), timeout_s)
        if self._error and not self._is_ready(layer):
            raise self._error
        if not in_time:
            raise DeadlineExceeded(f"adapter {self.artifact.name}: layer {layer} did not come within {timeout_s} s")

    def _is_ready(self, layer: str) -> bool:
        return self._is_clear and layer not in self._missing


def load(store: Store, version: ObjectId, stacks: Stacks, slot: int, base_fingerprint: str) -> Artifact:
    """Load a whole adapter, whose files the store has, into a claimed slot.

    Raises:
        ConfigError: it does not fit the model.
        StoreError: it is not there, or damaged.
    """
    artifact = kept(store, version)
    stacks.check(artifact, base_fingerprint)
    loading = Loading(stacks, slot, artifact)
    for layer in artifact.layers:
        loading.write(layer, layer_bytes(store, artifact, layer))
    return artifact
