"""The commands around the service: check, migrate, and how a command finds the service that holds the file."""

from __future__ import annotations

import fcntl
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import redis
from replicator_process import Replicator, add, free_port

from replicator.embedded.clickhouse import ClickHouse

# ── check, migrate, init ──


def test_check_tries_every_connection_and_hides_secrets(
    replicator: Replicator, clickhouse_server: ClickHouse, clickhouse_database: str
) -> None:
    clickhouse_server.execute(f"create table {clickhouse_database}.x (a Int8) engine = Memory")
    done = replicator.command("check", "--json")
    assert done.code == 0, done.out
    assert {c["part"]: c["ok"] for c in done.json["connections"]} == {"Redis": True, "ClickHouse": True, "DuckDB": True}
    assert clickhouse_server.password not in done.out
    consumers = {(s["section"], s["key"]): s["consumer"] for s in done.json["settings"] if "python" not in s["file"]}
    assert consumers["sync", "batch_size"] == "deliver"
    assert consumers["encryption", "master_key"] == "inert"
    assert any("GRANT INSERT" in line for line in done.json["clickhouse_grants"])
    assert done.json["redis_acl"].startswith("ACL SETUSER replicator on >")
    assert clickhouse_server.password not in replicator.command("check").out


def test_check_refuses_tables_that_no_start_would_take_with_every_problem(replicator: Replicator) -> None:
    tables = '[[tables]]\nname = "{}"\nkey = ["id"]\n[tables.columns]\nid = "{}"\nx = "{}"\n'
    replicator.configure(sections=tables.format("a", "DOUBLE", "TIME") + tables.format("b", "BIGINT", "INTERVAL"))
    done = replicator.command("check")
    assert done.code == 2
    assert [part for part in ("'TIME'", "key column 'id'", "'INTERVAL'") if part not in done.err] == [], done.err


def test_check_says_what_does_not_answer_and_tries_the_rest(replicator: Replicator) -> None:
    replicator.environment["REDIS_URL"] = f"redis://127.0.0.1:{free_port()}"
    replicator.environment["CLICKHOUSE_PASSWORD"] = "wrong-password"
    done = replicator.command("check", "--json")
    assert done.code == 3
    found = {c["part"]: c for c in done.json["connections"]}
    assert (found["Redis"]["ok"], found["ClickHouse"]["ok"], found["DuckDB"]["ok"]) == (False, False, True)
    assert "clickhouse_password" in found["ClickHouse"]["hint"]
    assert "wrong-password" not in done.out
    assert replicator.command("check", "--no-connect").code == 0


def test_the_acl_that_check_prints_is_enough(replicator: Replicator, source: redis.Redis, redis_url: str) -> None:
    rule = replicator.command("check", "--json", "--no-connect").json["redis_acl"]
    source.execute_command(*rule.replace("<password>", "exactly-enough").split())
    try:
        replicator.environment["REDIS_URL"] = redis_url.replace("redis://", "redis://replicator:exactly-enough@")
        replicator.start()
        add(source, 1, 20)
        replicator.until_status(lambda r: r["state"] == "ok" and r["sink"]["confirmed_offset"] == 20, "it is enough")
        replicator.stop()
        for text in (replicator.log_text, (replicator.directory / "data" / "replicator.log").read_text()):
            assert "exactly-enough" not in text
            assert "NOPERM" not in text
    finally:
        source.execute_command("ACL", "DELUSER", "replicator")


def test_infer_proposes_what_the_service_then_takes_and_refuses_what_is_no_stream(
    replicator: Replicator, source: redis.Redis
) -> None:
    source.xadd("eu:trades", {"data": '{"id":1,"price":"1.25","at":"2026-01-01T10:00:00Z","_x":1}'})
    source.xadd("eu:trades", {"data": '{"id":2,"price":"NaN","at":"2026-02-30"}'})
    proposed = replicator.command("infer", "eu:trades")
    assert proposed.code == 0, proposed.err
    replicator.configure(streams="[]", sections=proposed.out)
    replicator.start()
    replicator.until_status(lambda r: r["sink"]["confirmed_offset"] == 2, "both changes fit what was proposed")
    assert replicator.status()["rejected_entries"]["open"] == 0
    source.set("text", "x")
    refused = replicator.command("infer", "text")
    assert refused.code == 3 and "the key 'text' in Redis is not a stream" in refused.err, refused.err
    assert "Traceback" not in refused.err
    assert replicator.command("infer", "nothing").code == 2


