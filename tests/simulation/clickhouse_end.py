"""ClickHouse in the simulation, and the client's end of it: rows, tokens, views, the ledger, inserts that outlive their client.

An insert is a thread of the server's, with a place to stop between each of its durable steps; a killed server loses
what was under way there. What SQL the product asks in is recognised by its text: an unknown statement is an error that
names it, to be taught here.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC
from enum import StrEnum
from pathlib import Path
from typing import Any

import pyarrow as pa
from attrs import define, field
from simulation.clickhouse_tables import Row, Table
from simulation.kernel import Kernel

from replicator.database import statement
from replicator.errors import OutcomeUnknown, ReplicatorError, SinkMisshapen, SinkRejected, SinkUnavailable
from replicator.lanes import Lane
from replicator.log_columns import GENERIC, LEADING, TRAILING
from replicator.model import Checksum, OffsetRange
from replicator.sink import LEDGER, SCHEMAS, LedgerRow, Send, ServerFacts, range_comment

SOURCES = {column.name: column.source for column in (*LEADING, *TRAILING)}
LOG_NAMES = tuple(column.name for column in GENERIC)


class SinkFault(StrEnum):
    """What a request meets."""

    REFUSED = "refused"
    BUSY = "busy"
    """An error code says: not now."""
    NEVER_SENT = "reset before it arrived"
    DURING = "reset while it runs"
    AFTER = "answer lost"


class QueryKilledError(Exception):
    """The server died under a query."""


@define(eq=False)
class Query:
    comment: str
    life: int
    answer: ReplicatorError | None = None
    done: bool = False


@define(eq=False)
class SimClickHouse:
    """The server and the sink in one. ``faulty`` is asked before each request of the product."""

    kernel: Kernel
    columns_expected: Callable[[], Mapping[str, Mapping[str, str]]]
    faulty: Callable[[str], SinkFault | None] = lambda about: None
    delay: Callable[[], float] = lambda: 0.0
    window: int = 10_000
    view_throws: bool = False
    refuses: Callable[[Mapping[str, Any]], bool] = lambda change: False
    may_send: Callable[[], None] = lambda: None
    tables: dict[str, Table] = field(factory=dict)
    objects: set[str] = field(factory=set)
    loses: Callable[[str, Sequence[int]], None] = lambda _, __: None
    """Told of the offsets of rows that went into a table that was dropped meanwhile."""
    """Tables and views that exist."""
    ledger: dict[tuple[str, str, int, int], LedgerRow] = field(factory=dict)
    queries: list[Query] = field(factory=list)
    up: bool = True
    life: int = 0
    changed: int = 0
    started_at: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.started_at = self.kernel.clock - 7200

    # ── what is done to the server ──

    def kill(self) -> None:
        self.up, self.life = False, self.life + 1
        self.queries.clear()

    def start(self) -> None:
        if not self.up:
            self.up, self.started_at = True, self.kernel.clock

    def copy(self) -> dict[str, Any]:
        tables = {name: table.copy() for name, table in self.tables.items()}
        return {"tables": tables, "objects": set(self.objects), "ledger": dict(self.ledger)}

    def put_back(self, copy: dict[str, Any]) -> None:
        self.tables = {name: table.copy() for name, table in copy["tables"].items()}
        self.objects, self.ledger = set(copy["objects"]), dict(copy["ledger"])
        self.changed += 1

    def drop(self, name: str) -> None:
        """Drop a table as an operator does: with the view that reads from it."""
        self.changed += 1
        self.objects -= {name, *(o for o in self.objects if o.startswith(name.removesuffix("_log")) and "feed" in o)}
        if name == LEDGER:
            self.ledger.clear()
        else:
            old = self.tables.get(name, Table())
            self.tables[name] = Table(state=old.state, state_tokens=old.state_tokens)

    def truncate(self, name: str) -> None:
        self.changed += 1
        self.tables[name].rows.clear()
        self.tables[name].tokens.clear()

    # ── requests ──

    def _ask(self, about: str) -> SinkFault | None:
        """A request that changes nothing: it comes to its answer, or to none."""
        life = self.life
        self.kernel.step(f"clickhouse {about}")
        fault = self.faulty(about) if self._from_product() else None
        if fault is not None:
            self.kernel.note(f"clickhouse {fault} at {about}")
        if not self.up or life != self.life or fault not in (None, SinkFault.BUSY):
            raise SinkUnavailable("ClickHouse does not answer")
        if fault is SinkFault.BUSY:
            raise SinkUnavailable("Code: 202. Too many simultaneous queries", code=202)
        return None

    def _from_product(self) -> bool:
        return self.kernel.current is not None and self.kernel.current.process is not None

    def _submit(self, comment: str, work: Callable[[Query], None]) -> None:
        """An insert. Whether its client is still there when it ends is another question."""
        self.may_send()
        self.kernel.step("clickhouse insert")
        fault, life = self.faulty("insert"), self.life
        if fault is not None:
            self.kernel.note(f"clickhouse {fault} at insert {comment}")
        if not self.up or fault is SinkFault.REFUSED:
            raise SinkUnavailable("connection refused")
        if fault is SinkFault.BUSY:
            raise SinkUnavailable("Code: 241. Memory limit exceeded", code=241)
        if fault is SinkFault.NEVER_SENT:
            raise OutcomeUnknown("connection reset")
        query = Query(comment=comment, life=self.life)
        self.queries.append(query)
        self.kernel.spawn(f"query {comment}", lambda: self._run(query, work), None)
        if fault is SinkFault.DURING:
            self.kernel.wait(lambda: False, self.delay() / 2)
            raise OutcomeUnknown("connection reset")
        self.kernel.wait(lambda: query.done or life != self.life, None)
        if fault is SinkFault.AFTER or not query.done:
            raise OutcomeUnknown("connection reset")
        self.kernel.step("clickhouse answered")
        if query.answer is not None:
            raise query.answer

    def _run(self, query: Query, work: Callable[[Query], None]) -> None:
        try:
            work(query)
        except ReplicatorError as error:
            query.answer = error
        except QueryKilledError:
            return
        query.done = True
        if query in self.queries:
            self.queries.remove(query)

    def _passes(self, query: Query) -> None:
        self.kernel.wait(None, self.delay())
        if query.life != self.life:
            raise QueryKilledError
        self.changed += 1

    # ── inserts ──

    def insert(self, send: Send, batch: pa.Table) -> str:
        names = [SOURCES.get(name, name) for name in batch.column_names]
        changes = batch.rename_columns(names).to_pylist()
        rows = [
            Row(offset=c["log_offset"], send=c["_send"], hash=c["_hash"], change={"table_name": send.target[:-4], **c})
            for c in changes
        ]
        self._submit(send.comment, lambda query: self._insert(query, send, rows))
        return f"query-{self.kernel.turns}"

    def _insert(self, query: Query, send: Send, rows: Sequence[Row]) -> None:
        self._passes(query)
        if send.target not in self.objects:
            raise SinkMisshapen(f"table {send.target} does not exist", code=60)
        if any(self.refuses(row.change) for row in rows):
            raise SinkRejected("constraint violated", code=469)
        table = self.tables.setdefault(send.target, Table())
        new = self._remember(table.tokens, send.token)
        self._passes(query)  # killed here, the token is on disk and the rows are not
        if send.target not in self.objects:
            self.loses(send.target, [row.offset for row in rows])
        table = self.tables.setdefault(send.target, Table())
        for row in rows if new else ():
            table.rows.setdefault(row.offset, []).append(row)
        if not send.target.endswith("_log"):
            return
        self._passes(query)  # the view lags
        if self.view_throws:
            raise SinkUnavailable("Code: 395. while pushing to view", code=395)
        table = self.tables.setdefault(send.target, Table())
        new = self._remember(table.state_tokens, send.token)
        self._passes(query)
        table = self.tables.setdefault(send.target, Table())
        for row in rows if new else ():
            key = row.change["key"]
            if key not in table.state or table.state[key]["version"] <= row.change["version"]:
                table.state[key] = row.change

    def _remember(self, tokens: deque[str], token: str) -> bool:
        known = token in tokens
        if not known:
            tokens.append(token)
            while len(tokens) > self.window:
                tokens.popleft()
        return not known

    def record(self, rows: Sequence[LedgerRow]) -> None:
        self._submit("main/ledger", lambda query: self._record(query, rows))

    def _record(self, query: Query, rows: Sequence[LedgerRow]) -> None:
        self._passes(query)
        if LEDGER not in self.objects:
            raise SinkMisshapen(f"table {LEDGER} does not exist", code=60)
        for row in rows:
            key = (row.pipeline, row.table_name, row.first_offset, row.last_offset)
            if key not in self.ledger or self.ledger[key].delivered_at <= row.delivered_at:
                self.ledger[key] = row
        self._passes(query)

    # ── questions ──

    def running(self, pipeline: str, target: str, offsets: OffsetRange) -> int:
        self._ask("running")
        prefix = range_comment(pipeline, target, offsets)
        return sum(query.comment.startswith(prefix) for query in self.queries)

    def held(self, lane: Lane, pipeline: str, offsets: OffsetRange) -> Checksum:
        self._ask("held")
        rows = self._there(lane.target).final(offsets)
        xor = 0
        for row in rows:
            xor ^= row.hash
        return Checksum(rows=len(rows), sum=sum(row.hash for row in rows) % (1 << 64), xor=xor)

    def keys_behind(self, lane: Lane, pipeline: str, offsets: OffsetRange) -> int:
        self._ask("keys behind")
        if not lane.state_check:
            return 0
        table, last = self._there(lane.target), {}
        for rows in table.rows.values():
            for row in rows:
                if offsets.first <= row.offset <= offsets.last:
                    key = row.change["key"]
                    last[key] = max(last.get(key, 0), row.change["version"])
        return sum(key not in table.state or table.state[key]["version"] < v for key, v in last.items())

    def rows_of_send(self, lane: Lane, pipeline: str, offsets: OffsetRange, send: int) -> int:
        self._ask("rows of send")
        held = self._there(lane.target).rows
        return sum(row.send == send for o, rows in held.items() if offsets.first <= o <= offsets.last for row in rows)

    def server(self) -> ServerFacts:
        self._ask("uptime")
        return ServerFacts(version="simulated", uptime_seconds=int(self.kernel.clock - self.started_at))

    def _there(self, target: str) -> Table:
        if target not in self.objects:
            raise SinkMisshapen(f"table {target} does not exist", code=60)
        return self.tables.setdefault(target, Table())

    def columns_of(self, tables: Sequence[str]) -> dict[str, dict[str, str]]:
        self._ask("columns")
        expected = self.columns_expected()
        return {name: dict(expected[name]) for name in tables if name in self.objects}

    def migrate(self, directory: Path) -> list[str]:
        self._ask("migrate")
        self.objects |= {"change_log", LEDGER, SCHEMAS}
        return []

    def record_schemas(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._ask("record schemas")

    # ── by the text of a statement ──

    def scalar(self, sql: str, parameters: dict[str, Any] | None = None) -> Any:
        return self.rows(sql, parameters)[0][0]

    def rows(self, sql: str, parameters: dict[str, Any] | None = None) -> Sequence[Sequence[Any]]:
        p = parameters or {}
        self._ask(" ".join(sql.split())[:40])
        if sql.startswith("select name, engine_full"):
            return []  # tables without a TTL
        if "from system.processes" in sql:
            return [(sum(query.comment.startswith(p["prefix"]) for query in self.queries),)]
        if "uptime()" in sql:
            return [(int(self.kernel.wall) - int(self.kernel.clock - self.started_at),)]
        if sql == statement("standing/ledger_ends"):
            return self._ledger_ends(p["pipeline"])
        if sql.startswith("select first_offset, last_offset, row_count, checksum"):
            return self._recorded(p["pipeline"], p["lane"], p["after"])
        target = re.search(r"from `?(\w+)`?\s", sql)
        if sql.startswith("select min(") and target:
            return [self._ends(self._there(target[1]), p["agreed"])]
        found = re.search(r"place from `?(\w+)`?\s", sql)
        assert sql.startswith("-- ClickHouse: how many rows of each of these ranges") and found, f"unknown: {sql}"
        held = self._there(found[1]).rows
        counts = [
            (a, sum(len(r) for o, r in held.items() if a <= o <= b))
            for a, b in zip(p["firsts"], p["lasts"], strict=True)
        ]
        return [(first, count) for first, count in counts if count]

    def _ends(self, table: Table, agreed: int) -> tuple[int, int, int, int, int]:
        rows = [row for rows in table.rows.values() for row in rows]
        newest, send = (max(n, default=0) for n in ([r.change["version"] for r in rows], [r.send for r in rows]))
        offsets = [row.offset for row in rows] or [0]
        return min(offsets), max(offsets), sum(offset <= agreed for offset in offsets if offset), newest, send

    def _ledger_rows(self, pipeline: str) -> dict[str, list[LedgerRow]]:
        if LEDGER not in self.objects:
            raise SinkMisshapen(f"table {LEDGER} does not exist", code=60)
        lanes: dict[str, list[LedgerRow]] = {}
        for key in sorted(self.ledger):
            if key[0] == pipeline:
                lanes.setdefault(key[1], []).append(self.ledger[key])
        return lanes

    def _ledger_ends(self, pipeline: str) -> list[tuple[Any, ...]]:
        answer = []
        for lane, rows in self._ledger_rows(pipeline).items():
            agreed = 0
            for row in rows:
                if row.first_offset > agreed + 1:
                    break
                agreed = max(agreed, row.last_offset)
            recorded = sum(row.row_count for row in rows if row.last_offset <= agreed)
            top, newest = max(r.last_offset for r in rows), max(r.timeline for r in rows)
            answer.append((lane, agreed, top, newest, recorded))
        return answer

    def _recorded(self, pipeline: str, lane: str, after: int) -> list[tuple[Any, ...]]:
        rows = self._ledger_rows(pipeline).get(lane, [])
        return [
            (
                r.first_offset,
                r.last_offset,
                r.row_count,
                r.checksum,
                r.status,
                r.send_seq,
                r.delivered_at.replace(tzinfo=UTC),
            )
            for r in rows
            if r.last_offset > after
        ]

    def arrow(self, sql: str, parameters: dict[str, Any] | None = None) -> pa.Table:
        self._ask("held changes")
        found = re.search(r"from `(\w+)` final where .* between (\d+) and (\d+)$", sql)
        assert found, f"unknown: {sql}"
        rows = self._there(found[1]).final(OffsetRange(first=int(found[2]), last=int(found[3])))
        arrays = [pa.array([row.change[c.name] for row in rows], c.arrow) for c in GENERIC]
        return pa.table(arrays, names=list(LOG_NAMES))

    def command(
        self, sql: str, settings: dict[str, Any] | None = None, parameters: dict[str, Any] | None = None
    ) -> None:
        self._ask(" ".join(sql.split())[:40])
        self.changed += 1
        made = re.search(r"create (?:or replace )?(?:materialized view|table|view) (?:if not exists )?`?(\w+)`?", sql)
        if made:
            self.objects.add(made[1])
        elif sql.startswith(f"delete from {LEDGER} "):
            self._delete(sql)
        else:
            assert sql.startswith("alter table"), f"unknown: {sql}"
        self.kernel.step("clickhouse done")

    def _delete(self, sql: str) -> None:
        lane = re.search(r"table_name = '(\w+)'", sql)
        behind, listed = re.search(r"last_offset > (\d+)", sql), re.search(r" in \((.*)\)$", sql)
        assert lane and (behind or listed), f"unknown: {sql}"
        ranges = {(int(a), int(b)) for a, b in re.findall(r"\((\d+), (\d+)\)", listed[1])} if listed else set()
        for key in list(self.ledger):
            gone = key[3] > int(behind[1]) if behind else key[2:] in ranges
            if key[1] == lane[1] and gone:
                del self.ledger[key]

    def close(self) -> None: ...
