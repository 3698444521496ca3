"""The process in which readers' queries are computed: ``python -m replicator.query_worker``, one query at a time.

It holds no file and no secret. It gets, on stdin, a request and then the rows of each table the query names as Arrow
streams; it gives, on stdout, the answer in pieces. Guarantees: whatever a query does to memory, time or DuckDB itself
ends at most this process. It is the system's first choice when memory is short, and ends when its parent is gone.
"""

from __future__ import annotations

import json
import os
import re
import resource
import struct
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import duckdb
import pyarrow as pa

from replicator.query_formats import encoder, exact, with_kinds
from replicator.query_question import Format

BATCH_ROWS = 20_480
PIECE_BYTES_MAX = 1 << 20
PARENT_SECONDS = 0.5
NICE = 19
ADDRESS_MB_BEYOND = 1024
"""What the process may take beside DuckDB's own limit: its libraries, and texts that DuckDB does not count."""
NO_MEMORY = re.compile(r"[Oo]ut of [Mm]emory|[Aa]llocation failure|failed to (?:allocate|pin)|could not allocate")


class TooManyRows(Exception):
    """The answer has more rows than it may."""


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


class Worker:
    """Its DuckDB knows every relation by its columns, empty; a query's rows are put in for that query alone."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._in: BinaryIO = sys.stdin.buffer
        self._out: BinaryIO = sys.stdout.buffer
        config: dict[str, Any] = {"threads": options["threads"], "memory_limit": f"{options['memory_mb']}MB"}
        config |= {"python_enable_replacements": False, "autoload_known_extensions": False}
        config |= {"autoinstall_known_extensions": False, "temp_directory": options["temp_directory"]}
        config |= {"max_temp_directory_size": f"{options['temp_mb']}MB"}
        self._duckdb = duckdb.connect(":memory:", config=config)
        for setting in ("timezone = 'UTC'", "enable_external_access = false", "lock_configuration = true"):
            self._duckdb.execute(f"set {setting}")
        self._relations: dict[str, str] = {}

    def serve(self) -> None:
        """Query after query, until stdin ends."""
        while (request := self._request()) is not None:
            streams: list[pa.RecordBatchReader] = []
            try:
                self._know(request["relations"])
                self._duckdb.begin()
                self._answer(request, streams)
            except TooManyRows:
                self._fail("rows", f"the query gives more than {request['rows_max']:,} rows")
            except (duckdb.Error, pa.ArrowException, OSError, MemoryError, ValueError) as error:
                self._fail(*_meaning(error))
            self._duckdb.rollback()
            self._drain(streams, len(request["feeds"]))

    def _request(self) -> Any:
        head = self._in.read(4)
        return json.loads(self._in.read(struct.unpack("<I", head)[0])) if len(head) == 4 else None

    def _know(self, relations: dict[str, str]) -> None:
        """Have every relation as an empty table, so that they can be listed and described."""
        for name in self._relations.keys() - relations.keys():
            self._duckdb.execute(f"drop table {quote(name)}")
        for name, columns in relations.items():
            if self._relations.get(name) != columns:
                self._duckdb.execute(f"create or replace table {quote(name)} ({columns})")
        self._relations = relations

    def _answer(self, request: dict[str, Any], streams: list[pa.RecordBatchReader]) -> None:
        form = Format(request["format"])
        for place, feed in enumerate(request["feeds"]):
            streams.append(pa.ipc.open_stream(pa.PythonFile(self._in, mode="r")))
            self._take(f"_feed_{place}", feed, streams[-1])
        relation = self._duckdb.sql(request["sql"], params=request["parameters"] or None)
        relation, kinds = exact(relation, form)
        reader = relation.to_arrow_reader(BATCH_ROWS)
        schema = with_kinds(reader.schema, kinds)
        encode, rows = encoder(form, schema), 0
        piece = encode.begin()
        for batch in reader:
            rows += batch.num_rows
            if rows > request["rows_max"]:
                raise TooManyRows
            piece += encode.batch(pa.RecordBatch.from_arrays(batch.columns, schema=schema))
            if len(piece) >= PIECE_BYTES_MAX:
                self._send(b"D", piece)
                piece = b""
        self._send(b"D", piece + encode.end())
        self._send(b"Z", json.dumps({"rows": rows}).encode())

    def _take(self, source: str, feed: dict[str, Any], stream: pa.RecordBatchReader) -> None:
        """A stream as a relation or a macro: read on the fly, or kept where it is needed more than once."""
        name, taken = quote(feed["relation"]), quote(source)
        self._duckdb.register(source, stream)
        rows = f"select {feed['columns']} from {taken}"
        if feed["arguments"]:
            if not feed["once"]:
                kept = quote(f"{source}_kept")
                self._duckdb.execute(f"create table {kept} as {rows}")
                rows = f"from {kept}"
            names = ", ".join(f"argument_{place}" for place in range(feed["arguments"]))
            self._duckdb.execute(f"create macro {name}({names}) as table {rows}")
            return
        self._duckdb.execute(f"drop table {name}")
        self._duckdb.execute(f"create {'temp view' if feed['once'] else 'table'} {name} as {rows}")

    def _drain(self, streams: list[pa.RecordBatchReader], expected: int) -> None:
        """Read what is left of the rows, so that the next thing on stdin is a request."""
        while len(streams) < expected:
            streams.append(pa.ipc.open_stream(pa.PythonFile(self._in, mode="r")))
            for _ in streams[-1]:
                pass
        for stream in streams:
            for _ in stream:
                pass

    def _fail(self, code: str, text: str) -> None:
        self._send(b"E", json.dumps({"code": code, "message": text}).encode())

    def _send(self, kind: bytes, content: bytes) -> None:
        self._out.write(kind + struct.pack("<I", len(content)))
        self._out.write(content)
        self._out.flush()


def _meaning(error: Exception) -> tuple[str, str]:
    """Code and text for whoever asked."""
    text = str(error).strip()
    code = "memory" if isinstance(error, MemoryError) or NO_MEMORY.search(text) else "query"
    return code, text.splitlines()[0][:500] if text else type(error).__name__


def _confine(memory_mb: int) -> None:
    """Last in line for the processor and for room."""
    os.nice(NICE)
    if sys.platform == "linux":
        with suppress(OSError):  # a session of its own is a group of its own to the scheduler, where it groups at all
            Path("/proc/self/autogroup").write_text(str(NICE))
        Path("/proc/self/oom_score_adj").write_text("1000")
        bound = (memory_mb + ADDRESS_MB_BEYOND) << 20
        resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(0)


def main() -> None:
    options = json.loads(sys.argv[1])
    _confine(options["memory_mb"])
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    threading.stack_size(64 << 20)
    worker = Worker(options)
    serving = threading.Thread(target=worker.serve)  # for its stack: a query may be nested deeply
    serving.start()
    serving.join()


if __name__ == "__main__":
    main()
