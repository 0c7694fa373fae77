"""What a client is told where something is wrong: OpenAI's error bodies, and nothing of this machine in them."""

from __future__ import annotations

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from node.errors import ConfigError, DeadlineExceeded, Missing, StarlingError, StoreError, TransportError


class Refusal(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def refusal(error: StarlingError) -> Refusal:
    """How an error of ours is told. The log says more where the client cannot do anything about it."""
    if isinstance(error, ConfigError):
        too_long = "maximum context length" in str(error)
        return Refusal(400, str(error), "context_length_exceeded" if too_long else "invalid_value")
    structlog.get_logger().warning("request failed", reason=str(error))
    if isinstance(error, DeadlineExceeded):
        return Refusal(503, str(error), "too_late")
    if isinstance(error, StoreError):
        state = "missing" if isinstance(error, Missing) else "damaged"
        return Refusal(503, f"The adapter's files are {state} in the store; publish it again.", f"adapter_{state}")
    if isinstance(error, TransportError):
        return Refusal(503, "The adapter cannot be had at present; ask again later.", "adapter_unavailable")
    return Refusal(500, str(error), "failed")


def unknown_model(name: str) -> Refusal:
    """There is no such model."""
    return Refusal(404, f"The model `{name[:200]}` does not exist.", "model_not_found", "model")


@web.middleware
async def telling(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers whatever goes wrong before anything was answered."""
    try:
        return await handler(request)
    except Refusal as refused:
        found = refused
    except StarlingError as error:
        found = refusal(error)
    except web.HTTPRequestEntityTooLarge:
        found = Refusal(413, "The body is too large.", "body_too_large")
    except web.RequestPayloadError:
        found = Refusal(400, "The body does not end as its headers say.", "bad_body")
    except web.HTTPException as error:
        found = Refusal(error.status, f"{error.reason}: {request.method} {request.path[:200]}")
    except ConnectionError:
        raise
    except Exception:
        structlog.get_logger().error("http failed", path=request.path, exc_info=True)
        found = Refusal(500, "The server has failed to answer; its log says why.", "failed")
    return web.json_response(found.body, status=found.status)
