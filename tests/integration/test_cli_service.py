"""The commands, with a running service and without: the same answers, on stdout, with the exit codes of the design."""

from __future__ import annotations

import signal
from pathlib import Path

import redis
from replicator_process import Replicator, add, free_port, until

from replicator.embedded.clickhouse import ClickHouse
from replicator.errors import SinkRejected, SinkUnavailable
from replicator.retry import SENTENCES


def poison(server: ClickHouse, database: str, replicator: Replicator) -> None:
    """From now on ClickHouse refuses the change {"n": 13}."""
    until(lambda: "change_log" in server.execute(f"show tables from {database}"), "the table is there")
    server.execute(f"alter table {database}.change_log add constraint no_13 check JSONExtractInt(payload, 'n') != 13")
    assert replicator.process is not None


def park_one_of_twenty(replicator: Replicator, source: redis.Redis, server: ClickHouse, database: str) -> None:
    replicator.start()
    poison(server, database, replicator)
    add(source, 1, 20)
    replicator.until_status(lambda r: r["failed_syncs"]["open"] == 1, "the row is parked")


def cure(server: ClickHouse, database: str) -> None:
    server.execute(f"alter table {database}.change_log drop constraint no_13")


def count(server: ClickHouse, database: str) -> int:
    return int(server.execute(f"select count() from {database}.change_log final"))


# ── status, sync ──


def test_status_of_a_running_service_for_people_programs_and_monitoring(
    replicator: Replicator, source: redis.Redis
) -> None:
    replicator.start()
    add(source, 1, 100)
    synced = replicator.command("sync", "--json")
    assert synced.code == 0
    assert synced.json["checkpoint_offset"] == synced.json["head_offset"]
    replicator.until_status(lambda r: r["sink"]["confirmed_offset"] == 100, "ClickHouse confirms it")
    found = replicator.command("status", "--json")
    assert (found.code, found.err) == (0, "")
    report = found.json
    assert report["state"] == "ok"
    assert report["reasons"] == []
    assert report["log"]["head_offset"] == 100
    assert report["sink"].items() >= {"checkpoint_offset": 100, "lag_changes": 0, "circuit": "closed"}.items()
    assert report["verify"].items() >= {"last_at": None, "mismatches": None}.items()
    shown = replicator.command("status")
    assert shown.out.startswith("OK  pipeline main")
    checked = replicator.command("status", "--check")
    assert (checked.code, checked.out) == (0, "OK: everything is as it should be\n")


def test_status_without_a_service_tells_what_the_file_tells(replicator: Replicator, source: redis.Redis) -> None:
    before = replicator.command("status", "--json")
    assert before.code == 0
    assert before.json["log"]["head_offset"] is None
    assert before.json["failed_syncs"]["open"] is None
    replicator.start()
    add(source, 1, 10)
    assert replicator.command("pause", "deliver").code == 0
    add(source, 11, 30)
    replicator.until_status(lambda r: r["log"]["head_offset"] == 30, "all is logged")
    replicator.kill()
    after = replicator.command("status", "--json").json
    assert after["state"] == "failed"
    assert "the service is not running" in after["reasons"][0]
    assert after["log"]["head_offset"] == 30
    assert after["sink"]["lag_changes"] >= 20
    assert after["sink"]["lag_seconds"] > 0
    assert after["streams"][0]["backlog_entries"] is None
    assert after["paused"] == ["deliver"]
    assert replicator.command("status", "--check").code == 2


def test_sync_without_a_service_delivers_from_the_file(
    replicator: Replicator, source: redis.Redis, clickhouse_server: ClickHouse, clickhouse_database: str
) -> None:
    replicator.start()
    replicator.command("pause", "deliver")
    add(source, 1, 500)
    replicator.until_status(lambda r: r["log"]["head_offset"] == 500, "all is logged")
    assert count(clickhouse_server, clickhouse_database) == 0
    stopped = replicator.command("sync", "--timeout", "0.5")
    assert stopped.code == 3
    assert "paused" in stopped.err
    replicator.stop()
    replicator.command("resume", "deliver")
    done = replicator.command("sync", "--json")
    assert (done.code, done.json["delivered"], done.json["checkpoint_offset"]) == (0, True, 500)
    assert count(clickhouse_server, clickhouse_database) == 500


