"""What a configuration means: the reference document's files, defaults, precedence, paths, tables, what is explained."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from config_room import (
    PIPELINE,
    PYTHON,
    REFERENCE_ENV,
    REFERENCE_PYTHON,
    REFERENCE_RUST,
    REFERENCE_SECRETS,
    RUST,
    SECRETS,
    TRADES,
    Room,
    make_room,
)

from replicator.config import INERT, load_profile, load_settings
from replicator.errors import ConfigError

HERE = {"DUCKDB_PATH": "/srv/trade.duckdb", "DUCKDB_RUST_LOG": "/srv/rust.log", "DUCKDB_PYTHON_LOG": "/srv/python.log"}


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return make_room(tmp_path)


@pytest.fixture
def reference(room: Room) -> Room:
    room.write(RUST, REFERENCE_RUST)
    room.write(PYTHON, REFERENCE_PYTHON)
    room.write(SECRETS, REFERENCE_SECRETS)
    room.write(PIPELINE, TRADES)
    return room


def test_the_reference_files_load_unchanged_given_the_path_variables(reference: Room) -> None:
    writer = reference.load(**HERE).writer
    assert writer.database.path == Path("/srv/trade.duckdb")
    assert writer.database.read_only is False
    assert (writer.performance.max_threads, writer.performance.cache_size_mb) == (4, 256)
    assert (writer.logging.log_level, writer.logging.log_path) == ("INFO", Path("/srv/rust.log"))
    assert writer.sync.clickhouse_endpoint == "http://localhost:8123"
    assert (writer.sync.sync_interval_sec, writer.sync.max_retry_attempts) == (600, 5)
    assert writer.sync.batch_size == 100_000
    assert writer.error_handling.failed_sync_table == "failed_syncs"
    assert writer.error_handling.retry_backoff_sec == (5, 15, 30, 60)


def test_the_reference_reader_keeps_its_own_values(reference: Room) -> None:
    reader = reference.load(**HERE).reader
    assert reader.database.path == Path("/srv/trade.duckdb")
    assert reader.database.read_only is True
    assert reader.performance.cache_size_mb == 128
    assert reader.performance.max_threads is None
    assert reader.logging.log_path == Path("/srv/python.log")
    assert (reader.sync.batch_size, reader.sync.sync_interval_sec) == (50, 300)
    assert reader.error_handling.retry_backoff_sec == (10, 30, 60, 120)
    assert reader.sync.max_retry_attempts == 4


def test_the_reference_files_warn_of_what_will_not_be_as_written(reference: Room) -> None:
    warnings = reference.load(**HERE).warnings
    for part in ("temp_directory", "batch_size = 50", "clickhouse_password", "master_key"):
        assert sum(part in warning for warning in warnings) == 1, (part, warnings)
    assert len(warnings) == 4
    assert reference.load(**HERE).writer.performance.temp_directory is None


def test_the_reference_credentials_count_as_unset(reference: Room) -> None:
    clickhouse = reference.load(**HERE).clickhouse
    assert (clickhouse.user, clickhouse.password) == ("default", "")


def test_the_reference_files_name_every_variable_that_is_missing_here(reference: Room) -> None:
    problems = reference.problems()
    assert len(problems) == 4
    for variable, count in (("DUCKDB_PATH", 2), ("DUCKDB_RUST_LOG", 1), ("DUCKDB_PYTHON_LOG", 1)):
        assert sum(f"set {variable}" in problem for problem in problems) == count
    assert all("Windows path" in problem and "C:/TradeSystem" in problem for problem in problems)


def test_the_reference_environment_is_refused_here_for_its_windows_paths_alone(room: Room) -> None:
    room.write(".env", REFERENCE_ENV)
    assert len(room.problems()) == 4
    assert all("is a Windows path" in problem and ".env" in problem for problem in room.problems())


@pytest.mark.parametrize(("name", "content"), [(RUST, REFERENCE_RUST), (PYTHON, REFERENCE_PYTHON)])
def test_a_reference_profile_loads_alone(room: Room, name: str, content: str) -> None:
    profile = load_profile(room.write(name, content), HERE)
    assert profile.database.path == Path("/srv/trade.duckdb")
    assert profile.logging.log_path == Path("/srv/rust.log" if name == RUST else "/srv/python.log")
    assert profile.as_dict()["database"]["path"] == "/srv/trade.duckdb"
    assert profile.as_dict()["sync"]["clickhouse_endpoint"] == "http://localhost:8123"


def test_a_profile_under_another_name_is_what_its_read_only_says(room: Room) -> None:
    writer = load_profile(room.write("mine.toml", "[database]\nread_only = false\n"), HERE)
    reader = load_profile(room.write("theirs.toml", ""), HERE)
    assert (writer.database.read_only, writer.logging.log_path) == (False, Path("/srv/rust.log"))
    assert (reader.database.read_only, reader.logging.log_path) == (True, Path("/srv/python.log"))


def test_a_profile_alone_reports_its_warnings_and_its_problems(room: Room) -> None:
    profile = load_profile(room.write(PYTHON, "[sync]\nbatch_size = 50\n"), {})
    assert "batch_size = 50" in profile.warnings[0]
    with pytest.raises(ConfigError, match=r"did you mean path\?"):
        load_profile(room.write(PYTHON, '[database]\npaht = "x"\n'), {})
    with pytest.raises(ConfigError, match="does not exist"):
        load_profile(room.directory / "none.toml", {})


def test_a_profile_alone_ignores_the_secrets_it_does_not_need(room: Room) -> None:
    room.write(SECRETS, "not TOML", mode=0o644)
    path = room.write(PYTHON, "")
    assert load_profile(path, {"CLICKHOUSE_PASSWORD_FILE": "/nowhere"}).database.read_only


def test_an_empty_directory_is_a_working_pipeline_that_says_what_it_lacks(room: Room) -> None:
    settings = room.load()
    assert settings.writer.database.path == room.base / "data" / "replicator.duckdb"
    assert settings.reader.database.path == settings.writer.database.path
    assert settings.clickhouse.endpoint == "http://127.0.0.1:8123"
    assert settings.redis.url == "redis://127.0.0.1:6379"
    assert (settings.pipeline.name, settings.serve.host, settings.serve.port) == ("main", "127.0.0.1", 8420)
    assert any(all(name in w for name in (RUST, PYTHON, PIPELINE)) for w in settings.warnings)
    assert any("nothing would be captured" in warning for warning in settings.warnings)


def test_one_table_alone_is_a_working_pipeline(room: Room) -> None:
    room.write(PIPELINE, TRADES)
    settings = room.load()
    (table,) = settings.tables
    assert (table.name, table.stream, table.key) == ("trades", "trades", ("trade_id",))
    assert (table.on_unknown_field, table.encoding) == ("keep", "auto")
    assert settings.redis.streams == ("trades",)


def test_streams_without_a_table_are_read_beside_the_tables(room: Room) -> None:
    room.write(PIPELINE, '[redis]\nstreams = ["trades", "audit"]\n' + TRADES)
    assert room.load().redis.streams == ("trades", "audit")


def test_a_table_fed_only_through_a_shared_stream_is_remarked_on(room: Room) -> None:
    room.write(PIPELINE, '[redis]\nstreams = ["all"]\n' + TRADES)
    assert any("field `table`" in warning for warning in room.load().warnings)


def test_retries_default_to_the_length_of_the_ladder(room: Room) -> None:
    room.write(RUST, "[error_handling]\nretry_backoff_sec = [1, 2.5]\n")
    writer = room.load().writer
    assert (writer.sync.max_retry_attempts, writer.error_handling.retry_backoff_sec) == (2, (1, 2.5))
    room.write(RUST, "[sync]\nmax_retry_attempts = 0\n")
    assert room.load().writer.sync.max_retry_attempts == 0


@pytest.mark.parametrize("name", [RUST, PYTHON])
def test_either_name_of_the_interval_is_accepted_in_either_profile(room: Room, name: str) -> None:
    for text in ("backup_interval_sec = 7", "sync_interval_sec = 7", "backup_interval_sec = 7\nsync_interval_sec = 7"):
        room.write(name, f"[sync]\n{text}\n")
        settings = room.load()
        profile = settings.writer if name == RUST else settings.reader
        assert profile.sync.sync_interval_sec == 7


def test_the_reader_takes_the_shared_values_it_does_not_name_from_the_service(room: Room) -> None:
    room.write(
        RUST,
        '[database]\npath = "x.duckdb"\n[sync]\nclickhouse_endpoint = "http://localhost:9"\n'
        '[error_handling]\nfailed_sync_table = "parked"\n',
    )
    reader = room.load().reader
    assert reader.database.path == room.base / "x.duckdb"
    assert reader.sync.clickhouse_endpoint == "http://localhost:9"
    assert reader.error_handling.failed_sync_table == "parked"


def test_profiles_that_differ_in_what_they_share_are_remarked_on(room: Room) -> None:
    room.write(RUST, '[database]\npath = "a.duckdb"\n')
    room.write(PYTHON, '[database]\npath = "b.duckdb"\n')
    assert any("another file than the service writes" in warning for warning in room.load().warnings)


# Precedence


@pytest.mark.parametrize(
    ("layers", "expected", "source"),
    [
        ("env dotenv parent file", "http://env:1", "env CLICKHOUSE_ENDPOINT"),
        ("dotenv parent file", "http://dotenv:1", ".env"),
        ("parent file", "http://parent:1", ".env"),
        ("file", "http://file:1", "file"),
        ("", "http://127.0.0.1:8123", "default"),
    ],
)
def test_the_higher_layer_wins_and_is_named(room: Room, layers: str, expected: str, source: str) -> None:
    environ = {}
    for layer in layers.split():
        value = f"http://{layer}:1"
        if layer == "env":
            environ["CLICKHOUSE_ENDPOINT"] = value
        elif layer == "file":
            room.write(RUST, f'[sync]\nclickhouse_endpoint = "{value}"\n')
        else:
            room.write(".env" if layer == "dotenv" else "../.env", f"export CLICKHOUSE_ENDPOINT='{value}'\n")
    settings = room.load(**environ)
    assert settings.writer.sync.clickhouse_endpoint == settings.clickhouse.endpoint == expected
    (row,) = (r for r in settings.explain() if (r.file, r.key) == (RUST, "clickhouse_endpoint"))
    assert (row.value, row.source) == (expected, source)


def test_secrets_come_from_the_environment_then_dotenv_then_the_secrets_file(room: Room) -> None:
    room.write(SECRETS, '[auth]\nclickhouse_user = "u"\nclickhouse_password = "from-file"\n')
    assert room.load().clickhouse.password == "from-file"
    room.write(".env", "CLICKHOUSE_PASSWORD=from-dotenv\n", mode=0o600)
    assert room.load().clickhouse.password == "from-dotenv"
    assert room.load(CLICKHOUSE_PASSWORD="from-env").clickhouse.password == "from-env"
    assert room.load().clickhouse.user == "u"


def test_an_empty_variable_counts_as_unset(room: Room) -> None:
    room.write(".env", "DUCKDB_PATH=/srv/dotenv.duckdb\n")
    assert room.load(DUCKDB_PATH="").writer.database.path == Path("/srv/dotenv.duckdb")


def test_loading_leaves_the_environment_as_it_was(room: Room) -> None:
    room.write(".env", "DUCKDB_PATH=/srv/dotenv.duckdb\nREPLICATOR_UNHEARD_OF=1\n")
    before = dict(os.environ)
    room.load()
    load_settings(room.directory)
    assert dict(os.environ) == before


def test_a_dotenv_value_is_taken_literally(room: Room) -> None:
    room.write(".env", "CLICKHOUSE_PASSWORD='a$HOME${X}#b'\n", mode=0o600)
    assert room.load().clickhouse.password == "a$HOME${X}#b"


# Paths


def test_relative_paths_start_at_the_directory_that_holds_the_configuration(
    room: Room, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    room.write(RUST, '[performance]\ntemp_directory = "tmp/../spill"\n')
    settings = room.load(DUCKDB_PATH="db/x.duckdb")
    assert settings.writer.database.path == room.base / "db" / "x.duckdb"
    assert settings.writer.performance.temp_directory == room.base / "spill"
    assert settings.snapshots.directory == room.base / "data" / "snapshots"


def test_a_profile_alone_resolves_paths_as_the_whole_does(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    room.write(PYTHON, '[database]\npath = "db/x.duckdb"\n')
    monkeypatch.chdir(room.directory)
    assert load_profile(Path(PYTHON), {}).database.path == room.base / "db" / "x.duckdb"
    assert load_settings(Path(), environ={}).reader.database.path == room.base / "db" / "x.duckdb"


def test_a_tilde_is_the_home_directory(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert room.load(DUCKDB_PATH="~/x.duckdb").writer.database.path == Path("/home/somebody/x.duckdb")


def test_an_empty_log_path_means_no_log_file(room: Room) -> None:
    room.write(RUST, '[logging]\nlog_path = ""\n')
    assert room.load().writer.logging.log_path is None


def test_a_byte_order_mark_is_no_obstacle(room: Room) -> None:
    room.write(PIPELINE, b"\xef\xbb\xbf" + TRADES.encode())
    assert room.load().tables[0].name == "trades"


# Where to start


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('"oldest"', "oldest"),
        ('"newest"', "newest"),
        ('"1700000000000-5"', "1700000000000-5"),
        ('"1700000000000"', "1700000000000-0"),
        ('"2023-11-14T22:13:20Z"', "1699999999999-18446744073709551615"),
        ("2023-11-14T22:13:20Z", "1699999999999-18446744073709551615"),
        ("2023-11-14T23:13:20.000+01:00", "1699999999999-18446744073709551615"),
        ("2023-11-14 22:13:20", "1699999999999-18446744073709551615"),
        ("1970-01-01", "oldest"),
    ],
)
def test_start_from_is_a_word_an_entry_id_or_a_time(room: Room, written: str, expected: str) -> None:
    room.write(PIPELINE, f"[redis]\nstart_from = {written}\n" + TRADES)
    assert room.load().redis.start_from == expected


# What is explained


def test_every_key_has_a_consumer_and_a_source(reference: Room) -> None:
    rows = reference.load(**HERE).explain()
    assert all(row.consumer and row.source and row.value for row in rows)
    assert len({(row.file, row.section, row.key) for row in rows}) == len(rows)
    inert = {(row.file, row.key) for row in rows if row.consumer == INERT}
    assert inert == {(PYTHON, "clickhouse_endpoint"), (PYTHON, "sync_interval_sec"), (SECRETS, "master_key")}


def test_explain_names_where_each_value_came_from(reference: Room) -> None:
    rows = {(row.file, row.section, row.key): row for row in reference.load(**HERE).explain()}
    assert rows[RUST, "database", "path"].source == "env DUCKDB_PATH"
    assert rows[RUST, "sync", "sync_interval_sec"].source == "file"
    assert rows[RUST, "sync", "batch_size"].source == "default"
    assert rows[PIPELINE, "tables.trades", "columns"].value == "trade_id VARCHAR"
    assert rows[PIPELINE, "redis", "streams"].value == "trades"
    assert rows[SECRETS, "auth", "clickhouse_password"].value == "(not set)"
