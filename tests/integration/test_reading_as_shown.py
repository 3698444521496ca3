"""What README shows to programs that read, run as it stands there beside a service; and the example crate in Rust."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from replicator_process import Replicator, until
from repository import ROOT

from replicator.embedded.clickhouse import ClickHouse
from replicator.embedded.valkey import Valkey

README = (ROOT / "README.md").read_text()
READING = README.partition("\n## Read while it runs\n")[2].partition("\n## ")[0]
TABLE = README.partition("```toml\n")[2].partition("```")[0]
CRATE = ROOT / "ops" / "examples" / "rust"
CARGO = shutil.which("cargo")
BUILD_SECONDS = 900


def block(language: str, holding: str) -> str:
    (found,) = [text for text in re.findall(rf"```{language}\n(.*?)```", READING, re.DOTALL) if holding in text]
    return found


@pytest.fixture(scope="module")
def service(_valkey: Valkey, _clickhouse: ClickHouse, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicator]:
    """With README's table, and five rows in it."""
    _valkey.start()
    _clickhouse.start().execute("create database if not exists test_reading")
    environment = {
        "REDIS_URL": _valkey.url,
        "CLICKHOUSE_ENDPOINT": _clickhouse.endpoint,
        "CLICKHOUSE_USER": _clickhouse.user,
        "CLICKHOUSE_PASSWORD": _clickhouse.password,
    }
    with redis.Redis.from_url(_valkey.url) as client:
        client.flushall()
        for number in range(5):
            row = {"trade_id": f"T{number}", "symbol": "AAPL", "price": "189.25", "quantity": 10**17}
            client.xadd("trades", {"data": json.dumps(row)})
    with Replicator(
        directory=tmp_path_factory.mktemp("reading"), environment=environment, database="test_reading",
        sections=f"[serve]\nport = 0\n{TABLE}",
    ) as replicator:  # fmt: skip
        assert replicator.command("init").code == 0
        replicator.start()
        replicator.until_status(lambda report: report["log"]["head_offset"] == 5, "five rows are logged")
        yield replicator
        assert replicator.stop() == 0, replicator.log_text
    _clickhouse.start().execute("drop database test_reading sync")


def run(service: Replicator, *command: str) -> str:
    done = subprocess.run(
        [part.replace("http://127.0.0.1:8420", service.url) for part in command],
        cwd=service.directory, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_manager_as_shown(service: Replicator) -> None:
    shown = block("python", "DuckDBManager") + "\nprint(rows, table.num_rows, report.delivered)"
    said = run(service, sys.executable, "-c", shown).splitlines()
    assert said == [f"the service {service.url}", f"[('AAPL', {5 * 10**17})] 0 True"]


def test_pyarrow_alone_in_five_lines(service: Replicator) -> None:
    shown = block("python", "urllib")
    assert len([line for line in shown.splitlines() if line and "import" not in line]) == 5
    assert run(service, sys.executable, "-c", f"{shown}\nprint(table.to_pydict())").split() == [
        "{'symbol':", "['AAPL'],", "'quantity':", f"[Decimal('{5 * 10**17}')]}}",
    ]  # fmt: skip


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_curl_as_shown(service: Replicator) -> None:
    header, *rows = run(service, "sh", "-c", block("sh", "curl")).splitlines()
    assert header.startswith("trade_id,symbol,price,quantity,executed_at,")
    assert sorted(row.split(",")[:4] for row in rows) == [
        [f"T{n}", "AAPL", "189.250000", f"{10**17}"] for n in range(5)
    ]


# ── Rust ──


@pytest.fixture(scope="module")
def program() -> Path:
    """The example's program, built in the repository's own ``target``; a second build finds everything done."""
    if CARGO is None:
        pytest.skip("no cargo here to build ops/examples/rust with")
    target = ROOT / "target" / "rust"
    fetched = cargo(target, "fetch", "--locked")
    if fetched.returncode != 0:
        pytest.skip(f"the crates of ops/examples/rust are not to be had here: {fetched.stderr.splitlines()[-1:]}")
    built = cargo(target, "build", "--locked", "--offline", "--bins", "--examples")
    assert built.returncode == 0, built.stderr
    assert "warning" not in built.stderr
    return target / "debug" / "db_manager"


def cargo(target: Path, *words: str) -> subprocess.CompletedProcess[str]:
    assert CARGO is not None
    return subprocess.run(
        [CARGO, *words], cwd=CRATE, env={**os.environ, "CARGO_TARGET_DIR": str(target)},
        capture_output=True, text=True, timeout=BUILD_SECONDS, check=False,
    )  # fmt: skip


def rust(service: Replicator, program: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """With the variables of the service but no more of its configuration than the profile."""
    return subprocess.run(
        [program, service.config_dir / "duckdb_rust_config.toml", *words],
        env={"REDIS_URL": service.environment["REDIS_URL"]}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_rust_that_is_shown_is_an_example_that_builds() -> None:
    shown, built = block("rust", "DbManager").split(), (CRATE / "examples" / "readme.rs").read_text().split()
    assert shown and " ".join(shown) in " ".join(built)


@pytest.mark.timeout(BUILD_SECONDS + 300)
def test_a_program_in_rust_writes_reads_and_syncs(service: Replicator, program: Path) -> None:
    row = json.dumps({"trade_id": "R1", "symbol": "RUST", "price": "0.000001", "quantity": "9007199254740993"})
    asked = "select price, quantity from trades where trade_id = 'R1'"
    done = rust(service, program, "write-and-read", "trades", row, asked)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"price": "0.000001", "quantity": "9007199254740993"}
    done = rust(service, program, "query", "select count(*) c from trades where symbol = ? and price < ?", "RUST", "1")
    assert json.loads(done.stdout) == {"c": 1}
    done = rust(service, program, "sync")
    assert (done.returncode, json.loads(done.stdout)["delivered"]) == (0, True)
    rust(service, program, "delete", "trades", json.dumps({"trade_id": "R1"}))
    until(lambda: not rust(service, program, "query", asked).stdout, "the row is gone")
    done = rust(
        service, program, "watch", "1", "select count(*), max(log_offset), count(distinct log_offset) from change_log"
    )
    assert (done.returncode, json.loads(done.stdout)["last"]) == (0, 7)
    for sql, words in (("delete from trades", "only a SELECT"), ("select nothing", "nothing")):
        refused = rust(service, program, "query", sql)
        assert (refused.returncode, words in refused.stderr) == (2, True)
