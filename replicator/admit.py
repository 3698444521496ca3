"""What may enter the log: JSON that is an object, keys where they are needed, values that fit their columns.

Guarantees: whole columns are checked at once in DuckDB; a change that does not fit becomes a rejection with its
reason and its raw bytes; the rest go on in their order. Never rounds, wraps or defaults a value in silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from attrs import define, frozen

from replicator.catalog import Catalog
from replicator.database import Session, statement
from replicator.decode import PAYLOAD_BYTES_MAX, Decoded
from replicator.decode_parts import pack_row, rejection_table
from replicator.payload import strict_json
from replicator.schema import TableSchema, literal
from replicator.shape import canonical_keys, plain_objects
from replicator.typed import check_sql, misfits_sql

MEMORY_SHARE = 32
"""A payload of a declared table may take this part of DuckDB's memory (measured: a tenth fails, alone and in company)."""


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
        """The changes that may be logged, with their keys and schema versions, and every rejection."""
        if decoded.changes.num_rows == 0:
            return Admitted(changes=decoded.changes, rejections=decoded.rejections)
        refused = self._too_large(decoded.changes)
        changes, doubtful = self._recognised(decoded.changes)
        if doubtful is not None:
            changes = self._checked(changes, _less(doubtful, refused), refused)
        if not refused:
            return Admitted(changes=changes, rejections=decoded.rejections)
        return Admitted(changes=without(changes, refused), rejections=with_rejections(decoded, refused))

    @property
    def _bytes_max(self) -> int:
        """The largest payload that DuckDB can take apart: it needs a multiple of that, and others need some too."""
        memory_mb = self.session.database.memory_mb
        return max(1 << 20, (memory_mb << 20) // MEMORY_SHARE) if memory_mb else PAYLOAD_BYTES_MAX

    def _too_large(self, changes: pa.Table) -> dict[int, str]:
        """Rows of declared tables that could never be typed within `cache_size_mb`, with the reason."""
        sizes = _one(pc.binary_length(changes["payload"]))
        if (pc.max(sizes).as_py() or 0) <= self._bytes_max:
            return {}
        declared = pc.is_in(changes["table_name"], pa.array(list(self.catalog.current), pa.string()))
        large = pc.and_(pc.fill_null(pc.greater(sizes, self._bytes_max), False), _one(declared))
        return {
            row: f"the payload has {sizes[row].as_py()} bytes, over the {self._bytes_max} that [performance] "
            f"cache_size_mb = {self.session.database.memory_mb} allows a declared table: raise it, then retry this entry"
            for row in np.flatnonzero(large.to_numpy(False)).tolist()
        }

    def _recognised(self, changes: pa.Table) -> tuple[pa.Table, pa.Array | None]:
        """The changes, those of usual shape under their keys and versions, and which rows are still to be checked."""
        names = pc.unique(changes["table_name"]).to_pylist()
        if len(names) > 1:
            return changes, pa.repeat(pa.scalar(True), changes.num_rows)
        op, key, payload = (_one(changes[name]) for name in ("op", "key", "payload"))
        schema = self.catalog.current.get(names[0])
        if schema is None:
            known = pc.or_(plain_objects(payload), pc.and_(pc.is_null(payload), pc.is_valid(key)))
        else:
            keys = canonical_keys(schema, op, key, payload)
            known = pc.is_valid(keys)
            changes = _stamp(changes, pc.coalesce(keys, key), schema.schema_version)
        return changes, None if known.true_count == len(known) else pc.invert(known)

    def _checked(self, changes: pa.Table, doubtful: pa.Array, refused: dict[int, str]) -> pa.Table:
        """The doubtful rows looked at closely: mended, stamped, or ``refused``."""
        changes = self._well_formed(changes, doubtful, refused)
        for table in pc.unique(changes["table_name"].filter(doubtful)).to_pylist():
            schema = self.catalog.current.get(table)
            if schema is not None:
                changes = self._typed(changes, doubtful, schema, refused)
        return changes

    def _well_formed(self, changes: pa.Table, doubtful: pa.Array, refused: dict[int, str]) -> pa.Table:
        """Payloads that are JSON objects, made canonical where they were not; the others into ``refused``."""
        with self.session.relation(decoded_changes=numbered(changes).filter(doubtful)):
            suspects = dict(self.session.rows(statement("admit/suspects")))
        mended: dict[int, str] = {}
        for row, reason in suspects.items():
            if reason is not None:
                refused[row] = reason
                continue
            try:
                mended[row] = strict_json(changes["payload"][row].as_py())
            except ValueError as error:
                known = str(error).startswith(("is", "holds"))
                refused[row] = f"the payload {error}" if known else f"the payload is not JSON: {error}"
        return _replace_payloads(changes, mended)

    def _typed(self, changes: pa.Table, doubtful: pa.Array, schema: TableSchema, refused: dict[int, str]) -> pa.Table:
        """The table's changes under its canonical keys and schema version; those that do not fit into ``refused``."""
        mine = f"(select * from decoded_changes where table_name = {literal(schema.name)})"
        with self.session.relation(decoded_changes=numbered(changes).filter(doubtful)):
            found = self.session.arrow(check_sql(schema, mine)).combine_chunks()
            unfit = found.filter(pc.invert(pc.fill_null(found["fits"], False)))["row_index"].to_pylist()
            new = [row for row in unfit if row not in refused]
            if new:
                self._explain(schema, mine, new, refused)
        return _stamp_some(changes, found, schema.schema_version)

    def _explain(self, schema: TableSchema, mine: str, rows: Sequence[int], refused: dict[int, str]) -> None:
        listed = ", ".join(map(str, rows))
        sql = misfits_sql(schema, f"(select * from {mine} where row_index in ({listed}))")
        for row, column, reason in self.session.rows(sql):
            text = reason if column is None else f"{column}: {reason}"
            refused[row] = f"{refused[row]}; {text}" if row in refused else text
        for row in rows:
            refused.setdefault(row, f"does not fit table {schema.name}")


def _less(rows: pa.Array, refused: Mapping[int, str]) -> pa.Array:
    """The mask without the refused rows."""
    mask = rows.to_numpy(False).copy()
    mask[list(refused)] = False
    return pa.array(mask)


def numbered(changes: pa.Table) -> pa.Table:
    """The changes with their places, as ``row_index``."""
    return changes.append_column("row_index", pa.array(np.arange(changes.num_rows, dtype=np.int32)))


def _stamp(changes: pa.Table, keys: pa.Array, schema_version: int) -> pa.Table:
    versions = pa.repeat(pa.scalar(schema_version, pa.int32()), changes.num_rows)
    place = changes.schema.get_field_index
    changes = changes.set_column(place("schema_version"), "schema_version", versions)
    return changes.set_column(place("key"), "key", keys)


def _stamp_some(changes: pa.Table, found: pa.Table, schema_version: int) -> pa.Table:
    """The same where other tables' changes stand between."""
    order = pc.sort_indices(found["row_index"])
    mask = np.zeros(changes.num_rows, dtype=bool)
    mask[found["row_index"].to_numpy()] = True
    new = pa.repeat(pa.scalar(schema_version, pa.int32()), found.num_rows)
    versions = pc.replace_with_mask(changes["schema_version"].combine_chunks(), pa.array(mask), new)
    keys = pc.replace_with_mask(changes["key"].combine_chunks(), pa.array(mask), _one(found["key"].take(order)))
    place = changes.schema.get_field_index
    changes = changes.set_column(place("schema_version"), "schema_version", versions)
    return changes.set_column(place("key"), "key", keys)


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


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
    many = pc.unique(decoded.changes["entry_index"].filter(pc.greater(decoded.changes["entry_row"], 0)))
    shared = {*many.to_pylist(), *decoded.rejections["entry_index"].to_pylist()}
    found = []
    for row, reason in zip(rows, (refused[i] for i in sorted(refused)), strict=True):
        raw = pack_row(row) if row["entry_index"] in shared else None
        found.append((row["entry_index"], row["entry_row"], reason, raw))
    more = rejection_table(decoded.read, found)
    both = pa.concat_tables([decoded.rejections, more])
    return both.sort_by([("entry_index", "ascending"), ("entry_row", "ascending")])
