"""How Starling logs: structlog events with fields, as JSON lines on stderr; warnings only, unless asked for more."""

from __future__ import annotations

import json
import logging
import sys
from io import FileIO
from typing import IO

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
        logger_factory=structlog.WriteLoggerFactory(Lines(sys.stderr)),  # type: ignore[arg-type]  # write, flush
        cache_logger_on_first_use=False,
    )


class Lines:
    """Where log lines go: a full disk, or a reader that has gone, costs lines, and never the work.

    As much of a file as structlog writes to.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lost = 0
        self._is_torn = False
        try:
            # Past the stream's buffer: what does not fit would stay there, and fail once more when the process ends.
            self._file: FileIO | None = FileIO(stream.fileno(), "w", closefd=False)
        except (OSError, ValueError):
            self._file = None  # a stream without a file, as tests have them

    def write(self, line: str) -> None:
        """Write a line; the first after some that could not be written says how many these were."""
        missing = json.dumps({"event": "log lines lost", "level": "error", "lines": self._lost}) + "\n"
        try:
            self._write(("\n" if self._is_torn else "") + (missing if self._lost else "") + line)
        except OSError:
            self._lost += 1
        else:
            self._lost, self._is_torn = 0, False

    def flush(self) -> None:
        """Nothing: no line waits."""

    def _write(self, text: str) -> None:
        if self._file is None:
            self._stream.write(text)
            return
        data = text.encode(errors="backslashreplace")
        while data:
            written = self._file.write(data)
            if not written:
                raise BlockingIOError
            data = data[written:]
            self._is_torn = bool(data)
