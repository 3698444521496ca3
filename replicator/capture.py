"""Capture: Redis to log. Read, decode, admit, append, publish.

Guarantees: a stream's position moves only in the transaction that logs its changes; after any error everything
cached is forgotten and the log is asked where the streams stand. Never skips an entry, never logs one twice.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Protocol

import pyarrow as pa
import structlog
from attrs import define, evolve, field, frozen

from replicator.admit import Admission, Admitted
from replicator.catalog import Routes
from replicator.changelog import Append, ChangeLog
from replicator.chunk import Chunk, gather, origin
from replicator.collector import collector_paused
from replicator.database import Session
from replicator.decode import StreamRead, decode, traceparents
from replicator.dedup import Dedup, Window
from replicator.errors import SourceTurned, SourceUnavailable
from replicator.failpoints import failpoint
from replicator.model import OffsetRange, StreamPosition
from replicator.readmit import open_entries, readmission
from replicator.stream_watch import StreamWatch, WatchedSource, witnessed

ROW_GROUP_ROWS = 122_880
"""Transactions of whole multiples of it bypass DuckDB's WAL. Source: measured on DuckDB 2.0.0."""
COMMIT_BYTES_MAX = 96 << 20
QUEUE_CHUNKS_MAX = 6
BLOCK_SECONDS = 0.5
GATHER_SECONDS_MAX = 2.0
CALM_SECONDS_MAX = 0.05
"""The longest that the first change of a calm stream waits for others."""
TURNED_SECONDS = 0.1

log = structlog.get_logger(__name__)


