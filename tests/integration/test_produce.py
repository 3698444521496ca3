"""`replicator produce` against a real Redis: every digit arrives, and every failure has its exit code and remedy."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from click.testing import CliRunner, Result

from replicator.cli_produce import produce_command


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as made:
        yield made


@pytest.fixture
def produce(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, stdin: str | None = None, url: str | None = redis_url) -> Result:
        given = ["--redis-url", url] if url else []
        return CliRunner().invoke(produce_command, [*map(str, arguments), *given], input=stdin)

    return run


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    table = pa.table(
        {
            "trade_id": pa.array([f"T{number}" for number in range(1000)]),
            "price": pa.array([Decimal(number).scaleb(-6) for number in range(1000)], pa.decimal128(38, 6)),
            "n": pa.array([2**53 + number for number in range(1000)]),
            "at": pa.array([1610064000278000000 + number for number in range(1000)], pa.timestamp("ns", "UTC")),
            "note": pa.array([None if number % 2 else f'é"{number}\n' for number in range(1000)]),
        }
    )
    pq.write_table(table, tmp_path / "trades.parquet")
    return tmp_path / "trades.parquet"


def fields(client: redis.Redis, stream: str) -> list[dict[str, str]]:
    return [each for _, each in client.xrange(stream)]


def test_parquet_as_json_keeps_every_digit(produce, client, parquet):
    result = produce(parquet, "--stream", "trades", "--key", "trade_id", "--op", "c", "--json")
    assert result.exit_code == 0, result.output
    stored = fields(client, "trades")
    assert json.loads(stored[7]["data"]) == {
        "trade_id": "T7", "price": "0.000007", "n": str(2**53 + 7), "at": "2021-01-08T00:00:00.278000007Z", "note": None,
    }  # fmt: skip
    assert [each["key"] for each in stored] == [f"T{number}" for number in range(1000)]
    assert {each["op"] for each in stored} == {"c"}
    summary = json.loads(result.stdout)
    assert (summary["rows"], summary["entries"], summary["skipped"]) == (1000, 1000, 0)
    ends = [client.xrange("trades", count=1)[0][0], client.xrevrange("trades", count=1)[0][0]]
    assert [summary["first_entry_id"], summary["last_entry_id"]] == ends


def test_parquet_as_flat_fields_keeps_every_digit(produce, client, parquet):
    assert produce(parquet, "--stream", "trades", "--encoding", "flat").exit_code == 0
    stored = fields(client, "trades")
    assert stored[7]["price"] == "0.000007"
    assert stored[7]["n"] == str(2**53 + 7)
    assert "note" not in stored[7]
    assert stored[8]["note"] == 'é"8\n'


def test_parquet_as_arrow_keeps_types(produce, redis_url, parquet):
    result = produce(parquet, "--stream", "trades", "--encoding", "arrow", "--batch-rows", 300, "--json")
    assert json.loads(result.stdout)["entries"] == 4
    with redis.Redis.from_url(redis_url) as binary:
        tables = [pa.ipc.open_stream(each[b"batch"]).read_all() for _, each in binary.xrange("trades")]
    read = pa.concat_tables(tables)
    assert read.drop_columns(["_id"]).equals(pq.read_table(parquet))
    assert len(set(read["_id"].to_pylist())) == 1000


def test_lines_go_through_verbatim(produce, client, tmp_path):
    (tmp_path / "t.ndjson").write_text(
        '{"id":1,"price":1.10, "n":123456789012345678901}\n{"id":2,"x":{"deep":[1.50]}}\n'
    )
    assert produce("t.ndjson", "--stream", "s", "--table", "t", "--key", "id").exit_code == 0
    stored = fields(client, "s")
    assert [each["data"] for each in stored] == [
        '{"id":1,"price":1.10, "n":123456789012345678901}',
        '{"id":2,"x":{"deep":[1.50]}}',
    ]
    assert [(each["table"], each["key"]) for each in stored] == [("t", "1"), ("t", "2")]


def test_control_columns_say_it_per_row(produce, client):
    lines = '{"k":"a","o":"c","i":"e1","t":1610064000278}\n{"k":"b","o":"d","i":"e2","t":"2021-01-08T00:00:00Z"}\n{"k":"c"}\n'
    options = ["--op-column", "o", "--id-column", "i", "--time-column", "t", "--key", "k"]
    assert produce("-", "--stream", "s", *options, "--op", "r", stdin=lines).exit_code == 0
    assert [{name: each.get(name) for name in ("op", "id", "ts", "key", "data")} for each in fields(client, "s")] == [
        {"op": "c", "id": "e1", "ts": "1610064000278", "key": "a", "data": '{"k":"a","i":"e1","t":1610064000278}'},
        {"op": "d", "id": "e2", "ts": "2021-01-08T00:00:00Z", "key": "b", "data": '{"k":"b","i":"e2","t":"2021-01-08T00:00:00Z"}'},
        {"op": "r", "id": None, "ts": None, "key": "c", "data": '{"k":"c"}'},
    ]  # fmt: skip


@pytest.mark.parametrize("encoding", ["json", "flat", "arrow"])
def test_csv_numbers_arrive_as_they_are_written(produce, redis_url, tmp_path, encoding):
    (tmp_path / "t.csv").write_text("id,price,op\n007,1.10,c\n9007199254740993,,d\n")
    assert produce("t.csv", "--stream", "s", "--encoding", encoding, "--op-column", "op", "--key", "id").exit_code == 0
    with redis.Redis.from_url(redis_url) as binary:
        stored = [each for _, each in binary.xrange("s")]
    if encoding == "json":
        assert [each[b"data"] for each in stored] == [
            b'{"id":"007","price":"1.10"}',
            b'{"id":"9007199254740993","price":null}',
        ]
        assert [each[b"op"] + each[b"key"] for each in stored] == [b"c007", b"d9007199254740993"]
    elif encoding == "flat":
        assert [(each[b"id"], each.get(b"price"), each[b"_op"]) for each in stored] == [
            (b"007", b"1.10", b"c"), (b"9007199254740993", None, b"d"),
        ]  # fmt: skip
    else:
        rows = pa.ipc.open_stream(stored[0][b"batch"]).read_all().drop_columns(["_id"]).to_pylist()
        assert rows == [
            {"id": "007", "price": "1.10", "_op": "c", "_key": "007"},
            {"id": "9007199254740993", "price": None, "_op": "d", "_key": "9007199254740993"},
        ]


@pytest.mark.parametrize("encoding", ["json", "flat", "arrow"])
def test_a_limit_takes_the_first_rows(produce, client, parquet, encoding):
    result = produce(parquet, "--stream", "s", "--encoding", encoding, "--limit", 321, "--batch-rows", 100, "--json")
    assert json.loads(result.stdout)["rows"] == 321


def test_nothing_is_read_beyond_the_limit(produce, client, monkeypatch):
    monkeypatch.setattr("replicator.files.BLOCK_BYTES", 8)
    assert produce("-", "--stream", "s", "--limit", 1, stdin='{"a":1}\nbad\n').exit_code == 0
    assert client.xlen("s") == 1


def test_a_bar_shows_where_there_is_a_terminal(redis_url, parquet):
    code = "from replicator.cli_produce import produce_command; produce_command()"
    terminal, side = pty.openpty()
    with os.fdopen(terminal, "rb", buffering=0) as screen, os.fdopen(side, "wb") as stderr:
        command = [sys.executable, "-c", code, str(parquet), "--stream", "s", "--redis-url", redis_url, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, check=True, timeout=60)
        assert "1,000 rows" in screen.read(65536).decode()
    assert json.loads(done.stdout)["rows"] == 1000


def test_an_interrupted_load_keeps_what_was_sent_and_ends_with_130(redis_url, client, parquet):
    code = "from replicator.cli_produce import produce_command; produce_command()"
    command = [sys.executable, "-c", code, str(parquet), "--stream", "s", "--redis-url", redis_url, "--rate", "100"]
    load = subprocess.Popen(command, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while client.xlen("s") < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    load.send_signal(signal.SIGINT)
    _, said = load.communicate(timeout=30)
    assert (load.returncode, b"interrupted" in said) == (130, True)
    assert 5 <= client.xlen("s") < 1000


def test_a_rate_is_kept(produce, client, parquet):
    began = time.monotonic()
    result = produce(parquet, "--stream", "s", "--limit", 200, "--rate", "400/s", "--json")
    assert time.monotonic() - began >= 0.5
    assert json.loads(result.stdout)["rows"] == client.xlen("s") == 200


def test_a_person_reads_what_was_done(produce, client, parquet):
    result = produce(parquet, "--stream", "s")
    assert "1,000 rows in 1,000 entries" in result.stdout
    assert client.xrevrange("s", count=1)[0][0] in result.stdout
    assert result.stderr == ""


def test_skipped_rows_are_counted_and_shown(produce, client):
    lines = '{"a":1}\n' + "bad\n" * 7 + '{"a":2}\n'
    result = produce("-", "--stream", "s", "--skip-bad", stdin=lines)
    assert result.exit_code == 0
    assert "2 rows" in result.stdout
    assert "7 bad rows skipped" in result.stderr
    assert "line 2: not JSON" in result.stderr
    assert "and 2 more" in result.stderr


def test_a_bad_line_says_how_many_rows_went_in_before_it(produce, client):
    lines = '{"a":1}\n{"a":2}\n' * 100 + "{\n"
    result = produce("-", "--stream", "s", "--rate", 100_000, stdin=lines)
    assert result.exit_code == 2
    assert "line 201: not JSON" in result.stderr
    assert client.xlen("s") == 0
    assert "nothing was sent" in result.stderr


def test_rows_sent_before_a_missing_key_are_counted(produce, client, tmp_path):
    (tmp_path / "t.csv").write_text("id,n\n" + "".join(f"k{number},{number}\n" for number in range(90)) + ",90\n")
    result = produce("t.csv", "--stream", "s", "--key", "id", "--batch-rows", 30)
    assert result.exit_code == 2
    assert "row 91 has no key (id)" in result.stderr
    assert "90 rows before that are in the stream" in result.stderr
    assert client.xlen("s") == 90


BAD_CALLS = [
    (["t.csv"], "no stream to write to"),
    (["nothing.csv", "--stream", "s"], "no such file"),
    ([".", "--stream", "s"], "is a directory"),
    (["empty.ndjson", "--stream", "s"], "is empty"),
    (["t.dat", "--stream", "s"], "does not tell the format"),
    (["t.csv", "--stream", "s", "--format", "parquet"], "Parquet"),
    (["t.csv", "--stream", "s", "--format", "xml"], "'xml' is not one of"),
    (["t.csv", "--stream", "s", "--encoding", "avro"], "'avro' is not one of"),
    (["t.csv", "--stream", "s", "--key", "nope"], "no key column 'nope'"),
    (["t.csv", "--stream", "s", "--op-column", "nope"], "no column 'nope'"),
    (["t.csv", "--stream", "s", "--op-column", "a"], "op '1' is none of c, u, d, r"),
    (["t.csv", "--stream", "s", "--rate", "fast"], "is no rate"),
    (["t.csv", "--stream", "s", "--rate", "0"], "is no rate"),
    (["t.csv", "--stream", "s", "--limit", "0"], "--limit"),
    (["t.csv", "--stream", "s", "--delimiter", "ab"], "not one character"),
    (["data.csv", "--stream", "s", "--encoding", "flat"], "'data' cannot travel in the flat encoding"),
]


@pytest.mark.parametrize(("arguments", "names"), BAD_CALLS, ids=[names for _, names in BAD_CALLS])
def test_a_call_that_cannot_work_ends_with_2_and_says_why(produce, client, tmp_path, arguments, names):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    (tmp_path / "data.csv").write_text("data,b\n1,2\n")
    (tmp_path / "t.dat").write_text("a,b\n1,2\n")
    (tmp_path / "empty.ndjson").write_text("")
    result = produce(*arguments)
    assert result.exit_code == 2, result.output
    assert names in result.stderr
    assert client.keys("*") == []


def test_nobody_there_ends_with_3(produce, parquet):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        result = produce(parquet, "--stream", "s", url=f"redis://127.0.0.1:{probe.getsockname()[1]}")
    assert result.exit_code == 3
    assert "does not answer" in result.stderr


def test_a_stream_of_another_type_ends_with_3_and_a_count(produce, client, parquet):
    client.set("s", "a string")
    result = produce(parquet, "--stream", "s")
    assert result.exit_code == 3
    assert "another type" in result.stderr
    assert "1000 more were read and are not" in result.stderr


def test_a_bad_url_ends_with_2(produce, parquet):
    result = produce(parquet, "--stream", "s", url="http://127.0.0.1")
    assert result.exit_code == 2
    assert "redis://" in result.stderr


def test_the_environment_and_the_configuration_name_the_redis(
    produce, client, redis_url, parquet, tmp_path, monkeypatch
):
    monkeypatch.setenv("REDIS_URL", redis_url)
    assert produce(parquet, "--stream", "a", url=None).exit_code == 0
    monkeypatch.delenv("REDIS_URL")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "replicator.toml").write_text(f'[redis]\nurl = "{redis_url}"\n')
    assert produce(parquet, "--stream", "b", url=None).exit_code == 0
    assert (client.xlen("a"), client.xlen("b")) == (1000, 1000)
    result = produce(parquet, "--stream", "c", "--config-dir", "elsewhere", url=None)
    assert result.exit_code == 2
    assert "elsewhere" in result.stderr