def test_sync_tries_now_what_waits_after_an_outage(
    replicator: Replicator, source: redis.Redis, clickhouse_server: ClickHouse, tmp_path: Path
) -> None:
    port = free_port()
    user, password = clickhouse_server.user, clickhouse_server.password
    replicator.environment["CLICKHOUSE_ENDPOINT"] = f"http://127.0.0.1:{port}"
    replicator.write(
        "duckdb_rust_config.toml",
        "[sync]\nsync_interval_sec = 0.1\nmax_retry_attempts = 0\n[error_handling]\nretry_backoff_sec = [3600]\n",
    )
    with ClickHouse(directory=tmp_path / "own", port=port, user=user, password=password) as own:
        replicator.start()
        replicator.until_status(lambda r: r["sink"]["circuit"] == "closed", "delivery has begun")
        own.stop()
        add(source, 1, 50)
        report = replicator.until_status(lambda r: r["sink"]["circuit"] == "open", "the circuit opens")
        assert report["failed_syncs"]["open"] == 1
        assert report["sink"]["lag_changes"] >= 50
        assert report["tables"][0]["next_try_seconds"] > 3000
        assert report["tables"][0]["last_error"].startswith(f"{SENTENCES[SinkUnavailable]}: "), "not the driver's words"
        told = f"{SENTENCES[SinkUnavailable]}: "
        replicator.until_status(lambda r: (r["clickhouse"]["error"] or "").startswith(told), "the probe says so too")
        assert replicator.command("sync", "--timeout", "0.3").code == 3
        own.start()
        assert replicator.command("sync").code == 0
        replicator.until_status(lambda r: r["failed_syncs"]["open"] == 0, "what was parked is delivered")
        replicator.stop()


# ── failed ──


def test_a_refused_row_is_parked_shown_retried_and_resolved(
    replicator: Replicator, source: redis.Redis, clickhouse_server: ClickHouse, clickhouse_database: str
) -> None:
    replicator.start()
    poison(clickhouse_server, clickhouse_database, replicator)
    add(source, 1, 100)
    report = replicator.until_status(lambda r: r["failed_syncs"]["open"], "the row is parked")
    report = replicator.until_status(lambda r: r["sink"]["checkpoint_offset"] == 100, "the others go on")
    assert report["state"] == "degraded"
    assert report["sink"]["lag_changes"] == 1
    assert report["sink"]["lag_seconds"] > 0
    [failed] = replicator.command("failed", "list", "--json").json
    assert failed.items() >= {"first_offset": 13, "last_offset": 13, "row_count": 1, "reason": "rejected"}.items()
    assert "13..13" in replicator.command("failed", "list").out
    shown = replicator.command("failed", "show", str(failed["id"]), "--json").json
    assert [(c["log_offset"], c["version"], c["payload"]) for c in shown["changes"]] == [
        (13, str((1 << 48) | 13), '{"n": 13}')
    ]
    assert shown["error_column"] == "payload", "the constraint is on it"
    assert shown["sentence"] == SENTENCES[SinkRejected]
    lines = replicator.command("failed", "show", str(failed["id"])).out.splitlines()
    said = [line.split()[0] for line in lines if line]
    assert any(line.split() == ["error_column", "payload"] for line in lines)
    assert said.index("sentence") + 1 == said.index("error_message"), "what was said stands behind it"
    again = replicator.command("failed", "retry", str(failed["id"]), "--json")
    assert (again.code, again.json["resolved"], again.json["failed"][0]["attempts"]) == (3, 0, failed["attempts"] + 1)
    cure(clickhouse_server, clickhouse_database)
    assert replicator.command("failed", "retry", "--all", "--dry-run").code == 0
    assert replicator.command("failed", "retry", "--all", "--json").json["resolved"] == 1
    replicator.until_status(lambda r: r["state"] == "ok", "all is well again")
    assert count(clickhouse_server, clickhouse_database) == 100


