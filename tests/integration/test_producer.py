"""Producer against a real Redis: what arrives, in which order, and what it says when Redis is away or refuses."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
import redis

import replicator
from replicator import BufferLimits, Producer
from replicator.errors import UsageError


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as made:
        yield made


@pytest.fixture
def binary_client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as made:
        yield made


def entries(client: redis.Redis, stream: str) -> list[dict[str, str]]:
    return [fields for _, fields in client.xrange(stream)]


# ── what arrives ──


def test_changes_arrive_as_the_contract_says(redis_url, client):
    at = dt.datetime(2021, 1, 8, 0, 0, 0, 278000, dt.UTC)
    with Producer(redis_url, key="trade_id", schema_tag="v7") as producer:
        producer.create("trades", {"trade_id": "T1", "price": Decimal("189.250"), "n": 2**60}, event_id="e1", at=at)
        producer.upsert("trades", {"trade_id": "T1", "price": None}, event_id="e2", at=1610064000278)
        producer.delete("trades", "T1", event_id="e3", at="2021-01-08T00:00:00Z")
    assert entries(client, "trades") == [
        {
            "data": '{"trade_id":"T1","price":"189.250","n":"1152921504606846976"}',
            "op": "c", "key": "T1", "ts": "2021-01-08T00:00:00.278000Z", "id": "e1", "v": "v7",
        },
        {"data": '{"trade_id":"T1","price":null}', "op": "u", "key": "T1", "ts": "1610064000278", "id": "e2", "v": "v7"},
        {"data": '{"trade_id":"T1"}', "op": "d", "key": "T1", "ts": "2021-01-08T00:00:00Z", "id": "e3", "v": "v7"},
    ]  # fmt: skip


def test_flat_changes_are_fields(redis_url, client):
    with Producer(redis_url, encoding="flat", idempotency=False, key=("book", "order_id")) as producer:
        producer.upsert("orders", {"book": "EUR", "order_id": 7, "price": Decimal("1.10"), "gone": None, "ok": True})
        producer.delete("orders", "EUR", 7)
    assert entries(client, "orders") == [
        {"book": "EUR", "order_id": "7", "price": "1.10", "ok": "true", "_op": "u", "_key": '["EUR",7]'},
        {"book": "EUR", "order_id": "7", "_op": "d", "_key": '["EUR",7]'},
    ]


def test_single_arrow_changes_hold_one_row_each(redis_url, binary_client):
    with Producer(redis_url, encoding="arrow", key="id") as producer:
        producer.upsert("t", {"id": 1, "price": Decimal("1.10")}, event_id="e1")
        producer.delete("t", 1)
    read = [pa.ipc.open_stream(fields[b"batch"]).read_all() for _, fields in binary_client.xrange("t")]
    assert read[0].to_pylist() == [{"id": 1, "price": Decimal("1.10"), "_key": "1", "_id": "e1"}]
    assert read[1].select(["id", "_key"]).to_pylist() == [{"id": 1, "_key": "1"}]


def test_a_shared_stream_routes_by_table(redis_url, client):
    with Producer(redis_url, stream="all", idempotency=False, key={"a": "id"}) as producer:
        producer.upsert("a", {"id": 1})
        producer.upsert("b", {"id": 2}, key="k")
        producer.upsert("all", {"id": 3})
        producer.delete("b", "k")
        producer.delete("b", {"x": "p", "y": 2})
    assert [(each.get("table"), each.get("key"), each["data"]) for each in entries(client, "all")] == [
        ("a", "1", '{"id":1}'),
        ("b", "k", '{"id":2}'),
        (None, None, '{"id":3}'),
        ("b", "k", "{}"),
        ("b", '["p",2]', '{"x":"p","y":2}'),
    ]


def test_each_change_has_an_id_of_its_own_unless_told_not_to(redis_url, client):
    with Producer(redis_url) as producer:
        given = [producer.upsert("t", {"a": 1}) for _ in range(100)]
    assert [each["id"] for each in entries(client, "t")] == given
    assert len(set(given)) == 100
    with Producer(redis_url, idempotency=False) as producer:
        assert producer.upsert("u", {"a": 1}) is None
    assert "id" not in entries(client, "u")[0]


@pytest.mark.parametrize("compression", ["zstd", "lz4", None])
def test_a_batch_arrives_in_bounded_arrow_entries(redis_url, binary_client, compression):
    table = pa.table({"id": pa.array(range(250_000)), "side": ["buy"] * 250_000})
    with Producer(redis_url, key="id", compression=compression) as producer:
        made = producer.send_batch("trades", table, op="c", at=1610064000278)
    stored = [fields for _, fields in binary_client.xrange("trades")]
    assert len(stored) == made >= 3
    assert {(each[b"op"], each[b"ts"]) for each in stored} == {(b"c", b"1610064000278")}
    read = pa.concat_tables(pa.ipc.open_stream(each[b"batch"]).read_all() for each in stored)
    assert read.select(["id", "side"]).equals(table)
    assert read["_key"].to_pylist() == [str(number) for number in range(250_000)]
    assert len(set(read["_id"].to_pylist())) == 250_000
    assert all(pa.ipc.open_stream(each[b"batch"]).read_all().num_rows <= 100_000 for each in stored)


@pytest.mark.parametrize("encoding", ["json", "flat", "arrow"])
def test_rows_of_a_batch_keep_their_order_and_values(redis_url, binary_client, encoding):
    rows = [{"id": number, "price": Decimal(number) / 100} for number in range(25_000)]
    with Producer(redis_url, idempotency=False) as producer:
        producer.send_batch("t", rows, encoding=encoding)
        producer.flush()
        assert (producer.sent.rows, producer.unsent_rows) == (25_000, 0)
    stored = [fields for _, fields in binary_client.xrange("t")]
    if encoding == "arrow":
        got = [row for each in stored for row in pa.ipc.open_stream(each[b"batch"]).read_all().to_pylist()]
    elif encoding == "json":
        got = [json.loads(each[b"data"]) for each in stored]
    else:
        got = [{name.decode(): each[name].decode() for name in (b"id", b"price")} for each in stored]
    assert [(int(row["id"]), Decimal(row["price"])) for row in got] == [(row["id"], row["price"]) for row in rows]


def test_empty_batches_write_nothing(redis_url, client):
    with Producer(redis_url) as producer:
        empty = pa.table({"a": pa.array([], pa.int64())})
        assert [producer.send_batch("t", rows) for rows in ([], empty, empty.to_batches() or empty)] == [0, 0, 0]
    assert client.exists("t") == 0


def test_the_last_entry_id_is_the_streams_last(redis_url, client):
    with Producer(redis_url) as producer:
        assert producer.last_entry_id("a") is None
        for number in range(2500):
            producer.upsert("a" if number % 2 else "b", {"n": number})
        producer.flush()
        for stream in ("a", "b"):
            assert producer.last_entry_id(stream) == client.xinfo_stream(stream)["last-generated-id"]
            assert producer.first_entry_id(stream) == client.xrange(stream, count=1)[0][0]


def test_maxlen_trims_the_stream(redis_url, client):
    with Producer(redis_url, maxlen=100) as producer:
        producer.send_batch("t", [{"n": number} for number in range(5000)], encoding="json")
    assert 100 <= client.xlen("t") < 1000


def test_threads_share_a_producer_and_lose_nothing(redis_url, client):
    with Producer(redis_url, limits=BufferLimits(rows_max=100)) as producer:

        def write(writer: int) -> None:
            for number in range(300):
                producer.upsert("t", {"writer": writer, "n": number})

        writers = [threading.Thread(target=write, args=(writer,)) for writer in range(6)]
        for each in writers:
            each.start()
        for each in writers:
            each.join()
    got = [json.loads(each["data"]) for each in entries(client, "t")]
    assert len(got) == 1800
    for writer in range(6):
        assert [row["n"] for row in got if row["writer"] == writer] == list(range(300))


# ── what is refused before it is accepted ──


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda p: p.upsert("t", {"price": {1, 2}}), r"t\.price.*set"),
        (lambda p: p.upsert("t", {"at": dt.datetime(2021, 1, 8)}), "no time zone"),
        (lambda p: p.upsert("t", {"a": "\ud800"}), "lone surrogate"),
        (lambda p: p.upsert("t", "row"), "is no row"),
        (lambda p: p.upsert("", {"a": 1}), "names no table"),
        (lambda p: p.upsert("t", {"a": 1}, key=()), "is no key"),
        (lambda p: p.upsert("t", {"a": 1}, at=1610064000), "seconds"),
        (lambda p: p.upsert("t", {"a": 1}, at=dt.datetime(2021, 1, 8)), "no time zone"),
        (lambda p: p.upsert("t", {"a": 1}, at="yesterday"), "neither epoch"),
        (lambda p: p.upsert("t", {"a": 1}, at=1.5), "is no instant"),
        (lambda p: p.delete("t"), "is no key"),
        (lambda p: p.delete("t", None), "is no key"),
        (lambda p: p.delete("keyed", "a", "b"), "2 parts for 1"),
        (lambda p: p.upsert("keyed", {"other": 1}), r"keyed key \(id\).*is no key"),
        (lambda p: p.send_batch("t", [{"a": 1}], op="x"), "op='x'"),
        (lambda p: p.send_batch("t", [{"a": 1}], encoding="avro"), "encoding='avro'"),
        (lambda p: p.send_batch("keyed", [{"id": 1}, {"id": None}]), "row 1 has no key"),
        (lambda p: p.send_batch("t", [1]), "is no row"),
        (lambda p: p.upsert("t", {"a": "x" * (33 << 20)}), "over the 33554432"),
    ],
)
def test_what_cannot_be_sent_is_refused_at_once_by_name(redis_url, client, call, names):
    with Producer(redis_url, key={"keyed": "id"}) as producer:
        with pytest.raises(UsageError, match=names) as caught:
            call(producer)
        assert caught.value.hint
    assert client.keys("*") == []


@pytest.mark.parametrize(
    "options",
    [{"encoding": "xml"}, {"compression": "gzip"}, {"maxlen": 0}, {"redis_url": "http://127.0.0.1"}, {"redis_url": "redis://h:port"}],
)  # fmt: skip
def test_a_producer_that_cannot_work_is_refused_when_it_is_made(options):
    with pytest.raises(UsageError) as caught:
        Producer(**options)
    assert caught.value.hint


def test_the_package_names_what_programs_import():
    assert replicator.Producer is Producer
    assert replicator.__version__.count(".") == 2
    assert {"Producer", "__version__"} <= set(dir(replicator))
    with pytest.raises(AttributeError, match="nothing_such"):
        replicator.nothing_such  # noqa: B018


def test_importing_the_package_loads_no_driver():
    code = "import sys, replicator; assert not {'redis', 'duckdb', 'pyarrow'} & set(sys.modules); assert replicator.__version__"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path.cwd(), timeout=60)
