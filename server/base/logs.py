"""Structured logs: JSON lines on standard error, also for libraries."""

import io
import logging
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import structlog

from server.base.printable import printable_json


def configure(level: str, stream: BinaryIO | None = None) -> None:
    """Set up structlog and the standard library's logging, once in each process.

    Args:
        level: the lowest level that is logged: debug, info, warning or error.
        stream: the destination; default: standard error.
    """
    stream = stream or sys.stderr.buffer
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(serializer=printable_json)],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.BytesLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(io.TextIOWrapper(stream, write_through=True))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(
                    serializer=lambda value, **_: printable_json(value, default=str).decode()
                ),
            ],
        )
    )
    _direct[:] = [stream] if number <= logging.INFO else []
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.WARNING))


_direct: list[BinaryIO] = []
"""The stream of info(), if that level is logged."""


def info(event: str, **members: Any) -> None:
    """Log at level info, in the same format but without structlog's processors.

    Each call logs a line: the processors took longer than validating its params.
    """
    for stream in _direct:
        line = {**members, "event": event, "level": "info", "timestamp": datetime.now(UTC)}
        stream.write(printable_json(line, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE))
        stream.flush()


def cause_of(error: BaseException) -> str:
    """The type, code and place of an error, without its text, which may contain data."""
    for _ in range(10):  # enough, and ends if errors cause each other
        error = error.__cause__ or error
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" at {Path(frame.filename).name}:{frame.lineno}" for frame in place)
    code = getattr(error, "code", None) or getattr(error, "sqlstate", None)
    return f"{type(error).__name__}{f' {code}' if code else ''}{where}"


def safe_traceback(error: BaseException) -> list[str]:
    """The traceback of an exception and its causes, without data.

    Messages of the driver contain rows and arguments, such as hashes: only their type and SQLSTATE are kept.
    """
    lines: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        frames = traceback.extract_tb(current.__traceback__)
        lines += [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        kind = type(current)
        told = (
            getattr(current, "sqlstate", "")
            if kind.__module__.startswith(("asyncpg", "pydantic"))
            else str(current)[:200]
        )
        lines.append(f"{kind.__module__}.{kind.__name__}: {told}")
        current = current.__cause__ or current.__context__
    return lines
