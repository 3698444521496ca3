"""The settings as frozen values, each key with its check, its default and the part that consumes it.

These classes are the whole list of keys: what is not a field here is an unknown key. Secrets never show in a ``repr``.
Nothing here reads a file or the environment.
"""

from __future__ import annotations

# ruff: noqa: RUF009 - setting() is attrs' own field() with what we know of the key
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import NOTHING, Attribute, Factory, asdict, field, fields, frozen

from replicator.config import checks
from replicator.config.checks import Check

INERT = "inert"
DEFAULT_LADDER = (5, 15, 30, 60)
BATCH_ROWS_MAX = 100_000
DAY_SEC = 86_400
YEAR_SEC = 366 * DAY_SEC
FAR = 2**62


@frozen(kw_only=True)
class Key:
    """What is known of one key: how to judge it, who consumes it (and its twin in the read-only profile), what hides.

    ``home`` says in which file and section the value of a field that is not written here belongs.
    """

    check: Check | None
    consumer: str
    reader: str = ""
    secret: bool = False
    url: bool = False
    path: bool = False
    home: str = ""


def setting(check: Check, *, consumer: str, default: Any = NOTHING, reader: str = "db_manager", **marks: bool) -> Any:
    key = Key(check=check, consumer=consumer, reader=reader, **marks)
    return field(default=default, repr=not key.secret, metadata={Key: key})


def taken_from(home: str, *, default: Any = None, secret: bool = True) -> Any:
    """A field filled from another file, so that the reader of the settings finds it where it is used."""
    return field(default=default, repr=not secret, metadata={Key: Key(check=None, consumer="", home=home)})


def key_of(attribute: Attribute) -> Key:
    return attribute.metadata[Key]


def written_keys(kind: type) -> dict[str, Key]:
    """The keys that may be written in the section a class stands for."""
    return {a.name: key_of(a) for a in fields(kind) if not key_of(a).home}


_NAME = r"[a-z0-9][a-z0-9_-]{0,39}"
_IDENTIFIER = r"[A-Za-z_][A-Za-z0-9_]{0,62}"
_identifier = checks.text(pattern=_IDENTIFIER, what="a name of letters, digits and underscores, not a digit first")
_secret = checks.text(empty=True)
_token = checks.text(pattern=r"|[!-~]{16,512}", what="16 to 512 printable characters without spaces", empty=True)
_seconds = checks.number(0, YEAR_SEC)


# The two profiles: duckdb_rust_config.toml and duckdb_python_config.toml


@frozen(kw_only=True)
class Database:
    path: Path = setting(checks.path(file=True), consumer="database", path=True)
    read_only: bool = setting(checks.boolean, consumer="database", default=False)


@frozen(kw_only=True)
class Performance:
    max_threads: int | None = setting(checks.integer(1, 1024), consumer="database", default=None)
    cache_size_mb: int = setting(checks.integer(16, 4_194_304), consumer="database", default=256)
    temp_directory: Path | None = setting(checks.path(), consumer="database", default=None, path=True)


@frozen(kw_only=True)
class Logging:
    log_level: str = setting(
        checks.text(one_of=("TRACE", "DEBUG", "INFO", "WARN", "ERROR")), consumer="telemetry", default="INFO"
    )
    log_path: Path | None = setting(
        checks.path(file=True, empty_is_none=True), consumer="telemetry", default=None, path=True
    )


@frozen(kw_only=True)
class Sync:
    clickhouse_endpoint: str = setting(
        checks.http_url("http://127.0.0.1:8123"),
        consumer="sink",
        reader=INERT,
        default="http://127.0.0.1:8123",
        url=True,
    )
    batch_size: int = setting(checks.integer(1, BATCH_ROWS_MAX), consumer="deliver", default=BATCH_ROWS_MAX)
    max_retry_attempts: int = setting(checks.integer(0, 10_000), consumer="deliver", default=len(DEFAULT_LADDER))
    sync_interval_sec: float = setting(checks.number(0, DAY_SEC), consumer="deliver", reader=INERT, default=1)


@frozen(kw_only=True)
class ErrorHandling:
    failed_sync_table: str = setting(_identifier, consumer="ledger", default="failed_syncs")
    retry_backoff_sec: tuple[float, ...] = setting(
        checks.array(
            checks.number(0, DAY_SEC),
            what="an array of seconds such as [5, 15, 30, 60] (for no retries, max_retry_attempts = 0)",
            items_min=1,
        ),
        consumer="deliver",
        default=DEFAULT_LADDER,
    )


