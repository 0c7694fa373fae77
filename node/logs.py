"""How Starling logs: structlog events with fields, as JSON lines on stderr; warnings only, unless asked for more."""

from __future__ import annotations

import logging
import sys

import structlog


def configure(verbose: bool = False, through: structlog.typing.Processor | None = None) -> None:
    """Set up logging for this process.

    Args:
        verbose: log what happens, too, instead of warnings only.
        through: is shown every event, with its level and time, and decides alone which of them are logged.
    """
    least = logging.DEBUG if through is not None else logging.INFO if verbose else logging.WARNING
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            *([] if through is None else [through]),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
