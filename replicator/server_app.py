"""The HTTP application: health, metrics, and the commands' verbs under ``/api/v1``.

Guarantees: each error is ``{"error": {kind, message, hint}}`` with the status that fits; reading needs the read or the
admin token, changing the admin token. ``/livez`` and ``/readyz`` tell nothing and are open; ``/metrics`` is open on
loopback, elsewhere it needs the read token. A route holds no logic: see `operations` and `status_live`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

import structlog
from attrs import frozen
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from replicator.config.checks import is_loopback
from replicator.config.values import BATCH_ROWS_MAX
from replicator.errors import (
    ConfigError,
    DatabaseUnavailable,
    OutcomeUnknown,
    ReplicatorError,
    SinkRefused,
    SinkUnavailable,
    SourceRefused,
    SourceUnavailable,
    UsageError,
)
from replicator.operations import LIST_MAX, Operations, Selection
from replicator.server_guard import error_body
from replicator.server_shapes import ERRORS, with_answers
from replicator.server_tokens import Tokens
from replicator.status import State, StatusReport

WAIT_SECONDS_MAX = 600.0
UNAVAILABLE = (SourceUnavailable, SourceRefused, SinkUnavailable, SinkRefused, OutcomeUnknown, DatabaseUnavailable)
STATUS_NAMES = {
    400: "usage",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "wrong_method",
    408: "too_slow",
    406: "not_acceptable",
    413: "too_large",
    422: "malformed",
    503: "unavailable",
}
_ACTOR = re.compile(r"[^\w.@:+-]+")

log = structlog.get_logger(__name__)


Given = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]


class Doors:
    """Who may pass: dependencies for routes."""

    def __init__(self, tokens: Callable[[], Tokens]) -> None:
        self._tokens = tokens

    def _role(self, request: Request, credentials: Given) -> str:
        role = self._tokens().role(credentials.credentials) if credentials else None
        if role is None:
            raise HTTPException(401, "a token is needed" if credentials is None else "the token is not known")
        _only_described(request)
        return role

    def read(self, request: Request, given: Given) -> str:
        """Any of the two tokens."""
        return self._role(request, given)

    def admin(self, request: Request, given: Given) -> str:
        """The admin token."""
        role = self._role(request, given)
        if role != "admin":
            raise HTTPException(403, "the read token may not change anything")
        return role


def _only_described(request: Request) -> None:
    """Refuse a parameter that the verb does not have: a mistyped filter must not mean everything."""
    path, known = request.url.path, {field.alias for field in request.scope["route"].dependant.query_params}
    unknown = sorted(set(request.query_params) - known) if path.startswith("/api/") else []
    if unknown:
        raise HTTPException(422, f"query: {path} has no parameter {unknown[0][:100]!r}")


@frozen(kw_only=True)
class Face:
    """What the application needs of the service."""

    host: str
    tokens: Callable[[], Tokens]
    version: str
    instance_id: str
    pipeline: str
    operations: Operations
    report: Callable[[], StatusReport]
    latest: Callable[[], StatusReport | None]
    metrics: Callable[[], bytes] | None = None
    parts: tuple[Callable[[Doors], APIRouter], ...] = ()
    """Further parts of the interface, each made by a module of its own: see `running.PARTS`."""


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class SyncRequest(Body):
    timeout_seconds: float = Field(default=60.0, ge=0, le=WAIT_SECONDS_MAX)
    batch_rows_max: int | None = Field(
        default=None, ge=1, le=BATCH_ROWS_MAX, description="At most so many rows in a batch that is not frozen yet."
    )


class SubjectRequest(Body):
    """``capture``, ``deliver``, or a table's name."""

    subject: str = Field(min_length=1, max_length=200)


class ChangeRequest(Body):
    """One of ``ids``, ``subject`` (a table or stream), ``older_than_seconds`` or ``all`` says which rows are meant."""

    ids: list[Annotated[int, Field(ge=1, lt=2**63)]] = Field(default_factory=list, max_length=LIST_MAX)
    subject: str | None = Field(default=None, min_length=1, max_length=512)
    older_than_seconds: float | None = Field(default=None, ge=0, le=1e10)
    all: bool = False

    def selection(self) -> Selection:
        return Selection(
            ids=tuple(dict.fromkeys(self.ids)),
            subject=self.subject,
            older_than_seconds=self.older_than_seconds,
            all=self.all,
        )


class RetryRequest(ChangeRequest):
    wait_seconds: float = Field(default=30.0, ge=0, le=WAIT_SECONDS_MAX)
    dry_run: bool = False


class RejectedRetryRequest(RetryRequest):
    """``as_new`` also logs what a newer change of its key has overtaken, as the newest."""

    as_new: bool = False


