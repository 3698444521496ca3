"""Secrets that can be told from everything else, used in every way there is; then whatever was left, said or shown is
searched for them. And nobody else may read what a service creates.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
from attrs import define, field
from replicator_process import Replicator, until

from replicator.cli import COMMANDS
from replicator.embedded.clickhouse import ClickHouse
from replicator.embedded.valkey import Valkey

MARK = "m4rk"
REDIS, WRONG, CLICKHOUSE = f"{MARK}-redis-'\"%41ü", f"{MARK}-wrong-7", "s3cret'%&"
TOKENS = {"admin": f"{MARK}-admin-0123456789", "read": f"{MARK}-read-0123456789"}
FORMS = [MARK, CLICKHOUSE, quote(CLICKHOUSE, safe=""), json.dumps(CLICKHOUSE)[1:-1], "s3cret"]
"""As it is written anywhere: plain, in an address, in JSON."""
LISTS = {"failed": ("list",), "rejected": ("list",), "gaps": ("list",), "actions": ()}
MANAGER = """
import sys
from replicator import DuckDBManager
with DuckDBManager(sys.argv[1]) as manager:
    print(manager.config, manager.execute_query("select count(*) from change_log"), manager, manager.conn)
    print(manager.sync_to_clickhouse())
    try:
        manager.execute_query("select getenv('REPLICATOR_ADMIN_TOKEN')")
    except Exception as error:
        print(repr(error))
"""


@define
class Room:
    replicator: Replicator
    said: list[tuple[str, bytes]] = field(factory=list)
    """What was said, and where."""
    processes: list[tuple[str, bytes]] = field(factory=list)

    def say(self, where: str, *texts: str | bytes) -> None:
        self.said += [(where, text.encode() if isinstance(text, str) else text) for text in texts]

    def command(self, *words: str) -> None:
        done = self.replicator.command(*words)
        assert done.code in (0, 1, 2, 3), done.err
        self.say(" ".join(words), done.out, done.err)

    def look_at_processes(self) -> None:
        """The titles of all, and the surroundings of those that compute queries."""
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                title = (entry / "cmdline").read_bytes()
                self.processes.append((f"{entry} title", title))
                if b"query_worker" in title:
                    self.processes.append((f"{entry} environment", (entry / "environ").read_bytes()))
            except OSError:
                continue  # it has ended


def secrets_toml(password: str) -> str:
    return (
        f"[auth]\nclickhouse_user = 'replicator'\nclickhouse_password = {json.dumps(CLICKHOUSE)}\n"
        f"[redis]\npassword = {json.dumps(password, ensure_ascii=False)}\n"
        f"[serve]\nadmin_token = '{TOKENS['admin']}'\nread_token = '{TOKENS['read']}'\n"
    )


@pytest.fixture(scope="module")
def room(_clickhouse: ClickHouse, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    """Everything has been done when the tests begin to look."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("no /proc here to look into")
    assert _clickhouse.start().password == CLICKHOUSE
    _clickhouse.execute("create database if not exists test_secrets")
    directory = tmp_path_factory.mktemp("secrets")
    before = os.umask(0o022)
    try:
        with (
            Valkey(directory=tmp_path_factory.mktemp("valkey"), password=REDIS) as valkey,
            Replicator(directory=directory, environment={}, database="test_secrets", fresh=True) as replicator,
        ):
            bare = f"redis://127.0.0.1:{valkey.port}/0"
            replicator.environment = {"REDIS_URL": bare, "CLICKHOUSE_ENDPOINT": _clickhouse.endpoint}
            found = Room(replicator)
            with redis.Redis.from_url(valkey.url) as producer:
                use_everything(found, producer, valkey.url)
            yield found
    finally:
        os.umask(before)
    _clickhouse.start().execute("drop database test_secrets sync")


