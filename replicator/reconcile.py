"""Both ends' witnesses: before anything is appended or sent, and again and again, they are asked whether a side went back.

Guarantees: nothing is appended while a witness stands beyond the log; nothing is sent before the sink was compared;
where only ClickHouse could tell and it is silent, capture waits. What is then done is `log_return`'s and
`sink_return`'s. Never decides by counting alone that something may be removed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import structlog
from attrs import define, field

from replicator.changelog import ChangeLog
from replicator.database import Database, Session
from replicator.divergence import Keeper, keep_beginnings, refuse_diverged
from replicator.errors import (
    LogCorrupt,
    OwnershipLost,
    ReplicatorError,
    SinkMisshapen,
    SinkRefused,
    SinkTurned,
    SinkUnavailable,
    SourceUnavailable,
)
from replicator.log_return import LogReturn, Witnesses
from replicator.model import EntryId
from replicator.sink_return import SinkReturn
from replicator.standing import LaneStanding, SinkStanding
from replicator.witness import StreamDescription

POLL_SECONDS = 5.0
COMPARE_SECONDS = 60.0
CLOCK_SLACK_SECONDS = 5.0
POLL_LOG_SECONDS = 0.1

log = structlog.get_logger(__name__)


class RedisWitness(Keeper, Protocol):
    """What Redis saw of this log."""

    published: dict[str, tuple[int, EntryId]]

    def published_head(self) -> tuple[int, int] | None: ...
    def describe(self, stream: str) -> StreamDescription: ...


@define(kw_only=True)
class Reconciler:
    """``check_log`` belongs to the capturing thread, ``check_sink`` to the delivering one, ``watch`` to its own.

    ``interrupt`` ends a run of deliver with an error; ``redis_silent`` says that capture waits for Redis.
    """

    database: Database
    changelog: ChangeLog
    source: RedisWitness
    streams: Callable[[], tuple[str, ...]]
    standing: SinkStanding
    sink_return: Callable[[Session], SinkReturn]
    known_version: Callable[[str, int], int]
    interrupt: Callable[[ReplicatorError], None]
    redis_silent: Callable[[], bool]
    stop: threading.Event
    poll_seconds: float = POLL_SECONDS
    compare_seconds: float = COMPARE_SECONDS
    sending: threading.Lock = field(factory=threading.Lock)
    """Held while anything may be sent."""
    turnstile: threading.Lock = field(factory=threading.Lock)
    """Whoever wants ``sending`` passes it: deliver, which lets go only to take it again, would be first each time."""
    _log_checked: threading.Event = field(factory=threading.Event)
    _sink_asked: bool = False
    _interrupted: bool = False
    """Whether deliver is on its way to `check_sink`: to interrupt it again would only begin that anew."""
    _sink_started_at: float | None = None

    # ── who may send ──

    @contextmanager
    def may_send(self) -> Iterator[None]:
        """Deliver's turn, once nobody waits for its end."""
        with self.turnstile:
            self.sending.acquire()
        try:
            yield
        finally:
            self.sending.release()

    @contextmanager
    def nothing_sent(self, why: str) -> Iterator[None]:
        """Delivery is held up inside the block; what was on its way has ended. After it, it looks at the sink anew."""
        with self.turnstile:
            self.interrupt(SinkTurned(why))
            with self.sending:
                yield

    # ── the log ──

    def check_log(self) -> None:
        """Before the first append: bring the log up to what its witnesses have seen of it.

        Raises OwnershipLost where an empty file stands before a ledger, SinkUnavailable while the sink must be asked.
        """
        with self.changelog.pins.hold("the comparison of both ends"):
            self._check_log()

    def _check_log(self) -> None:
        session = self.database.session()
        try:
            # what an earlier try stored is there, even where its commit was said to fail
            self.changelog.reread(session)
            positions = self.changelog.positions(session)
            witnesses = self._witnesses()
            if self.changelog.head == 0 and not positions and any(s.top for s in witnesses.lanes.values()):
                raise OwnershipLost(
                    f"this DuckDB file is empty, and ClickHouse holds offsets of pipeline {self.standing.pipeline!r}",
                    hint="name its own file in [database] path, or rebuild it with `replicator restore`",
                )
            failed_table = self.sink_return(session).ledger.failed_table
            refuse_diverged(session, self.source, timeline=self.changelog.timeline, failed_table=failed_table)
            if witnesses.stand_beyond(self.changelog.timeline, self.changelog.head, positions):
                self._heal(session, witnesses)
            keep_beginnings(session, self.source)
            self._log_checked.set()
        finally:
            session.close()

    def _witnesses(self) -> Witnesses:
        published = self.source.published_head()
        streams = {stream: self.source.describe(stream) for stream in self.streams()}
        redis = Witnesses(published=published, streams=streams)
        lanes: Mapping[str, LaneStanding] = {}
        try:
            self.standing.await_stillness(self.stop)
            lanes, self._sink_asked = self.standing.lanes(), True
        except SinkMisshapen:  # no database: nothing of ours is in it
            self._sink_asked = True
        except (SinkUnavailable, SinkRefused) as error:
            self._may_go_on_without(redis, error)
        return Witnesses(published=published, streams=streams, lanes=lanes)

    def _may_go_on_without(self, redis: Witnesses, error: ReplicatorError) -> None:
        """Redis witnesses at least what the sink may have: where it vouches for this log, or the log is new, that will do."""
        session = self.database.session()
        positions = self.changelog.positions(session)
        session.close()
        log_is_new = self.changelog.head == 0 and redis.published is None
        vouched = redis.published is not None and not redis.stand_beyond(
            self.changelog.timeline, self.changelog.head, positions
        )
        if not (log_is_new or vouched):
            raise SinkUnavailable(
                f"Redis does not vouch for this log, and ClickHouse does not answer: capture waits for it ({error})"
            ) from error

    def _heal(self, session: Session, witnesses: Witnesses) -> None:
        self._log_checked.clear()
        with self.nothing_sent("the log went back: nothing is sent until it is whole"):
            healing = LogReturn(
                session=session,
                changelog=self.changelog,
                sink=self.standing,
                witnesses=witnesses,
                known_version=self.known_version,
                failed_table=self.sink_return(session).ledger.failed_table,
            )
            self.source.published.clear()
            healing.heal()

    # ── the sink ──

    def await_log(self) -> None:
        """Until the log is known to be whole, or Redis is silent and cannot say."""
        while not (self.stop.is_set() or self._log_checked.wait(POLL_LOG_SECONDS) or self.redis_silent()):
            pass

    def check_sink(self) -> None:
        """Before the first send, with ``sending`` held: what the sink does not hold any more is undelivered.

        Raises LogCorrupt where it holds offsets that this log has given to other changes.
        """
        with self.changelog.pins.hold("the comparison of both ends"):
            self._check_sink()
        self._interrupted = False

    def _check_sink(self) -> None:
        session = self.database.session()
        try:
            self.standing.await_stillness(self.stop)
            self._refuse_beyond()
            server = self._started_at()
            restarted, timeline = self._restarted(session, server), self.changelog.timeline
            self.sink_return(session).take_back(restarted=restarted, timeline=timeline)
            self._remember(session, server)
        finally:
            session.close()

    def _refuse_beyond(self) -> None:
        if self._sink_asked:
            return
        top = max((s.top for s in self.standing.lanes().values()), default=0)
        if top <= self.changelog.head:
            self._sink_asked = True
        elif self._log_checked.is_set():
            raise LogCorrupt(
                f"ClickHouse holds offsets up to {top}, and this log, which has gone on, only up to {self.changelog.head}",
                hint="the file is an old copy whose loss Redis did not witness: `replicator restore`",
            )
        else:
            raise SourceUnavailable(f"ClickHouse holds offsets up to {top}, beyond the log: Redis must be asked first")

    # ── on a schedule ──

    def watch(self) -> None:
        """Until stopped: notice a restarted ClickHouse, and a sink that holds less than it was given."""
        session, compared_at, silent = self.database.session(), time.monotonic(), False
        while not self.stop.wait(self.poll_seconds):
            try:
                restarted = self._sink_started_at is not None and self._differs(self._started_at())
                if not (restarted or silent or time.monotonic() - compared_at >= self.compare_seconds):
                    continue
                compared_at, silent = time.monotonic(), False
                why = "ClickHouse was restarted" if restarted else self._trouble(session)
                if why and not self._interrupted:
                    self._interrupted = True
                    self.interrupt(SinkTurned(why))
            except (SinkUnavailable, SinkRefused, SinkMisshapen):
                silent = True

    def _trouble(self, session: Session) -> str:
        """What of ours the sink does not hold any more; empty when all is there."""
        prepared = self._sink_started_at is not None
        if prepared and (gone := self.standing.missing()):
            return f"tables are gone from ClickHouse: {gone}"
        short = self.sink_return(session).suspects()
        return f"ClickHouse holds less than it was given: {short}" if short else ""

    def _started_at(self) -> float:
        return float(self.standing.sink.scalar("select toUnixTimestamp(now()) - uptime()"))

    def _differs(self, started_at: float) -> bool:
        return self._sink_started_at is None or abs(started_at - self._sink_started_at) > CLOCK_SLACK_SECONDS

    def _restarted(self, session: Session, started_at: float) -> bool:
        row = session.row("select value::double from meta where key = 'sink_started_at'")
        self._sink_started_at = row[0] if row else None
        return self._differs(started_at)

    def _remember(self, session: Session, started_at: float) -> None:
        self._sink_started_at = started_at
        with session.transaction():
            session.execute("delete from meta where key = 'sink_started_at'")
            session.execute("insert into meta values ('sink_started_at', ?)", [str(started_at)])
