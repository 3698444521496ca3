"""What is written where: the TOML files, ``.env``, the environment and mounted secrets, read but not yet judged.

The only reader of all of them. It never changes the environment, never shows a secret, and collects every problem it
meets in :class:`Findings` instead of stopping at the first.
"""

from __future__ import annotations

import difflib
import io
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tomli
from attrs import Factory, define, frozen
from dotenv.parser import parse_stream

from replicator.config.checks import shown

FILE_BYTES_MAX = 1_000_000

WRITER_FILE = "duckdb_rust_config.toml"
READER_FILE = "duckdb_python_config.toml"
PIPELINE_FILE = "replicator.toml"
SECRETS_FILE = "secrets.toml"
DOTENV_FILE = ".env"


@frozen(kw_only=True)
class Variable:
    """An environment variable and the key it overrides. A ``secret`` one also has a ``…_FILE`` form."""

    name: str
    files: tuple[str, ...]
    section: str
    key: str
    secret: bool = False


def _secret(name: str, section: str, key: str, file: str = SECRETS_FILE) -> Variable:
    return Variable(name=name, files=(file,), section=section, key=key, secret=True)


VARIABLES = (
    Variable(name="DUCKDB_PATH", files=(WRITER_FILE, READER_FILE), section="database", key="path"),
    Variable(name="CLICKHOUSE_ENDPOINT", files=(WRITER_FILE, READER_FILE), section="sync", key="clickhouse_endpoint"),
    Variable(name="DUCKDB_RUST_LOG", files=(WRITER_FILE,), section="logging", key="log_path"),
    Variable(name="DUCKDB_PYTHON_LOG", files=(READER_FILE,), section="logging", key="log_path"),
    _secret("REDIS_URL", "redis", "url", PIPELINE_FILE),
    _secret("REDIS_USERNAME", "redis", "username"),
    _secret("REDIS_PASSWORD", "redis", "password"),
    _secret("CLICKHOUSE_USER", "auth", "clickhouse_user"),
    _secret("CLICKHOUSE_PASSWORD", "auth", "clickhouse_password"),
    _secret("REPLICATOR_ADMIN_TOKEN", "serve", "admin_token"),
    _secret("REPLICATOR_READ_TOKEN", "serve", "read_token"),
)
"""Every environment variable there is. An empty one counts as unset."""


_CONFIDENTIAL = (
    "REDIS_URL",
    "REDIS_PASSWORD",
    "CLICKHOUSE_PASSWORD",
    "REPLICATOR_ADMIN_TOKEN",
    "REPLICATOR_READ_TOKEN",
)


def variable_for(file: str, section: str, key: str) -> Variable | None:
    return next((v for v in VARIABLES if file in v.files and (section, key) == (v.section, v.key)), None)


@frozen(kw_only=True)
class Layer:
    """One set of variables: what ``check`` calls it, how an error names it, and what it holds."""

    source: str
    place: str
    values: Mapping[str, str]


@define(kw_only=True)
class Findings:
    """What one reading of the configuration met: problems (all of them), warnings, and the keys that are wrong."""

    problems: list[str] = Factory(list)
    warnings: list[str] = Factory(list)
    wrong: set[tuple[str, str, str]] = Factory(set)


@frozen(kw_only=True)
class Sourced:
    """A raw value, the layer it came from (as ``check`` shows it) and its place (as an error names it)."""

    value: Any
    source: str
    place: str


@frozen(kw_only=True)
class Document:
    """One TOML file: its name, where it lies, and its top-level tables; empty when the file is absent."""

    file: str
    path: Path
    tables: Mapping[str, Any]
    absent: bool = False


def read_text(path: Path, findings: Findings) -> str | None:
    """A small regular UTF-8 file, or None with the problem recorded."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            kind = "a directory" if path.is_dir() else "not a regular file"
            findings.problems.append(f"{path}: is {kind}; put a file in its place, or remove it")
            return None
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        findings.problems.append(f"{path}: cannot be read: {reason}; make it readable for this user, or remove it")
        return None
    if len(raw) > FILE_BYTES_MAX:
        findings.problems.append(f"{path}: is larger than {FILE_BYTES_MAX} bytes; this is no configuration file")
        return None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        findings.problems.append(f"{path}: is not UTF-8 at line {line} (byte {error.start}); save it as UTF-8")
        return None


def read_document(path: Path, findings: Findings) -> Document:
    """One TOML file. A missing one is empty; a broken one too, with its line and column among the problems."""
    if not os.path.lexists(path):
        return Document(file=path.name, path=path, tables={}, absent=True)
    text = read_text(path, findings)
    tables: dict[str, Any] = {}
    if text is not None:
        try:
            tables = tomli.loads(text)
        except tomli.TOMLDecodeError as error:
            findings.problems.append(
                f"{path}: line {error.lineno}, column {error.colno}: is not TOML: {error.msg}; correct that line"
            )
        except (ValueError, RecursionError):
            findings.problems.append(f"{path}: holds a value too large or too deep to read; correct or remove it")
    return Document(file=path.name, path=path, tables=tables)


def read_secrets(path: Path, findings: Findings) -> Document:
    """``secrets.toml``, refused when anyone but its owner can use it."""
    document = read_document(path, findings)
    if not document.absent and (mode := _open_to_others(path)):
        findings.problems.append(f"{path}: other users can use it (mode {mode:04o}); run: chmod 600 {path}")
    return document


def _open_to_others(path: Path) -> int:
    """The file's mode when someone else has any right to it, else 0."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return 0  # whoever reads it next reports that it cannot be read
    return mode if os.name != "nt" and mode & 0o077 else 0


