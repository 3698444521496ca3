"""What an HTTP request asks of ClickHouse: its parameters, credentials and the status of its failure.

Pure. Every URL parameter that is not the interface's own is a setting and reaches the engine.
"""

from __future__ import annotations

import base64
import binascii
import hmac

from attrs import field, frozen
from starlette.requests import Request

from replicator.embedded.clickhouse_engine import Query, clickhouse_error, new_query_id
from replicator.embedded.http_codings import negotiate

_OWN = frozenset(
    {
        "query",
        "database",
        "default_format",
        "query_id",
        "user",
        "password",
        "quota_key",
        "session_id",
        "session_timeout",
        "session_check",
        "buffer_size",
        "wait_end_of_query",
        "client_protocol_version",
        "role",
        "compress",
        "decompress",
        "stacktrace",
    }
)
_BAD_REQUEST = {6, 7, 8, 10, 15, 25, 26, 27, 36, 38, 41, 44, 53, 62, 72, 117, 167, 168, 321, 427, 441, 675, 676, 1001}
_NOT_FOUND = {46, 47, 50, 56, 60, 63, 73, 78, 81, 113, 115, 136, 511, 536}
_STATUS = (
    {194: 401, 192: 403, 193: 403, 497: 403, 516: 403, 159: 408, 209: 503, 76: 503, 439: 503, 48: 501, 381: 411}
    | dict.fromkeys(_BAD_REQUEST, 400)
    | dict.fromkeys(_NOT_FOUND, 404)
)


def http_status(code: int) -> int:
    """The HTTP status of an error code. Source: ClickHouse, exceptionCodeToHTTPStatus.cpp."""
    return _STATUS.get(code, 500)


@frozen(kw_only=True)
class Demand:
    """A request's parameters, before its body is read."""

    statement: bytes
    query_id: str
    database: str
    output_format: str
    coding: str | None
    settings: dict[str, str] = field(factory=dict)
    parameters: dict[str, str] = field(factory=dict)
    readonly: bool = False

    def query(self, statement: str) -> Query:
        """The whole statement with everything that goes with it."""
        return Query(
            statement=statement,
            database=self.database,
            output_format=self.output_format,
            settings=self.settings,
            parameters=self.parameters,
            readonly=self.readonly,
        )


def demand_of(request: Request) -> Demand:
    """Read a request's URL and headers."""
    values = dict(request.query_params)
    headers = request.headers
    settings = {name: value for name, value in values.items() if name not in _OWN and not name.startswith("param_")}
    compressed = settings.get("enable_http_compression", "0") not in ("0", "false", "")
    return Demand(
        statement=values.get("query", "").encode("utf-8", "surrogateescape"),
        query_id=values.get("query_id") or headers.get("x-clickhouse-query-id") or new_query_id(),
        database=values.get("database") or headers.get("x-clickhouse-database", ""),
        output_format=values.get("default_format") or headers.get("x-clickhouse-format", "TabSeparated"),
        coding=negotiate(headers.get("accept-encoding", "")) if compressed else None,
        settings=settings,
        parameters={name[6:]: value for name, value in values.items() if name.startswith("param_")},
        readonly=request.method in ("GET", "HEAD"),
    )


@frozen(kw_only=True)
class Credentials:
    """The one user that the front lets in."""

    user: str
    password: str = field(repr=False)

    def check(self, request: Request) -> None:
        """Raise ClickHouse's error unless the request carries these credentials."""
        user, password = _presented(request)
        same_user = hmac.compare_digest(user.encode(), self.user.encode())
        if same_user & hmac.compare_digest(password.encode(), self.password.encode()):
            return
        message = f"{user}: Authentication failed: password is incorrect, or there is no user with such name."
        raise clickhouse_error(516, "AUTHENTICATION_FAILED", message)


def _presented(request: Request) -> tuple[str, str]:
    headers, values = request.headers, request.query_params
    if "x-clickhouse-user" in headers or "x-clickhouse-key" in headers:
        return headers.get("x-clickhouse-user") or "default", headers.get("x-clickhouse-key", "")
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            user, _, password = base64.b64decode(token, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return "", ""
        return user or "default", password
    return values.get("user") or "default", values.get("password", "")
