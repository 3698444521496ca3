"""The support bundle: what somebody far away needs to see what is wrong, and nothing that is not theirs to see.

Guarantees: no secret and no row's value stands in it: records come without their rows, every text that an engine or a
producer may have had a part in is masked (`doctor_mask`), and known secrets are blotted out of everything at the end.
A part that cannot be had says why and stops no other. Changes nothing anywhere.
"""

from __future__ import annotations

import io
import json
import os
import platform
import sys
import tarfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

from attrs import asdict

from replicator.client import Client
from replicator.config import Settings
from replicator.database import Database, statement
from replicator.doctor_mask import BLOT, mask, mask_fields, mask_literals
from replicator.errors import ReplicatorError
from replicator.operations import Operations, Selection
from replicator.server_tokens import find_token

LOG_LINES = 2_000
RECORDS_MAX = 200
SAFE_FIELDS = frozenset(
    [
        "timestamp",
        "level",
        "error_code",
        "trace_id",
        "span_id",
        "first_failed_at",
        "last_failed_at",
        "found_at",
        "rejected_at",
        "asked_at",
        "applied_at",
        "delivered_at",
        "last_at",
        "entry_id",
        "after_entry_id",
        "before_entry_id",
        "last_entry_id",
        "offsets",
        "version",
        "instance_id",
        "status",
        "state",
        "reason_kinds",
    ]
)
"""Fields whose texts are ours alone: instants, ids, offsets and words of a closed set."""
LEFT_OUT = {
    "failed": ("note",),
    "rejected": (),
    "gaps": (),
    "actions": ("effect",),
}
"""Fields in which an operator may have written anything."""
Part = Callable[[], Any]


def service_part(database: Database, operations: Operations, names: tuple[str, ...]) -> dict[str, Any]:
    """What only the owner of the file can tell: its schema and migrations, records without rows, where threads are."""
    recent = Selection(status=None, limit=RECORDS_MAX)
    records = {
        "failed": operations.failed(recent),
        "rejected": operations.rejected(recent),
        "gaps": operations.gaps(recent),
        "actions": operations.actions(limit=RECORDS_MAX),
    }
    session = database.session()
    try:
        schema = {name: mask_literals(sql, names) for name, sql in session.rows(statement("doctor/schema"))}
        migrations = [
            dict(zip(("name", "applied_at"), map(str, r), strict=True))
            for r in session.rows(statement("doctor/migrations"))
        ]
        counts = dict(session.rows(statement("doctor/sizes")))
    finally:
        session.close()
    return {
        "duckdb": {"schema": schema, "estimated_rows": counts, "migrations": migrations},
        "records": {name: [_without_rows(name, row, names) for row in rows] for name, rows in records.items()},
        "threads": thread_stacks(),
    }


