"""Random rows of every type, through every encoding, into a running service: both sides hold what was sent."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis
from every_type import NOTHING, Sort, Value, bits, sorts
from tables_room import TablesRoom

from replicator import Producer
from replicator.embedded.clickhouse import ClickHouse

SORTS: Mapping[str, Sort] = sorts()
TABLES = "[[tables]]\nname = 'everything'\nkey = ['k']\n[tables.columns]\nk = 'BIGINT'\n" + "".join(
    f"{name} = {json.dumps(sort.declared)}\n" for name, sort in SORTS.items()
)
Row = Mapping[str, Value]
Rows = Mapping[int, Row]


def every_limit() -> list[Row]:
    """Each column's limits in turn, so that every limit is in some row; and a row of nothing."""
    rows = max(len(sort.limits) for sort in SORTS.values())
    found = [{name: sort.limits[n % len(sort.limits)] for name, sort in SORTS.items()} for n in range(rows)]
    return [*found, dict.fromkeys(SORTS, NOTHING)]


def drawn(seed: random.Random, rows: int) -> list[Row]:
    return [
        {name: NOTHING if seed.random() < 0.1 else sort.draw(seed) for name, sort in SORTS.items()} for _ in range(rows)
    ]


# ── the ways in ──


def given(rows: Rows) -> list[dict[str, Any]]:
    return [{"k": k, **{name: value.given for name, value in row.items()}} for k, row in rows.items()]


def arrow_table(rows: Rows, *, json_typed: bool = False) -> pa.Table:
    """JSON as text, or as Arrow's own JSON type: in the json encoding a text is a string and nothing else."""
    columns: dict[str, pa.Array] = {"k": pa.array(list(rows), pa.int64())}
    for name, sort in SORTS.items():
        values = [row[name].arrow for row in rows.values()]
        if pa.types.is_dictionary(sort.arrow):
            columns[name] = pa.array(values, pa.string()).dictionary_encode()
        elif json_typed and name == "nested":
            columns[name] = pa.array([row[name].literal for row in rows.values()], pa.string()).cast(pa.json_())
        else:
            columns[name] = pa.array(values, sort.arrow)
    return pa.table(columns)


def single_changes(encoding: str) -> Callable[[str, redis.Redis, Rows], None]:
    def send(url: str, _client: redis.Redis, rows: Rows) -> None:
        with Producer(url, encoding=encoding, key="k") as producer:
            for row in given(rows):
                producer.upsert("everything", row)

    return send


def batches(encoding: str, make: Callable[[Rows], Any]) -> Callable[[str, redis.Redis, Rows], None]:
    def send(url: str, _client: redis.Redis, rows: Rows) -> None:
        with Producer(url, key="k") as producer:
            producer.send_batch("everything", make(rows), encoding=encoding)

    return send


def json_entries(_url: str, client: redis.Redis, rows: Rows) -> None:
    """As someone writes them by hand."""
    for k, row in rows.items():
        members = [f'"k": {k}', *(f"{json.dumps(name)}: {value.literal}" for name, value in row.items())]
        client.xadd("everything", {"data": "{" + ", ".join(members) + "}", "op": "c"})


def flat_entries(_url: str, client: redis.Redis, rows: Rows) -> None:
    for k, row in rows.items():
        texts = {name: value.text for name, value in row.items() if value.expected is not None}
        client.xadd("everything", {"k": str(k), **texts, "_op": "c"})


def arrow_entries(compression: str) -> Callable[[str, redis.Redis, Rows], None]:
    def send(_url: str, client: redis.Redis, rows: Rows) -> None:
        table = arrow_table(rows, json_typed=compression == "lz4")
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
            writer.write_table(table, max_chunksize=17)
        client.xadd("everything", {"batch": sink.getvalue().to_pybytes()})

    return send


WAYS: dict[str, Callable[[str, redis.Redis, Rows], None]] = {
    "Producer, json": single_changes("json"),
    "Producer, flat": single_changes("flat"),
    "Producer, arrow": single_changes("arrow"),
    "rows as json": batches("json", given),
    "rows as flat": batches("flat", given),
    "rows as arrow": batches("arrow", given),
    "Arrow as json": batches("json", lambda rows: arrow_table(rows, json_typed=True)),
    "Arrow as flat": batches("flat", arrow_table),
    "Arrow as arrow": batches("arrow", arrow_table),
    "json by hand": json_entries,
    "flat by hand": flat_entries,
    "arrow by hand, lz4": arrow_entries("lz4"),
    "arrow by hand, zstd": arrow_entries("zstd"),
}


