"""``/v1/completions`` and ``/v1/chat/completions``: whole answers, and streams of server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import msgspec
from aiohttp import web

from node.errors import StarlingError
from node.live.openai.answers import Answer, Chosen
from node.live.openai.bodies import Adapting, Chat, Completion, Generation, read
from node.live.openai.refusals import Refusal, refusal, unknown_model
from node.live.openai.surface import AUTO, Surface
from node.selection.deciding import Choice
from node.serving.loop import Request
from node.serving.reply import Piece
from node.serving.sampling import Sampling

_MOST_CHARACTERS_PER_TOKEN = 64
"""A text that has more for each token of the context is not even tokenised."""
_DEFAULT_TOKENS = 16
"""Of a completion, as OpenAI has it; a chat goes to the end of the context."""


class GenerationRoutes:
    """Generates text."""

    def __init__(self, surface: Surface) -> None:
        self._surface = surface
        self._language = surface.serving.engine.language
        self._seed = 0

    def routes(self) -> list[web.RouteDef]:
        """The paths."""
        return [
            web.post("/v1/completions", self._completion),
            web.post("/v1/chat/completions", self._chat),
        ]

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        body = await read(request, Completion)
        text, tokens = self._prompt(body.prompt)
        return await self._answer(request, body, tokens, text, body.max_tokens or _DEFAULT_TOKENS)

    def _prompt(self, given: str | list[str | int | list[int]]) -> tuple[str, list[int]]:
        """The text of a prompt, and its tokens."""
        if isinstance(given, list) and given and not isinstance(given[0], int):
            if len(given) > 1:
                raise Refusal(400, "prompt: several are not served; send a request for each", "unsupported", "prompt")
            (one,) = given
            given = [*one] if isinstance(one, list) else str(one)
        if isinstance(given, str):
            return given, self._tokens(given)
        known = range(self._language.model.config.vocab_size)
        tokens = [token for token in given if isinstance(token, int) and token in known]
        if len(tokens) < len(given):
            raise Refusal(400, "prompt: has tokens that the model does not know", "invalid_value", "prompt")
        return str(self._language.tokenizer.decode(tokens, skip_special_tokens=True)), tokens

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await read(request, Chat)
        turns = [{"role": turn.role, "content": turn.text} for turn in body.messages]
        self._check_length(sum(len(turn["content"]) for turn in turns))
        try:
            text = self._language.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template is the model's own, and raises what it likes
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise Refusal(400, f"messages: the model's chat template: {reason}", "invalid_value", "messages") from None
        tokens = self._language.tokenizer(text, add_special_tokens=False)["input_ids"]
        asked = [turn.text for turn in body.messages if turn.role == "user"]
        left = max(1, self._language.context_tokens - len(tokens))
        most = body.max_completion_tokens or body.max_tokens or left
        return await self._answer(request, body, tokens, asked[-1] if asked else "", most)

    def _tokens(self, text: str) -> list[int]:
        self._check_length(len(text))
        return list(self._language.tokenizer(text)["input_ids"])

    def _check_length(self, characters: int) -> None:
        context = self._language.context_tokens
        if characters > context * _MOST_CHARACTERS_PER_TOKEN:
            message = (
                f"This model's maximum context length is {context} tokens; the prompt has {characters} characters."
            )
            raise Refusal(400, message, "context_length_exceeded")

    async def _answer(
        self, request: web.Request, body: Generation, tokens: list[int], query: str, most_tokens: int
    ) -> web.StreamResponse:
        surface = self._surface
        if surface.serving.is_closing or not surface.serving.is_well:
            raise Refusal(503, "The server is ending; ask another one.", "ending")
        if surface.serving.waiting >= surface.most_waiting:
            raise Refusal(429, "Too many requests wait; ask again later.", "overloaded")
        chosen = self._chosen(body.model, body.adapter, query)
        reply = surface.serving.submit(
            Request(
                prompt=tuple(tokens),
                most_tokens=most_tokens,
                adapters=tuple(zip((named.version for named in chosen.adapters), chosen.weights, strict=True)),
                sampling=self._sampling(body),
                stops=body.stops,
                client=body.user or request.remote or "",
            )
        )
        answer = Answer(body.model, isinstance(body, Chat), chosen, reply)
        try:
            if body.stream:
                return await self._stream(
                    request, answer, bool(body.stream_options and body.stream_options.include_usage)
                )
            text, finish = await reply.whole()
            return web.json_response(answer.whole(text, finish), headers=chosen.headers(reply))
        finally:
            reply.cancel()

    async def _stream(self, request: web.Request, answer: Answer, has_usage: bool) -> web.StreamResponse:
        async with aclosing(answer.reply.pieces()) as pieces:
            # What goes wrong before the first piece is told by the status.
            first = await anext(pieces)
            headers = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
            response = web.StreamResponse(headers=headers | answer.chosen.headers(answer.reply))
            await response.prepare(request)
            try:
                await self._send(response, msgspec.json.encode(answer.piece(first.text, first.finish, is_first=True)))
                async for piece in _rest(first, pieces):
                    await self._send(
                        response, msgspec.json.encode(answer.piece(piece.text, piece.finish, is_first=False))
                    )
                if has_usage:
                    await self._send(response, msgspec.json.encode(answer.last()))
            except StarlingError as error:
                await self._send(response, msgspec.json.encode(refusal(error).body))
            await self._send(response, b"[DONE]")
        return response

    async def _send(self, response: web.StreamResponse, data: bytes) -> None:
        """One event; a client that does not read loses its connection."""
        try:
            async with asyncio.timeout(self._surface.patience_s):
                await response.write(b"data: " + data + b"\n\n")
        except TimeoutError:
            raise ConnectionResetError("the client does not read") from None

    def _sampling(self, body: Generation) -> Sampling:
        """As OpenAI has it, an answer is drawn unless it is asked for otherwise; without a seed each is another."""
        self._seed += 1
        temperature = 1.0 if body.temperature is None else body.temperature
        top_p = 1.0 if body.top_p is None else body.top_p
        return Sampling(temperature, top_p, self._seed if body.seed is None else body.seed % (1 << 63))

    def _chosen(self, model: str, adapting: Adapting | None, query: str) -> Chosen:
        """Which adapters answer."""
        surface = self._surface
        if model not in (surface.name, AUTO) and model not in surface.registry:
            raise unknown_model(model)
        if adapting is None:
            if model == surface.name:
                return Chosen("base")
            if model in surface.registry:
                return Chosen("select", (surface.registry[model],), (1.0,))
            return self._selected(surface.selector.choose(query))
        if adapting.mode == "base":
            return Chosen("base")
        if adapting.ids:
            return self._named(adapting)
        if adapting.mode == "mixture":
            return self._selected(surface.selector.mix(query, min(adapting.top_k, surface.serving.most_adapters)))
        return self._selected(surface.selector.choose(query))

    def _selected(self, choice: Choice) -> Chosen:
        adapters = tuple(self._surface.registry[name] for name in choice.adapters)
        return Chosen(choice.mode.value, adapters, choice.weights, choice.scores)

    def _named(self, adapting: Adapting) -> Chosen:
        """Adapters that the client names."""
        names, weights = adapting.ids, adapting.weights
        if adapting.mode == "select" and len(names) > 1:
            raise Refusal(400, "adapter.ids: select takes one; use mixture for several", "invalid_value", "adapter")
        if len(set(names)) != len(names) or (weights and len(weights) != len(names)):
            raise Refusal(
                400, "adapter.ids, adapter.weights: one weight for each, none twice", "invalid_value", "adapter"
            )
        for name in names:
            if name not in self._surface.registry:
                raise unknown_model(name)
        adapters = tuple(self._surface.registry[name] for name in names)
        shares = tuple(weights) or (1.0 / len(names),) * len(names)
        return Chosen("select" if shares == (1.0,) else "mixture", adapters, shares)


async def _rest(first: Piece, pieces: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    """What follows a first piece."""
    if not first.finish:
        async for piece in pieces:
            yield piece
