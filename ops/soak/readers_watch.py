"""A reader of `readers`, as a program of its own: ``manager CONFIG`` or ``curl URL TOKEN_FILE``, then SECONDS and SQL.

Asks until the time is up. Each answer has one row, whose columns must be equal and never fall.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from replicator import DuckDBManager


def main(words: Sequence[str]) -> int:
    *way, seconds, sql = words
    ask = {"manager": _manager, "curl": _curl}[way[0]](*way[1:])
    end, asked, last = time.monotonic() + float(seconds), 0, 0
    while time.monotonic() < end:
        row = ask(sql)
        if len(set(row)) != 1 or row[0] < last:
            print(json.dumps({"asked": asked, "inconsistent": list(row), "before": last}))
            return 1
        asked, last = asked + 1, row[0]
    print(json.dumps({"asked": asked, "last": last}))
    return 0


def _manager(config: str) -> Callable[[str], Sequence[int]]:
    manager = DuckDBManager(config)
    return lambda sql: manager.execute_query(sql)[0]


def _curl(url: str, token_file: str) -> Callable[[str], Sequence[int]]:
    """A curl of its own for each query, as a script would."""
    words = ["curl", "--silent", "--fail", "--max-time", "60", "--header", "Content-Type: application/json"]
    words += ["--header", f"Authorization: Bearer {Path(token_file).read_text().strip()}", f"{url}/api/v1/query"]

    def ask(sql: str) -> Sequence[int]:
        done = subprocess.run([*words, "--data", json.dumps({"sql": sql})], capture_output=True, check=True)
        (row,) = json.loads(done.stdout)["rows"]
        return [int(value) for value in row.values()]

    return ask


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
