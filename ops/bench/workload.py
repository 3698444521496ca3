"""The entries that every rival reads: trades, the same bytes each time."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.ipc
import redis

FILL = 5_000
ARROW_ROWS = 2_000
KEYS = 20_000
SYMBOLS = ("AAPL", "MSFT", "NVDA", "AMZN", "META", "GOOG", "TSLA", "ORCL")
VENUES = ("XNAS", "XNYS", "BATS", "IEXG")
COLUMNS = {
    "trade_id": "VARCHAR",
    "symbol": "VARCHAR",
    "venue": "VARCHAR",
    "price": "DECIMAL(18,6)",
    "quantity": "BIGINT",
    "executed_at": "TIMESTAMP",
}


def trade(n: int) -> tuple[str, str, str, str, int, str]:
    """The n-th trade, in the order of COLUMNS."""
    return (
        f"T{n % KEYS}",
        SYMBOLS[n % 8],
        VENUES[n % 4],
        f"{100 + n % 90}.{n % 100:02d}",
        1 + n % 1000,
        f"2026-11-23T10:00:{n // 1_000_000 % 60:02d}.{n % 1_000_000:06d}Z",
    )


def trade_fields(n: int) -> Sequence[bytes]:
    """The n-th trade as an entry of the json encoding."""
    trade_id, symbol, venue, price, quantity, at = trade(n)
    text = (
        f'{{"trade_id":"{trade_id}","symbol":"{symbol}","venue":"{venue}",'
        f'"price":"{price}","quantity":{quantity},"executed_at":"{at}"}}'
    )
    return b"data", text.encode()


def _flat_fields(n: int) -> Sequence[bytes]:
    return [part.encode() for name, value in zip(COLUMNS, trade(n), strict=True) for part in (name, str(value))]


def _arrow_fields(first: int, rows: int) -> Sequence[bytes]:
    columns = list(zip(*(trade(n) for n in range(first, first + rows)), strict=True))
    table = pa.table(dict(zip(COLUMNS, columns, strict=True)))
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    return b"batch", buffer.getvalue()


def entries(encoding: str, rows: int) -> Iterator[Sequence[bytes]]:
    """The fields of each entry."""
    if encoding == "arrow":
        for first in range(0, rows, ARROW_ROWS):
            yield _arrow_fields(first, min(ARROW_ROWS, rows - first))
        return
    fields = trade_fields if encoding == "json" else _flat_fields
    for n in range(rows):
        yield fields(n)


def fill(url: str, stream: str, encoding: str, rows: int) -> None:
    """Write the entries to a stream, as fast as Redis takes them."""
    client = redis.Redis.from_url(url)
    connection = client.connection_pool.get_connection()
    waiting: list[bytes] = []
    for fields in entries(encoding, rows):
        waiting.append(packed([b"XADD", stream.encode(), b"*", *fields]))
        if len(waiting) >= (FILL if encoding != "arrow" else 20):
            _send(connection, waiting)
            waiting = []
    if waiting:
        _send(connection, waiting)
    client.connection_pool.release(connection)
    client.close()


def packed(parts: Sequence[bytes]) -> bytes:
    """A command as Redis reads it."""
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


def _send(connection: redis.Connection, commands: list[bytes]) -> None:
    connection.send_packed_command([b"".join(commands)])
    for _ in commands:
        connection.read_response()
