"""The unmodified clickhouse-connect client works on the embedded ClickHouse as on a server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal

import clickhouse_connect
import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError, StreamFailureError
from clickhouse_connect.driver.external import ExternalData

from replicator.embedded.clickhouse import ClickHouse

COLUMNS = "a Int64, d Decimal(18, 6), s String, t DateTime64(6, 'UTC'), n Nullable(Float64)"
ROW = (1, Decimal("189.250000"), "zwölf\t'\\", datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC), None)


@pytest.fixture(params=["lz4", "zstd", "gzip", False])
def compress(request: pytest.FixtureRequest) -> str | bool:
    return request.param


def connect(server: ClickHouse, database: str, **options: object) -> Client:
    return clickhouse_connect.get_client(
        host="127.0.0.1",
        port=server.port,
        username=server.user,
        password=server.password,
        database=database,
        autogenerate_session_id=False,
        **options,
    )


@pytest.fixture
def client(clickhouse_server: ClickHouse, clickhouse_database: str) -> Iterator[Client]:
    with connect(clickhouse_server, clickhouse_database) as client:
        client.command(f"create table t ({COLUMNS}) engine = MergeTree order by a")
        yield client


def arrow(rows: int = 1) -> pa.Table:
    schema = pa.schema(
        [
            ("a", pa.int64()),
            ("d", pa.decimal128(18, 6)),
            ("s", pa.string()),
            ("t", pa.timestamp("us", "UTC")),
            ("n", pa.float64()),
        ]
    )
    return pa.Table.from_pylist([dict(zip(schema.names, ROW, strict=True)) | {"a": n + 1} for n in range(rows)], schema)


def test_the_server_looks_like_clickhouse(client: Client) -> None:
    assert int(client.server_version.split(".")[0]) >= 26
    assert client.command("select version()") == client.server_version
    assert client.server_tz == UTC or str(client.server_tz) == "UTC"
    assert client.ping()


def test_values_come_back_as_they_went_in_under_every_coding(
    clickhouse_server: ClickHouse, client: Client, compress: str | bool
) -> None:
    with connect(clickhouse_server, client.database, compress=compress) as packed:
        summary = packed.insert("t", [ROW], column_names=["a", "d", "s", "t", "n"])
        assert summary.written_rows == 1
        assert packed.query("select * from t").result_rows == [(*ROW[:3], ROW[3].replace(tzinfo=None), None)]
        assert packed.insert_arrow("t", arrow()).written_rows == 1
        assert packed.query_arrow("select * from t").to_pylist() == [dict(zip("adstn", ROW, strict=True))] * 2


def test_an_arrow_batch_is_one_block(client: Client) -> None:
    client.insert_arrow("t", arrow(100_000))
    assert client.command("select count() from system.parts where table = 't' and active and database = {d:String}", parameters={"d": client.database}) == 1  # fmt: skip
    assert client.query_arrow("select count() as c, sum(d) as d from t").to_pylist() == [
        {"c": 100_000, "d": ROW[1] * 100_000}
    ]


def test_commands_and_parameters(client: Client) -> None:
    assert client.command("select {a:Int64} + 1", parameters={"a": 2**60}) == 2**60 + 1
    assert client.query("select %(s)s as s", parameters={"s": ROW[2]}).first_row == (ROW[2],)
    assert client.query("select {t:DateTime64(6)}, {d:Decimal(18, 6)}", parameters={"t": ROW[3], "d": ROW[1]}).first_row[1] == ROW[1]  # fmt: skip
    assert client.command("insert into t (a) values (1), (2)").written_rows == 2
    assert client.command("truncate table t").query_id
    assert client.query("select * from t").result_rows == []
    assert client.query("select a, s from t limit 0").column_names == ("a", "s")
    assert client.command("exists table t") == 1
    assert client.command("show tables") == "t"


def test_streams_and_raw_queries(client: Client) -> None:
    with client.query_row_block_stream("select number from numbers(200000)") as stream:
        assert sum(len(block) for block in stream) == 200_000
    with client.query_arrow_stream("select number from numbers(200000)") as stream:
        assert sum(batch.num_rows for batch in stream) == 200_000
    assert client.raw_query("select 1 as a", fmt="JSONEachRow") == b'{"a":1}\n'
    with client.raw_stream("select number from numbers(200000)", fmt="CSV") as stream:
        assert stream.read().count(b"\n") == 200_000
    assert client.query_df("select number from numbers(3)")["number"].tolist() == [0, 1, 2]


def test_forms_bring_parameters_and_external_tables(clickhouse_server: ClickHouse, client: Client) -> None:
    with connect(clickhouse_server, client.database, form_encode_query_params=True) as form_client:
        text = "x" * 100_000 + ROW[2]
        assert form_client.query("select {s:String} as s", parameters={"s": text}).first_row == (text,)
        with pytest.raises(DatabaseError) as refused:
            form_client.query("select {s:Int32} as s", parameters={"s": "x"})
        assert refused.value.code == 457
    rows = ExternalData(
        file_name="keys.csv", data=b'7,seven\n8,"ei\r\nght"\n', fmt="CSV", structure="k Int64, name String"
    )
    asked = client.query("select k, name from keys order by k", external_data=rows)
    assert asked.result_rows == [(7, "seven"), (8, "ei\r\nght")]
    assert client.command("exists temporary table keys") == 0


def test_an_error_midway_is_an_error_for_the_client(client: Client) -> None:
    settings = {"max_block_size": 1000}
    with (
        pytest.raises((StreamFailureError, OperationalError, DatabaseError)),
        client.query_row_block_stream(
            "select throwIf(number = 500000) from numbers(1000000)", settings=settings
        ) as stream,
    ):
        list(stream)


def test_errors_have_their_code(client: Client) -> None:
    with pytest.raises(DatabaseError) as unknown:
        client.query("select * from no_such")
    assert unknown.value.code == 60
    with pytest.raises(DatabaseError) as twice:
        client.command(f"create table t ({COLUMNS}) engine = MergeTree order by a")
    assert twice.value.code == 57


def test_a_wrong_password_is_a_database_error(clickhouse_server: ClickHouse) -> None:
    with pytest.raises(DatabaseError) as refused:
        clickhouse_connect.get_client(
            host="127.0.0.1", port=clickhouse_server.port, username="replicator", password="x"
        )
    assert refused.value.code == 516


def test_sessions_do_not_disturb(clickhouse_server: ClickHouse) -> None:
    with clickhouse_connect.get_client(
        host="127.0.0.1",
        port=clickhouse_server.port,
        username=clickhouse_server.user,
        password=clickhouse_server.password,
        session_id="mine",
    ) as client:
        assert client.command("select 1") == 1


def test_many_threads_insert_and_read_at_once(client: Client) -> None:
    failures: list[Exception] = []

    def work() -> None:
        try:
            for _ in range(5):
                client.insert_arrow("t", arrow(100))
                assert client.command("select count() from t") >= 100
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert client.command("select count() from t") == 4000
