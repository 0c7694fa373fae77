"""The bodies that clients send: what is not served is refused by name, unless it asks for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from aiohttp import web

from node.live.openai.refusals import Refusal

MOST_BODY_BYTES = 1 << 20
MOST_STOPS = 16

Stops = str | Annotated[list[str], msgspec.Meta(max_length=MOST_STOPS)] | None
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=400)]

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "metadata": ({},),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "top_k": (-1, 0),
    "min_p": (0,),
    "load_inplace": (True, False),
}
"""What other servers know and this one does not, with the values that change nothing; so does null."""

Body = TypeVar("Body", bound=msgspec.Struct)


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What a stream tells beside the text."""

    include_usage: bool = False


class Adapting(msgspec.Struct, forbid_unknown_fields=True):
    """Which adapters answer, where that is not said by ``model``."""

    mode: Literal["auto", "select", "mixture", "base"] = "auto"
    top_k: Annotated[int, msgspec.Meta(ge=1, le=16)] = 3
    ids: Annotated[list[Name], msgspec.Meta(max_length=16)] = []
    weights: Annotated[list[Annotated[float, msgspec.Meta(ge=-10, le=10)]], msgspec.Meta(max_length=16)] = []


class Generation(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What both ways to generate have in common."""

    model: Name
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0.0, le=2.0)] | None = None
    top_p: Share | None = None
    seed: int | None = None
    stop: Stops = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, msgspec.Meta(max_length=400)] | None = None
    adapter: Adapting | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that the answer ends before."""
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(stop for stop in found if stop)


class Completion(Generation, forbid_unknown_fields=True, kw_only=True):
    """``POST /v1/completions``"""

    prompt: str | list[str | int | list[int]]
    """A text or tokens; or a list of one of these."""


class TextPart(msgspec.Struct):
    """A part of a message."""

    text: str
    type: Literal["text"]


class Turn(msgspec.Struct):
    """A message of a chat."""

    role: Annotated[str, msgspec.Meta(max_length=40)]
    content: str | list[TextPart] | None = None

    @property
    def text(self) -> str:
        """All of its text."""
        parts = self.content or ""
        return parts if isinstance(parts, str) else "".join(part.text for part in parts)


class Chat(Generation, forbid_unknown_fields=True, kw_only=True):
    """``POST /v1/chat/completions``"""

    messages: Annotated[list[Turn], msgspec.Meta(min_length=1)]
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None


class Embedding(msgspec.Struct, forbid_unknown_fields=True):
    """``POST /v1/embeddings``"""

    model: Name
    input: str | Annotated[list[str], msgspec.Meta(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


class Load(msgspec.Struct, forbid_unknown_fields=True):
    """``POST /v1/load_lora_adapter``"""

    lora_name: Name
    lora_path: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    pinned: bool = False
    load: bool = False


class Unload(msgspec.Struct, forbid_unknown_fields=True):
    """``POST /v1/unload_lora_adapter``"""

    lora_name: Name


async def read(request: web.Request, kind: type[Body]) -> Body:
    """The body of a request.

    Raises:
        Refusal: it is no JSON, or not what is served; the message names the key.
    """
    if request.content_type != "application/json":
        # A page in a browser may post to any address, but not with this type unless it is allowed to.
        raise Refusal(415, "The body has to be sent as Content-Type: application/json.", "unsupported_media_type")
    try:
        found = msgspec.json.decode(await request.read())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(400, f"The body is no JSON: {error}", "invalid_json") from None
    if not isinstance(found, dict):
        raise Refusal(400, "The body is no JSON object.", "invalid_json")
    known = {field.name for field in msgspec.structs.fields(kind)}
    for key in [key for key in found if key in _NEUTRAL and key not in known]:
        if found[key] is not None and found[key] not in _NEUTRAL[key]:
            allowed = ", ".join(msgspec.json.encode(value).decode() for value in _NEUTRAL[key])
            raise Refusal(400, f"{key}: is not served; allowed: {allowed}, or leave it out", "unsupported", key)
        del found[key]
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise Refusal(400, f"{error}", "invalid_value") from None
