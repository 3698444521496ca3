"""Files as chunks of columns: digits kept, order kept, and every bad file named with its line."""

from __future__ import annotations

import bz2
import gzip
import json
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from replicator import files, ndjson
from replicator.errors import UsageError
from replicator.files import FileOptions, Reading, Wanted, read_file


def read(path: Path, wanted: Wanted | None = None, reading: Reading | None = None, **options) -> list[files.Chunk]:
    return list(read_file(FileOptions(path=path, **options), wanted or Wanted(), reading or Reading()))


def rows(path: Path, wanted: Wanted | None = None, reading: Reading | None = None, **options) -> list[dict]:
    return [row for chunk in read(path, wanted, reading, **options) for row in chunk.batch.to_pylist()]


@pytest.fixture
def written(tmp_path: Path):
    def write(name: str, content: bytes | str) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


# ── NDJSON ──

LINES = '{"id":"T1","price":189.250,"n":12345678901234567890}\n\n  {"id":"T2" , "price":1e-7,"n":null}\r\n{"id":"é"}\n'


def test_lines_stay_as_they_are_written(written):
    chunks = read(written("t.ndjson", LINES))
    assert [line for chunk in chunks for line in chunk.objects.to_pylist()] == [
        '{"id":"T1","price":189.250,"n":12345678901234567890}',
        '{"id":"T2" , "price":1e-7,"n":null}',
        '{"id":"é"}',
    ]


def test_the_columns_of_lines_keep_their_digits(written):
    got = rows(written("t.ndjson", LINES))
    assert [row["id"] for row in got] == ["T1", "T2", "é"]
    assert [row["price"] for row in got] == ["189.250", "1e-7", None]
    assert json.loads(got[0]["n"]) == "12345678901234567890"


def test_only_the_wanted_columns_are_taken_apart_and_the_others_stay_in_the_object(written):
    path = written("t.ndjson", '{"id":"T1","op":"d","price":1.50}\n{"op":"c","id":"T2"}\n')
    (chunk,) = read(path, Wanted(columns=["id", "op"], without=["op"]))
    assert chunk.objects.to_pylist() == ['{"id":"T1","price":1.50}', '{"id":"T2"}']
    assert chunk.batch.to_pylist() == [{"id": "T1", "op": "d"}, {"id": "T2", "op": "c"}]


@pytest.mark.parametrize(
    ("values", "kind", "texts"),
    [
        (["1", "-9223372036854775808", "null"], "int64", ["1", "-9223372036854775808", None]),
        (["true", "false"], "bool", ["true", "false"]),
        (['"a"', "null"], "string", ["a", None]),
        (["1", "7.5"], "extension<arrow.json>", ["1", "7.5"]),
        (["9007199254740993", "0.5"], "extension<arrow.json>", ['"9007199254740993"', "0.5"]),
        (["0.1234567890123456789"], "extension<arrow.json>", ['"0.1234567890123456789"']),
        (['{"a":[1.50,null,true]}', '"x"', "1"], "extension<arrow.json>", ['{"a":[1.50,null,true]}', '"x"', "1"]),
        (["null"], "string", [None]),
    ],
)
def test_a_column_of_lines_has_the_type_that_all_its_values_share(values, kind, texts):
    batch = ndjson.columns([ndjson.parse(f'{{"x":{value}}}') for value in values], None)
    column = batch.column(0)
    assert str(column.type) == kind
    storage = column.storage if kind.startswith("extension") else column
    assert storage.cast(pa.string()).to_pylist() == texts


def test_many_blocks_give_every_line_once_and_in_order(written, monkeypatch):
    monkeypatch.setattr(files, "BLOCK_BYTES", 64)
    lines = [json.dumps({"n": number, "filler": "é" * (number % 90)}, ensure_ascii=False) for number in range(500)]
    path = written("t.jsonl", "\ufeff" + "\n".join(lines))
    reading = Reading()
    chunks = read(path, reading=reading, rows_max=7)
    assert [line for chunk in chunks for line in chunk.objects.to_pylist()] == lines
    assert max(chunk.rows for chunk in chunks) <= 7
    assert reading.bytes_read == reading.bytes_total == path.stat().st_size


