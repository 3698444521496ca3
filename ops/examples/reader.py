"""Reads current rows from a running replicator as Arrow, after waiting for an entry that a producer has just written.

    python reader.py URL TOKEN_FILE ENTRY_ID

The token lies beside the database, e.g. data/replicator.duckdb.read_token.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import urllib3

SQL = "select symbol, count(*) as trades, sum(quantity) as quantity from trades group by symbol order by symbol"


def read(url: str, token: str, entry_id: str) -> pa.Table:
    """Read your own writes: the query waits until the entry is in the log."""
    answer = urllib3.request(
        "POST",
        f"{url}/api/v1/query",
        headers={"Authorization": f"Bearer {token}", "Accept": "application/vnd.apache.arrow.stream"},
        json={"sql": SQL, "min_entry_id": {"stream": "trades", "entry_id": entry_id}},
        retries=False,
        timeout=60,
    )
    if answer.status != 200:
        raise SystemExit(answer.json()["error"]["message"])
    return pa.ipc.open_stream(answer.data).read_all()


if __name__ == "__main__":
    address, token_file, entry = sys.argv[1:]
    for row in read(address, Path(token_file).read_text().strip(), entry).to_pylist():
        print(row["symbol"], row["trades"], row["quantity"])
