"""One configuration value judged by itself: its type first, then its bounds.

Every check takes the raw value and returns the value to use, or raises :class:`WrongValueError` with what is wrong and what
to write instead. Nothing is coerced: ``"12"`` is not 12, ``true`` is not 1, ``1.5`` is not 1.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from attrs import frozen

Check = Callable[[Any], Any]

TEXT_LENGTH_MAX = 4096
ID_PART_MAX = 2**64 - 1
REDIS_URL_OPTIONS = re.compile(r"db|ssl_[a-z_]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_TYPE_NAMES = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a float",
    list: "an array",
    dict: "a table",
    datetime.datetime: "a date-time",
    datetime.date: "a date",
    datetime.time: "a time",
}


class WrongValueError(ValueError):
    """A value that cannot be used: what is wrong with it, and what to write instead."""

    def __init__(self, problem: str, remedy: str, *, at: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy
        self.at = at


@frozen(kw_only=True)
class PathText:
    """A path as written, where a relative one starts, and the environment variable that replaces it."""

    written: Any
    base: Path
    variable: str | None = None


def type_name(value: Any) -> str:
    return _TYPE_NAMES.get(type(value), type(value).__name__)


def _expect(value: Any, kind: type, what: str) -> None:
    if type(value) is not kind:
        raise WrongValueError(f"is {type_name(value)}", f"write {what}")


def text(
    *, one_of: Collection[str] = (), pattern: str | None = None, what: str = "a string in quotes", empty: bool = False
) -> Check:
    """A string without control characters; one of a closed set, or matching a pattern that ``what`` describes."""
    wanted = "one of " + ", ".join(f'"{choice}"' for choice in one_of) if one_of else what

    def check(value: Any) -> str:
        _expect(value, str, wanted)
        if not value and not empty:
            raise WrongValueError("is empty", f"write {wanted}, or remove the key")
        if _CONTROL.search(value) or len(value) > TEXT_LENGTH_MAX:
            raise WrongValueError("has control characters, is not UTF-8 or is too long", f"write {wanted}")
        if (one_of and value not in one_of) or (pattern and not re.fullmatch(pattern, value)):
            raise WrongValueError(f"is not {wanted}", f"write {wanted}")
        return value

    return check


def boolean(value: Any) -> bool:
    _expect(value, bool, "true or false")
    return value


def integer(low: int, high: int) -> Check:
    def check(value: Any) -> int:
        wanted = f"an integer from {low} to {high}"
        _expect(value, int, f"{wanted}, without quotes or a fraction")
        if not low <= value <= high:
            raise WrongValueError("is out of range", f"write {wanted}")
        return value

    return check


def number(low: float, high: float) -> Check:
    """An integer or a float, kept as written."""

    def check(value: Any) -> float:
        wanted = f"a number from {low} to {high}"
        if type(value) is not int:
            _expect(value, float, wanted)
        if not low <= value <= high:  # nan is neither
            raise WrongValueError("is out of range", f"write {wanted}")
        return value

    return check


def array(item: Check, *, what: str, unique: bool = False, items_min: int = 0) -> Check:
    """An array whose items each pass ``item``; the first bad one is named by its index."""

    def check(value: Any) -> tuple[Any, ...]:
        _expect(value, list, what)
        if len(value) < items_min:
            raise WrongValueError("is empty", f"write {what}")
        items = []
        for index, raw in enumerate(value):
            try:
                items.append(item(raw))
            except WrongValueError as wrong:
                raise WrongValueError(f"{wrong.problem} ({shown(raw)})", wrong.remedy, at=f"[{index}]") from None
            if unique and items[-1] in items[:-1]:
                raise WrongValueError(f"names {shown(raw)} twice", "name each once", at=f"[{index}]")
        return tuple(items)

    return check


def is_windows_path(value: Any) -> bool:
    return isinstance(value, str) and os.name != "nt" and bool(_WINDOWS_PATH.match(value))


def path(*, exists: bool = False, file: bool = False, empty_is_none: bool = False) -> Check:
    """A path, made absolute: relative ones start at the directory that holds the configuration directory."""

    def check(value: PathText) -> Path | None:
        written = value.written
        if written == "" and empty_is_none:
            return None
        text(what="a path in quotes")(written)
        if is_windows_path(written):
            here = f"set {value.variable} to a path of this machine" if value.variable else "write a path of this one"
            raise WrongValueError("is a Windows path, and this machine has none", here)
        if written == ":memory:" or "://" in written:
            raise WrongValueError("is not a file of this machine", "write the path of a file")
        try:
            found = value.base / Path(written).expanduser()
            if exists and not found.is_file():
                raise WrongValueError(f"names no file ({found})", "create it, or correct the path")
            if file and found.is_dir():
                raise WrongValueError("is a directory", "write the path of a file in it")
        except (OSError, RuntimeError) as error:
            raise WrongValueError(f"cannot be looked up ({error})", "write a path that exists here") from error
        return Path(os.path.normpath(found))

    return check


def is_loopback(host: str) -> bool:
    if host.rstrip(".").casefold() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_host(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return bool(_HOST.fullmatch(name))
    return True


def host(value: Any) -> str:
    what = 'an address such as "127.0.0.1" or a host name'
    text(what=what)(value)
    if not is_host(value):
        raise WrongValueError("is no address and no host name", f"write {what}")
    return value


def host_of(url: str) -> str:
    """The host that a checked URL names; empty for a unix socket."""
    return urlsplit(url).hostname or ""


def _split(value: Any, schemes: Collection[str], example: str) -> Any:
    text(what=f'an address such as "{example}"')(value)
    try:
        parts = urlsplit(value)
        bad = parts.scheme not in schemes or (parts.scheme != "unix" and not _host_and_port(parts))
    except ValueError:
        bad = True
    if bad or any(character.isspace() for character in value):
        raise WrongValueError(
            f"is not an address {' or '.join(f'{scheme}://…' for scheme in schemes)}", f'write "{example}"'
        )
    return parts


def _host_and_port(parts: Any) -> bool:
    return parts.port != 0 and bool(parts.hostname) and is_host(parts.hostname)


def http_url(example: str, *, with_path: bool = False) -> Check:
    """``http://host:port`` or ``https://host:port``, without credentials; a path only where the receiver has one."""

    def check(value: Any) -> str:
        parts = _split(value, ("http", "https"), example)
        if "@" in parts.netloc:
            raise WrongValueError("carries credentials", "move them to secrets.toml or the environment")
        if parts.query or parts.fragment or (not with_path and parts.path not in ("", "/")):
            raise WrongValueError("carries more than scheme, host and port", f'write "{example}"')
        return value if with_path else value.rstrip("/")

    return check


