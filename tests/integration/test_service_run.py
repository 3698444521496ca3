"""``replicator run`` as a process: how it starts, stops, dies and starts again, and what it says when it cannot."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import pytest
import redis
from replicator_process import Replicator, add, until

from replicator.embedded.clickhouse import ClickHouse


def rows(server: ClickHouse, database: str) -> int:
    return int(server.execute(f"select count() from {database}.change_log"))


def distinct(server: ClickHouse, database: str) -> tuple[int, int]:
    answer = server.execute(f"select count(), uniqExact(JSONExtractInt(payload, 'n')) from {database}.change_log")
    count, unique = answer.split()
    return int(count), int(unique)


# ── life ──


def test_changes_reach_clickhouse_and_sigterm_ends_it_in_order(
    replicator: Replicator, source: redis.Redis, clickhouse_server: ClickHouse, clickhouse_database: str
) -> None:
    replicator.start()
    add(source, 1, 1000)
    replicator.until_status(lambda r: r["sink"]["checkpoint_offset"] == 1000, "all is delivered")
    assert replicator.stop() == 0
    assert [line["signals"] for line in replicator.events("service_stopping")] == [["SIGTERM"]]
    assert json.loads(replicator.log_text.splitlines()[-1])["event"] == "service_stopped"
    assert distinct(clickhouse_server, clickhouse_database) == (1000, 1000)
    assert not replicator.database_path.with_name("replicator.duckdb.service.json").exists()


def test_killed_with_minus_nine_it_goes_on_where_it_was(
    replicator: Replicator, source: redis.Redis, clickhouse_server: ClickHouse, clickhouse_database: str
) -> None:
    for life in range(3):
        replicator.start()
        add(source, life * 2000 + 1, life * 2000 + 2000)
        until(lambda life=life: rows(clickhouse_server, clickhouse_database) > life * 2000, "something arrives")
        replicator.kill()
    replicator.start()
    replicator.until_status(lambda r: r["sink"]["checkpoint_offset"] == 6000, "all is delivered")
    assert distinct(clickhouse_server, clickhouse_database) == (6000, 6000)


def test_log_lines_are_json_in_file_and_on_stderr_and_hold_no_secret(
    replicator: Replicator, clickhouse_server: ClickHouse
) -> None:
    replicator.start()
    replicator.stop()
    log_file = (replicator.directory / "data" / "replicator.log").read_text()
    for text in (replicator.log_text, log_file):
        events = [json.loads(line)["event"] for line in text.splitlines()]
        assert {"service_starting", "http_ready", "service_stopped"} <= set(events)
        assert clickhouse_server.password not in text
    token = replicator.database_path.with_name("replicator.duckdb.admin_token")
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.read_text().strip() not in log_file


def test_sighup_takes_new_streams_and_the_log_level(replicator: Replicator, source: redis.Redis) -> None:
    replicator.start()
    add(source, 1, 5, "orders")
    replicator.configure(streams='["trades", "orders"]', level="DEBUG")
    replicator.signal(signal.SIGHUP)
    replicator.until_status(lambda r: r["log"]["head_offset"] == 5, "the new stream is read")
    assert replicator.events("configuration_taken")
    replicator.configure(streams="7")
    replicator.signal(signal.SIGHUP)
    [refused] = until(lambda: replicator.events("configuration_not_reloaded"), "the bad configuration is refused")
    assert "streams" in refused["problems"][0]
    assert [s["stream"] for s in replicator.status()["streams"]] == ["orders", "trades"]


def test_systemd_hears_ready_watchdog_and_stopping(replicator: Replicator, tmp_path: Path) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(20)
        replicator.environment |= {"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "200000"}
        replicator.start()
        assert manager.recv(100) == b"READY=1"
        assert manager.recv(100) == b"WATCHDOG=1"
        replicator.stop()
        heard = {manager.recv(100)}
        while b"STOPPING=1" not in heard:
            heard.add(manager.recv(100))


# ── what keeps it from starting ──


def ended(replicator: Replicator) -> tuple[int, str]:
    code = replicator.start(ready=False).wait(30)
    return code, replicator.log_text


def test_a_taken_port_ends_the_start_and_is_named(replicator: Replicator) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        replicator.configure(sections=f"[serve]\nport = {port}")
        code, said = ended(replicator)
    assert code == 3
    assert f"127.0.0.1:{port}" in said
    assert "choose another [serve] port" in said
    assert "Traceback" not in said


def test_a_second_service_on_the_same_file_names_the_first(replicator: Replicator, tmp_path: Path) -> None:
    replicator.start()
    assert replicator.process is not None
    answered = replicator.command("run")
    assert answered.code == 3
    assert f"in use by process {replicator.process.pid}" in answered.err
    assert "Traceback" not in answered.err


def test_a_second_instance_on_the_same_pipeline_ends_with_the_owner_named(
    replicator: Replicator, tmp_path: Path
) -> None:
    replicator.start()
    replicator.until_status(lambda r: r["streams"][0]["last_entry_id"], "the pipeline is taken")
    (tmp_path / "second").mkdir()
    with Replicator(
        directory=tmp_path / "second",
        environment=replicator.environment,
        database=replicator.database,
        sections=replicator.sections,
    ) as second:
        assert second.start(ready=False).wait(30) == 3
        *_, said, remedy = second.log_text.splitlines()
    assert said.startswith("Error: pipeline 'main' belongs to instance")
    assert "[pipeline] name" in remedy or "[database] path" in remedy
    assert "Traceback" not in second.log_text


@pytest.mark.parametrize("content", [b"this is no database\n" * 500, b""], ids=["text", "empty"])
def test_a_file_that_is_no_database_is_refused_and_left_alone(replicator: Replicator, content: bytes) -> None:
    replicator.database_path.parent.mkdir()
    replicator.database_path.write_bytes(content)
    code, said = ended(replicator)
    assert code == 3
    assert "is not a database" in said
    assert "Traceback" not in said
    assert replicator.database_path.read_bytes() == content


def test_every_problem_of_the_configuration_is_said_at_once(replicator: Replicator) -> None:
    replicator.write(
        "replicator.toml", '[redis]\nstreems = []\n[serve]\nport = "8420"\n[clickhouse]\nlog_ttl_days = -1\n'
    )
    code, said = ended(replicator)
    assert code == 2
    for key in ("streems", "port", "log_ttl_days"):
        assert key in said
    assert said.count("Error: ") == 3
    assert "Traceback" not in said


def test_a_missing_configuration_directory_is_named(replicator: Replicator, tmp_path: Path) -> None:
    replicator.directory = tmp_path / "elsewhere"
    (tmp_path / "elsewhere").mkdir()
    code, said = ended(replicator)
    assert code == 2
    assert "does not exist" in said


def test_a_database_directory_that_cannot_be_made_is_named(replicator: Replicator) -> None:
    (replicator.directory / "data").write_text("a file where the directory should be")
    code, said = ended(replicator)
    assert code in (2, 3)
    assert "data" in said
    assert "Traceback" not in said


def test_a_certificate_without_its_key_ends_the_start(replicator: Replicator) -> None:
    for name in ("server.pem", "server.key"):
        replicator.write(name, "not PEM")
    replicator.configure(sections='[serve]\nport = 0\ntls_cert = "config/server.pem"\ntls_key = "config/server.key"')
    code, said = ended(replicator)
    assert code == 2
    assert "tls_cert" in said


def test_a_full_disk_for_the_log_file_does_not_stop_it(replicator: Replicator, source: redis.Redis) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (replicator.directory / "data").mkdir()
    (replicator.directory / "data" / "replicator.log").symlink_to("/dev/full")
    replicator.start()
    add(source, 1, 10)
    replicator.until_status(lambda r: r["sink"]["checkpoint_offset"] == 10, "all is delivered all the same")
    assert "cannot be written" in replicator.log_text
