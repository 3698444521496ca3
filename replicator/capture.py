"""Capture: Redis to log. Read, decode, admit, append, publish.

Guarantees: a stream's position moves only in the transaction that logs its changes; after any error everything
cached is forgotten and the log is asked where the streams stand. Never skips an entry, never logs one twice.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import pyarrow as pa
import structlog
from attrs import define, evolve, field, frozen

from replicator.admit import Admission
from replicator.catalog import Routes
from replicator.changelog import Append, ChangeLog, StreamPosition
from replicator.chunk import Chunk, gather
from replicator.collector import collector_paused
from replicator.database import Session
from replicator.decode import StreamRead, decode
from replicator.errors import SourceUnavailable
from replicator.failpoints import failpoint
from replicator.model import OffsetRange

ROW_GROUP_ROWS = 122_880
"""Transactions of whole multiples of it bypass DuckDB's WAL. Source: measured on DuckDB 2.0.0."""
COMMIT_BYTES_MAX = 96 << 20
QUEUE_CHUNKS_MAX = 6
BLOCK_SECONDS = 0.5
GATHER_SECONDS_MAX = 2.0

log = structlog.get_logger(__name__)


class Source(Protocol):
    """The near end, as capture needs it. The same contract tests run on every implementation."""

    def read(self, positions: Mapping[str, StreamPosition], *, block_seconds: float) -> tuple[list[StreamRead], bool]:
        """Entries behind the positions and whether more wait; empty after ``block_seconds`` without any."""

    def publish(self, positions: list[StreamPosition], *, timeline: int, head: int) -> None:
        """Let Redis witness what the log holds."""

    def disconnect(self) -> None:
        """Forget the connection."""


@define
class CaptureProgress:
    """What others may know of capture. ``released_head`` is how far deliver may go."""

    released_head: int = 0
    appended: threading.Condition = field(factory=threading.Condition)
    entries_read: int = 0
    changes_appended: int = 0
    entries_rejected: int = 0
    commits: int = 0
    heartbeat_at: float = field(factory=time.monotonic)
    positions: dict[str, StreamPosition] = field(factory=dict)

    def release(self, head: int) -> None:
        with self.appended:
            self.released_head = max(self.released_head, head)
            self.appended.notify_all()


@frozen(kw_only=True)
class CaptureSettings:
    """``streams()`` and ``routes()`` are asked anew for each read: the configuration may be reloaded."""

    streams: Callable[[], tuple[str, ...]]
    routes: Callable[[], Routes]
    first_position: Callable[[str], StreamPosition]