class DiscardRequest(ChangeRequest):
    reason: str = Field(min_length=1, max_length=2000)
    dry_run: bool = False


class AckRequest(ChangeRequest):
    note: str = Field(default="", max_length=2000)


Age = Annotated[float | None, Query(ge=0, le=1e10, description="Only what is at least so many seconds old.")]
Limit = Annotated[int, Query(ge=1, le=LIST_MAX)]
RowId = Annotated[int, Field(ge=1, lt=2**63)]
FailedState = Literal["open", "resolved", "discarded", "all"]
RejectedState = Literal["open", "resolved", "discarded", "all"]
GapState = Literal["open", "acknowledged", "all"]
Subject = Annotated[str | None, Query(max_length=512)]


def actor(request: Request) -> str:
    """Who asks, for the record: what the caller says of itself, never trusted for anything else."""
    return _ACTOR.sub("", request.headers.get("x-replicator-actor", ""))[:100] or "http"


Actor = Annotated[str, Depends(actor)]


def build_app(face: Face) -> FastAPI:
    """The application; everything it needs comes in ``face``."""
    app = FastAPI(
        title="replicator",
        version=face.version,
        summary="The local interface of a running replicator.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
    )
    doors = Doors(face.tokens)
    app.include_router(health_router(face, doors))
    app.include_router(api_router(face, doors))
    for part in face.parts:
        app.include_router(part(doors), responses=ERRORS)
    app.add_exception_handler(ReplicatorError, _ours)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _bug)
    plain = app.openapi
    app.openapi = lambda: app.openapi_schema or with_answers(plain())  # type: ignore[method-assign]
    return app