BAD_LINES = [
    (b'{"a":}', "not JSON"),
    (b"{'a':1}", "not JSON"),
    (b'{"a":1}{"a":2}', "not JSON"),
    (b'{"a":NaN}', "NaN is no JSON"),
    (b'{"a":01}', "not JSON"),
    (b'{"a":1,"a":2}', "'a' stands twice"),
    (b'"text"', "no object"),
    (b"7", "no object"),
    (b"null", "no object"),
    (b'{"a":"\xff"}', "not UTF-8"),
    (b"\x00\x01\x02", "not JSON"),
    (b'{"a":"x\ty"}', "not JSON"),
    (b"[" * 100_000, "nested too deeply"),
]


@pytest.mark.parametrize(("line", "names"), BAD_LINES, ids=[names for _, names in BAD_LINES])
def test_a_bad_line_is_named_or_counted(written, line, names):
    path = written("t.ndjson", b'{"a":1}\n' + line + b'\n{"a":3}\n')
    with pytest.raises(UsageError, match=rf"t\.ndjson: line 2: .*{names}") as caught:
        read(path)
    assert caught.value.hint
    reading = Reading()
    assert [row["a"] for row in rows(path, reading=reading, skip_bad=True)] == [1, 3]
    assert reading.skipped == 1
    assert reading.skipped_first[0].startswith("line 2: ")


def test_a_json_array_is_recognised(written):
    with pytest.raises(UsageError, match="JSON array") as caught:
        read(written("t.json", '[{"a":1},\n{"a":2}]'))
    assert "jq" in caught.value.hint


def test_a_line_without_end_is_refused_before_it_fills_memory(written, monkeypatch):
    monkeypatch.setattr(files, "LINE_BYTES_MAX", 1000)
    monkeypatch.setattr(files, "BLOCK_BYTES", 100)
    with pytest.raises(UsageError, match="line 2 is over 1000 bytes"):
        read(written("t.ndjson", '{"a":1}\n{"a":"' + "x" * 5000))


# ── CSV ──


def test_csv_values_stay_text_and_only_an_unquoted_nothing_is_null(written):
    path = written("t.csv", '\ufeffid,price,note\r\n007,1.10,"a\nb, ""c"""\r\n9007199254740993,,""\r\nNA,null,NaN\r\n')
    assert rows(path) == [
        {"id": "007", "price": "1.10", "note": 'a\nb, "c"'},
        {"id": "9007199254740993", "price": None, "note": ""},
        {"id": "NA", "price": "null", "note": "NaN"},
    ]


def test_csv_without_a_header_takes_the_given_names(written):
    path = written("t.csv", "20200101,1.1212\n20200102,1.1213\n")
    assert rows(path, columns=["day", "bid"])[0] == {"day": "20200101", "bid": "1.1212"}
    with pytest.raises(UsageError, match="looks like a row") as caught:
        read(path)
    assert "--columns" in caught.value.hint


def test_tsv_and_other_delimiters(written):
    assert rows(written("t.tsv", "a\tb\n1,5\t2\n")) == [{"a": "1,5", "b": "2"}]
    assert rows(written("t.csv", "a;b\n1;2\n"), delimiter=";") == [{"a": "1", "b": "2"}]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("a,b\n1,2\n1,2,3\n", r"Row #3.*Expected 2 columns, got 3"),
        ("a,b\n1,2\n3\n", r"Row #3.*Expected 2 columns, got 1"),
        (b"a,b\n1,\xff\n", "Row #2.*UTF8"),
        (b"a,\xff\n1,2\n", "utf-8"),
        ("a,a\n1,2\n", "'a' stands twice"),
        ("a,\n1,2\n", "a column has no name"),
        ('a,b\n1,"never closed\n2,3\n4,5\n', "never closed"),
    ],
)
def test_a_bad_csv_is_named(written, content, names):
    with pytest.raises(UsageError, match=rf"t\.csv: .*{names}") as caught:
        read(written("t.csv", content))
    assert caught.value.hint