def test_parked_rows_are_sent_again_without_a_service(
    replicator: Replicator, source: redis.Redis, clickhouse_server: ClickHouse, clickhouse_database: str
) -> None:
    park_one_of_twenty(replicator, source, clickhouse_server, clickhouse_database)
    replicator.until_status(lambda r: r["sink"]["checkpoint_offset"] == 20, "the others go on")
    replicator.stop()
    refused = replicator.command("failed", "retry", "--all", "--json")
    assert (refused.code, refused.json["requested"], refused.json["resolved"]) == (3, 1, 0)
    assert refused.json["failed"][0]["status"] == "open"
    assert replicator.command("actions", "--json").json[0]["effect"] == "0 resolved, 1 not"
    cure(clickhouse_server, clickhouse_database)
    done = replicator.command("failed", "retry", "--all", "--json")
    assert (done.code, done.json["requested"], done.json["resolved"]) == (0, 1, 1)
    assert count(clickhouse_server, clickhouse_database) == 20
    assert replicator.command("actions", "--json").json[0]["effect"] == "1 resolved, 0 not"
    assert replicator.command("failed", "list").out == "nothing is parked\n"


def test_a_discarded_row_stays_on_record_and_leaves_the_lag(
    replicator: Replicator, source: redis.Redis, clickhouse_server: ClickHouse, clickhouse_database: str
) -> None:
    park_one_of_twenty(replicator, source, clickhouse_server, clickhouse_database)
    refused = replicator.command("failed", "discard", "--all", "--reason", "test")
    assert refused.code == 2
    assert "--yes" in refused.err
    replicator.command("failed", "discard", "--all", "--reason", "test", "--dry-run")
    assert replicator.status()["failed_syncs"]["open"] == 1
    done = replicator.command("failed", "discard", "--all", "--reason", "never needed", "--yes", "--json")
    assert (done.code, done.json["discarded"]) == (0, 1)
    report = replicator.until_status(lambda r: r["sink"]["checkpoint_offset"] == 20, "all is delivered")
    assert report["sink"]["lag_changes"] == 0
    [kept] = replicator.command("failed", "list", "--status", "all", "--json").json
    assert (kept["status"], kept["note"]) == ("discarded", "never needed")
    action = replicator.command("actions", "--json").json[0]
    assert action["action"] == "failed discard"
    assert action["actor"].startswith("cli:")
    assert "never needed" in action["effect"]


# ── rejected, gaps, pause ──


def test_rejected_entries_are_listed_shown_and_discarded_with_and_without_a_service(
    replicator: Replicator, source: redis.Redis
) -> None:
    replicator.start()
    source.xadd("trades", {"data": b"\xff\x1b[31mred", "op": "u"})
    source.xadd("trades", {"data": "{"})
    replicator.until_status(lambda r: r["rejected_entries"]["open"] == 2, "both are kept")
    first, second = replicator.command("rejected", "list", "--json").json
    shown = replicator.command("rejected", "show", str(first["id"]))
    assert "\x1b" not in shown.out
    assert replicator.command("rejected", "show", str(first["id"]), "--json").json["fields"][0]["field"] == "data"
    done = replicator.command("rejected", "discard", str(first["id"]), "--reason", "noise", "--yes", "--json")
    assert done.json["discarded"] == 1
    replicator.stop()
    [left] = replicator.command("rejected", "list", "--json").json
    assert left == second
    assert replicator.command("rejected", "discard", "--all", "--reason", "noise", "--yes").code == 0
    assert replicator.command("rejected", "list").out == "nothing was rejected\n"


def test_a_rejected_entry_is_logged_once_the_configuration_takes_it(
    replicator: Replicator, source: redis.Redis
) -> None:
    declared = '[[tables]]\nname = "trades"\nkey = ["id"]\n[tables.columns]\nid = "VARCHAR"\nquantity = "{}"\n'
    replicator.configure(sections="[serve]\nport = 0\n" + declared.format("TINYINT"))
    replicator.start()
    source.xadd("trades", {"data": '{"id": "a", "quantity": 1000}'})
    source.xadd("trades", {"data": '{"id": "b", "quantity": 2000}'})
    source.xadd("trades", {"data": '{"id": "b", "quantity": 2}'})
    replicator.until_status(lambda r: r["rejected_entries"]["open"] == 2, "two do not fit")
    refused = replicator.command("rejected", "retry", "--all", "--json")
    assert (refused.code, refused.json["logged"]) == (3, 0)
    replicator.configure(sections="[serve]\nport = 0\n" + declared.format("INTEGER"))
    replicator.signal(signal.SIGHUP)
    until(lambda: replicator.events("configuration_taken"), "the wider column is taken")
    done = replicator.command("rejected", "retry", "--all", "--json")
    assert (done.code, done.json["logged"]) == (3, 1)
    first, second = done.json["rejected"]
    assert (first["status"], first["kept"]) == ("resolved", None)
    assert (second["status"], second["kept"]) == ("open", "its key has a newer change")
    assert "newer change" in replicator.command("rejected", "retry", str(second["id"])).out
    forced = replicator.command("rejected", "retry", str(second["id"]), "--as-new", "--json")
    assert (forced.code, forced.json["logged"]) == (0, 1)
    replicator.until_status(lambda r: r["state"] == "ok" and r["sink"]["checkpoint_offset"] == 3, "all is delivered")