def health_router(face: Face, doors: Doors) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/livez", responses={503: {"description": "Part of it gives no sign of life: restart it."}})
    def livez() -> Response:
        """The process lives. ``service`` and ``instance_id`` say whose it is."""
        report = face.latest()
        alive = report is None or not report.hangs
        about = {"service": "replicator", "pipeline": face.pipeline, "instance_id": face.instance_id}
        return JSONResponse({**about, "alive": alive}, status_code=200 if alive else 503)

    @router.get("/readyz", responses={503: {"description": "It has failed, or has not begun."}})
    def readyz() -> Response:
        """Whether the pipeline works: 200 when ok or degraded, 503 when failed or not begun, with the kinds of reason."""
        report = face.latest()
        kinds = [] if report is None else list(dict.fromkeys(str(reason.kind) for reason in report.reasons))
        state = str(report.state) if report else "starting"
        ready = report is not None and report.state is not State.FAILED
        return JSONResponse({"state": state, "reasons": kinds}, status_code=200 if ready else 503)

    if face.metrics is not None:
        render = face.metrics
        open_to_all = [] if is_loopback(face.host) else [Depends(doors.read)]

        @router.get("/metrics", dependencies=open_to_all, response_class=PlainTextResponse)
        def metrics() -> Response:
            """For Prometheus."""
            return Response(render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def api_router(face: Face, doors: Doors) -> APIRouter:
    router = APIRouter(prefix="/api/v1", responses=ERRORS)
    reader, admin, ops = [Depends(doors.read)], [Depends(doors.admin)], face.operations

    @router.get("/status", dependencies=reader)
    def status() -> dict[str, Any]:
        """How the pipeline stands: the same as ``replicator status --json``."""
        return face.report().as_json()

    @router.post("/sync", dependencies=admin)
    def sync(body: SyncRequest, who: Actor) -> dict[str, Any]:
        """Deliver what is waiting, now."""
        return ops.sync(actor=who, timeout_seconds=body.timeout_seconds, batch_rows_max=body.batch_rows_max)

    @router.post("/pause", dependencies=admin)
    def pause(body: SubjectRequest, who: Actor) -> dict[str, Any]:
        """Pause capture, delivery or one table; pausing what is paused is success."""
        return ops.pause(body.subject, actor=who)

    @router.post("/resume", dependencies=admin)
    def resume(body: SubjectRequest, who: Actor) -> dict[str, Any]:
        """Resume what was paused."""
        return ops.resume(body.subject, actor=who)

    @router.get("/actions", dependencies=reader)
    def actions(limit: Limit = 100) -> list[dict[str, Any]]:
        """What operators have asked for, newest first."""
        return ops.actions(limit=limit)

    _add_failed(router, ops, reader, admin)
    _add_rejected(router, ops, reader, admin)
    _add_gaps(router, ops, reader, admin)
    return router


def _add_failed(router: APIRouter, ops: Operations, reader: list[Any], admin: list[Any]) -> None:
    @router.get("/failed", dependencies=reader)
    def failed(
        status: FailedState = "open", table: Subject = None, older_than_seconds: Age = None, limit: Limit = 1000
    ) -> list[dict[str, Any]]:
        """Ranges that could not be delivered."""
        return ops.failed(_listed(status, table, older_than_seconds, limit))

    @router.get("/failed/{failed_id}", dependencies=reader)
    def failed_show(failed_id: RowId) -> dict[str, Any]:
        """One of them, with copies of refused changes."""
        return ops.failed_show(failed_id)

    @router.post("/failed/retry", dependencies=admin)
    def failed_retry(body: RetryRequest, who: Actor) -> dict[str, Any]:
        """Send parked ranges again now."""
        return ops.failed_retry(body.selection(), actor=who, wait_seconds=body.wait_seconds, dry_run=body.dry_run)

    @router.post("/failed/discard", dependencies=admin)
    def failed_discard(body: DiscardRequest, who: Actor) -> dict[str, Any]:
        """Give parked ranges up; they stay on record."""
        return ops.failed_discard(body.selection(), actor=who, reason=body.reason, dry_run=body.dry_run)


def _add_rejected(router: APIRouter, ops: Operations, reader: list[Any], admin: list[Any]) -> None:
    @router.get("/rejected", dependencies=reader)
    def rejected(
        status: RejectedState = "open", stream: Subject = None, older_than_seconds: Age = None, limit: Limit = 1000
    ) -> list[dict[str, Any]]:
        """Entries that could not be logged."""
        return ops.rejected(_listed(status, stream, older_than_seconds, limit))

    @router.get("/rejected/{rejected_id}", dependencies=reader)
    def rejected_show(rejected_id: RowId) -> dict[str, Any]:
        """One of them, with its fields and raw bytes."""
        return ops.rejected_show(rejected_id)

    @router.post("/rejected/retry", dependencies=admin)
    def rejected_retry(body: RejectedRetryRequest, who: Actor) -> dict[str, Any]:
        """Decode rejected entries again and log those that fit by now."""
        more = {"as_new": body.as_new, "dry_run": body.dry_run, "wait_seconds": body.wait_seconds}
        return ops.rejected_retry(body.selection(), actor=who, **more)

    @router.post("/rejected/discard", dependencies=admin)
    def rejected_discard(body: DiscardRequest, who: Actor) -> dict[str, Any]:
        """Close rejected entries; their bytes stay on record."""
        return ops.rejected_discard(body.selection(), actor=who, reason=body.reason, dry_run=body.dry_run)


def _add_gaps(router: APIRouter, ops: Operations, reader: list[Any], admin: list[Any]) -> None:
    @router.get("/gaps", dependencies=reader)
    def gaps(status: GapState = "open", stream: Subject = None, limit: Limit = 1000) -> list[dict[str, Any]]:
        """Entries that left Redis before they were read."""
        return ops.gaps(_listed(status, stream, None, limit))

    @router.post("/gaps/ack", dependencies=admin)
    def gaps_ack(body: AckRequest, who: Actor) -> dict[str, Any]:
        """Acknowledge gaps: the status is no longer red for them."""
        return ops.gaps_ack(body.selection(), actor=who, note=body.note)


def _listed(status: str, subject: str | None, older_than_seconds: float | None, limit: int) -> Selection:
    wanted = None if status == "all" else status
    return Selection(status=wanted, subject=subject, older_than_seconds=older_than_seconds, limit=limit)


# ── errors ──


def _respond(status: int, kind: str, message: str, hint: str = "", headers: Any = None) -> JSONResponse:
    return JSONResponse(error_body(kind, message, hint), status_code=status, headers=headers)


async def _ours(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ReplicatorError)
    kind = re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()
    if isinstance(error, UsageError | ConfigError):
        missing = error.code == "not_found"
        return _respond(404 if missing else 400, "not_found" if missing else kind, error.message, error.hint)
    return _respond(503 if isinstance(error, UNAVAILABLE) else 500, kind, error.message, error.hint)


async def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    hint = ""
    if error.status_code == 401:
        headers["WWW-Authenticate"] = "Bearer"
        hint = "send `Authorization: Bearer TOKEN`; generated tokens lie beside the database"
    kind = STATUS_NAMES.get(error.status_code, "refused")
    return _respond(error.status_code, kind, str(error.detail), hint, headers)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = [f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()[:10]]
    return _respond(422, "malformed", "; ".join(found), "see /api/v1/openapi.json")


async def _bug(request: Request, error: Exception) -> JSONResponse:
    log.error("request_failed", path=request.url.path, error=repr(error), exc_info=error)
    return _respond(500, "bug", "this is a fault of ours; the service's log has the details")
