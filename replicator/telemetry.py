"""Logs: structlog over the standard library, to stderr and to the profile's rotating file.

Guarantees: one constant event name per line with its facts as fields, JSON wherever no person watches; a known secret
never reaches a line, whoever wrote it; processes that share a log file lose no line to each other's rotation; trouble
with the file never stops the service. Never writes to stdout.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import logging.handlers
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

import structlog
from attrs import field, frozen
from opentelemetry.trace import SpanContext, format_span_id, format_trace_id

from replicator.errors import ConfigError

TRACE = 5
LEVELS = {"TRACE": TRACE, "DEBUG": logging.DEBUG, "INFO": logging.INFO, "WARN": logging.WARNING, "ERROR": logging.ERROR}
LOG_FILE_BYTES_MAX = 64 << 20
LOG_FILES_KEPT = 5
SECRET_LENGTH_MIN = 4
"""A shorter secret would blot out ordinary words; it is still never a field of ours."""
NOISY = {
    "uvicorn": logging.WARNING,
    "uvicorn.access": logging.ERROR,
    "urllib3": logging.ERROR,
    "clickhouse_connect": logging.ERROR,
    "opentelemetry": logging.WARNING,
    "asyncio": logging.WARNING,
    "multipart": logging.WARNING,
}
"""Libraries whose own lines repeat what our errors say; they speak at the given level, or at TRACE with everybody."""

TraceFinder = Callable[[Mapping[str, Any]], SpanContext | None]
_trace_finder: list[TraceFinder] = []


def set_trace_finder(find: TraceFinder | None) -> None:
    """From now on each line names the trace that ``find`` says it belongs to; None: no line does."""
    _trace_finder[:] = [] if find is None else [find]


def _add_trace(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for find in _trace_finder:
        span = find(event)
        if span is not None:
            event["trace_id"], event["span_id"] = format_trace_id(span.trace_id), format_span_id(span.span_id)
    return event


_SHARED = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    _add_trace,
    structlog.stdlib.ExtraAdder(),
]


@frozen(kw_only=True)
class LogOptions:
    """``format`` is ``auto`` (text on a terminal, JSON otherwise), ``text`` or ``json``; the file is always JSON."""

    level: str = "INFO"
    path: Path | None = None
    format: str = "auto"
    secrets: Iterable[str] = field(default=(), repr=False)


def configure_logging(options: LogOptions, *, stream: TextIO | None = None) -> None:
    """Send every log line of this process to stderr, and to the file where one is named. Raises ConfigError for it."""
    stream = stream or sys.stderr
    as_text = options.format == "text" or (options.format == "auto" and stream.isatty())
    secrets = _as_written(options.secrets)
    console = logging.StreamHandler(stream)
    console.setFormatter(_Formatter(_text(stream) if as_text else _json(), secrets, traceback_as_field=not as_text))
    handlers: list[logging.Handler] = [console]
    if options.path is not None:
        handlers.append(_file_handler(options.path, secrets))
    _route_to_logging()
    logging.captureWarnings(True)
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    for handler in handlers:
        root.addHandler(handler)
    set_level(options.level)


def _as_written(secrets: Iterable[str]) -> list[str]:
    """The secrets in every form a line may hold, the longest first."""
    long_enough = [s for s in secrets if len(s) >= SECRET_LENGTH_MIN]
    return sorted({*long_enough, *(json.dumps(s)[1:-1] for s in long_enough)}, key=len, reverse=True)


def _route_to_logging() -> None:
    """What we log through structlog goes to the standard library's loggers."""
    logging.addLevelName(TRACE, "TRACE")
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED[:-1],
            structlog.processors.StackInfoRenderer(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


_joined: dict[Path, tuple[logging.Handler, int]] = {}
_joining = threading.Lock()


def join_log_file(options: LogOptions) -> Callable[[], None]:
    """For a program that is not ours: its own logging stays as it is, and our package's lines also go to the file.

    Returns what ends that. Raises ConfigError when there can be no such file.
    """
    if not structlog.is_configured():
        _route_to_logging()
    ours, path = logging.getLogger("replicator"), options.path
    ours.setLevel(LEVELS[options.level])
    if path is None:
        return lambda: None
    with _joining:
        handler, users = _joined.get(path) or (_file_handler(path, _as_written(options.secrets)), 0)
        _joined[path] = (handler, users + 1)
        ours.addHandler(handler)

    def leave() -> None:
        with _joining:
            _, users = _joined[path]
            _joined[path] = (handler, users - 1)
            if users == 1:
                del _joined[path]
                ours.removeHandler(handler)
                handler.close()

    return leave


def set_level(level: str) -> None:
    """Change the level of every log line from now on, one of TRACE, DEBUG, INFO, WARN, ERROR."""
    logging.getLogger().setLevel(LEVELS[level])
    for name, least in NOISY.items():
        logging.getLogger(name).setLevel(TRACE if level == "TRACE" else max(least, LEVELS[level]))


def _json() -> structlog.types.Processor:
    return structlog.processors.JSONRenderer(default=str, ensure_ascii=False)


def _text(stream: TextIO) -> structlog.types.Processor:
    return structlog.dev.ConsoleRenderer(
        colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback, sort_keys=False
    )


class _Formatter(structlog.stdlib.ProcessorFormatter):
    """Renders our lines and other libraries' alike, then blots out known secrets."""

    def __init__(self, renderer: structlog.types.Processor, secrets: list[str], *, traceback_as_field: bool) -> None:
        final: list[structlog.types.Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
        if traceback_as_field:
            final.append(structlog.processors.format_exc_info)
        super().__init__(foreign_pre_chain=_SHARED, processors=[*final, renderer])
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        for secret in self._secrets:
            if secret in line:
                line = line.replace(secret, "***")
        return line


class _LogFile(logging.handlers.RotatingFileHandler):
    """Says once on stderr that the file cannot be written (disk full), and goes on without it.

    Shared by processes: each line is written, and the file put aside, by one of them at a time.
    """

    complained = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            with self._alone():
                super().emit(record)
        except OSError:
            self.handleError(record)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Lock the file that stands at the path: another process may just have put ours aside."""
        while True:
            if self.stream is None:
                self.stream = self._open()
            held = os.dup(self.stream.fileno())  # rotation closes the stream, and the lock must outlast that
            try:
                fcntl.flock(held, fcntl.LOCK_EX)
                if self._stands():
                    yield
                    return
            finally:
                fcntl.flock(held, fcntl.LOCK_UN)
                os.close(held)
            self.stream.close()
            self.stream = None

    def _stands(self) -> bool:
        try:
            return os.path.samestat(Path(self.baseFilename).stat(), os.fstat(self.stream.fileno()))
        except FileNotFoundError:
            return False

    def _open(self) -> TextIOWrapper:
        return open(
            self.baseFilename, self.mode, encoding=self.encoding, opener=lambda path, flags: os.open(path, flags, 0o600)
        )

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, ARG002 - the signature is logging's
        if not self.complained:
            self.complained = True
            sys.stderr.write(f"the log file {self.baseFilename} cannot be written: {sys.exc_info()[1]}\n")

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what it still held cannot be written either; that was said
            super().close()


def _file_handler(path: Path, secrets: list[str]) -> logging.Handler:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = _LogFile(path, maxBytes=LOG_FILE_BYTES_MAX, backupCount=LOG_FILES_KEPT, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"[logging] log_path {path}: the log file cannot be written: {error.strerror}",
            hint='name another path, or write "" to log to stderr alone',
        ) from error
    handler.setFormatter(_Formatter(_json(), secrets, traceback_as_field=True))
    return handler
