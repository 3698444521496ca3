"""Configuration that must be refused: each answer names the file, the key, the value and what to do, all at once."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from config_room import PIPELINE, PYTHON, RUST, SECRETS, Room, make_room
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replicator.config import Settings, load_settings
from replicator.config.resolve import SECTIONS
from replicator.config.templates import migrations_dir
from replicator.config.values import written_keys
from replicator.errors import ConfigError
from replicator.schema import table_schema

OURS = sorted(
    {
        *(
            name
            for file in (migrations_dir() / "duckdb").glob("*.sql")
            for name in re.findall(r"^create table (\w+)", file.read_text(), re.MULTILINE | re.IGNORECASE)
        ),
        "meta",
        "schema_migrations",
    }
)
"""The tables of the DuckDB file."""


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return make_room(tmp_path)


def test_every_problem_of_every_file_is_reported_at_once(room: Room) -> None:
    room.write(RUST, '[sync]\nbatch_size = "50"\nmax_retry_attempts = -1\n[databse]\n')
    room.write(PYTHON, "[database]\nread_only = 1\n")
    room.write(PIPELINE, '[serve]\nport = 99999\n[pipeline]\nname = "Ä"\n[[tables]]\nname = "t"\n')
    room.write(SECRETS, "[auth]\nclickhouse_pasword = 1\n", mode=0o640)
    room.write(".env", "DUCKDB_PATH\n")
    wanted = ("batch_size", "max_retry", "databse", "read_only", "port", "name =", "key: is missing", "pasword", "0640")
    problems = room.problems({"CLICKHOUSE_ENDPOINT": "clickhouse"})
    for part in (*wanted, ".env: line 1", "CLICKHOUSE_ENDPOINT"):
        assert any(part in problem for problem in problems), (part, problems)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("[database]\npaht = 'x'\n", ("[database] paht", '"x"', "did you mean path?")),
        ("[databse]\npath = 'x'\n", ("[databse]", "did you mean database?")),
        ("batch_size = 5\n", ("batch_size = 5", "outside any section", "[sync] of duckdb_rust_config.toml")),
        ("[logging]\nbatch_size = 5\n", ("[logging] batch_size = 5", "[sync] of duckdb_rust_config.toml")),
        ("[serve]\nport = 1\n", ("[serve]", "replicator.toml")),
        ("[zzz]\n", ("[zzz]", "the sections are: database, performance")),
        ("sync = 3\n", ("sync = 3", "an integer", "[sync] on a line of its own")),
        ("[sync]\nbatch_size = '12'\n", ("batch_size", '"12"', "is a string", "an integer from 1 to 100000")),
        ("[sync]\nbatch_size = true\n", ("batch_size = true", "is a boolean")),
        ("[sync]\nbatch_size = 1.5\n", ("batch_size = 1.5", "is a float")),
        ("[sync]\nbatch_size = 100001\n", ("batch_size = 100001", "out of range", "100000")),
        ("[sync]\nbatch_size = 0\n", ("batch_size = 0", "out of range")),
        ("[sync]\nsync_interval_sec = nan\n", ("sync_interval_sec = nan", "out of range")),
        ("[sync]\nsync_interval_sec = -inf\n", ("sync_interval_sec = -inf", "out of range")),
        ("[sync]\nbackup_interval_sec = '5'\n", ("[sync] backup_interval_sec", '"5"', "is a string")),
        (
            "[sync]\nbackup_interval_sec = 5\nsync_interval_sec = 6\n",
            ("backup_interval_sec = 5", "sync_interval_sec = 6", "keep sync_interval_sec"),
        ),
        ("[sync]\nmax_retry_attempts = 1e3\n", ("max_retry_attempts", "is a float")),
        ("[database]\nread_only = 'false'\n", ("read_only", '"false"', "true or false")),
        ("[database]\nread_only = true\n", ("read_only = true", "the service must write")),
        ("[database]\npath = ''\n", ("path", '""', "is empty")),
        ("[database]\npath = 5\n", ("path = 5", "is an integer")),
        ("[database]\npath = ':memory:'\n", ("path", ":memory:", "write the path of a file")),
        ("[database]\npath = 's3://bucket/x'\n", ("path", "s3://bucket/x", "not a file")),
        ("[database]\npath = 'config'\n", ("path", '"config"', "is a directory")),
        ("[database]\npath = '~nobodyatall/x'\n", ("path", "~nobodyatall", "cannot be looked up")),
        ('[database]\npath = "a\\u0000b"\n', ("path", "a\\u0000b", "control characters")),
        ("[logging]\nlog_path = 'data/replicator.duckdb'\n", ("log_path", "is the database itself")),
        ("[logging]\nlog_level = 'debug'\n", ("log_level", '"debug"', '"DEBUG"')),
        ("[performance]\nmax_threads = 0\n", ("max_threads = 0", "from 1 to 1024")),
        ("[performance]\ncache_size_mb = 0xffffffffffffffffffffffff\n", ("cache_size_mb", "out of range")),
        ("[error_handling]\nretry_backoff_sec = []\n", ("retry_backoff_sec", "is empty", "max_retry_attempts = 0")),
        ("[error_handling]\nretry_backoff_sec = 5\n", ("retry_backoff_sec = 5", "an array of seconds")),
        ("[error_handling]\nretry_backoff_sec = [5, '9']\n", ("retry_backoff_sec[1]", '"9"', "is a string")),
        ("[error_handling]\nretry_backoff_sec = [5, -1]\n", ("retry_backoff_sec[1]", "-1", "out of range")),
        (
            "[error_handling]\nfailed_sync_table = 'a b; drop'\n",
            ("failed_sync_table", "a b; drop", "a name of letters"),
        ),
        ("[error_handling]\nfailed_sync_table = 'Change_Log'\n", ("failed_sync_table", "Change_Log", "choose another")),
        ("[sync]\nclickhouse_endpoint = 'localhost:8123'\n", ("clickhouse_endpoint", "localhost:8123", "http://…")),
        ("[sync]\nclickhouse_endpoint = 'tcp://h:9000'\n", ("clickhouse_endpoint", "tcp://h:9000", "https://…")),
        ("[sync]\nclickhouse_endpoint = 'http://h:70000'\n", ("clickhouse_endpoint", "h:70000", "is not an address")),
        ("[sync]\nclickhouse_endpoint = 'http://h/?database=x'\n", ("clickhouse_endpoint", "more than scheme")),
    ],
)
def test_a_bad_profile_is_refused_with_file_key_value_and_remedy(
    room: Room, content: str, parts: tuple[str, ...]
) -> None:
    problem = room.problem_with(RUST, content)
    for part in (str(room.directory / RUST), *parts):
        assert part in problem


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("[pipeline]\nname = 'Main'\n", ("[pipeline] name", '"Main"', "a-z, 0-9, _ and -")),
        (f"[pipeline]\nname = '{'a' * 41}'\n", ("1 to 40",)),
        ("[redis]\nurl = 'http://localhost'\n", ("[redis] url", "redis://127.0.0.1:6379")),
        ("[redis]\nurl = 'redis://localhost/x'\n", ("[redis] url", "not a database number")),
        ("[redis]\nurl = 'redis://localhost?timeout=1'\n", ("[redis] url", "(timeout)")),
        ("[redis]\npassword = 'x'\n", ("[redis] password = (hidden)", "secrets.toml [redis] password")),
        ("[clickhouse]\nendpoint = 'x'\n", ("endpoint", "duckdb_rust_config.toml [sync] clickhouse_endpoint")),
        ("[serve]\nadmin_token = 'x'\n", ("admin_token = (hidden)", "secrets.toml [serve] admin_token")),
        ("[redis]\nstreams = 'trades'\n", ("streams", '"trades"', "is a string", "an array of stream names")),
        ("[redis]\nstreams = ['a', 'a']\n", ("streams[1]", '"a" twice')),
        ("[redis]\nstreams = ['']\n", ("streams[0]", "is empty")),
        ("[redis]\nstreams = ['replicator:main:head']\n", ("streams[0]", "replicator:main:head", "ours begin")),
        ("[redis]\nstart_from = 'yesterday'\n", ("start_from", '"yesterday"', '"oldest"')),
        ("[redis]\nstart_from = 1700000000000\n", ("start_from = 1700000000000", "an integer")),
        ("[redis]\nstart_from = '99999999999999999999'\n", ("start_from", "largest entry id")),
        ("[redis]\ntrim = 'always'\n", ("trim", '"always"', '"never", "logged", "confirmed"')),
        ("[clickhouse]\ndatabase = 'a-b'\n", ("database", '"a-b"')),
        ("[clickhouse]\nca_cert = 'no.pem'\n", ("ca_cert", '"no.pem"', "names no file")),
        ("[clickhouse]\nconnect_timeout_sec = 0\n", ("connect_timeout_sec = 0", "from 0.1")),
        ("[serve]\nport = 65536\n", ("port = 65536", "65535")),
        ("[serve]\nhost = 'a b'\n", ("host", '"a b"', "no host name")),
        ("[serve]\nhost = ''\n", ("host", "is empty")),
        ("[telemetry]\nprometheus = 'yes'\n", ("prometheus", '"yes"', "true or false")),
        ("[telemetry]\notlp_endpoint = 'http://u:secret@h'\n", ("otlp_endpoint", "http://***@h", "credentials")),
        ("[retention]\nmax_age_days = -1\n", ("max_age_days = -1", "out of range")),
        ("[snapshots]\nkeep = 0\n", ("keep = 0", "out of range")),
        ("[verify]\ninterval_sec = '1h'\n", ("interval_sec", '"1h"', "a number from 0")),
    ],
)
def test_a_bad_pipeline_file_is_refused_with_file_key_value_and_remedy(
    room: Room, content: str, parts: tuple[str, ...]
) -> None:
    problem = room.problem_with(PIPELINE, content)
    for part in (str(room.directory / PIPELINE), *parts):
        assert part in problem
    assert "secret@" not in problem


def _table(name: str = "t", key: str = '["id"]', rest: str = "", columns: str = 'id = "BIGINT"') -> str:
    return f'[[tables]]\nname = "{name}"\nkey = {key}\n{rest}\n[tables.columns]\n{columns}\n'


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ('[tables]\nname = "t"\n', ("tables = a table", "[[tables]]")),
        ("tables = [1, 2]\n", ("tables", "[[tables]]")),
        ("[[tables]]\nkey = ['id']\n", ("[tables[0]] name: is missing",)),
        ('[[tables]]\nname = "t"\n', ("[tables.t] key: is missing",)),
        ('[[tables]]\nname = 5\nkey = ["id"]\n', ("[tables[0]] name = 5", "is an integer")),
        (_table("a; drop"), ("a; drop", "letters, digits and underscores")),
        (_table("_mine"), ("_mine", "underscore", "rename the table")),
        (_table("change_log"), ("change_log", "a table of ours")),
        (_table("CHANGE"), ("CHANGE", "change_log", "a table of ours")),
        (_table("replicator_x"), ("replicator_x", "a table of ours")),
        (_table() + _table("T", rest='stream = "u"'), ('"T"', "taken by table t")),
        (_table() + _table("t_log"), ('"t_log"', "taken by table t", "T_log")),
        (_table() + _table("u", rest='stream = "t"'), ('stream = "t"', "table t has this stream already")),
        (_table(key='["nope"]'), ("[tables.t] key", "names nope", "declare")),
        (_table(key="[]"), ("[tables.t] key", "is empty")),
        (_table(key='"id"'), ("[tables.t] key", '"id"', "is a string")),
        (_table(key='["id", "id"]'), ("key[1]", '"id" twice')),
        (_table(key='["_offset"]'), ("key[0]", "_offset", "underscore")),
        (_table(rest='sums = ["qty"]'), ("sums", "names qty")),
        (_table(rest='on_unknown_field = "drop"'), ("on_unknown_field", '"drop"', '"keep", "reject"')),
        (_table(rest='encoding = "xml"'), ("encoding", '"xml"', '"arrow"')),
        (_table(rest="streem = 'x'"), ("[tables.t] streem", "did you mean stream?")),
        (_table(columns='id = "BIGINT"\n_x = "BIGINT"'), ("columns", '"_x"', "underscore")),
        (_table(columns='id = "BIGINT"\nID = "BIGINT"'), ("columns", "id twice")),
        (_table(columns='id = "BIGINT"\n"a`b" = "BIGINT"'), ("columns", "a`b", "plain name")),
        (_table(columns='id = "BIGINT"\nx = 5'), ("columns.x", "is an integer", 'name = "TYPE"')),
        ("[redis]\nstreams = ['a']\n" + _table(rest='stream = "b"'), ('stream = "b"', "not among [redis] streams")),
    ],
)
def test_a_bad_table_is_refused(room: Room, content: str, parts: tuple[str, ...]) -> None:
    problem = room.problem_with(PIPELINE, content)
    for part in (str(room.directory / PIPELINE), *parts):
        assert part in problem


@pytest.mark.parametrize("name", OURS)
def test_a_table_cannot_take_the_name_of_one_of_ours(room: Room, name: str) -> None:
    room.write(PIPELINE, _table(name))
    assert any("is the name of a table of ours" in problem for problem in room.problems())
    with pytest.raises(ConfigError, match="own tables"):
        table_schema(name, {"id": "BIGINT"}, ["id"])


def test_types_that_cannot_be_are_reported_with_all_the_rest(room: Room) -> None:
    room.write(PIPELINE, "[serve]\nport = 99999\n" + _table(columns='id = "BIGINT"\nx = "DECIMAL(50,2)"\ny = "TIME"'))
    found = room.problems()
    assert [part for part in ("port", "'x'", "'y'") if not any(part in problem for problem in found)] == []


def test_a_reader_that_would_write_is_refused(room: Room) -> None:
    assert "use duckdb_rust_config.toml" in room.problem_with(PYTHON, "[database]\nread_only = false\n")


# Files that are no configuration


def test_a_missing_directory_is_an_error_that_names_the_option(room: Room, tmp_path: Path) -> None:
    for path, what in ((tmp_path / "none", "does not exist"), (room.write("file", ""), "is not a directory")):
        with pytest.raises(ConfigError, match=what) as caught:
            load_settings(path, environ={})
        assert "--config-dir" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"[sync]\nbatch_size = = 5\n", ("line 2, column 14", "is not TOML")),
        (b"[sync]\n[sync]\n", ("line 2, column", "is not TOML")),
        (b"[sync]\nbatch_size = 1\nbatch_size = 2\n", ("line 3, column", "is not TOML")),
        (b"[sync]\nx = '\xff'\n", ("not UTF-8 at line 2",)),
        (b"\x00" * 100, ("line 1, column 1", "is not TOML")),
        (b"x" * 10_000_000, ("larger than 1000000 bytes",)),
        (b"x = " + b"[" * 100_000, ("too large or too deep",)),
        (b"x = " + b"1" * 10_000, ("",)),
        (b"a" + b".a" * 100_000 + b" = 1", ("",)),
    ],
)
def test_a_file_that_is_no_toml_is_named_with_line_and_column(
    room: Room, content: bytes, parts: tuple[str, ...]
) -> None:
    room.write(PIPELINE, content)
    problem = room.problem()
    for part in (str(room.directory / PIPELINE), *parts):
        assert part in problem
    assert len(problem) < 500


@pytest.mark.parametrize("name", [RUST, PIPELINE, SECRETS, ".env"])
def test_a_directory_or_a_dead_link_in_place_of_a_file_is_an_error(room: Room, name: str) -> None:
    path = room.directory / name
    path.mkdir(mode=0o700)
    assert any(f"{path}: is a directory" in problem for problem in room.problems())
    path.rmdir()
    path.symlink_to(path)
    assert any(f"{path}: cannot be read" in problem for problem in room.problems())
    path.unlink()
    os.mkfifo(path, 0o600)
    assert f"{path}: is not a regular file" in room.problem()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("this is not one\n", 'line 1: is not NAME="value"'),
        ("\n# x\n\nA='unclosed\n", "line 4: is not"),
        ("DUCKDB_PATH\n", "line 1: is not"),
        ("A=1\nA=2\n", "line 2: sets A again"),
    ],
)
def test_a_broken_dotenv_is_named_with_its_line(room: Room, content: str, part: str) -> None:
    room.write(".env", content)
    assert f"{room.directory / '.env'}: {part}" in room.problem()


def test_a_nearly_right_name_in_dotenv_is_remarked_on(room: Room) -> None:
    room.write(".env", "CLICKHOUSE_ENDPONT=http://h:1\nSOMETHING_ELSE=1\n")
    remarks = [warning for warning in room.load().warnings if "is not read" in warning]
    assert len(remarks) == 1
    assert "did you mean CLICKHOUSE_ENDPOINT?" in remarks[0]


def test_a_default_that_cannot_be_used_is_an_error_too(room: Room) -> None:
    (room.base / "data" / "replicator.duckdb").mkdir(parents=True)
    assert any("is a directory" in problem for problem in room.problems())


# Anything at all

_scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["C:/x", "redis://a:b@c", "http://[", "http://h:x", "~", "2024-01-01", "0-0", "/dev/null", "a\x7f"]
    ),
    st.dates(),
    st.datetimes(),
    st.times(),
)
_values = st.one_of(
    _scalars, st.lists(_scalars, max_size=3), st.dictionaries(st.text(max_size=5), _scalars, max_size=2)
)
_keys = st.one_of(
    st.sampled_from(
        sorted({key for kinds in SECTIONS.values() for kind in kinds.values() for key in written_keys(kind)})
    ),
    st.text(max_size=8),
)
_sections = st.dictionaries(_keys, _values, max_size=6)
_documents = st.dictionaries(
    st.one_of(st.sampled_from(sorted({name for kinds in SECTIONS.values() for name in kinds})), st.text(max_size=8)),
    st.one_of(_sections, st.lists(_sections, max_size=2), _values),
    max_size=4,
)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08x}" for c in value if not "\ud800" <= c <= "\udfff") + '"'
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        pairs = {_toml(key): _toml(item) for key, item in value.items()}
        return "{" + ", ".join(f"{key} = {item}" for key, item in pairs.items()) + "}"
    return value.isoformat() if hasattr(value, "isoformat") else repr(value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(SECTIONS)), document=_documents)
def test_garbage_values_are_refused_and_nothing_else_is_raised(
    room: Room, name: str, document: dict[str, object]
) -> None:
    lines = {_toml(key): _toml(value) for key, value in document.items()}
    room.write(name, "".join(f"{key} = {value}\n" for key, value in lines.items()), mode=0o600)
    try:
        found = room.load()
    except ConfigError as error:
        assert error.problems
        assert all("is not TOML" not in problem for problem in error.problems)
    else:
        assert isinstance(found, Settings)
        assert found.explain()
    finally:
        (room.directory / name).unlink()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from([*sorted(SECTIONS), ".env"]), content=st.binary(max_size=200))
def test_garbage_bytes_are_refused_and_nothing_else_is_raised(room: Room, name: str, content: bytes) -> None:
    room.write(name, content, mode=0o600)
    try:
        room.load()
    except ConfigError as error:
        assert error.problems
    finally:
        (room.directory / name).unlink()
