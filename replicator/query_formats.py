"""The three forms in which a query is answered: an Arrow stream, one JSON document, CSV. Pure.

Guarantees: no digit is lost in any of them: in JSON decimals and integers beyond 2^53 are strings. An answer that ends
early is not whole: an Arrow stream without its end, JSON that does not parse.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from replicator.canonical import json_objects, plain_column
from replicator.query_question import Format
from replicator.schema import quote

DUCKDB_TYPE = b"duckdb_type"
"""The key of a field's metadata in the Arrow schema under which its type in DuckDB stands."""


AS_TEXT = re.compile(r"\b(?:UHUGEINT|BIGNUM|BIT|TIME WITH TIME ZONE|VARIANT)\b")
"""Types that Arrow does not carry exactly; they leave as DuckDB writes them."""
AS_TEXT_IN_TEXT = re.compile(AS_TEXT.pattern + r"|\b(?:INTERVAL|UNION)\b")


def exact(relation: Any, form: Format = Format.ARROW) -> tuple[Any, list[str]]:
    """DuckDB's relation with every column as text that would not leave exactly, and what the columns were."""
    kinds = [str(kind) for kind in relation.types]
    pattern = AS_TEXT if form is Format.ARROW else AS_TEXT_IN_TEXT
    if any(pattern.search(kind) for kind in kinds):
        columns = [
            f"cast(#{place} as varchar) as {quote(name)}" if pattern.search(kind) else f"#{place} as {quote(name)}"
            for place, (name, kind) in enumerate(zip(relation.columns, kinds, strict=True), start=1)
        ]
        relation = relation.project(", ".join(columns))
    return relation, kinds


def with_kinds(schema: pa.Schema, kinds: Sequence[str]) -> pa.Schema:
    """The schema with DuckDB's types in its fields."""
    return pa.schema([f.with_metadata({DUCKDB_TYPE: kind.encode()}) for f, kind in zip(schema, kinds, strict=True)])


class Encoder(Protocol):
    """Called in this order: once, for each batch, once."""

    def begin(self) -> bytes: ...
    def batch(self, batch: pa.RecordBatch) -> bytes: ...
    def end(self) -> bytes: ...


def encoder(form: Format, schema: pa.Schema) -> Encoder:
    """The encoder for rows of a schema whose fields carry DuckDB's types."""
    return {Format.ARROW: _Arrow, Format.JSON: _Json, Format.CSV: _Csv}[form](schema)


class _Arrow:
    def __init__(self, schema: pa.Schema) -> None:
        self._sink = io.BytesIO()
        self._writer = pa.ipc.new_stream(self._sink, schema)

    def _taken(self) -> bytes:
        taken = self._sink.getvalue()
        self._sink.seek(0)
        self._sink.truncate()
        return taken

    def begin(self) -> bytes:
        return self._taken()

    def batch(self, batch: pa.RecordBatch) -> bytes:
        self._writer.write_batch(batch)
        return self._taken()

    def end(self) -> bytes:
        self._writer.close()
        return self._taken()


class _Json:
    """``{"columns": [{"name", "type"}], "rows": [{…}], "row_count": n}``; the second column of a name is ``name_2``."""

    def __init__(self, schema: pa.Schema) -> None:
        self._names = unique(schema.names)
        self._types = [(f.metadata or {}).get(DUCKDB_TYPE, b"").decode() for f in schema]
        self._rows = 0

    def begin(self) -> bytes:
        columns = [{"name": name, "type": kind} for name, kind in zip(self._names, self._types, strict=True)]
        return b'{"columns":' + json.dumps(columns, ensure_ascii=False).encode() + b',"rows":['

    def batch(self, batch: pa.RecordBatch) -> bytes:
        if not batch.num_rows:
            return b""
        texts = json_objects(dict(zip(self._names, batch.columns, strict=True)), batch.num_rows)
        joined = _concatenated(pc.binary_join_element_wise(",\n", texts, ""))
        first = not self._rows
        self._rows += batch.num_rows
        return joined[1:] if first else joined

    def end(self) -> bytes:
        return b'\n],"row_count":%d}\n' % self._rows


class _Csv:
    """A header line; null is an empty field, an empty text is quoted."""

    def __init__(self, schema: pa.Schema) -> None:
        self._names = schema.names

    def begin(self) -> bytes:
        return b",".join(_quoted(name) for name in self._names) + b"\n"

    def batch(self, batch: pa.RecordBatch) -> bytes:
        if not batch.num_rows:
            return b""
        columns = [_csv_column(column, name) for column, name in zip(batch.columns, self._names, strict=True)]
        lines = pc.binary_join_element_wise(*columns, ",") if len(columns) > 1 else columns[0]
        return _concatenated(pc.binary_join_element_wise(lines, "\n", ""))

    def end(self) -> bytes:
        return b""


def _csv_column(column: pa.Array, name: str) -> pa.Array:
    """Texts ready for CSV: quoted where they must be."""
    text = plain_column(column, name).cast(pa.string())
    special = pc.or_(pc.match_substring_regex(text, '[",\n\r]'), pc.equal(text, ""))
    quoted = pc.binary_join_element_wise('"', pc.replace_substring(text, '"', '""'), '"', "")
    return pc.if_else(special, quoted, text).fill_null("")


def _quoted(name: str) -> bytes:
    return ('"' + name.replace('"', '""') + '"' if any(c in name for c in ',"\r\n') or not name else name).encode()


def unique(names: Sequence[str]) -> list[str]:
    """The names, the second and later of a kind numbered."""
    taken: list[str] = []
    for name in names:
        candidate, place = name, 1
        while candidate in taken:
            place += 1
            candidate = f"{name}_{place}"
        taken.append(candidate)
    return taken


def _concatenated(texts: pa.Array) -> bytes:
    """All texts of a freshly computed array without nulls, one behind the other, as they lie in memory."""
    texts = texts.cast(pa.large_string())
    assert texts.offset == 0, "freshly computed"
    offsets = np.frombuffer(texts.buffers()[1], np.int64, len(texts) + 1)
    return bytes(texts.buffers()[2].slice(offsets[0], offsets[-1] - offsets[0]))
