"""What must hold beside equal rows: gapless offsets, promise 3, and a ledger in the sink that says what ours says.

Guarantees: each broken invariant is named with what it is about; ledgers are compared in groups, so that their length
costs no memory. Only reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import define

from replicator.compare import Side
from replicator.database import Session, statement
from replicator.sink import ClickHouseSink
from replicator.verify_report import Batch, Invariant, Problem

GROUP_OFFSETS = 1_000_000
PROBLEMS_MAX = 1_000
"""Of one kind, in one run."""
HOLES_MAX = 20


@define
class LedgerComparison:
    """The records of all tables. ``checkpoints``: how far each table's delivery is compared."""

    session: Session
    sink: ClickHouseSink
    pipeline: str
    failed_table: str
    checkpoints: Mapping[str, int]

    def run(self) -> list[Problem]:
        return [*self._offsets(), *self._uncovered(), *self._checkpoints(), *self._ledger()]

    # ── in the log's file ──

    def _offsets(self) -> Iterator[Problem]:
        count, first, last, whole = self.session.row(statement("verify/log_shape")) or (0, 1, 0, True)
        if whole:
            return
        found = self.session.rows(statement("verify/holes"), {"limit": HOLES_MAX})
        named = "; ".join(f"{what}: {a}..{b}" if a != b else f"{what}: {a}" for what, a, b in found)
        yield Problem(
            invariant=Invariant.OFFSETS,
            detail=f"{count} changes in {first}..{last}; {named}",
            side=Side.LOG,
            hint="what was delivered is fetched back by `replicator verify --repair`",
        )

    def _uncovered(self) -> Iterator[Problem]:
        for table, first, last in self.session.rows(statement("verify/uncovered")):
            yield Problem(
                invariant=Invariant.COVERED,
                detail=f"no delivered batch of {table} covers {first}..{last}",
                side=Side.LOG,
                table=table,
                batch=Batch(table=table, first=first, last=last),
                hint="`replicator replay` sends a range again",
            )

    def _checkpoints(self) -> Iterator[Problem]:
        for table, checkpoint, batched, passed in self.session.rows(statement("verify/passed")):
            yield Problem(
                invariant=Invariant.CHECKPOINT,
                detail=f"{table} stands at {checkpoint}, but {passed} of its changes above {batched} were never sent",
                side=Side.LOG,
                table=table,
            )

    # ── in the sink ──

    def _ledger(self) -> Iterator[Problem]:
        if not self.sink.columns("replicator_batches"):
            hint = "a restart of the service makes it, `replicator verify --repair` fills it"
            yield Problem(invariant=Invariant.EXISTS, detail="replicator_batches is missing", side=Side.SINK, hint=hint)
            return
        oldest = dict(self.session.rows("select table_name, min(first_offset) from sync_batches group by table_name"))
        found: list[Problem] = []
        for table, checkpoint in self.checkpoints.items():
            where = {"table": table, "low": oldest.get(table, 1), "last": checkpoint, "size": GROUP_OFFSETS}
            ours = _groups(self.session.rows(statement("verify/ledger_sums"), where))
            theirs = _groups(self.sink.rows(_SINK_SUMS, {**where, "pipeline": self.pipeline}))
            for group in sorted(g for g in ours.keys() | theirs.keys() if ours.get(g) != theirs.get(g)):
                found += self._group(table, group, where)
                if len(found) >= PROBLEMS_MAX:
                    yield from found[:PROBLEMS_MAX]
                    return
        yield from found

    def _group(self, table: str, group: int, where: Mapping[str, Any]) -> Iterator[Problem]:
        bounds = {name: value for name, value in where.items() if name != "size"}
        bounds |= {"first": group * GROUP_OFFSETS, "until": (group + 1) * GROUP_OFFSETS - 1}
        ours = {(a, b): (rows, text) for a, b, rows, text in self.session.rows(statement("verify/ledger_rows"), bounds)}
        theirs = {
            (a, b): (int(rows), text)
            for a, b, rows, text in self.sink.rows(_SINK_ROWS, {**bounds, "pipeline": self.pipeline})
        }
        parked = self._parked(table)
        for (first, last), ours_row in ours.items():
            found = theirs.get((first, last))
            if found == ours_row or (first, last) in parked:
                continue
            if found is not None and found[0] == ours_row[0] == 0:  # one says of what it parked what that had been
                continue
            batch = Batch(table=table, first=first, last=last)
            if found is None:
                detail = f"{table} {first}..{last} is not in it"
                yield Problem(invariant=Invariant.LEDGER_WHOLE, detail=detail, side=Side.SINK, table=table, batch=batch)
            else:
                detail = f"{table} {first}..{last}: it says {_said(found)}, ours {_said(ours_row)}"
                yield Problem(invariant=Invariant.LEDGER_TRUE, detail=detail, side=Side.SINK, table=table, batch=batch)
        for first, last in theirs.keys() - ours.keys():
            detail = f"{table} {first}..{last} is in it, and is no batch of ours"
            batch = Batch(table=table, first=first, last=last)
            yield Problem(invariant=Invariant.LEDGER_TRUE, detail=detail, side=Side.SINK, table=table, batch=batch)

    def _parked(self, table: str) -> set[tuple[int, int]]:
        """Of these the ledger says that nothing was delivered, or nothing at all."""
        sql = f"select first_offset, last_offset from {self.failed_table} where table_name = ? and status <> 'resolved'"
        return set(self.session.rows(sql, [table]))