def _without_rows(kind: str, row: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return mask_fields({k: v for k, v in row.items() if k not in LEFT_OUT[kind]}, names, SAFE_FIELDS)


def thread_stacks() -> dict[str, list[str]]:
    """Where each thread of this process is: files, lines and functions, no values."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        f"{names.get(ident, 'unknown')} {ident}": [
            f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in traceback.extract_stack(frame)[-12:]
        ]
        for ident, frame in sys._current_frames().items()
    }


def known_names(settings: Settings) -> tuple[str, ...]:
    """Streams, tables and columns: names that may stand in the bundle."""
    names = {settings.pipeline.name, *settings.redis.streams}
    for table in settings.tables:
        names |= {table.name, table.stream, *table.columns}
    return tuple(sorted(part for name in names for part in {name, *name.replace("-", "_").split("_")} if part))


class Bundle:
    """Collects the parts, then writes them as one archive."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.names = known_names(settings)
        self.parts: dict[str, str] = {}
        self.missing: dict[str, str] = {}

    def add(self, name: str, part: Part) -> None:
        """A part as JSON, or as it is when it is text. What goes wrong is noted in its place."""
        try:
            found = part()
        except Exception as error:  # whatever is broken, the rest is still of use
            self.missing[name] = f"{type(error).__name__}: {mask(str(error), self.names)}"
            return
        self.parts[name] = found if isinstance(found, str) else json.dumps(found, indent=1, default=str)

    def write(self, path: Path) -> list[str]:
        """The archive, readable by its owner alone. Returns the names of the parts."""
        self.parts["missing.json"] = json.dumps(self.missing, indent=1)
        secrets = known_secrets(self.settings)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, text in self.parts.items():
                content = _without(secrets, text).encode()
                member = tarfile.TarInfo(f"{path.name.removesuffix('.tar.gz')}/{name}")
                member.size, member.mtime, member.mode = len(content), int(time.time()), 0o600
                archive.addfile(member, io.BytesIO(content))
        return list(self.parts)


def _without(secrets: list[str], text: str) -> str:
    for secret in secrets:
        text = text.replace(secret, BLOT).replace(json.dumps(secret)[1:-1], BLOT)
    return text


def known_secrets(settings: Settings) -> list[str]:
    """Longest first, so that none leaves a piece of another."""
    found = [
        settings.redis.password,
        settings.clickhouse.password,
        settings.serve.admin_token,
        settings.serve.read_token,
        *(find_token(settings, role) for role in ("admin", "read")),
    ]
    return sorted({secret for secret in found if secret}, key=len, reverse=True)


def collect(settings: Settings, report: Part, client: Client | None, owner_part: Part, log_lines: int) -> Bundle:
    """Every part. ``owner_part`` is `service_part`, of the running service or of the file."""
    from replicator.preflight import inspect  # noqa: PLC0415 - loads the drivers

    bundle, names = Bundle(settings), known_names(settings)
    bundle.add("about.json", lambda: about(settings))
    bundle.add("settings.json", lambda: [asdict(setting) for setting in settings.explain()])
    bundle.add("status.json", lambda: mask_fields(report(), names, {*SAFE_FIELDS, "database"}))
    bundle.add("check.json", lambda: [mask_fields(f.as_json(), names, {"part", "version"}) for f in inspect(settings)])
    bundle.add("owner.json", owner_part)
    bundle.add("clickhouse.json", lambda: clickhouse_schema(settings))
    if client is not None:
        bundle.add("metrics.txt", client.metrics)
    bundle.add("log.ndjson", lambda: log_tail(settings, names, log_lines))
    return bundle


def about(settings: Settings) -> dict[str, Any]:
    """Versions and the machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "replicator": version("replicator"),
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "pipeline": settings.pipeline.name,
        "python": sys.version,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "memory_bytes": memory,
        "packages": {d.name: d.version for d in sorted(distributions(), key=lambda d: d.name.lower())},
        "warnings": list(settings.warnings),
    }


def clickhouse_schema(settings: Settings) -> dict[str, Any]:
    """Our tables there, as ClickHouse has them: statement, rows, parts, bytes."""
    from replicator.service import build_sink  # noqa: PLC0415 - loads everything

    ours = ["change_log", "replicator_batches", "replicator_migrations"]
    for table in settings.tables:
        ours += [table.name, f"{table.name}_log", f"{table.name}_state", f"{table.name}_fold"]
    sink = build_sink(settings)
    try:
        rows = sink.rows(statement("doctor/clickhouse"), {"tables": ours})
    finally:
        sink.close()
    names = known_names(settings)
    return {
        name: {"create": mask_literals(create, names), "rows": total, "bytes": size}
        for name, create, total, size in rows
    }


def log_tail(settings: Settings, names: tuple[str, ...], lines_max: int) -> str:
    """The last lines of the log file, each masked."""
    path = settings.writer.logging.log_path
    if path is None:
        raise ReplicatorError("[logging] log_path is empty: the log went to stderr alone")
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - lines_max * 2_000))
        lines = file.read().decode(errors="replace").splitlines()[-lines_max:]
    return "\n".join(_masked_line(line, names) for line in lines) + "\n"


def _masked_line(line: str, names: tuple[str, ...]) -> str:
    try:
        fields = json.loads(line)
        return json.dumps(mask_fields(fields, names, SAFE_FIELDS))
    except (ValueError, AttributeError):
        return mask(line, names)