@frozen(kw_only=True)
class Profile:
    """One program's way to use the DuckDB file: the service's (read-write) or a reader's (read-only)."""

    config_path: Path
    database: Database
    performance: Performance
    logging: Logging
    sync: Sync
    error_handling: ErrorHandling
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """The document's sections and keys with the resolved values, as plain TOML types; unset keys are left out."""
        sections = ("database", "performance", "logging", "sync", "error_handling")
        return {
            name: {k: _plain(v) for k, v in asdict(getattr(self, name)).items() if v is not None} for name in sections
        }


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


PROFILE_SECTIONS: Mapping[str, type] = {
    "database": Database,
    "performance": Performance,
    "logging": Logging,
    "sync": Sync,
    "error_handling": ErrorHandling,
}


# secrets.toml


@frozen(kw_only=True)
class Auth:
    clickhouse_user: str = setting(_secret, consumer="sink", default="")
    clickhouse_password: str = setting(_secret, consumer="sink", default="", secret=True)


@frozen(kw_only=True)
class Encryption:
    master_key: str = setting(_secret, consumer=INERT, default="", secret=True)


@frozen(kw_only=True)
class RedisLogin:
    username: str = setting(_secret, consumer="source", default="")
    password: str = setting(_secret, consumer="source", default="", secret=True)


@frozen(kw_only=True)
class ServeTokens:
    admin_token: str = setting(_token, consumer="server", default="", secret=True)
    read_token: str = setting(_token, consumer="server", default="", secret=True)


SECRETS_SECTIONS: Mapping[str, type] = {
    "auth": Auth,
    "encryption": Encryption,
    "redis": RedisLogin,
    "serve": ServeTokens,
}


# replicator.toml


@frozen(kw_only=True)
class Pipeline:
    name: str = setting(
        checks.text(pattern=_NAME, what="1 to 40 of a-z, 0-9, _ and -, beginning with a letter or digit"),
        consumer="source, ledger",
        default="main",
    )


_stream = checks.text(pattern=r"(?!replicator:).{1,512}", what='a stream\'s name (ours begin with "replicator:")')


@frozen(kw_only=True)
class Redis:
    """``url`` holds no credentials; ``start_from`` is ``oldest``, ``newest`` or the entry id to read after."""

    url: str = setting(checks.redis_url, consumer="source", default="redis://127.0.0.1:6379", url=True)
    streams: tuple[str, ...] = setting(
        checks.array(_stream, what='an array of stream names such as ["trades"]', unique=True),
        consumer="capture",
        default=(),
    )
    start_from: str = setting(checks.start_position, consumer="capture", default="oldest")
    trim: str = setting(checks.text(one_of=("never", "logged", "confirmed")), consumer="trim", default="never")
    username: str | None = taken_from("secrets.toml [redis] username", secret=False)
    password: str | None = taken_from("secrets.toml [redis] password")


@frozen(kw_only=True)
class ClickHouse:
    endpoint: str = taken_from("duckdb_rust_config.toml [sync] clickhouse_endpoint", default="", secret=False)
    database: str = setting(_identifier, consumer="sink", default="default")
    user: str = taken_from("secrets.toml [auth] clickhouse_user", default="default", secret=False)
    password: str = taken_from("secrets.toml [auth] clickhouse_password", default="")
    ca_cert: Path | None = setting(checks.path(exists=True), consumer="sink", default=None, path=True)
    connect_timeout_sec: float = setting(checks.number(0.1, 600), consumer="sink", default=10)
    insert_timeout_sec: float = setting(checks.number(1, DAY_SEC), consumer="sink", default=120)
    log_ttl_days: int = setting(checks.integer(0, 36_500), consumer="sink", default=0)


@frozen(kw_only=True)
class Dedup:
    window_sec: float = setting(_seconds, consumer="capture", default=3600)
    window_ids: int = setting(checks.integer(0, 100_000_000), consumer="capture", default=1_000_000)