def read_variables(
    directory: Path, environ: Mapping[str, str], names: Iterable[str], findings: Findings
) -> dict[str, Sourced]:
    """The variables that are set, by name: the environment first, then ``.env`` in the directory and its parent."""
    layers = [Layer(source="env", place="environment variable", values=environ)]
    for folder in (directory, directory.parent):
        path = folder / DOTENV_FILE
        if os.path.lexists(path):
            layers.append(Layer(source=DOTENV_FILE, place=f"{path}", values=_read_dotenv(path, findings)))
    wanted = set(names)
    found = {}
    for variable in VARIABLES:
        if variable.name in wanted:
            values = (_variable(variable, layer, directory.parent, findings) for layer in layers)
            if value := next((value for value in values if value), None):
                found[variable.name] = value
    return found


def _variable(variable: Variable, layer: Layer, base: Path, findings: Findings) -> Sourced | None:
    """One layer's value of a variable, given directly or by the file its ``…_FILE`` form names."""
    name, by_file = variable.name, f"{variable.name}_FILE"
    direct, mounted = layer.values.get(name), layer.values.get(by_file) if variable.secret else None
    if direct and mounted:
        findings.problems.append(f"{layer.place} {name}: is set together with {by_file}; remove one of the two")
        return None
    used = name if direct else by_file
    place = f"{layer.place} {used}"
    value = direct or (mounted and _read_mounted(base / mounted, place, findings))
    source = layer.source if layer.source == DOTENV_FILE else f"{layer.source} {used}"
    return Sourced(value=value, source=source, place=place) if value else None


def _read_mounted(path: Path, where: str, findings: Findings) -> str | None:
    text = read_text(path, findings)
    if text is None:
        findings.problems[-1] = f"{where}: {findings.problems[-1]}"
        return None
    secret = text.removesuffix("\n").removesuffix("\r")
    if not secret:
        findings.problems.append(f"{where} = {shown(str(path))}: the file is empty; write the secret into it")
    if mode := _open_to_others(path):
        findings.warnings.append(f"{where} = {shown(str(path))}: other users can use this file (mode {mode:04o})")
    return secret


def _read_dotenv(path: Path, findings: Findings) -> dict[str, str]:
    """The assignments of one ``.env``, taken literally: a ``$`` in a password stays a ``$``."""
    text = read_text(path, findings)
    values: dict[str, str] = {}
    for binding in parse_stream(io.StringIO(text or "")):
        written = binding.original.string
        name, line = binding.key, binding.original.line + written[: -len(written.lstrip())].count("\n")
        if binding.error or (name and binding.value is None):
            findings.problems.append(f'{path}: line {line}: is not NAME="value"; correct or remove it')
        elif name and values.get(name, binding.value) != binding.value:
            findings.problems.append(f"{path}: line {line}: sets {name} again, to another value; keep one")
        elif name:
            values[name] = binding.value or ""
    _warn_of_near_names(path, values, findings)
    secrets = [name for name in _CONFIDENTIAL if values.get(name) and (name != "REDIS_URL" or "@" in values[name])]
    if secrets and (mode := _open_to_others(path)):
        findings.warnings.append(
            f"{path}: holds {', '.join(secrets)} and other users can use it (mode {mode:04o}); run: chmod 600 {path}"
        )
    return values


def _warn_of_near_names(path: Path, values: Mapping[str, str], findings: Findings) -> None:
    """Other programs may use the same ``.env``, so an unknown name is only remarked on where it nearly is one of ours."""
    known = [v.name for v in VARIABLES] + [f"{v.name}_FILE" for v in VARIABLES if v.secret]
    for name in values:
        close = difflib.get_close_matches(name[:60], known, n=1, cutoff=0.85)
        if close and name not in known:
            findings.warnings.append(f"{path} {name}: is not read; did you mean {close[0]}?")
