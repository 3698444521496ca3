"""What may enter the log: JSON that is an object, keys where they are needed, values that fit their columns.

Guarantees: whole columns are checked at once in DuckDB; a change that does not fit becomes a rejection with its
reason and its raw bytes; the rest go on in their order. Never rounds, wraps or defaults a value in silence.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc
from attrs import define, frozen

from replicator.catalog import Catalog
from replicator.database import Session, statement
from replicator.decode import Decoded
from replicator.decode_parts import pack_row, rejection_table
from replicator.payload import strict_json


@frozen(kw_only=True)
class Admitted:
    """What of one read goes into the log and what does not. Both keep ``entry_index``."""

    changes: pa.Table
    rejections: pa.Table


@define
class Admission:
    """Checks decoded changes with a session of its own."""

    session: Session
    catalog: Catalog

    def admit(self, decoded: Decoded) -> Admitted:
        changes = decoded.changes
        if changes.num_rows == 0:
            return Admitted(changes=changes, rejections=decoded.rejections)
        numbered = changes.append_column("row_index", pa.array(range(changes.num_rows), pa.int32()))
        with self.session.relation(decoded_changes=numbered):
            suspects = self.session.rows(statement("admit/suspects"))
        if not suspects:
            return Admitted(changes=changes, rejections=decoded.rejections)
        return _settle(decoded, dict(suspects))


def _settle(decoded: Decoded, suspects: Mapping[int, str | None]) -> Admitted:
    """Look at each suspect row singly: its canonical payload, or the reason why it cannot be logged."""
    changes, mended, refused = decoded.changes, {}, {}
    for row, reason in suspects.items():
        if reason is not None:
            refused[row] = reason
            continue
        try:
            mended[row] = strict_json(changes["payload"][row].as_py())
        except ValueError as error:
            refused[row] = (
                f"the payload {error}"
                if str(error).startswith(("is", "holds"))
                else f"the payload is not JSON: {error}"
            )
    changes = _replace_payloads(changes, mended)
    return Admitted(changes=without(changes, refused), rejections=with_rejections(decoded, refused))


def _replace_payloads(changes: pa.Table, mended: Mapping[int, str]) -> pa.Table:
    if not mended:
        return changes
    rows = pa.array(range(changes.num_rows))
    mask = pc.is_in(rows, pa.array(list(mended), pa.int64()))
    payloads = pc.replace_with_mask(
        changes["payload"].combine_chunks(), mask, pa.array([mended[row] for row in sorted(mended)], pa.string())
    )
    return changes.set_column(changes.schema.get_field_index("payload"), "payload", payloads)


def without(changes: pa.Table, refused: Mapping[int, str]) -> pa.Table:
    """The changes less the refused rows."""
    if not refused:
        return changes
    rows = pa.array(range(changes.num_rows))
    return changes.filter(pc.invert(pc.is_in(rows, pa.array(list(refused), pa.int64()))))


def with_rejections(decoded: Decoded, refused: Mapping[int, str]) -> pa.Table:
    """The read's rejections and those of the refused rows, in the order of reading."""
    rows = decoded.changes.take(pa.array(sorted(refused), pa.int64())).to_pylist()
    shared = set(
        pc.unique(decoded.changes["entry_index"].filter(pc.greater(decoded.changes["entry_row"], 0))).to_pylist()
    )
    found = []
    for row, reason in zip(rows, (refused[i] for i in sorted(refused)), strict=True):
        raw = pack_row(row) if row["entry_index"] in shared else None
        found.append((row["entry_index"], row["entry_row"], reason, raw))
    more = rejection_table(decoded.read, found)
    both = pa.concat_tables([decoded.rejections, more])
    return both.sort_by([("entry_index", "ascending"), ("entry_row", "ascending")])
