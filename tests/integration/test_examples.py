"""The example programs do what they say, against a running service."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from replicator_process import Replicator
from repository import ROOT

EXAMPLES = ROOT / "ops" / "examples"
TABLE = """
[[tables]]
name = "trades"
key = ["trade_id"]
[tables.columns]
trade_id = "VARCHAR"
symbol = "VARCHAR"
price = "DECIMAL(18,6)"
quantity = "BIGINT"
"""


def ran(program: Path, *arguments: str, redis_url: str = "") -> list[str]:
    done = subprocess.run(
        [sys.executable, str(program), *arguments],
        env={"REDIS_URL": redis_url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_what_the_example_producer_writes_the_example_reader_reads(replicator: Replicator) -> None:
    replicator.configure(streams='["trades"]', sections=f"[serve]\nport = 0\n{TABLE}")
    replicator.start()
    (entry,) = ran(EXAMPLES / "producer.py", redis_url=replicator.environment["REDIS_URL"])
    token = replicator.database_path.with_name("replicator.duckdb.read_token")
    rows = ran(EXAMPLES / "reader.py", replicator.url, str(token), entry)
    assert rows == ["AAPL 1 60", f"MSFT 1000 {sum(range(1000))}", "NVDA 1 7"]
    replicator.until_status(lambda r: r["sink"]["confirmed_offset"] == 1005, "ClickHouse has them all")
    assert replicator.status()["rejected_entries"]["open"] == 0
