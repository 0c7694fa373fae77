"""Where a compute node takes in requests of clients: it chooses who serves each, and tells how well that went."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from node import Context
from node.batching.routing import Option, Router, Server
from node.workloads.requests import Request
from protocols.serving_messages import Answered, Ask, Progress, Status
from protocols.serving_settings import ServingConfig


@dataclass
class _Open:
    ask: Ask
    sent_s: float
    node: int
    first_s: float | None = None
    first: Progress | None = None


class Dispatching:
    """Requests that were taken in here, from their sending to their last token.

    What is known of the other nodes is as old as their last word, but for what this node itself has sent since.

    Args:
        own: what this node would say of itself now.
        serve: serves a request here.
    """

    def __init__(
        self, ctx: Context, config: ServingConfig, own: Callable[[], Status], serve: Callable[[int, Ask], None]
    ) -> None:
        self._ctx = ctx
        self._config = config
        self._own = own
        self._serve = serve
        self._router = Router(config.routing, ctx.rng)
        self._cards = ctx.inference.cards
        self._servers: dict[int, Server] = {}
        self._open: dict[int, _Open] = {}
        self._takes_more = True

    @property
    def has_answered_all(self) -> bool:
        """Whether no client will ask any more, and none waits."""
        return not self._takes_more and not self._open

    async def take_in(self) -> None:
        """Take in what clients ask, when they do; what they asked while this node was away is lost."""
        began_s = 0.0 if self._ctx.restore() is None else self._ctx.now
        await self._ctx.checkpoint()
        for number, request in self._ctx.inference.requests(self._ctx):
            if request.arrival_s < began_s:
                continue
            await self._ctx.sleep(max(0.0, request.arrival_s - self._ctx.now))
            self._send(self._ask(number, request), self._ctx.now)
        self._takes_more = False
        self._say_if_all()

    def _ask(self, number: int, request: Request) -> Ask:
        return Ask(
            request=number,
            adapter=list(self._cards)[request.adapter],
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens,
            client=str(request.client),
        )

    def _send(self, ask: Ask, sent_s: float) -> None:
        servers = {node: self._server(node) for node in (self._ctx.me, *self._ctx.peers("compute"))}
        option = Option({ask.adapter: self._cards[ask.adapter].size_bytes})
        node, _ = self._router.choose([option], servers)
        self._open[ask.request] = _Open(ask, sent_s, node)
        known = servers[node]
        self._servers[node] = replace(known, load=known.load + 1, resident=known.resident | {ask.adapter})
        if node == self._ctx.me:
            self._serve(node, ask)
        else:
            self._ctx.spawn(self._ctx.send(node, ask))

    def _server(self, node: int) -> Server:
        if node == self._ctx.me:
            self.hear(node, self._own())
        return self._servers.get(node, Server(bandwidth_bytes_per_s=self._config.expected_bps / 8))

    def hear(self, node: int, status: Status) -> None:
        """What a node says of itself."""
        self._servers[node] = Server(
            status.load,
            status.slot_wait_s,
            frozenset(status.resident),
            status.link_free_in_s,
            self._config.expected_rtt_s,
            self._config.expected_bps / 8,
        )

    def progressed(self, progress: Progress) -> None:
        """The first or the last token of a request is there."""
        open = self._open.get(progress.request)
        if open is None:
            return
        if open.first is None and not progress.error:
            open.first, open.first_s = progress, self._ctx.now
        if progress.is_over:
            del self._open[progress.request]
            self._record(open, progress)
            self._say_if_all()

    def _record(self, open: _Open, last: Progress) -> None:
        fields = {"request/sent_s": open.sent_s, "request/error": float(bool(last.error))}
        if open.first is not None and open.first_s is not None and not last.error:
            fields |= {
                "request/first_s": open.first_s,
                "request/last_s": self._ctx.now,
                "request/tokens": float(last.tokens),
                "request/load_wait_s": open.first.load_wait_s,
                "request/queue_s": open.first.queue_s,
                "request/prefill_s": open.first.prefill_s,
                "request/node": float(open.node),
            }
        self._ctx.record(round=open.ask.request, **fields)

    async def gossip(self) -> None:
        """Tell the others how this node is, and ask somebody else what was asked of a node that has gone."""
        while True:
            others = self._ctx.peers("compute")
            if others:
                await self._ctx.send(others, self._own())
            self._say_if_all()
            await self._ctx.sleep(self._config.gossip_s)
            for open in list(self._open.values()):
                if open.node != self._ctx.me and not self._ctx.alive((open.node,)):
                    self._servers.pop(open.node, None)
                    self._send(open.ask, open.sent_s)

    def _say_if_all(self) -> None:
        """Everybody hears, again and again, that nothing is left to be answered here."""
        if self.has_answered_all:
            self._ctx.spawn(self._ctx.send(self._ctx.peers(role=None), Answered()))