@frozen(kw_only=True)
class Serve:
    host: str = setting(checks.host, consumer="server", default="127.0.0.1")
    port: int = setting(checks.integer(0, 65_535), consumer="server", default=8420)
    tls_cert: Path | None = setting(checks.path(exists=True), consumer="server", default=None, path=True)
    tls_key: Path | None = setting(checks.path(exists=True), consumer="server", default=None, path=True)
    admin_token: str | None = taken_from("secrets.toml [serve] admin_token")
    read_token: str | None = taken_from("secrets.toml [serve] read_token")


@frozen(kw_only=True)
class Telemetry:
    prometheus: bool = setting(checks.boolean, consumer="telemetry, server", default=True)
    otlp_endpoint: str | None = setting(
        checks.http_url("http://127.0.0.1:4318", with_path=True), consumer="telemetry", default=None, url=True
    )
    log_format: str = setting(checks.text(one_of=("auto", "text", "json")), consumer="telemetry", default="auto")


@frozen(kw_only=True)
class Retention:
    """0 is off."""

    max_age_days: float = setting(checks.number(0, 36_500), consumer="retention", default=0)
    max_bytes: int = setting(checks.integer(0, FAR), consumer="retention", default=0)
    min_free_bytes: int = setting(checks.integer(0, FAR), consumer="capture", default=536_870_912)


@frozen(kw_only=True)
class Snapshots:
    """``interval_sec`` 0: only on demand."""

    directory: Path = setting(checks.path(), consumer="snapshots", path=True)
    interval_sec: float = setting(_seconds, consumer="snapshots", default=0)
    keep: int = setting(checks.integer(1, 10_000), consumer="snapshots", default=3)
    log_changes: int = setting(checks.integer(0, FAR), consumer="snapshots", default=0)


@frozen(kw_only=True)
class Verify:
    """``interval_sec`` 0: only on demand."""

    interval_sec: float = setting(_seconds, consumer="verify", default=3600)
    watermark_age_sec: float = setting(_seconds, consumer="verify", default=60)


_columns_named = checks.array(checks.column_name, what='an array of column names such as ["quantity"]', unique=True)


@frozen(kw_only=True)
class TableConfig:
    """One declared table as written: names and keys are checked, types are ``schema``'s to judge."""

    name: str = setting(
        checks.text(pattern=r"[A-Za-z_][A-Za-z0-9_]{0,99}", what="letters, digits and underscores, not a digit first"),
        consumer="schema",
    )
    stream: str = setting(_stream, consumer="capture")
    key: tuple[str, ...] = setting(
        checks.array(checks.column_name, what='an array of key columns such as ["trade_id"]', unique=True, items_min=1),
        consumer="schema",
    )
    columns: Mapping[str, str | dict[str, Any]] = setting(checks.column_types, consumer="schema", default=Factory(dict))
    on_unknown_field: str = setting(checks.text(one_of=("keep", "reject")), consumer="schema", default="keep")
    encoding: str = setting(checks.text(one_of=("auto", "json", "flat", "arrow")), consumer="decode", default="auto")
    sums: tuple[str, ...] = setting(_columns_named, consumer="verify", default=())
    by: tuple[str, ...] = setting(_columns_named, consumer="verify", default=())


REPLICATOR_SECTIONS: Mapping[str, type] = {
    "pipeline": Pipeline,
    "redis": Redis,
    "clickhouse": ClickHouse,
    "dedup": Dedup,
    "serve": Serve,
    "telemetry": Telemetry,
    "retention": Retention,
    "snapshots": Snapshots,
    "verify": Verify,
}


@frozen(kw_only=True)
class Setting:
    """One resolved key, for ``replicator check``: its value with secrets hidden, its source and its consumer."""

    file: str
    section: str
    key: str
    value: str
    source: str
    consumer: str


@frozen(kw_only=True)
class Settings:
    """Everything one service instance was told, resolved and checked."""

    config_dir: Path
    pipeline: Pipeline
    redis: Redis
    clickhouse: ClickHouse
    dedup: Dedup
    serve: Serve
    telemetry: Telemetry
    retention: Retention
    snapshots: Snapshots
    verify: Verify
    tables: tuple[TableConfig, ...]
    writer: Profile
    reader: Profile
    warnings: tuple[str, ...] = ()
    explained: tuple[Setting, ...] = field(default=(), repr=False)

    def explain(self) -> list[Setting]:
        """Every key of every file: what holds, where it came from and which part consumes it."""
        return list(self.explained)