def use_everything(room: Room, producer: redis.Redis, url: str) -> None:
    replicator = room.replicator
    replicator.configure(sections="[serve]\nport = 0\n", level="TRACE")
    room.command("init")
    replicator.write("secrets.toml", secrets_toml(WRONG))
    room.command("check")
    replicator.start()
    until(lambda: "WRONGPASS" in replicator.log_text or "password" in replicator.log_text, "Redis refuses")
    room.say("log", replicator.log_text)
    replicator.kill()

    replicator.write("secrets.toml", secrets_toml(REDIS))
    replicator.environment["CLICKHOUSE_PASSWORD"] = WRONG
    room.command("check")
    del replicator.environment["CLICKHOUSE_PASSWORD"]
    room.command("check", "--json")
    replicator.environment["REDIS_URL"] = url  # with the password inside
    replicator.start()
    for number in range(3):
        producer.xadd("trades", {"data": json.dumps({"n": number})})
    producer.xadd("trades", {"data": "{"})
    replicator.until_status(lambda report: report["sink"]["checkpoint_offset"] == 3, "delivered", TOKENS["read"])
    for name in COMMANDS.keys() & {"status", "sync", "verify", "doctor", *LISTS}:
        room.command(name, *LISTS.get(name, ()))
    room.command("query", "select * from change_log")
    room.command("query", "select getenv('CLICKHOUSE_PASSWORD')")
    for token in (*TOKENS.values(), WRONG, None):
        for method, path, body in (
            ("GET", "/livez", None), ("GET", "/metrics", None), ("GET", "/api/v1/openapi.json", None),
            ("GET", "/api/v1/status", None), ("POST", "/api/v1/query", {"sql": "selec"}), ("POST", "/api/v1/sync", {}),
            ("POST", "/api/v1/query", {"sql": "select 1"}), ("POST", "/api/v1/nothing", {"nothing": 1}),
        ):  # fmt: skip
            answer = replicator.http(method, path, token=token, body=body)
            room.say(path, answer.data, str(dict(answer.headers)))
    room.look_at_processes()
    done = subprocess.run(
        [sys.executable, "-c", MANAGER, replicator.config_dir / "duckdb_python_config.toml"],
        capture_output=True, timeout=120, check=False, env={**os.environ, **replicator.environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    room.say("the manager", done.stdout, done.stderr)
    replicator.write("secrets.toml", secrets_toml(REDIS) + f"[nonsense]\nkey = '{WRONG}'\n")
    replicator.signal(signal.SIGHUP)
    until(lambda: replicator.events("configuration_not_reloaded"), "the configuration is refused")
    replicator.write("secrets.toml", secrets_toml(REDIS))
    replicator.kill()
    room.say("log", replicator.log_text)


def files(room: Room) -> list[Path]:
    return [path for path in room.replicator.directory.rglob("*") if path.is_file() and path.name != "secrets.toml"]


def showing(texts: list[tuple[str, bytes]]) -> list[str]:
    return [f"{where}: {form}" for where, text in texts for form in FORMS if form.encode() in text]


def test_the_search_finds_what_is_there(room: Room) -> None:
    secrets = room.replicator.config_dir / "secrets.toml"
    assert len(showing([("x", secrets.read_bytes())])) >= 3
    assert len(room.said) > 60
    assert any("query_worker" in title.decode(errors="replace") for _, title in room.processes)
    assert len(files(room)) > 8


def test_no_answer_or_line_shows_a_secret(room: Room) -> None:
    assert showing(room.said) == []


def test_no_process_shows_a_secret(room: Room) -> None:
    assert showing(room.processes) == []


def test_no_file_that_was_left_holds_a_secret(room: Room) -> None:
    assert showing([(str(path), path.read_bytes()) for path in files(room)]) == []


def test_what_a_service_creates_is_its_user_s_alone(room: Room) -> None:
    created = [*(room.replicator.directory / "data").rglob("*"), room.replicator.directory / "data"]
    assert len(created) > 5
    open_to_others = [f"{path}: {path.stat().st_mode & 0o777:o}" for path in created if path.stat().st_mode & 0o077]
    assert open_to_others == []