@define
class Capture:
    """The loop. `run` owns a reading thread and appends in its own."""

    settings: CaptureSettings
    source: Source
    changelog: ChangeLog
    admission: Admission
    session: Session
    progress: CaptureProgress
    stop: threading.Event
    paused: Callable[[], bool] = field(default=lambda: False)
    _chunks: queue.Queue[Chunk | BaseException] = field(init=False)
    _positions: dict[str, StreamPosition] = field(factory=dict, init=False)

    def run(self) -> None:
        """Until stopped. Raises the first error of either thread; call again to go on from what the log holds."""
        self._chunks = queue.Queue(QUEUE_CHUNKS_MAX)
        self._positions = self.changelog.positions(self.session)
        self.progress.positions = dict(self._positions)
        self.progress.release(self.changelog.head)
        quit_reading = threading.Event()
        reader = threading.Thread(target=self._read_until, args=(quit_reading,), name="capture-reader", daemon=True)
        reader.start()
        try:
            self._append_until_stopped()
        finally:
            quit_reading.set()
            while reader.is_alive():
                self._drain()
                reader.join(0.05)

    # ── the reading thread ──

    def _read_until(self, quit_reading: threading.Event) -> None:
        positions = dict(self._positions)
        try:
            while not quit_reading.is_set() and not self.stop.is_set():
                self.progress.heartbeat_at = time.monotonic()
                if self.paused() or not self.settings.streams():
                    quit_reading.wait(0.2)
                    continue
                self._read_once(positions)
        except BaseException as error:  # handed to the appending thread, which raises it
            self._put(error, quit_reading)
        finally:
            self.source.disconnect()

    def _read_once(self, positions: dict[str, StreamPosition]) -> None:
        for stream in self.settings.streams():
            if stream not in positions:
                positions[stream] = self.settings.first_position(stream)
        wanted = {stream: positions[stream] for stream in self.settings.streams()}
        with collector_paused():
            chunks = self._read_chunks(wanted)
        for chunk in chunks:
            positions[chunk.end.stream] = chunk.end
            self._put(chunk, self.stop)

    def _read_chunks(self, positions: Mapping[str, StreamPosition]) -> list[Chunk]:
        """One read, decoded and admitted. What Redis sent is freed on return: only the entry ids are kept."""
        reads, behind = self.source.read(positions, block_seconds=BLOCK_SECONDS)
        routes = self.settings.routes()
        chunks = []
        for place, read in enumerate(reads):
            decoded = decode(evolve(read, table=routes.tables.get(read.stream)), routes.encodings)
            admitted = self.admission.admit(decoded)
            more = behind or place < len(reads) - 1
            chunks.append(Chunk.of(read, positions[read.stream], admitted, more=more))
        return chunks

    def _put(self, item: Chunk | BaseException, give_up: threading.Event) -> None:
        while True:
            try:
                return self._chunks.put(item, timeout=0.1)
            except queue.Full:
                if give_up.is_set() or self.stop.is_set():
                    return None

    def _drain(self) -> None:
        while not self._chunks.empty():
            self._chunks.get_nowait()

    # ── the appending thread ──

    def _append_until_stopped(self) -> None:
        waiting: list[Chunk] = []
        while not self.stop.is_set():
            waiting = self._collect(waiting)
            if not waiting:
                continue
            rows = sum(chunk.rows for chunk in waiting)
            whole = rows - rows % ROW_GROUP_ROWS
            now_chunks, waiting = gather(waiting, whole or rows)
            self._commit(now_chunks)
            if not any(chunk.more for chunk in waiting) and waiting:
                self._commit(waiting)
                waiting = []

    def _collect(self, waiting: list[Chunk]) -> list[Chunk]:
        """Chunks to commit: what there is when calm, a row group (or as many bytes as are good) when behind."""
        deadline = time.monotonic() + GATHER_SECONDS_MAX
        while not self.stop.is_set():
            rows, size = sum(c.rows for c in waiting), sum(c.bytes for c in waiting)
            enough = rows >= ROW_GROUP_ROWS or size >= COMMIT_BYTES_MAX
            if waiting and (enough or not waiting[-1].more or time.monotonic() > deadline):
                return waiting
            try:
                item = self._chunks.get(timeout=0.1)
            except queue.Empty:
                if not waiting:
                    return waiting
                continue
            if isinstance(item, BaseException):
                raise item
            waiting = [*waiting, item]
        return []

    def _commit(self, chunks: list[Chunk]) -> None:
        positions = {chunk.end.stream: chunk.end for chunk in chunks}
        append = Append(
            changes=pa.concat_tables([chunk.changes for chunk in chunks]).combine_chunks(),
            rejections=pa.concat_tables([chunk.rejections for chunk in chunks]),
            positions=tuple(positions.values()),
        )
        failpoint("append.before_commit")
        logged = self.changelog.append(self.session, append)
        failpoint("append.after_commit")
        self._publish(list(positions.values()))
        self._count(chunks, append, logged)

    def _publish(self, positions: list[StreamPosition]) -> None:
        """Redis witnesses the head before deliver may ship it; when Redis is silent, deliver goes on without."""
        try:
            self.source.publish(positions, timeline=self.changelog.timeline, head=self.changelog.head)
        except SourceUnavailable as error:
            log.warning("publish_failed", error=str(error))
        failpoint("publish.after")
        self.progress.release(self.changelog.head)

    def _count(self, chunks: list[Chunk], append: Append, logged: OffsetRange | None) -> None:
        p = self.progress
        p.entries_read += sum(chunk.entries for chunk in chunks)
        p.changes_appended += append.changes.num_rows
        p.entries_rejected += append.rejections.num_rows
        p.commits += 1
        p.positions = {**p.positions, **{chunk.end.stream: chunk.end for chunk in chunks}}
        log.info(
            "changes_appended",
            offsets=str(logged) if logged else None,
            changes=append.changes.num_rows,
            rejected=append.rejections.num_rows,
        )