def redis_url(value: Any) -> str:
    """``redis://``, ``rediss://`` (TLS) or ``unix://``; options only ``db`` and ``ssl_…``."""
    example = "redis://127.0.0.1:6379"
    parts = _split(value, ("redis", "rediss", "unix"), example)
    if parts.scheme != "unix" and not re.fullmatch(r"/?\d{0,4}", parts.path):
        raise WrongValueError("has a path that is not a database number", f'write "{example}/0"')
    if parts.scheme == "unix" and not parts.path.strip("/"):
        raise WrongValueError("names no socket", 'write "unix:///run/redis.sock"')
    unknown = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True) if not REDIS_URL_OPTIONS.match(name)]
    if unknown:
        raise WrongValueError(f"has options we do not pass on ({', '.join(unknown)})", "keep only db and ssl_… options")
    return value


def start_position(value: Any) -> str:
    """Where a stream is read from when it is first seen: ``oldest``, ``newest``, or the entry id to read after.

    A time becomes the id just before it, so that entries of that very millisecond are read.
    """
    what = '"oldest", "newest", an entry id such as "1700000000000-0", or a time such as "2024-05-01T00:00:00Z"'
    if isinstance(value, datetime.date):  # a datetime is one, too
        return _before(value)
    text(what=what)(value)
    if value in ("oldest", "newest"):
        return value
    if match := re.fullmatch(r"(\d{1,20})(?:-(\d{1,20}))?", value, re.ASCII):
        milliseconds, sequence = int(match[1]), int(match[2] or 0)
        if max(milliseconds, sequence) > ID_PART_MAX:
            raise WrongValueError("is beyond the largest entry id", f"write {what}")
        return f"{milliseconds}-{sequence}"
    try:
        return _before(datetime.datetime.fromisoformat(value))
    except ValueError:
        raise WrongValueError("is no position in a stream", f"write {what}") from None


def _before(moment: datetime.date) -> str:
    if not isinstance(moment, datetime.datetime):
        moment = datetime.datetime.combine(moment, datetime.time())
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    milliseconds = (moment - epoch) // datetime.timedelta(milliseconds=1)
    return f"{milliseconds - 1}-{ID_PART_MAX}" if milliseconds > 0 else "oldest"


def column_types(value: Any) -> Mapping[str, str | dict[str, Any]]:
    """Column names with what was written for each: a type, or a table that holds one. Not parsed here."""
    what = 'columns as name = "TYPE", or name = { type = "TYPE", … }'
    _expect(value, dict, what)
    for name, declared in value.items():
        column_name(name)
        if type(declared) not in (str, dict):
            raise WrongValueError(f"is {type_name(declared)}", f"write {what}", at=f".{shown_key(name)}")
    folded = [name.casefold() for name in value]
    if twice := {name for name in folded if folded.count(name) > 1}:
        raise WrongValueError(f"names {', '.join(sorted(twice))} twice (case does not count)", "rename one")
    return value


def column_name(value: Any) -> str:
    text(what="a column name in quotes")(value)
    if value.startswith("_"):
        raise WrongValueError(
            f"column {shown(value)} begins with an underscore, as only our own do", "rename it, or leave it undeclared"
        )
    if len(value) > 120 or not re.fullmatch(r"[^\W_][\w -]*", value):
        raise WrongValueError(
            f"column {shown(value)} is not a plain name",
            "use letters, digits, underscore, space and hyphen, at most 120; leave others undeclared",
        )
    return value


def shown(value: Any) -> str:
    """A value as TOML would write it, shortened; never the inside of a table."""
    if type(value) is str:
        short = value if len(value) <= 80 else value[:77] + "…"
        escaped = _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", short)
        return f'"{escaped}"'
    if type(value) is bool:
        return str(value).lower()
    if type(value) is int:
        return str(value) if abs(value) < 10**40 else "a very large integer"
    if type(value) is list:
        return f"an array of {len(value)}"
    return "a table" if type(value) is dict else str(value)


def shown_key(key: str) -> str:
    return key if re.fullmatch(r"[\w-]{1,60}", key) else shown(key)


def without_credentials(url: str) -> str:
    """A URL, or what was meant for one, with everything that could be a password hidden."""
    scheme = re.match(r"\w+://", url)
    if "@" in url:
        url = (scheme[0] if scheme else "") + "***@" + url.rpartition("@")[2]
    return re.sub(r"(?i)([?&][^=&]*(?:pass|user|token|secret)[^=&]*)=[^&]*", r"\1=***", url)
