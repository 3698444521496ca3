"""What Arrow would do to ClickHouse in silence (NULL defaulted, integers wrapped, digits cut off), sent on purpose.

Each trap is set twice: as a producer's Arrow entry, which arrives as it was meant or is rejected with a reason; and as
a batch on its way to ClickHouse, which is refused before it is sent, though ClickHouse itself would have taken it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError
from tables_room import TablesRoom

from replicator import Producer
from replicator.embedded.clickhouse import ClickHouse
from replicator.sink import INSERT_SETTINGS
from replicator.wire import conform

TRAPS = """
[[tables]]
name = "traps"
key = ["k"]
[tables.columns]
k = "BIGINT"
small = "SMALLINT"
money = "DECIMAL(9,2)"
moment = "TIMESTAMP"
day = "DATE"
must = "VARCHAR NOT NULL"
tag = "VARCHAR DEFAULT 'none'"
"""
MILLISECONDS = 1_767_225_600_123
MOMENT = datetime(2026, 1, 1, 0, 0, 0, 123000, tzinfo=UTC)


@pytest.fixture
def room(
    tmp_path: Path, redis_url: str, clickhouse_server: ClickHouse, clickhouse_database: str
) -> Iterator[TablesRoom]:
    with TablesRoom.open(tmp_path, redis_url, clickhouse_server, clickhouse_database, TRAPS) as found:
        yield found


def columns(values: list[Any], kind: pa.DataType, name: str) -> pa.Table:
    """A row per value, each with a key and what must be there."""
    rows = len(values)
    table = pa.table({"k": list(range(rows)), "must": ["x"] * rows})
    place = table.column_names.index(name) if name in table.column_names else table.num_columns
    table = table.drop_columns([name]) if name in table.column_names else table
    return table.add_column(min(place, table.num_columns), name, pa.array(values, kind))


@pytest.mark.parametrize(
    ("name", "kind", "values", "held", "reasons"),
    [
        pytest.param("must", pa.string(), [None, ""], [""], ["is null"], id="NULL into a plain column"),
        pytest.param("small", pa.int64(), [2**15, -(2**15), 2**16 + 1], [-(2**15)], ["out of range"] * 2, id="integers"),
        pytest.param("small", pa.float64(), [1.5, 2.0], [2], ["1.5"], id="a float into an integer"),
        pytest.param(
            "money", pa.decimal128(12, 3), [Decimal("1.234"), Decimal("1.230"), Decimal("12345678.000")],
            [Decimal("1.23")], ["decimals", "12345678.000"], id="decimals",
        ),
        pytest.param(
            "moment", pa.timestamp("ns", "UTC"), [MILLISECONDS * 10**6 + 1, MILLISECONDS * 10**6], [MOMENT],
            ["123000001"], id="nanoseconds",
        ),
        pytest.param("moment", pa.timestamp("s"), [MILLISECONDS // 1000], [MOMENT.replace(microsecond=0)], [], id="seconds"),
        pytest.param("moment", pa.int64(), [MILLISECONDS], [MOMENT], [], id="epoch milliseconds"),
        pytest.param("moment", pa.int64(), [MILLISECONDS // 1000], [], ["seconds"], id="epoch seconds"),
        pytest.param("day", pa.date64(), [date(1969, 12, 31), date(2299, 12, 31)], [date(1969, 12, 31), date(2299, 12, 31)], [], id="date64"),
        pytest.param("day", pa.date32(), [date(1899, 12, 31)], [], ["1899-12-31"], id="a day before ClickHouse's first"),
    ],
)  # fmt: skip
def test_an_arrow_entry_arrives_as_it_was_meant_or_is_rejected_with_the_reason(
    room: TablesRoom, name: str, kind: pa.DataType, values: list[Any], held: list[Any], reasons: list[str]
) -> None:
    with Producer(room.environ["REDIS_URL"], key="k") as producer:
        producer.send_batch("traps", columns(values, kind, name))
    room.wait_delivered()
    found = room.rejections()
    assert len(found) == len(reasons), found
    for reason, said in zip(found, reasons, strict=True):
        assert reason.startswith(f"{name}: ")
        assert said in reason
    comparable = [value.replace(tzinfo=None) if isinstance(value, datetime) else value for value in held]
    sql = f"select {name} from traps order by k"
    assert [value for (value,) in room.duckdb(sql)] == comparable
    theirs = [value.replace(tzinfo=None) if isinstance(value, datetime) else value for (value,) in room.clickhouse(sql)]
    assert theirs == comparable


def test_a_column_that_an_entry_lacks_is_null_or_its_default_and_never_a_zero(room: TablesRoom) -> None:
    with Producer(room.environ["REDIS_URL"], key="k") as producer:
        producer.send_batch("traps", pa.table({"k": [1], "must": ["x"]}))
        producer.send_batch("traps", pa.table({"k": [2]}))
    room.wait_delivered()
    assert room.both("select k, small, money, moment, day, must, tag from traps") == [
        (1, None, None, None, None, "x", "none")
    ]
    assert room.rejections() == ["must: is missing, but the column is NOT NULL without a default"]


def test_a_batch_that_clickhouse_would_bend_is_refused_before_it_is_sent(room: TablesRoom) -> None:
    room.put("traps", [{"k": 1, "small": 1, "money": "1.50", "moment": MILLISECONDS, "day": "2026-01-01", "must": "x"}])
    room.settle()
    service = room.service
    lane = service.catalog.lane("traps", 0)
    batch = room.session.arrow(lane.batch_sql, {"first": 1, "last": 1}).drop_columns(["_row_hash"])
    batch = batch.append_column("_pipeline", pa.array(["main"])).append_column("_send", pa.array([2**60], pa.uint64()))
    assert conform(batch, lane.arrow).schema == lane.arrow
    bent = {
        "small": pa.array([2**16 + 1], pa.int32()),
        "money": pa.array([Decimal("1.239")], pa.decimal128(9, 3)),
        "moment": pa.array([MILLISECONDS * 10**6 + 999], pa.timestamp("ns")),
        "day": pa.array([10**12 + 1], pa.int64()),
        "_op": pa.array([None], pa.string()),
        "k": pa.array([None], pa.int64()),
    }
    for name, values in bent.items():
        wrong = batch.set_column(batch.column_names.index(name), name, values)
        with pytest.raises((ValueError, pa.ArrowInvalid)):
            conform(wrong, lane.arrow)
    for wrong in (batch.drop_columns(["small"]), batch.append_column("extra", batch["small"])):
        with pytest.raises(ValueError, match=r"'(small|extra)'"):
            conform(wrong, lane.arrow)
    blank = batch.set_column(batch.column_names.index("_op"), "_op", bent["_op"])
    with pytest.raises(DatabaseError, match="349"):  # what conform let pass, the settings of an insert would not blank
        service.sink.client().insert_arrow("traps_log", blank, settings=INSERT_SETTINGS)
    assert room.clickhouse("select count() from traps_log where _op = ''") == [(0,)]
    taken = batch.set_column(batch.column_names.index("small"), "small", bent["small"]).drop_columns(["money"])
    service.sink.client().insert_arrow("traps_log", taken)
    assert room.clickhouse("select small, money from traps_log final") == [(1, None)], "the trap is real"