def test_a_rejected_entry_is_retried_without_a_service(replicator: Replicator, source: redis.Redis) -> None:
    declared = '[[tables]]\nname = "trades"\nkey = ["id"]\n[tables.columns]\nid = "VARCHAR"\nquantity = "{}"\n'
    replicator.configure(sections="[serve]\nport = 0\n" + declared.format("TINYINT"))
    replicator.start()
    source.xadd("trades", {"data": '{"id": "a", "quantity": 1000}'})
    replicator.until_status(lambda r: r["rejected_entries"]["open"] == 1, "it does not fit")
    replicator.stop()
    source.xadd("trades", {"data": '{"id": "b", "quantity": 2}'})
    assert replicator.command("rejected", "retry", "--all").code == 3, "it does not fit yet"
    replicator.configure(sections="[serve]\nport = 0\n" + declared.format("INTEGER"))
    redis_url = replicator.environment["REDIS_URL"]
    replicator.environment["REDIS_URL"] = "redis://127.0.0.1:1/0"
    without = replicator.command("rejected", "retry", "--all")
    assert without.code == 3 and "127.0.0.1:1" in without.err, without.err
    replicator.environment["REDIS_URL"] = redis_url
    done = replicator.command("rejected", "retry", "--all", "--json")
    assert (done.code, done.json["logged"]) == (0, 1)
    report = replicator.command("status", "--json").json
    assert (report["rejected_entries"]["open"], report["log"]["head_offset"]) == (0, 1), "nothing is read from Redis"
    assert replicator.command("actions", "--json").json[0].items() >= {"effect": "1 logged, 0 kept"}.items()


def test_pause_survives_a_restart_and_pausing_again_is_success(replicator: Replicator, source: redis.Redis) -> None:
    replicator.start()
    assert replicator.command("pause", "capture", "--json").json.items() >= {"changed": True, "paused": True}.items()
    assert replicator.command("pause", "capture", "--json").json.items() >= {"changed": False, "paused": True}.items()
    replicator.stop()
    replicator.start()
    add(source, 1, 5)
    report = replicator.until_status(lambda r: r["streams"][0]["backlog_entries"] == 5, "entries wait in Redis")
    assert report["log"]["head_offset"] == 0
    assert report["paused"] == ["capture"]
    assert report["state"] == "degraded"
    replicator.command("resume", "capture")
    replicator.until_status(lambda r: r["sink"]["checkpoint_offset"] == 5, "all is read and delivered")


def test_a_gap_is_red_until_it_is_acknowledged(replicator: Replicator, source: redis.Redis) -> None:
    replicator.start()
    add(source, 1, 10)
    report = replicator.until_status(lambda r: r["sink"]["checkpoint_offset"] == 10, "all is delivered")
    looked = report["uptime_seconds"] + 3
    replicator.until_status(lambda r: r["uptime_seconds"] > looked, "capture has looked at the stream's end")
    replicator.stop()
    add(source, 11, 30)
    source.xtrim("trades", maxlen=5, approximate=False)
    replicator.start()
    report = replicator.until_status(lambda r: r["gaps"]["open"], "the loss is noticed")
    assert report["state"] == "failed"
    assert report["gaps"]["entries_lost"] == 15
    assert replicator.command("status", "--check").code == 2
    [gap] = replicator.command("gaps", "list", "--json").json
    assert gap.items() >= {"stream": "trades", "entries_lost": 15, "status": "open"}.items()
    assert "trades" in replicator.command("gaps", "list").out
    assert replicator.command("gaps", "ack").code == 2
    done = replicator.command("gaps", "ack", str(gap["id"]), "--note", "sent again by the desk", "--json")
    assert (done.code, done.json["acknowledged"]) == (0, 1)
    report = replicator.until_status(lambda r: r["state"] == "ok", "acknowledged, it is no longer red")
    assert report["gaps"]["open"] == 0
    assert "sent again by the desk" in replicator.command("actions", "--json").json[0]["effect"]