def beyond(
    session: Session, sink: ClickHouseSink, pipeline: str, table: str, target: str, offset: str
) -> list[Problem]:
    """Rows of the sink above everything that was ever frozen for the table, or below the first offset."""
    last = _frozen(session, table)
    sql = (
        f"select distinct {offset} as _place from {target} where _pipeline = {{pipeline:String}} "
        f"and (_place > {{last:Int64}} or _place < 1) order by _place limit {PROBLEMS_MAX}"
    )
    found = [at for (at,) in sink.rows(sql, {"pipeline": pipeline, "last": last})]
    if not found:
        return []
    latest = _frozen(session, table)  # what was frozen meanwhile may be there
    places = [at for at in found if at > latest or at < 1]
    if not places:
        return []
    return [
        Problem(
            invariant=Invariant.BEYOND,
            detail=f"{len(places)} offsets of {table} from {places[0]} to {places[-1]}, where nothing above {latest} was sent",
            side=Side.UNKNOWN,
            table=table,
            hint="the log may have gone back: restart the service, which looks into it; else remove them by hand",
        )
    ]  # fmt: skip


def _frozen(session: Session, table: str) -> int:
    row = session.row("select coalesce(max(last_offset), 0) from sync_batches where table_name = ?", [table])
    return int(row[0]) if row else 0


def _said(row: tuple[int, str]) -> str:
    return f"{row[0]} rows, {row[1]}"


def _groups(rows: Sequence[Sequence[Any]]) -> dict[int, tuple[int, int]]:
    return {int(group): (int(count), int(total)) for group, count, total in rows}


_IN_SINK = (
    "from replicator_batches final where pipeline = {pipeline:String} and table_name = {table:String} "
    "and first_offset >= {low:Int64} and last_offset <= {last:Int64}"
)
_SINK_SUMS = (
    "select intDiv(last_offset, {size:Int64}) as part, count(), "
    "sum(reinterpretAsUInt64(substring(MD5(concat(toString(first_offset), '-', toString(last_offset), '/', "
    f"toString(row_count), '/', checksum)), 1, 8)) % 4294967296) {_IN_SINK} group by part"
)
_SINK_ROWS = (
    f"select first_offset, last_offset, row_count, checksum {_IN_SINK} "
    "and last_offset between {first:Int64} and {until:Int64} order by first_offset"
)