def test_migrate_makes_both_sides_and_is_re_runnable(
    replicator: Replicator, clickhouse_server: ClickHouse, clickhouse_database: str
) -> None:
    first = replicator.command("migrate", "--json")
    assert first.code == 0, first.err
    assert "0001_log.sql" in first.json["duckdb"]
    assert "0001_change_log.sql" in first.json["clickhouse"]
    assert "replicator_batches" in clickhouse_server.execute(f"show tables from {clickhouse_database}")
    again = replicator.command("migrate", "--json").json
    assert (again["duckdb"], again["clickhouse"]) == ([], [])
    replicator.start()
    assert replicator.command("migrate", "--json").json["duckdb_by_service"] is True


def test_migrate_without_clickhouse_does_the_file_and_says_so(replicator: Replicator) -> None:
    replicator.environment["CLICKHOUSE_ENDPOINT"] = f"http://127.0.0.1:{free_port()}"
    done = replicator.command("migrate")
    assert done.code == 3
    assert "DuckDB: 0001_log.sql" in done.out
    assert "does not answer" in done.err


# ── reaching the service ──


def test_check_does_not_take_another_holder_of_the_file_for_the_service(replicator: Replicator) -> None:
    replicator.database_path.parent.mkdir(exist_ok=True)
    replicator.database_path.touch()
    with replicator.database_path.open("rb+") as held:
        fcntl.lockf(held, fcntl.LOCK_EX)
        done = replicator.command("check", "--json")
    assert done.code == 3
    [found] = [c for c in done.json["connections"] if c["part"] == "DuckDB"]
    assert not found["ok"] and "no replicator answers" in found["text"], found
    replicator.database_path.unlink()
    replicator.start()
    done = replicator.command("check", "--json")
    [found] = [c for c in done.json["connections"] if c["part"] == "DuckDB"]
    assert found["ok"] and "the service that runs at http://" in found["text"], found


def test_commands_say_when_the_holder_of_the_file_is_no_service_they_can_reach(replicator: Replicator) -> None:
    replicator.start()
    note = replicator.database_path.with_name("replicator.duckdb.service.json")
    told = json.loads(note.read_text())
    note.write_text(json.dumps(told | {"url": f"http://127.0.0.1:{free_port()}"}))
    done = replicator.command("status")
    assert done.code == 3
    assert f"in use by process {told['pid']}" in done.err
    assert re.search(r"no replicator answers at http://127\.0\.0\.1:\d+", done.err)
    assert replicator.command("status", "--check").code == 2


class Eavesdropper(BaseHTTPRequestHandler):
    """Answers everything politely and remembers what it was told."""

    heard: list[str | None] = []

    def do_GET(self) -> None:
        self.heard.append(self.headers["Authorization"])
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"pipeline": "main", "state": "ok"}')

    do_POST = do_GET  # noqa: N815 - the name is HTTPServer's

    def log_message(self, *_: object) -> None:
        """Says nothing on stderr."""


def test_a_token_is_never_sent_to_something_else_on_the_port(replicator: Replicator) -> None:
    replicator.start()
    with HTTPServer(("127.0.0.1", 0), Eavesdropper) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        note = replicator.database_path.with_name("replicator.duckdb.service.json")
        told = json.loads(note.read_text()) | {"url": f"http://127.0.0.1:{other.server_port}"}
        note.write_text(json.dumps(told))
        done = replicator.command("sync")
        other.shutdown()
    assert done.code == 3
    assert "something else answers there" in done.err
    assert Eavesdropper.heard == [None]


def test_another_pipeline_on_the_same_address_is_not_taken_for_ours(replicator: Replicator) -> None:
    replicator.start()
    replicator.configure(sections='[serve]\nport = 0\n[pipeline]\nname = "other"')
    done = replicator.command("sync")
    assert done.code == 3
    assert "pipeline main answers there" in done.err


def test_without_the_token_a_command_says_where_it_should_be(replicator: Replicator) -> None:
    replicator.start()
    for role in ("admin", "read"):
        replicator.database_path.with_name(f"replicator.duckdb.{role}_token").unlink()
    done = replicator.command("pause", "capture")
    assert done.code == 2
    assert "REPLICATOR_ADMIN_TOKEN" in done.err


def test_configured_tokens_are_used_and_none_are_generated(replicator: Replicator) -> None:
    replicator.environment |= {"REPLICATOR_ADMIN_TOKEN": "a" * 24, "REPLICATOR_READ_TOKEN": "r" * 24}
    replicator.start()
    assert replicator.command("status").code == 0
    assert replicator.http("GET", "/api/v1/status", token="r" * 24).status == 200
    assert not replicator.database_path.with_name("replicator.duckdb.admin_token").exists()
    replicator.environment["REPLICATOR_ADMIN_TOKEN"] = "wrong" * 5
    done = replicator.command("pause", "capture")
    assert done.code == 2
    assert "refuses the token" in done.err


def test_answers_stay_clean_when_nobody_listens(replicator: Replicator) -> None:
    replicator.start()
    done = replicator.command("failed", "list", "--json")
    assert (done.code, done.json, done.err) == (0, [], "")
