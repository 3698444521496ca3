"""The two ways in: a whole configuration directory for the service, one profile file for a program that reads.

Guarantees that a result holds together: every key known, typed, in bounds, and no two of them contradicting each
other. Raises :class:`ConfigError` with every problem at once; says in ``warnings`` what will work but hurt.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import evolve

from replicator.config.checks import is_windows_path, shown
from replicator.config.credentials import check_serve, with_clickhouse_login, with_redis_login, with_tokens
from replicator.config.layers import (
    PIPELINE_FILE,
    READER_FILE,
    SECRETS_FILE,
    VARIABLES,
    WRITER_FILE,
    Document,
    Findings,
    read_document,
    read_secrets,
    read_variables,
)
from replicator.config.resolve import Resolver
from replicator.config.tables import (
    check_failed_sync_table,
    column_problems,
    explain_tables,
    read_tables,
    resolve_streams,
)
from replicator.config.values import (
    PROFILE_SECTIONS,
    REPLICATOR_SECTIONS,
    Auth,
    Encryption,
    Profile,
    RedisLogin,
    ServeTokens,
    Setting,
    Settings,
)
from replicator.errors import ConfigError

BATCH_ROWS_FEW = 1000
ROLE_DEFAULTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    WRITER_FILE: {
        "database": {"path": "data/replicator.duckdb", "read_only": False},
        "logging": {"log_path": "data/replicator.log"},
    },
    READER_FILE: {
        "database": {"path": "data/replicator.duckdb", "read_only": True},
        "performance": {"cache_size_mb": 128},
        "logging": {"log_path": "data/replicator_reader.log"},
    },
    PIPELINE_FILE: {"snapshots": {"directory": "data/snapshots"}},
    SECRETS_FILE: {},
}
SHARED_KEYS = (
    ("database", "path", "readers would look at another file than the service writes"),
    ("sync", "clickhouse_endpoint", "the service delivers to its own"),
    ("error_handling", "failed_sync_table", "readers would look for failed syncs where none are recorded"),
)
"""What the two profiles should agree on; the read-only one takes the other's value where it has none."""


def load_settings(config_dir: Path, *, environ: Mapping[str, str] = os.environ) -> Settings:
    """A configuration directory resolved: environment, ``.env``, ``secrets.toml``, the TOML files, defaults.

    Relative paths, wherever they are written, start at the directory that holds ``config_dir``.
    """
    directory = Path(config_dir).absolute()
    if not directory.is_dir():
        what = "is not a directory" if os.path.lexists(directory) else "does not exist"
        raise ConfigError(
            f"{config_dir}: the configuration directory {what}; create it (it may be empty) or name another "
            "with --config-dir"
        )
    findings = Findings()
    files = {name: read_document(directory / name, findings) for name in (WRITER_FILE, READER_FILE, PIPELINE_FILE)}
    files[SECRETS_FILE] = read_secrets(directory / SECRETS_FILE, findings)
    variables = read_variables(directory, environ, [v.name for v in VARIABLES], findings)
    resolver = Resolver(base=directory.parent, variables=variables, findings=findings)
    if absent := [name for name, document in files.items() if document.absent and name != SECRETS_FILE]:
        resolver.warn(f"{config_dir}: defaults stand in for the missing {', '.join(absent)}")
    settings = _resolve(resolver, directory, files)
    if findings.problems:
        also = column_problems(str(files[PIPELINE_FILE].path), settings.tables)
        raise ConfigError([*findings.problems, *also])
    return settings


def load_profile(path: Path, environ: Mapping[str, str] = os.environ) -> Profile:
    """One profile file alone, with the environment and ``.env`` over it.

    Its name decides whose defaults and which log variable hold; under another name, its ``read_only`` does.
    """
    path = Path(path).absolute()
    if not os.path.lexists(path):
        raise ConfigError(f"{path}: the profile does not exist; name an existing TOML file")
    findings = Findings()
    document = read_document(path, findings)
    role = _role_of(document)
    names = [v.name for v in VARIABLES if role in v.files]
    resolver = Resolver(
        base=path.parent.parent, variables=read_variables(path.parent, environ, names, findings), findings=findings
    )
    profile = _profile(resolver, document, role, ROLE_DEFAULTS[role])
    if findings.problems:
        raise ConfigError(findings.problems)
    return evolve(profile, warnings=tuple(findings.warnings))


def _role_of(document: Document) -> str:
    if document.file in (WRITER_FILE, READER_FILE):
        return document.file
    database = document.tables.get("database")
    return WRITER_FILE if isinstance(database, dict) and database.get("read_only") is False else READER_FILE


