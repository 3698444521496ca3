"""`replicator demo` as a stranger runs it: it holds, it is deaf, it leaves nothing running, it says what is wrong."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from replicator import demo_room
from replicator.config import load_settings
from replicator.demo import DemoOptions, Gauges, run_demo
from replicator.demo_compare import Sides
from replicator.demo_room import Room, forget_environment
from replicator.embedded.stack import Stack
from replicator.errors import ReplicatorError, UsageError
from replicator.schema import TableSchema, table_schema
from replicator.service import build_sink, open_database

QUICK = ("--changes", "2500", "--seconds", "2")
HOSTILE = {
    "REDIS_URL": "redis://127.0.0.1:1/0",
    "REDIS_PASSWORD": "wrong",
    "CLICKHOUSE_ENDPOINT": "http://127.0.0.1:1",
    "CLICKHOUSE_USER": "nobody",
    "DUCKDB_PATH": "/nowhere/else.duckdb",
    "REPLICATOR_CONFIG_DIR": "/nowhere",
    "REPLICATOR_READ_TOKEN": "short",
    "HTTP_PROXY": "http://127.0.0.1:1",
    "http_proxy": "http://127.0.0.1:1",
}
WAIT_SECONDS = 60.0


def start_demo(*arguments: str, cwd: Path, environ: dict[str, str] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "replicator", "demo", *arguments]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, **(environ or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_until(demo: subprocess.Popen[str], words: str) -> str:
    """What the demo says on stderr, up to the line with these words."""
    assert demo.stderr is not None
    said = ""
    for line in demo.stderr:
        said += line
        if words in line:
            return said
    raise AssertionError(f"it ended without saying {words!r}:\n{said}")


def wait_until_stopped(directory: Path) -> None:
    """Engines and service each hold the lock of their directory for their own life."""
    deadline = time.monotonic() + WAIT_SECONDS
    for name in ("redis", "clickhouse", "service"):
        with (directory / name / "lock").open() as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    assert time.monotonic() < deadline, f"{name} still runs"
                    os.sched_yield()


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """One demo, played in a hostile place: its directory, its JSON and what it said."""
    cwd = tmp_path_factory.mktemp("elsewhere")
    (cwd / "config").mkdir()
    (cwd / "config" / "replicator.toml").write_text("nonsense = [")
    (cwd / ".env").write_text('REDIS_URL="redis://127.0.0.1:1/0"\n')
    directory = tmp_path_factory.mktemp("demo") / "place"
    demo = start_demo("--json", "--directory", str(directory), *QUICK, cwd=cwd, environ=HOSTILE)
    answer, said = demo.communicate(timeout=WAIT_SECONDS * 2)
    assert demo.returncode == 0, answer + said
    return directory, json.loads(answer), said


def test_everything_holds_whatever_the_callers_configuration_and_environment(
    played: tuple[Path, dict[str, Any], str],
) -> None:
    _, answer, _ = played
    assert answer["ok"] and answer["problems"] == []
    assert {table["table"] for table in answer["tables"]} == {"orders", "trades", "positions"}
    assert sum(table["changes"] for table in answer["tables"]) == answer["changes"] == 2500
    for table in answer["tables"]:
        assert table["equal"] and table["duckdb"] == table["clickhouse"]
        assert table["duckdb"]["history"].startswith(f"{table['changes']}:")


def test_the_service_is_killed_with_work_in_its_hands(played: tuple[Path, dict[str, Any], str]) -> None:
    _, answer, said = played
    killed = answer["killed_at"]
    assert 0 < killed["delivered"] <= killed["logged"] <= killed["written"] < answer["changes"]
    assert killed["delivered"] < killed["written"]
    assert "kill -9" in said and "started again" in said


def test_the_altered_price_is_named_with_both_values(played: tuple[Path, dict[str, Any], str]) -> None:
    _, answer, _ = played
    assert answer["found"] == [answer["altered"]]
    found = answer["found"][0]
    assert (found["table"], found["column"]) == ("trades", "price")
    assert found["duckdb"] != found["clickhouse"]


def test_a_named_directory_is_kept_and_nothing_runs_in_it(played: tuple[Path, dict[str, Any], str]) -> None:
    directory, answer, _ = played
    assert answer["directory"] == str(directory)
    assert (directory / "data" / "replicator.duckdb").stat().st_size > 0
    wait_until_stopped(directory)


@pytest.fixture(scope="module")
def sides(played: tuple[Path, dict[str, Any], str]) -> Iterator[tuple[Sides, dict[str, TableSchema]]]:
    """What the demo left behind, opened again."""
    directory, _, _ = played
    with Stack(directory=directory) as stack:
        variables = {
            "CLICKHOUSE_ENDPOINT": stack.endpoints.clickhouse_endpoint,
            "CLICKHOUSE_USER": stack.endpoints.user,
            "CLICKHOUSE_PASSWORD": stack.endpoints.password,
        }
        settings = load_settings(directory / "config", environ=variables)
        database, sink = open_database(settings), build_sink(settings)
        schemas = {table.name: table_schema(table.name, table.columns, table.key) for table in settings.tables}
        yield Sides(log=database.session(), sink=sink), schemas
        sink.close()
        database.close()


def test_a_change_that_one_side_lacks_is_a_problem_and_is_named(
    sides: tuple[Sides, dict[str, TableSchema]],
) -> None:
    both, schemas = sides
    orders = schemas["orders"]
    produced = both.in_duckdb(orders).history.rows
    expected = both._current(orders, both.log)
    assert both.compare(orders, produced, expected).problems == ()
    both.sink.command("alter table orders_log delete where _offset = 7", {"mutations_sync": 2})
    problems = both.compare(orders, produced, expected).problems
    assert f"1 of {produced} changes are not in ClickHouse" in problems
    missing = both.differences(orders, 10)
    assert [(each.offset, each.duckdb, each.clickhouse) for each in missing] == [(7, "present", "missing")]


def test_a_row_that_is_not_as_produced_is_a_problem(sides: tuple[Sides, dict[str, TableSchema]]) -> None:
    both, schemas = sides
    positions = schemas["positions"]
    produced = both.in_duckdb(positions).history.rows
    expected = both._current(positions, both.log)
    key = next(iter(expected))
    expected[key] = expected[key] | {"quantity": 1}
    problems = both.compare(positions, produced, expected).problems
    assert problems == (
        "1 current rows are not as produced in DuckDB",
        "1 current rows are not as produced in ClickHouse",
    )


def test_a_change_stored_twice_is_a_problem(sides: tuple[Sides, dict[str, TableSchema]]) -> None:
    both, schemas = sides
    positions = schemas["positions"]
    produced = both.in_duckdb(positions).history.rows
    assert "1 changes are in DuckDB twice" in both.compare(positions, produced - 1, {}).problems


# ── how it ends before its time ──


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_stop_it_stops_everything_and_tidies_up(number: int, code: int, tmp_path: Path) -> None:
    demo = start_demo(*QUICK, cwd=tmp_path, environ={"TMPDIR": str(tmp_path)})
    read_until(demo, "the service runs")
    (directory,) = tmp_path.glob("replicator-demo-*")
    locks = [(directory / name / "lock").open() for name in ("redis", "clickhouse", "service")]
    demo.send_signal(number)
    _, said = demo.communicate(timeout=WAIT_SECONDS)
    assert demo.returncode == code, said
    assert "Traceback" not in said
    for lock in locks:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.close()
    assert not directory.exists()


def test_killed_it_takes_everything_along(tmp_path: Path) -> None:
    directory = tmp_path / "place"
    demo = start_demo("--directory", str(directory), *QUICK, cwd=tmp_path)
    read_until(demo, "the service runs")
    demo.kill()
    demo.communicate(timeout=WAIT_SECONDS)
    wait_until_stopped(directory)


class StopsTheService:
    """Watches the demo; freezes the service as soon as it runs, and lets it go when the demo has noticed."""

    pid = 0

    def step(self, text: str, *, bad: bool = False) -> None:
        if "the service runs" in text:
            self.pid = int(text.rpartition("process ")[2].rstrip(")"))
            os.kill(self.pid, signal.SIGSTOP)
        if "nothing has moved" in text:
            assert bad
            os.kill(self.pid, signal.SIGCONT)

    def gauges(self, gauges: Gauges) -> None:
        assert gauges.delivered == 0


def test_a_service_that_gets_nowhere_is_an_error_and_no_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replicator.demo.STALLED_SECONDS", 1.0)
    options = DemoOptions(directory=tmp_path / "place", changes=2000, seconds=1.0)
    with pytest.raises(ReplicatorError, match=r"nothing moves: .* 0 delivered"):
        run_demo(options, StopsTheService())


# ── what it refuses ──


def test_a_directory_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    demo = start_demo("--directory", str(tmp_path), cwd=tmp_path)
    _, said = demo.communicate(timeout=WAIT_SECONDS)
    assert demo.returncode == 2
    assert str(tmp_path) in said and "not empty" in said
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    demo = start_demo("--directory", str(tmp_path / "file"), cwd=tmp_path)
    _, said = demo.communicate(timeout=WAIT_SECONDS)
    assert demo.returncode == 2
    assert str(tmp_path / "file") in said and "Traceback" not in said


def test_a_disk_with_too_little_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_room, "FREE_BYTES_MIN", 1 << 60)
    room = Room(directory=DemoOptions(directory=tmp_path / "small").directory)
    with pytest.raises(UsageError, match="MB are free"):
        room.prepare()
    room.close()


def test_missing_engines_are_named_with_the_command_that_brings_them(tmp_path: Path) -> None:
    program = "import sys; sys.modules['chdb'] = None; from replicator.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, "demo"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "chdb" in done.stderr and "pip install 'replicator[embedded]'" in done.stderr


def test_only_what_would_configure_us_is_forgotten() -> None:
    environ = {**HOSTILE, "OTEL_EXPORTER_OTLP_ENDPOINT": "x", "HOME": "/h", "PATH": "/p", "NO_PROXY": "*"}
    forget_environment(environ)
    assert environ == {"HOME": "/h", "PATH": "/p", "NO_PROXY": "*"}