# ── what both sides hold ──


def held(room: TablesRoom, table: str) -> list[dict[int, dict[str, Any]]]:
    """By key the values of DuckDB and of ClickHouse, in comparable form."""
    found = []
    for side, ask in (("duckdb", room.duckdb), ("clickhouse", room.clickhouse)):
        columns = [getattr(sort, side).replace("{}", f'"{name}"') for name, sort in SORTS.items()]
        rows = ask(f"select k, {', '.join(columns)} from {table}")
        found.append({row[0]: dict(zip(SORTS, map(comparable, SORTS, row[1:]), strict=True)) for row in rows})
        assert len(found[-1]) == len(rows)
    return found


def comparable(name: str, value: Any) -> Any:
    if name in ("f32", "f64"):
        return bits("f" if name == "f32" else "d", value)
    return json.loads(value) if name == "nested" and value is not None else value


@pytest.fixture
def room(tmp_path: Path, redis_url: str, clickhouse_server: ClickHouse, clickhouse_database: str) -> Any:
    with TablesRoom.open(tmp_path, redis_url, clickhouse_server, clickhouse_database, TABLES) as found:
        yield found


def test_every_value_arrives_through_every_encoding_as_it_was_sent(room: TablesRoom) -> None:
    seed_number = random.randrange(10**6)
    print(f"seed {seed_number}")  # noqa: T201 - to run it again with
    seed, sent = random.Random(seed_number), {}
    for way, send in WAYS.items():
        rows = {len(sent) + n: row for n, row in enumerate(every_limit() + drawn(seed, 25))}
        send(room.environ["REDIS_URL"], room.redis, rows)
        sent |= {k: (way, row) for k, row in rows.items()}
    room.wait_delivered()
    assert room.rejections() == []
    room.settle()
    for table in ("everything_log", "everything"):
        assert_held(room, table, sent)
    room.fold("everything")
    assert_held(room, "everything", sent)
    room.assert_verified()


def assert_held(room: TablesRoom, table: str, sent: Mapping[int, tuple[str, Row]]) -> None:
    """Each value as it was sent, on both sides."""
    ours, theirs = held(room, table)
    assert set(ours) == set(theirs) == set(sent)
    for k, (way, row) in sent.items():
        for name, value in row.items():
            assert (ours[k][name], theirs[k][name]) == (value.expected, value.expected), (table, way, name)


MISFITS: Sequence[tuple[str, str]] = (
    ("i8", "128"),
    ("u64", "-1"),
    ("i128", str(2**127)),
    ("u128", str(2**128)),
    ("d9_2", '"1.005"'),
    ("d38_10", f'"{"9" * 29}"'),
    ("f32", "1e39"),
    ("flag", '"yes"'),
    ("label", '"hold"'),
    ("bytes", '"not base64!"'),
    ("id", '"123"'),
    ("day", '"2026-02-30"'),
    ("at", '"1899-12-31T23:59:59Z"'),
    ("at", '"2026-01-01T00:00:00.0000001Z"'),
    ("at_ns", '"2262-04-11T23:47:16.854775808Z"'),
    ("text", "5"),
)


def test_what_fits_no_column_is_rejected_in_every_encoding_and_the_rest_goes_on(room: TablesRoom) -> None:
    flat_too = [m for m in MISFITS if m[0] != "text"]  # every flat value is text
    for k, (name, literal) in enumerate(MISFITS):
        room.redis.xadd("everything", {"data": f'{{"k":{k},"{name}":{literal}}}'})
    for k, (name, literal) in enumerate(flat_too):
        room.redis.xadd("everything", {"k": str(100 + k), name: literal.strip('"')})
    table = pa.table({"k": [200, 201, 202], "i8": ["127", "128", "-128"]})
    with Producer(room.environ["REDIS_URL"], key="k") as producer:
        producer.send_batch("everything", table)
    room.put("everything", [{"k": 300}])
    room.wait_delivered()
    reasons = room.rejections()
    names = [name for name, _ in (*MISFITS, *flat_too)] + ["i8"]
    assert [reason.partition(":")[0] for reason in reasons] == names, reasons
    assert room.both("select k, i8 from everything order by k") == [(200, 127), (202, -128), (300, None)]