def test_ragged_rows_are_counted_when_they_may_be_skipped(written):
    reading = Reading()
    path = written("t.csv", "a,b\n1,2\n1,2,3\n4\n5,6\n")
    assert [row["a"] for row in rows(path, reading=reading, skip_bad=True)] == ["1", "5"]
    assert reading.skipped_first == ["row 3: 3 columns instead of 2", "row 4: 1 columns instead of 2"]


def test_a_value_larger_than_a_block_is_named(written, monkeypatch):
    monkeypatch.setattr(files, "BLOCK_BYTES", 1000)
    with pytest.raises(UsageError, match="larger than 1000 bytes, or a quote is never closed"):
        read(written("t.csv", 'a,b\n1,2\n1,"' + "x\n" * 3000))


def test_a_header_without_rows_is_no_rows(written):
    assert rows(written("t.csv", "a,b\n")) == []


def test_a_quote_within_an_unquoted_value_is_a_character(written):
    assert rows(written("t.csv", 'a,b\n5" pipe,x\n')) == [{"a": '5" pipe', "b": "x"}]


# ── Parquet ──


def test_parquet_keeps_its_types(tmp_path):
    table = pa.table(
        {"d": pa.array([Decimal("1.10")]), "n": pa.array([2**63 - 1]), "t": pa.array([1], pa.timestamp("ns"))}
    )
    pq.write_table(table, tmp_path / "t.parquet")
    (chunk,) = read(tmp_path / "t.parquet")
    assert chunk.batch.schema.remove_metadata() == table.schema
    assert pa.Table.from_batches([chunk.batch]).equals(table)


def test_parquet_is_read_in_chunks(tmp_path):
    pq.write_table(pa.table({"n": range(1000)}), tmp_path / "t.parquet", row_group_size=300)
    chunks = read(tmp_path / "t.parquet", rows_max=128)
    assert [row for chunk in chunks for row in chunk.batch["n"].to_pylist()] == list(range(1000))
    assert max(chunk.rows for chunk in chunks) <= 128


@pytest.mark.parametrize("content", [b"PAR1 and no more", b"not parquet at all"])
def test_a_broken_parquet_file_is_named(written, content):
    with pytest.raises(UsageError, match=r"t\.parquet: .*Parquet"):
        read(written("t.parquet", content))


# ── any file ──


@pytest.mark.parametrize(
    ("name", "pack"),
    [("t.ndjson.gz", gzip.compress), ("t.jsonl.bz2", bz2.compress), ("t.ndjson.zst", lambda b: pa.compress(b, "zstd", asbytes=True))],
)  # fmt: skip
def test_compressed_lines_are_read(written, name, pack):
    assert [row["a"] for row in rows(written(name, pack(b'{"a":1}\n{"a":2}\n')))] == [1, 2]


def test_compressed_csv_is_read(written):
    assert rows(written("t.csv.gz", gzip.compress(b"a,b\n1,2\n"))) == [{"a": "1", "b": "2"}]


def test_a_truncated_compressed_file_is_named(written):
    with pytest.raises(UsageError, match=r"t\.csv\.gz"):
        read(written("t.csv.gz", gzip.compress(b"a,b\n" + b"1,2\n" * 1000)[:-20]))


def test_files_that_cannot_be_read_say_why(written, tmp_path):
    cases = {
        tmp_path / "nothing.csv": "no such file",
        tmp_path: "is a directory",
        written("empty.csv", ""): "is empty",
        written("what.dat", "x"): "does not tell the format",
    }
    for path, names in cases.items():
        with pytest.raises(UsageError, match=names) as caught:
            read(path)
        assert caught.value.hint
    with pytest.raises(UsageError, match="'xml' is not known"):
        read(tmp_path / "x", format="xml")
    with pytest.raises(UsageError, match="standard input"):
        read(Path("-"), format="csv")


def test_the_format_can_be_given(written):
    assert rows(written("what.dat", "a,b\n1,2\n"), format="csv") == [{"a": "1", "b": "2"}]
