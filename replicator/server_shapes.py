"""What each verb of the HTTP interface answers, for its own description (`/api/v1/openapi.json`).

Guarantees: says what is there, and never stands between an answer and its reader: nothing is checked or dropped while
answering. `tests/integration/test_server_described.py` holds real answers against it. Fields may be added to answers.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any

import attrs
from pydantic import BaseModel, TypeAdapter

from replicator.status import State, StatusReport

REFERENCE = "#/components/schemas/{model}"
Schema = dict[str, Any]


class ErrorFields(BaseModel):
    kind: str
    message: str
    hint: str | None


class ErrorAnswer(BaseModel):
    error: ErrorFields


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in (
        (400, "The request makes no sense."),
        (401, "No token, or an unknown one."),
        (403, "The token may not do this, or the call comes from another origin."),
        (404, "There is no such thing."),
        (408, "The body did not come in time."),
        (413, "The body is too large."),
        (421, "Called by a name that is not this service's."),
        (422, "The request has another form than described."),
        (503, "Something that is needed does not answer."),
    )
}


class Action(BaseModel):
    id: int
    asked_at: str
    actor: str
    action: str
    subject: str | None
    effect: str | None


class Failed(BaseModel):
    id: int
    table: str
    first_offset: int
    last_offset: int
    row_count: int
    reason: str
    error_code: int | None
    error_column: str | None
    error_message: str | None
    attempts: int
    first_failed_at: str
    last_failed_at: str | None
    status: str
    note: str | None


class FailedShown(Failed):
    sentence: str | None
    changes: list[dict[str, Any]]


class Rejected(BaseModel):
    id: int
    stream: str
    stream_epoch: int
    entry_id: str
    entry_row: int | None
    reason: str
    rejected_at: str
    status: str
    kept: str | None = None


class RejectedShown(Rejected):
    fields: list[dict[str, str]] | None
    raw_base64: str


class Gap(BaseModel):
    id: int
    stream: str
    after_entry_id: str | None
    before_entry_id: str | None
    entries_lost: int | None
    cause: str
    found_at: str
    status: str


class Switched(BaseModel):
    subject: str
    paused: bool
    changed: bool
    all_paused: list[str]


class Synced(BaseModel):
    delivered: bool
    head_offset: int
    from_offset: int
    checkpoint_offset: int
    seconds: float
    parked_rows: int
    waits_for: str | None


class FailedChanged(BaseModel):
    dry_run: bool
    failed: list[Failed]
    requested: int | None = None
    """How many are sent again for this; the others were waiting for that already."""
    resolved: int | None = None
    discarded: int | None = None


class RejectedChanged(BaseModel):
    dry_run: bool
    rejected: list[Rejected]
    logged: int | None = None
    discarded: int | None = None


class GapsAcknowledged(BaseModel):
    gaps: list[Gap]
    acknowledged: int


class Alive(BaseModel):
    service: str
    pipeline: str
    instance_id: str
    alive: bool


class Ready(BaseModel):
    state: str
    reasons: list[str]


ANSWERS: Mapping[tuple[str, str], Any] = {
    ("get", "/livez"): Alive,
    ("get", "/readyz"): Ready,
    ("get", "/api/v1/actions"): list[Action],
    ("post", "/api/v1/sync"): Synced,
    ("post", "/api/v1/pause"): Switched,
    ("post", "/api/v1/resume"): Switched,
    ("get", "/api/v1/failed"): list[Failed],
    ("get", "/api/v1/failed/{failed_id}"): FailedShown,
    ("post", "/api/v1/failed/retry"): FailedChanged,
    ("post", "/api/v1/failed/discard"): FailedChanged,
    ("get", "/api/v1/rejected"): list[Rejected],
    ("get", "/api/v1/rejected/{rejected_id}"): RejectedShown,
    ("post", "/api/v1/rejected/retry"): RejectedChanged,
    ("post", "/api/v1/rejected/discard"): RejectedChanged,
    ("get", "/api/v1/gaps"): list[Gap],
    ("post", "/api/v1/gaps/ack"): GapsAcknowledged,
}


def with_answers(described: Schema) -> Schema:
    """The description with what each verb answers; changed in place."""
    shapes = described["components"]["schemas"]
    for (method, path), kind in ANSWERS.items():
        schema = TypeAdapter(kind).json_schema(ref_template=REFERENCE, mode="serialization")
        shapes.update(schema.pop("$defs", {}))
        _set(described, method, path, schema)
    _set(described, "get", "/api/v1/status", _status(shapes))
    return described


def _set(described: Schema, method: str, path: str, schema: Schema) -> None:
    described["paths"][path][method]["responses"]["200"]["content"]["application/json"] = {"schema": schema}


# ── the status report, from its own classes ──

INNER = {"notes", "sync_interval_seconds"}
"""What `StatusReport.as_json` leaves out."""


def _status(shapes: Schema) -> Schema:
    texts = {"type": "array", "items": {"type": "string"}}
    more = {"state": {"enum": [str(state) for state in State]}, "reasons": texts, "reason_kinds": texts}
    report = _fields(StatusReport, shapes)
    report["properties"] = {**more, **report["properties"]}
    report["required"] = list(report["properties"])
    shapes["StatusReport"] = report
    return {"$ref": REFERENCE.format(model="StatusReport")}


def _fields(kind: type, shapes: Schema) -> Schema:
    hints = typing.get_type_hints(kind)
    names = [field.name for field in attrs.fields(kind) if field.name not in INNER]
    properties = {name: _shape(hints[name], shapes) for name in names}
    return {"type": "object", "description": kind.__doc__ or "", "properties": properties, "required": names}


_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def _shape(kind: Any, shapes: Schema) -> Schema:
    """The JSON of a type as the status report uses them."""
    outer, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind in _PLAIN:
        shape: Schema = {"type": _PLAIN[kind]}
    elif outer in (types.UnionType, typing.Union):
        shape = {"anyOf": [_shape(each, shapes) for each in inner]}
    elif outer is not None and issubclass(outer, Mapping):
        shape = {"type": "object", "additionalProperties": _shape(inner[1], shapes)}
    elif outer is not None:
        shape = {"type": "array", "items": _shape(inner[0], shapes)}
    elif attrs.has(kind):
        shapes[kind.__name__] = _fields(kind, shapes)
        shape = {"$ref": REFERENCE.format(model=kind.__name__)}
    else:
        shape = {"enum": [str(value) for value in kind]}
    return shape
