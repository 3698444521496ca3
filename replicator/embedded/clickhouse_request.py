"""What an HTTP request asks of ClickHouse: its parameters, credentials and the status of its failure.

Pure. Every URL parameter that is not the interface's own is a setting and reaches the engine.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import uuid
from collections.abc import Sequence
from urllib.parse import parse_qsl

from attrs import field, frozen
from starlette.requests import Request

from replicator.embedded.clickhouse_engine import Query, clickhouse_error
from replicator.embedded.clickhouse_form import TABLE_SUFFIXES, ExternalTable, Form, described_table
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
        "stacktrace",
    }
)
_CODING = ("compress", "decompress")
_BAD_REQUEST = {6, 7, 8, 10, 15, 25, 26, 27, 36, 38, 41, 44, 53, 62, 72, 117, 167, 168, 321, 427, 441, 675, 676, 1001}
_NOT_FOUND = {46, 47, 50, 56, 60, 63, 73, 78, 81, 113, 115, 136, 511, 536}
_STATUS = (
    {194: 401, 192: 403, 193: 403, 497: 403, 516: 403, 159: 408, 209: 503, 76: 503, 439: 503, 48: 501, 381: 411}
    | dict.fromkeys(_BAD_REQUEST, 400)
    | dict.fromkeys(_NOT_FOUND, 404)
)


_CONTENT_TYPES = {
    "Arrow": "application/vnd.apache.arrow.file",
    "ArrowStream": "application/vnd.apache.arrow.stream",
    "CSV": "text/csv; charset=UTF-8; header=absent",
    "CSVWithNames": "text/csv; charset=UTF-8; header=present",
    "JSON": "application/json; charset=UTF-8",
    "JSONCompact": "application/json; charset=UTF-8",
    "JSONEachRow": "application/x-ndjson; charset=UTF-8",
    "Native": "application/octet-stream",
    "Parquet": "application/octet-stream",
    "RowBinary": "application/octet-stream",
    "TSV": "text/tab-separated-values; charset=UTF-8",
    "TabSeparated": "text/tab-separated-values; charset=UTF-8",
}


def content_type(format_name: str) -> str:
    """The media type ClickHouse gives to an output format."""
    return _CONTENT_TYPES.get(format_name, "text/plain; charset=UTF-8")


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
    waits: bool
    settings: dict[str, str] = field(factory=dict)
    parameters: dict[str, str] = field(factory=dict)
    readonly: bool = False

    def check(self) -> None:
        """Raise ClickHouse's error for a parameter that cannot reach the engine or would be ignored."""
        for name, value in self.parameters.items():
            if not (name.isidentifier() and _is_text(value)):
                raise clickhouse_error(36, "BAD_ARGUMENTS", f"Cannot read query parameter {_shown(name)}")
        for name in _CODING:
            if self.settings.get(name, "0") not in ("0", "false"):
                message = f"The embedded ClickHouse does not know {name}=1; use Content-Encoding and Accept-Encoding"
                raise clickhouse_error(48, "NOT_IMPLEMENTED", message)

    def query(self, statement: bytes, first_word: str, externals: Sequence[ExternalTable] = ()) -> Query:
        """The whole statement with everything that goes with it."""
        return Query(
            statement=statement,
            first_word=first_word,
            query_id=self.query_id,
            database=self.database,
            output_format=self.output_format,
            settings={name: value for name, value in self.settings.items() if name not in _CODING},
            parameters=self.parameters,
            readonly=self.readonly,
            externals=externals,
        )


def demand_of(request: Request, form: Form | None = None) -> Demand:
    """Read a request's URL and headers, and its form where it has one."""
    values = _url_values(request) | (form.fields if form else {})
    headers = request.headers
    own = _OWN | {name + suffix for name in (form.files if form else ()) for suffix in TABLE_SUFFIXES}
    settings = {name: value for name, value in values.items() if name not in own and not name.startswith("param_")}
    compressed = settings.get("enable_http_compression", "0") not in ("0", "false", "")
    return Demand(
        statement=values.get("query", "").encode("utf-8", "surrogateescape"),
        query_id=values.get("query_id") or str(uuid.uuid4()),
        database=values.get("database") or headers.get("x-clickhouse-database", ""),
        output_format=values.get("default_format") or headers.get("x-clickhouse-format", "TabSeparated"),
        coding=negotiate(headers.get("accept-encoding", "")) if compressed else None,
        waits=values.get("wait_end_of_query", "0") not in ("0", "false", ""),
        settings=settings,
        parameters={name[6:]: value for name, value in values.items() if name.startswith("param_")},
        readonly=request.method in ("GET", "HEAD"),
    )


def external_table(request: Request, name: str, path: str) -> ExternalTable:
    """The table that a form's file ``name``, now at ``path``, brings along."""
    return described_table(name, path, _url_values(request))


def _is_text(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _shown(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _url_values(request: Request) -> dict[str, str]:
    """The URL's parameters; bytes that are not UTF-8 are kept."""
    pairs = parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True, errors="surrogateescape")
    return dict(pairs)


@frozen(kw_only=True)
class Credentials:
    """The one user that the front lets in."""

    user: str
    password: str = field(repr=False)

    def check(self, request: Request) -> None:
        """Raise ClickHouse's error unless the request carries these credentials."""
        user, password = _presented(request)
        same_user = hmac.compare_digest(user, self.user.encode())
        if same_user & hmac.compare_digest(password, self.password.encode()):
            return
        name = user.decode(errors="backslashreplace")
        message = f"{name}: Authentication failed: password is incorrect, or there is no user with such name."
        if not password:
            raise clickhouse_error(194, "REQUIRED_PASSWORD", message)
        raise clickhouse_error(516, "AUTHENTICATION_FAILED", message)


def _presented(request: Request) -> tuple[bytes, bytes]:
    """User and password, by header, basic authorization or URL, in ClickHouse's order."""
    headers = dict(request.scope["headers"])
    if b"x-clickhouse-user" in headers or b"x-clickhouse-key" in headers:
        user = headers.get(b"x-clickhouse-user", b"")
        if not user:
            message = "Got an empty user name from X-ClickHouse HTTP headers."
            raise clickhouse_error(516, "AUTHENTICATION_FAILED", message)
        return user, headers.get(b"x-clickhouse-key", b"")
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"basic":
        try:
            user, _, password = base64.b64decode(token, validate=True).partition(b":")
        except binascii.Error as error:
            raise clickhouse_error(516, "AUTHENTICATION_FAILED", "Invalid basic authorization.") from error
        return user or b"default", password
    values = _url_values(request)
    user_text, password_text = values.get("user") or "default", values.get("password", "")
    return user_text.encode("utf-8", "surrogateescape"), password_text.encode("utf-8", "surrogateescape")
