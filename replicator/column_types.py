"""The column types that are exact on both sides: each one's DuckDB, Arrow and ClickHouse form, in one place.

A type is named as DuckDB names it. ``arrow`` is the form in which its values travel to ClickHouse, chosen so that
ClickHouse neither wraps, truncates nor reinterprets them (measured by the unit tests of the sink's DDL).
It must never admit a type whose values could differ between the two databases.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum

import pyarrow as pa
from attrs import frozen

from replicator.errors import ConfigError


class Kind(StrEnum):
    """Families of types that are read, checked and hashed alike."""

    INTEGER = "integer"
    DECIMAL = "decimal"
    FLOAT = "float"
    BOOLEAN = "boolean"
    VARCHAR = "varchar"
    BLOB = "blob"
    UUID = "uuid"
    DATE = "date"
    TIMESTAMP = "timestamp"
    JSON = "json"
    ENUM = "enum"


@frozen(kw_only=True)
class ColumnType:
    """One type under its three names."""

    kind: Kind
    duckdb: str
    arrow: pa.DataType
    clickhouse: str
    bits: int = 0
    """Width of integers and floats."""
    signed: bool = True
    digits: int = 0
    """All digits of a decimal."""
    scale: int = 0
    """Digits after the point: of a decimal, or of a timestamp's seconds."""
    zoned: bool = False
    values: tuple[str, ...] = ()
    """The labels of an enum, in order."""

    def __str__(self) -> str:
        return self.duckdb

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest value of an integer type."""
        return (-(1 << self.bits - 1), (1 << self.bits - 1) - 1) if self.signed else (0, (1 << self.bits) - 1)


def _integer(name: str, bits: int, signed: bool) -> ColumnType:
    prefix = "int" if signed else "uint"
    narrow = bits <= 64
    return ColumnType(
        kind=Kind.INTEGER,
        duckdb=name,
        # 128 bits have no Arrow integer; as text padded past 16 bytes ClickHouse parses them exactly (see typed).
        arrow=getattr(pa, f"{prefix}{bits}")() if narrow else pa.string(),
        clickhouse=f"{'Int' if signed else 'UInt'}{bits}",
        bits=bits,
        signed=signed,
    )


def _timestamp(name: str, scale: int, *, zoned: bool = False) -> ColumnType:
    unit = {6: "us", 9: "ns"}[scale]
    return ColumnType(
        kind=Kind.TIMESTAMP,
        duckdb=name,
        arrow=pa.timestamp(unit),
        clickhouse=f"DateTime64({scale}, 'UTC')",
        scale=scale,
        zoned=zoned,
    )


def _plain(kind: Kind, name: str, arrow: pa.DataType, clickhouse: str, bits: int = 0) -> ColumnType:
    return ColumnType(kind=kind, duckdb=name, arrow=arrow, clickhouse=clickhouse, bits=bits)


def _decimal(digits: int, scale: int) -> ColumnType:
    return ColumnType(
        kind=Kind.DECIMAL,
        duckdb=f"DECIMAL({digits},{scale})",
        arrow=pa.decimal128(digits, scale),
        clickhouse=f"Decimal({digits}, {scale})",
        digits=digits,
        scale=scale,
    )


def _enum(values: tuple[str, ...]) -> ColumnType:
    width = 8 if len(values) < 128 else 16
    escaped = (value.replace("\\", "\\\\").replace("'", "\\'") for value in values)
    labels = ", ".join(f"'{value}' = {position}" for position, value in enumerate(escaped, 1))
    quoted = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
    return ColumnType(
        kind=Kind.ENUM,
        duckdb=f"ENUM({quoted})",
        arrow=pa.string(),
        clickhouse=f"Enum{width}({labels})",
        values=values,
    )


_FIXED: Mapping[str, ColumnType] = {
    one.duckdb: one
    for one in (
        _integer("TINYINT", 8, True),
        _integer("SMALLINT", 16, True),
        _integer("INTEGER", 32, True),
        _integer("BIGINT", 64, True),
        _integer("HUGEINT", 128, True),
        _integer("UTINYINT", 8, False),
        _integer("USMALLINT", 16, False),
        _integer("UINTEGER", 32, False),
        _integer("UBIGINT", 64, False),
        _integer("UHUGEINT", 128, False),
        _plain(Kind.FLOAT, "FLOAT", pa.float32(), "Float32", 32),
        _plain(Kind.FLOAT, "DOUBLE", pa.float64(), "Float64", 64),
        _plain(Kind.BOOLEAN, "BOOLEAN", pa.bool_(), "Bool"),
        _plain(Kind.VARCHAR, "VARCHAR", pa.string(), "String"),
        _plain(Kind.BLOB, "BLOB", pa.binary(), "String"),
        _plain(Kind.UUID, "UUID", pa.string(), "UUID"),
        _plain(Kind.DATE, "DATE", pa.date32(), "Date32"),
        _timestamp("TIMESTAMP", 6),
        _timestamp("TIMESTAMP_NS", 9),
        _timestamp("TIMESTAMPTZ", 6, zoned=True),
        _plain(Kind.JSON, "JSON", pa.string(), "String"),
    )
}

_ALIASES: Mapping[str, str] = {
    alias: name
    for name, aliases in {
        "TINYINT": "INT1",
        "SMALLINT": "INT2 SHORT",
        "INTEGER": "INT INT4 SIGNED",
        "BIGINT": "INT8 LONG INT64",
        "HUGEINT": "INT128",
        "UTINYINT": "UINT8",
        "USMALLINT": "UINT16",
        "UINTEGER": "UINT32",
        "UBIGINT": "UINT64",
        "UHUGEINT": "UINT128",
        "FLOAT": "FLOAT4 REAL",
        "DOUBLE": "FLOAT8",
        "BOOLEAN": "BOOL LOGICAL",
        "VARCHAR": "TEXT STRING CHAR BPCHAR",
        "BLOB": "BYTEA BINARY VARBINARY",
        "UUID": "GUID",
        "TIMESTAMP": "DATETIME TIMESTAMP_US",
    }.items()
    for alias in aliases.split()
} | {
    "DOUBLE PRECISION": "DOUBLE",
    "TIMESTAMP WITHOUT TIME ZONE": "TIMESTAMP",
    "TIMESTAMP WITH TIME ZONE": "TIMESTAMPTZ",
}

_REFUSED: Mapping[str, str] = {
    "TIME": "ClickHouse has no exact counterpart; use VARCHAR, or BIGINT with microseconds",
    "TIMETZ": "ClickHouse has no exact counterpart; use VARCHAR",
    "INTERVAL": "ClickHouse has no exact counterpart; use BIGINT with microseconds, or VARCHAR",
    "BIT": "ClickHouse has no exact counterpart; use VARCHAR or BLOB",
    "BITSTRING": "ClickHouse has no exact counterpart; use VARCHAR or BLOB",
    "BIGNUM": "ClickHouse has no exact counterpart; use HUGEINT, DECIMAL(38,0) or VARCHAR",
    "VARINT": "ClickHouse has no exact counterpart; use HUGEINT, DECIMAL(38,0) or VARCHAR",
    "TIMESTAMP_S": "use TIMESTAMP, which holds seconds exactly",
    "TIMESTAMP_MS": "use TIMESTAMP, which holds milliseconds exactly",
    "TIMESTAMPTZ_NS": "use TIMESTAMP_NS, which is kept in UTC",
    "LIST": "nested values travel as JSON; use JSON",
    "ARRAY": "nested values travel as JSON; use JSON",
    "MAP": "nested values travel as JSON; use JSON",
    "STRUCT": "nested values travel as JSON; use JSON",
    "ROW": "nested values travel as JSON; use JSON",
    "UNION": "nested values travel as JSON; use JSON",
    "VARIANT": "nested values travel as JSON; use JSON",
    "GEOMETRY": "ClickHouse has no exact counterpart; use BLOB with WKB",
}
_DECIMAL_NAMES = ("DECIMAL", "NUMERIC", "DEC")
_ENUM_LABEL = re.compile(r"\s*'((?:[^']|'')*)'\s*(,|$)")
_ENUM_LABELS_MAX = 32_000


def parse_type(text: str) -> ColumnType:
    """A type from its DuckDB name or an alias; raises ConfigError that names the remedy."""
    match = re.fullmatch(r"\s*([A-Za-z_][\w ]*?)\s*(?:\((.*)\))?\s*", text, re.DOTALL)
    if match is None or text.rstrip().endswith("]"):
        raise ConfigError(f"type {text!r}: {_REFUSED['LIST'] if text.rstrip().endswith(']') else 'is not a type name'}")
    name, arguments = re.sub(r"\s+", " ", match[1]).upper(), match[2]
    if name in _REFUSED:
        raise ConfigError(f"type {text!r} is not exact on both sides: {_REFUSED[name]}")
    if name in _DECIMAL_NAMES:
        return _parse_decimal(text, arguments)
    if name == "ENUM":
        return _parse_enum(text, arguments)
    found = _FIXED.get(_ALIASES.get(name, name))
    if found is None:
        raise ConfigError(f"type {text!r} is unknown; known are {', '.join(_FIXED)}, DECIMAL(p,s) and ENUM('a','b')")
    if arguments is not None:
        raise ConfigError(f"type {text!r}: {name} takes no length; a length would not be enforced, so leave it out")
    return found


def _parse_decimal(text: str, arguments: str | None) -> ColumnType:
    parts = [part.strip() for part in arguments.split(",")] if arguments is not None else ["18", "3"]
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError(f"type {text!r}: write DECIMAL(digits, scale), for example DECIMAL(18,6)")
    digits, scale = int(parts[0]), int(parts[1]) if len(parts) == 2 else 0
    if not (1 <= digits <= 38 and scale <= digits):
        raise ConfigError(f"type {text!r}: digits go from 1 to 38 and scale from 0 to digits")
    return _decimal(digits, scale)


def _parse_enum(text: str, arguments: str | None) -> ColumnType:
    values, rest = [], arguments or ""
    while rest and (match := _ENUM_LABEL.match(rest)):
        values.append(match[1].replace("''", "'"))
        rest = rest[match.end() :]
    if rest or not values:
        raise ConfigError(f"type {text!r}: write the labels in single quotes, for example ENUM('buy','sell')")
    if len(set(values)) < len(values) or len(values) > _ENUM_LABELS_MAX or any("\0" in value for value in values):
        raise ConfigError(f"type {text!r}: labels must differ, hold no NUL and number at most {_ENUM_LABELS_MAX}")
    return _enum(tuple(values))


def widens(old: ColumnType, new: ColumnType) -> bool:
    """Whether every value of ``old`` is also a value of ``new``."""
    match (old.kind, new.kind):
        case (Kind.INTEGER, Kind.INTEGER):
            wider = new.bounds[0] <= old.bounds[0] and old.bounds[1] <= new.bounds[1]
        case (Kind.INTEGER, Kind.DECIMAL):
            wider = max(abs(bound) for bound in old.bounds) < 10 ** (new.digits - new.scale)
        case (Kind.DECIMAL, Kind.DECIMAL):
            wider = new.scale >= old.scale and new.digits - new.scale >= old.digits - old.scale
        case (Kind.FLOAT, Kind.FLOAT):
            wider = new.bits >= old.bits
        case (Kind.ENUM, Kind.ENUM):
            wider = new.values[: len(old.values)] == old.values
        case _:
            wider = old == new or (old.kind, new.kind) == (Kind.ENUM, Kind.VARCHAR)
    return wider
