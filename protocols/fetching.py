"""One adapter on its way to this node, from all who hold it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from node import Context, DeadlineExceeded, Ref, Unreachable
from node.errors import Corrupt
from node.inference import Manifest, Shelf
from node.streaming.layout import Layout
from node.streaming.receiver import Action, Ban, Done, Get, LayerReady, Receiver, Starved
from node.streaming.source import Link
from protocols.directory import Directory
from protocols.serving_messages import Describe, Described
from protocols.serving_messages import Get as GetChunk
from protocols.serving_settings import ServingConfig

_ANSWER_S = 2.0
"""How long to wait for what an adapter consists of, before somebody else is asked."""
_PAUSE_S = 0.1
"""Before holders are looked for again, where nobody is left to ask."""
_LEAST_S = 1e-3


class Fetching:
    """Asks for chunks in the order of layers, of several holders, again elsewhere where one is late or gone.

    Args:
        layer_came: told of each layer that is there.
    """

    def __init__(
        self,
        ctx: Context,
        config: ServingConfig,
        directory: Directory,
        shelf: Shelf,
        adapter: str,
        layer_came: Callable[[int], None] = lambda layer: None,
    ) -> None:
        self.asked = 0
        """Chunks, counting each time that one was asked for."""
        self.chunks = 0
        self._ctx = ctx
        self._config = config
        self._directory = directory
        self._shelf = shelf
        self._adapter = adapter
        self._layer_came = layer_came
        self._manifest: Manifest | None = None
        self._receiver: Receiver | None = None
        self._sources: dict[int, None] = {}
        self._is_starved = False
        self._over = ctx.future()

    async def run(self) -> bool:
        """Fetch it; whether it is all there."""
        deadline_s = self._ctx.now + self._config.fetch_limit_s
        found = await self._described(deadline_s)
        if found is None:
            return False
        self._manifest, layout = found
        self.chunks = layout.chunks
        self._receiver = Receiver(layout)
        self._follow(self._receiver.begin(self._links(), self._ctx.now))
        self._ctx.spawn(self._watch(self._receiver, deadline_s))
        return bool(await self._over)

    def came(self, sender: int, chunk: int, content: Ref) -> None:
        """A chunk has come."""
        self._ctx.spawn(self._take(sender, chunk, content))

    def absent(self, holder: int) -> None:
        """A holder has not got it after all."""
        self._directory.unanswered(holder)
        self._sources.pop(holder, None)
        if self._receiver is not None:
            self._follow(self._receiver.lost(holder, self._ctx.now))

    async def _take(self, sender: int, chunk: int, content: Ref) -> None:
        if self._receiver is None or self._manifest is None or not 0 <= chunk < self.chunks:
            return
        is_right = await self._shelf.accepts(self._manifest, chunk, content)
        self._directory.answered(sender)
        self._follow(self._receiver.arrived(sender, chunk, is_right, self._ctx.now))

    async def _described(self, deadline_s: float) -> tuple[Manifest, Layout] | None:
        """What it consists of, as the first holder says who answers with sense."""
        while self._ctx.now < deadline_s:
            for holder in self._directory.holders(self._adapter):
                try:
                    answer = await self._ctx.request(holder, Describe(adapter=self._adapter), _ANSWER_S)
                    if isinstance(answer, Described):
                        layout = Layout(answer.layers_bytes, answer.chunk_bytes)
                        return Manifest(self._adapter, answer.layers_bytes, answer.chunk_bytes, answer.digests), layout
                except (Unreachable, DeadlineExceeded, Corrupt):
                    pass  # the next one may know
                self._directory.unanswered(holder)
            await self._ctx.sleep(_PAUSE_S)
        return None

    async def _watch(self, receiver: Receiver, deadline_s: float) -> None:
        """Ask again for what is late, and look for other holders where there are none left, until it is over."""
        while not self._over.done():
            due_s = self._ctx.now + _PAUSE_S if self._is_starved else receiver.next_tick_s
            await self._ctx.sleep(max(_LEAST_S, min(due_s, deadline_s) - self._ctx.now))
            if self._over.done():
                return
            if self._ctx.now >= deadline_s:
                self._over.set_result(False)
            for gone in set(self._sources).difference(self._ctx.alive(self._sources)):
                self.absent(gone)
            if self._is_starved:
                self._is_starved = False
                for link in self._links():
                    self._follow(receiver.joined(link, self._ctx.now))
                self._is_starved = not self._sources
            self._follow(receiver.tick(self._ctx.now))

    def _links(self) -> Sequence[Link]:
        rate = self._config.expected_bps / 8
        holders = self._directory.holders(self._adapter)
        self._sources.update(dict.fromkeys(holders))
        return [Link(holder, rate, self._config.expected_rtt_s) for holder in holders]

    def _follow(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Get(node, chunk):
                    self.asked += 1
                    self._ctx.spawn(self._ctx.send(node, GetChunk(adapter=self._adapter, chunk=chunk)))
                case LayerReady(layer):
                    self._layer_came(layer)
                case Done() if not self._over.done():
                    self._over.set_result(True)
                case Ban(node):
                    self._sources.pop(node, None)
                case Starved():
                    self._is_starved = True
                case _:
                    pass