def _resolve(resolver: Resolver, directory: Path, files: Mapping[str, Document]) -> Settings:
    document = files[PIPELINE_FILE]
    sections = resolver.sections(document, PIPELINE_FILE, ROLE_DEFAULTS[PIPELINE_FILE])
    secrets = resolver.sections(files[SECRETS_FILE], SECRETS_FILE, {})
    tables = read_tables(resolver, document)
    writer = _profile(resolver, files[WRITER_FILE], WRITER_FILE, ROLE_DEFAULTS[WRITER_FILE])
    reader = _profile(resolver, files[READER_FILE], READER_FILE, _reader_defaults(writer))
    _check_profiles(resolver, writer, reader)
    check_failed_sync_table(resolver, WRITER_FILE, writer, tables)
    if reader.error_handling.failed_sync_table != writer.error_handling.failed_sync_table:
        check_failed_sync_table(resolver, READER_FILE, reader, tables)
    redis = resolve_streams(resolver, document, sections.pop("redis"), tables)
    settings = Settings(
        config_dir=directory,
        tables=tables,
        writer=writer,
        reader=reader,
        redis=with_redis_login(resolver, redis, secrets),
        clickhouse=with_clickhouse_login(resolver, sections.pop("clickhouse"), secrets, writer, reader),
        serve=with_tokens(resolver, sections.pop("serve"), secrets),
        **sections,
    )
    check_serve(resolver, document, settings.serve)
    return evolve(settings, warnings=tuple(resolver.findings.warnings), explained=_explain(resolver, settings))


def _reader_defaults(writer: Profile) -> dict[str, dict[str, Any]]:
    """The read-only profile's defaults, with the read-write profile's own values for what they share."""
    defaults = {section: dict(keys) for section, keys in ROLE_DEFAULTS[READER_FILE].items()}
    for section, key, _ in SHARED_KEYS:
        defaults.setdefault(section, {})[key] = str(getattr(getattr(writer, section), key))
    return defaults


def _profile(resolver: Resolver, document: Document, role: str, defaults: Mapping[str, Mapping[str, Any]]) -> Profile:
    document = _without_foreign_temp_directory(resolver, document)
    profile = Profile(config_path=document.path, **resolver.sections(document, role, defaults))
    ladder, sync = profile.error_handling.retry_backoff_sec, profile.sync
    if (role, "sync", "max_retry_attempts") not in resolver.sources:
        sync = evolve(sync, max_retry_attempts=len(ladder))
    if sync.batch_size < BATCH_ROWS_FEW:
        resolver.warn(
            f"{document.path} [sync] batch_size = {sync.batch_size}: batches below {BATCH_ROWS_FEW} rows make too many "
            "parts in ClickHouse; the default is 100000"
        )
    if profile.logging.log_path and profile.logging.log_path == profile.database.path:
        resolver.clash(
            f"{document.path} [logging] log_path = {shown(str(profile.logging.log_path))}: is the database itself; "
            "write the log to another file",
            (role, "logging", "log_path"),
            (role, "database", "path"),
        )
    return evolve(profile, sync=sync)


def _without_foreign_temp_directory(resolver: Resolver, document: Document) -> Document:
    """No variable overrides ``temp_directory``, so a Windows one gives way to DuckDB's own choice beside the file."""
    performance = document.tables.get("performance")
    written = performance.get("temp_directory") if isinstance(performance, dict) else None
    if not is_windows_path(written):
        return document
    resolver.warn(
        f"{document.path} [performance] temp_directory = {shown(written)}: is a Windows path, and this machine has "
        "none; DuckDB's temporary files go beside the database instead"
    )
    kept = {key: value for key, value in performance.items() if key != "temp_directory"}
    return evolve(document, tables={**document.tables, "performance": kept})


def _check_profiles(resolver: Resolver, writer: Profile, reader: Profile) -> None:
    """Each profile keeps its side of ``read_only``; what they share should be the same."""
    if writer.database.read_only:
        resolver.clash(
            f"{writer.config_path} [database] read_only = true: the service must write its file; write false",
            (WRITER_FILE, "database", "read_only"),
        )
    if not reader.database.read_only:
        resolver.clash(
            f"{reader.config_path} [database] read_only = false: this is the read-only profile; write true, or use "
            f"{WRITER_FILE}",
            (READER_FILE, "database", "read_only"),
        )
    for section, key, consequence in SHARED_KEYS:
        ours, theirs = getattr(getattr(writer, section), key), getattr(getattr(reader, section), key)
        if ours != theirs:
            resolver.warn(
                f"{reader.config_path} [{section}] {key} = {shown(str(theirs))} is not {WRITER_FILE}'s "
                f"{shown(str(ours))}: {consequence}"
            )


def _explain(resolver: Resolver, settings: Settings) -> tuple[Setting, ...]:
    """One row per key of every file; credentials as they are used, not as they are written."""
    rows = []
    for role, profile in ((WRITER_FILE, settings.writer), (READER_FILE, settings.reader)):
        for name in PROFILE_SECTIONS:
            rows += resolver.explain(role, name, getattr(profile, name))
    for name in REPLICATOR_SECTIONS:
        rows += resolver.explain(PIPELINE_FILE, name, getattr(settings, name))
    rows += explain_tables(resolver, settings.tables)
    redis, clickhouse, serve = settings.redis, settings.clickhouse, settings.serve
    used = {
        "auth": Auth(clickhouse_user=clickhouse.user, clickhouse_password=clickhouse.password),
        "encryption": Encryption(),
        "redis": RedisLogin(username=redis.username or "", password=redis.password or ""),
        "serve": ServeTokens(admin_token=serve.admin_token or "", read_token=serve.read_token or ""),
    }
    for name, section in used.items():
        rows += resolver.explain(SECRETS_FILE, name, section)
    return tuple(rows)
