"""What is read a second time, after a stream went back: skip what the log holds already.

Guarantees: an entry is skipped only when the log, or the rejected entries, hold the same stream, id, row and content;
anything else is new and is logged. Costs nothing while no stream is read again.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from attrs import define

from replicator.admit import Admitted, numbered
from replicator.database import Session, quote, statement
from replicator.model import NO_ENTRY, EntryId, entry_order


@define
class Logged:
    """The log's part behind an entry id of one stream, copied once into a temporary table of ``session``."""

    session: Session
    stream: str
    through: EntryId
    """The highest id in it; behind that nothing needs to be compared."""

    @classmethod
    def behind(cls, session: Session, stream: str, after: EntryId) -> Logged:
        """All that the log holds of ``stream`` with ids above ``after``, of whatever epoch."""
        sql = statement("reread/logged").replace("$table", _table(stream))
        session.execute(sql, {"stream": stream, "after": _place(after)})
        last = session.row(f"select entry_id from {_table(stream)} order by place desc limit 1")
        return cls(session=session, stream=stream, through=EntryId(last[0]) if last else NO_ENTRY)

    def skip(self, admitted: Admitted) -> Admitted:
        """The same less what is logged."""
        return Admitted(
            changes=self._new("changes_again", admitted.changes),
            rejections=self._new("rejections_again", admitted.rejections),
        )

    def _new(self, name: str, rows: pa.Table) -> pa.Table:
        if rows.num_rows == 0:
            return rows
        first, last = (_place(rows["entry_id"][i].as_py()) for i in (0, rows.num_rows - 1))
        sql = statement(f"reread/{name}").replace("$table", _table(self.stream))
        with self.session.relation(**{name: numbered(rows)}):
            known = [row for (row,) in self.session.rows(sql, {"first": first, "last": last})]
        if not known:
            return rows
        mask = np.ones(rows.num_rows, dtype=bool)
        mask[known] = False
        return rows.filter(pa.array(mask))

    def superseded(self, changes: pa.Table) -> list[int]:
        """Places of changes that are older than a fetched change of their key: logged now, they would win over it."""
        if changes.num_rows == 0:
            return []
        sql = statement("reread/superseded").replace("$table", _table(self.stream))
        with self.session.relation(changes_again=numbered(changes)):
            return [row for (row,) in self.session.rows(sql)]

    def rows_between(self, first: EntryId, last: EntryId, stream_epoch: int) -> int:
        """How many changes and rejections of one epoch it holds from ``first`` to ``last``."""
        row = self.session.row(
            f"select count(*) from {_table(self.stream)} "
            "where stream_epoch = ? and place >= ?::uhugeint and place <= ?::uhugeint",
            [stream_epoch, _place(first), _place(last)],
        )
        return row[0] if row else 0

    def close(self) -> None:
        self.session.execute(f"drop table if exists {_table(self.stream)}")


def rows_of(admitted: Admitted) -> int:
    return admitted.changes.num_rows + admitted.rejections.num_rows


def through(admitted: Admitted, last: EntryId) -> Admitted:
    """What of a read has ids up to ``last``."""

    def cut(rows: pa.Table) -> pa.Table:
        ids = rows["entry_id"].to_pylist()
        return rows.filter(pa.array([entry_order(i) <= entry_order(last) for i in ids], pa.bool_()))

    return Admitted(changes=cut(admitted.changes), rejections=cut(admitted.rejections))


def oldest_logged(session: Session, stream: str) -> EntryId | None:
    """The stream's oldest entry in a log that retention has pruned; None when nothing was pruned."""
    row = session.row(
        "select (select min(log_offset) from change_log), "
        "(select entry_id from change_log where stream = ? order by log_offset limit 1)",
        [stream],
    )
    pruned = row is not None and row[0] is not None and row[0] > 1
    return (EntryId(row[1]) if row[1] else NO_ENTRY) if row and pruned else None


def _table(stream: str) -> str:
    return quote(f"logged:{stream}")


def _place(entry_id: str) -> str:
    """The id as one number that sorts as Redis sorts it, in a text: it may need 128 bits."""
    milliseconds, sequence = entry_order(entry_id)
    return str(milliseconds << 64 | sequence)