class Source(WatchedSource, Protocol):
    """The near end, as capture needs it. The same contract tests run on every implementation."""

    def begin(self) -> None:
        """Forget every connection, and what was known through them."""

    def publish(self, positions: Sequence[StreamPosition], *, timeline: int, head: int) -> None:
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
    changes_repeated: int = 0
    """Left out: their idempotency key was logged with the same content."""
    id_conflicts: int = 0
    """Logged beside another content of the same idempotency key."""
    commits: int = 0
    behind: bool = False
    """Whether more entries were waiting when the last commit's were read."""
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
    ids: Window = field(factory=lambda: Window(seconds=0, ids=0))
    """The window of idempotency keys."""


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
    may_log: Callable[[], None] = field(default=lambda: None)
    """Raises where this process no longer owns the pipeline."""
    _chunks: queue.Queue[Chunk | BaseException | None] = field(init=False)
    _asked: queue.SimpleQueue[tuple[Callable[[], Mapping[int, str]], Future[Mapping[int, str]]]] = field(
        factory=queue.SimpleQueue, init=False
    )
    _dedup: Dedup = field(init=False)
    _positions: dict[str, StreamPosition] = field(factory=dict, init=False)
    _quit_reading: threading.Event = field(factory=threading.Event, init=False)
    _reader_ended: bool = field(default=False, init=False)
    _trouble: BaseException | None = field(default=None, init=False)
    """Why this run ends, once what was read is logged."""
    _appending: threading.Lock = field(factory=threading.Lock, init=False)
    _outdated: bool = field(default=False, init=False)
    _commit_seconds: float = field(default=0.0, init=False)
    """Whether what was read and is not logged yet was admitted by rules that are no longer in force."""

    def run(self) -> None:
        """Until stopped. Raises the first error of either thread; call again to go on from what the log holds."""
        while not self.stop.is_set():
            try:
                return self._run_once()
            except SourceTurned as error:
                log.warning("stream_turned", error=str(error))
                self.stop.wait(TURNED_SECONDS)

    def _run_once(self) -> None:
        """From what the log holds, on connections that nothing is known of yet."""
        self.source.begin()
        self._chunks = queue.Queue(QUEUE_CHUNKS_MAX)
        self._quit_reading.clear()
        self._reader_ended, self._trouble, self._outdated = False, None, False
        self.changelog.reread(self.session)
        self._positions = self.changelog.positions(self.session)
        self.progress.positions = dict(self._positions)
        self.progress.release(self.changelog.head)
        self._dedup = Dedup(session=self.changelog.database.session(), window=self.settings.ids)
        reader = threading.Thread(target=self._read_until_quit, name="capture-reader", daemon=True)
        reader.start()
        try:
            self._append_until_stopped()
        finally:
            self._quit_reading.set()
            while reader.is_alive():
                self._drain()
                reader.join(0.05)
            self._dedup.session.close()

    # ── the reading thread ──

    def _read_until_quit(self) -> None:
        positions = dict(self._positions)
        session = self.changelog.database.session()
        watch = StreamWatch(source=self.source, session=session, admit=self._admit)
        ended: BaseException | None = None
        try:
            while not self._quit_reading.is_set() and not self.stop.is_set():
                self.progress.heartbeat_at = time.monotonic()
                if self.paused() or not self.settings.streams():
                    self._quit_reading.wait(0.2)
                    continue
                self._read_once(positions, watch)
        except BaseException as error:  # handed to the appending thread, which raises it
            ended = error
        finally:
            self.source.disconnect()
            session.close()
            self._put(ended, self.stop)

    def _read_once(self, positions: dict[str, StreamPosition], watch: StreamWatch) -> None:
        for stream in self.settings.streams():
            if stream not in positions:
                first = positions[stream] = self.settings.first_position(stream)
                self._put(Chunk.turn(first, first, ()), self.stop)
        wanted = {stream: positions[stream] for stream in self.settings.streams()}
        with collector_paused():
            chunks = self._read_chunks(wanted, watch)
        for chunk in chunks:
            positions[chunk.end.stream] = chunk.end
            self._put(chunk, self.stop)

    def _read_chunks(self, positions: Mapping[str, StreamPosition], watch: StreamWatch) -> list[Chunk]:
        """One read, decoded and admitted. What Redis sent is freed on return: only the entry ids are kept."""
        look = watch.read(positions, block_seconds=BLOCK_SECONDS)
        chunks, read_at = list(look.turns), time.time_ns()
        starts = {**positions, **{turn.end.stream: turn.end for turn in look.turns}}
        for place, read in enumerate(look.reads):
            unique = self._dedup.unique(watch.unlogged(read, self._admit(read)))
            more = look.behind or place < len(look.reads) - 1
            chunk = Chunk.of(read, starts[read.stream], unique.admitted, more=more)
            told = {"read_at_ns": read_at, "traceparents": traceparents(read)}
            chunks.append(evolve(chunk, repeated=unique.dropped, conflicts=unique.conflicts, **told))
        return chunks

    def _admit(self, read: StreamRead) -> Admitted:
        return self._admit_by(self.admission, read, self.settings.routes().encodings)

    def _admit_by(self, admission: Admission, read: StreamRead, encodings: Mapping[str, str]) -> Admitted:
        routes = self.settings.routes()
        routed = evolve(read, table=routes.tables.get(read.stream), json_columns=routes.json_columns)
        return admission.admit(decode(routed, encodings))

    def _put(self, item: Chunk | BaseException | None, give_up: threading.Event) -> None:
        while True:
            try:
                return self._chunks.put(item, timeout=0.1)
            except queue.Full:
                if give_up.is_set() or self.stop.is_set():
                    return None

    def _drain(self) -> None:
        while not self._chunks.empty():
            self._chunks.get_nowait()

    # ── what others ask of the appending thread ──

    def readmit(self, ids: Sequence[int], *, as_new: bool, timeout_seconds: float) -> Mapping[int, str]:
        """Log rejected entries that fit by now; returns why the others stay as they are. From any thread."""
        asked: Future[Mapping[int, str]] = Future()
        self._asked.put((lambda: self._readmit(ids, as_new=as_new), asked))
        try:
            return asked.result(timeout_seconds)
        except TimeoutError:
            if not asked.cancel():
                return asked.result()
            raise SourceUnavailable(
                f"capture did not come to it in {timeout_seconds:g} s", hint="see `replicator status`: it has to run"
            ) from None

    def _readmit(self, ids: Sequence[int], *, as_new: bool) -> Mapping[int, str]:
        session = self.changelog.database.session()
        admission = evolve(self.admission, session=session)
        try:
            encodings = self.settings.routes().encodings  # arrow shows; its single rows were kept in json
            mine = {stream: encoding for stream, encoding in encodings.items() if encoding != "arrow"}
            entries = open_entries(session, ids)
            found = readmission(session, entries, lambda read: self._admit_by(admission, read, mine), as_new=as_new)
        finally:
            session.close()
        if found.append.readmitted:
            self._log_readmitted(found.append)
        return found.kept

    def _log_readmitted(self, append: Append) -> None:
        """Under their idempotency keys, like what is read: one that was sent again meanwhile is closed, not logged."""
        unique = self._dedup.unique(Admitted(changes=append.changes, rejections=append.rejections))
        append = evolve(append, changes=unique.admitted.changes, claims_ids=self.settings.ids.is_open)
        self.progress.changes_repeated += unique.dropped
        self.progress.id_conflicts += unique.conflicts
        self._count([], append, self._log(append))

    @contextmanager
    def between_appends(self) -> Iterator[None]:
        """Nothing is appended inside the block, and what was read before it is read again. From any thread."""
        with self._appending:
            yield
            self._outdated = True

    def _serve(self) -> None:
        """What was asked, unless nothing can be logged before this run has ended: the next one serves it then."""
        while not self._asked.empty():
            self._refuse_outdated()
            work, asked = self._asked.get_nowait()
            if asked.set_running_or_notify_cancel():
                try:
                    asked.set_result(work())
                except BaseException as error:
                    asked.set_exception(error)
                    raise

    # ── the appending thread ──

    def _append_until_stopped(self) -> None:
        waiting: list[Chunk] = []
        while not self.stop.is_set():
            self._serve()
            waiting = self._collect(waiting)
            if not waiting:
                if self._reader_ended:
                    return self._end()
                continue
            rows = sum(chunk.rows for chunk in waiting)
            whole = rows - rows % ROW_GROUP_ROWS
            now_chunks, waiting = gather(waiting, whole or rows)
            self._commit(now_chunks)
            if not any(chunk.more for chunk in waiting) and waiting:
                self._commit(waiting)
                waiting = []

    def _end(self) -> None:
        """All that was read is logged: say why this run ends."""
        if self._trouble is not None:
            raise self._trouble

    def _collect(self, waiting: list[Chunk]) -> list[Chunk]:
        """Chunks to commit: a row group (or as many bytes as are good) when behind, what there is when calm.

        After the first of a calm stream it waits as long as a commit takes, so that commits take half the time at most.
        """
        deadline, calm_until = time.monotonic() + GATHER_SECONDS_MAX, 0.0
        rows, size = sum(c.rows for c in waiting), sum(c.bytes for c in waiting)
        while not self.stop.is_set():
            enough = rows >= ROW_GROUP_ROWS or size >= COMMIT_BYTES_MAX
            clock = time.monotonic()
            if waiting and (enough or clock > deadline or not (waiting[-1].more or clock < calm_until)):
                return waiting
            if self._reader_ended:
                return waiting
            patience = BLOCK_SECONDS if not waiting else 0.1 if waiting[-1].more else calm_until - clock
            try:
                item = self._chunks.get(timeout=patience)
            except queue.Empty:
                if not waiting:
                    return waiting
                continue
            if isinstance(item, Chunk):
                calm_until = calm_until or time.monotonic() + min(self._commit_seconds, CALM_SECONDS_MAX)
                waiting = [*waiting, item]
                rows, size = rows + item.rows, size + item.bytes
            else:
                self._reader_ended, self._trouble = True, self._trouble or item
        return []

    def _commit(self, chunks: list[Chunk]) -> None:
        positions = {chunk.end.stream: chunk.end for chunk in chunks}
        append = Append(
            changes=pa.concat_tables([chunk.changes for chunk in chunks]).combine_chunks(),
            rejections=pa.concat_tables([chunk.rejections for chunk in chunks]),
            positions=tuple(witnessed(p, self.source.published) for p in positions.values()),
            gaps=tuple(gap for chunk in chunks for gap in chunk.gaps),
            claims_ids=self.settings.ids.is_open,
            origin=origin(chunks),
        )
        chunks[:] = [chunk.spent() for chunk in chunks]  # or each change would be held twice while DuckDB works
        began = time.monotonic()
        logged = self._log(append)
        self._commit_seconds = time.monotonic() - began
        self._count(chunks, append, logged)

    def _log(self, append: Append) -> OffsetRange | None:
        failpoint("append.before_commit")
        with self._appending:
            self._refuse_outdated()
            logged = self.changelog.append(self.session, append, may_log=self.may_log)
        failpoint("append.after_commit")
        self._publish(append.positions)
        return logged

    def _refuse_outdated(self) -> None:
        if self._outdated:
            raise SourceTurned("a table was declared anew: what was read under its old declaration is read again")

    def _publish(self, positions: Sequence[StreamPosition]) -> None:
        """Redis witnesses the head before deliver may ship it; when Redis is silent, deliver goes on without.

        After a failure nothing more is published in this run: a new one looks first at what Redis has become.
        """
        if self._trouble is None:
            try:
                self.may_log()
                self.source.publish(positions, timeline=self.changelog.timeline, head=self.changelog.head)
            except SourceUnavailable as error:
                log.warning("publish_failed", error=str(error))
                self._trouble = error
                self._quit_reading.set()
        failpoint("publish.after")
        self.progress.release(self.changelog.head)

    def _count(self, chunks: list[Chunk], append: Append, logged: OffsetRange | None) -> None:
        p = self.progress
        p.entries_read += sum(chunk.entries for chunk in chunks)
        p.changes_appended += append.changes.num_rows
        p.entries_rejected += append.rejections.num_rows
        p.changes_repeated += sum(chunk.repeated for chunk in chunks)
        p.id_conflicts += sum(chunk.conflicts for chunk in chunks)
        p.commits += 1
        p.behind = bool(chunks) and chunks[-1].more
        p.positions = {**p.positions, **{chunk.end.stream: chunk.end for chunk in chunks}}
        changes, rejected = append.changes.num_rows, append.rejections.num_rows
        if changes or rejected:
            log.info("changes_appended", offsets=str(logged or ""), changes=changes, rejected=rejected)
