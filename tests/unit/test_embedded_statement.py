"""Where an INSERT ends and its data begins, whatever the spelling and however the bytes arrive."""

from __future__ import annotations

import pytest

from replicator.embedded.clickhouse_query_id import with_client_ids
from replicator.embedded.clickhouse_statement import Head, InlineInsert, leading_words, output_format, split_insert

INSERTS = [
    (b"INSERT INTO t FORMAT CSV\n1,2", b"INSERT INTO t ", b"", "CSV", b"1,2"),
    (b"insert into t format CSV 1,2\n", b"insert into t ", b"", "CSV", b"1,2\n"),
    (b"insert into t format Native\r\n\x01\x02", b"insert into t ", b"", "Native", b"\x01\x02"),
    (b"insert into t format TSV\n\n1", b"insert into t ", b"", "TSV", b"\n1"),
    (b"insert into t (a, `b`) VALUES (1)", b"insert into t (a, `b`) ", b"", "Values", b" (1)"),
    (b"insert into db.values values(1)", b"insert into db.values ", b"", "Values", b"(1)"),
    (b"insert into format format CSV 1", b"insert into format ", b"", "CSV", b"1"),
    (b"insert into `format` (`values`) format CSV 1", b"insert into `format` (`values`) ", b"", "CSV", b"1"),
    (
        b"insert into t settings a = 'FORMAT CSV', b = 1 format TSV x",
        b"insert into t ",
        b"settings a = 'FORMAT CSV', b = 1 ",
        "TSV",
        b"x",
    ),
    (
        b"-- format X\ninsert /* values */ into t -- select\n format CSV x",
        b"-- format X\ninsert /* values */ into t -- select\n ",
        b"",
        "CSV",
        b"x",
    ),
    (
        b"insert into function null('format CSV') format TSV x",
        b"insert into function null('format CSV') ",
        b"",
        "TSV",
        b"x",
    ),
]


@pytest.mark.parametrize(("statement", "target", "settings", "format_name", "rows"), INSERTS)
def test_the_data_of_an_insert_is_found(
    statement: bytes, target: bytes, settings: bytes, format_name: str, rows: bytes
) -> None:
    found = split_insert(statement, complete=True)
    assert isinstance(found, InlineInsert)
    assert (found.target, found.settings, found.format_name) == (target, settings, format_name)
    assert statement[found.data_at :] == rows


@pytest.mark.parametrize("statement", [insert[0] for insert in INSERTS])
def test_the_answer_does_not_depend_on_how_the_bytes_arrive(statement: bytes) -> None:
    whole = split_insert(statement, complete=True)
    for cut in range(len(statement)):
        assert split_insert(statement[:cut], complete=False) in (Head.NEEDS_MORE, whole)


@pytest.mark.parametrize(
    "statement",
    [
        b"",
        b"select 1 format CSV",
        b"insert into t select 1 format CSV",
        b"insert into t (a) with 1 as x select x",
        b"insert into t from infile 'x' format CSV",
        b"insert into t (select 'values')",
        b"insert into t",
        b"(insert into t format CSV 1)",
        b"create table format (a Int32)",
        b"/* insert into t format CSV 1",
        b"'insert into t format CSV 1",
        b"\xff\x00garbage",
    ],
)
def test_other_statements_carry_no_data(statement: bytes) -> None:
    assert split_insert(statement, complete=True) is Head.NO_DATA


def test_an_insert_from_a_file_quotes_its_path() -> None:
    insert = split_insert(b"insert into t (a) settings x = 1 format CSV 1", complete=True)
    assert isinstance(insert, InlineInsert)
    expected = b"insert into t (a)  FROM INFILE '/it\\'s\\\\x' COMPRESSION 'none' settings x = 1  FORMAT CSV"
    assert insert.from_file("/it's\\x") == expected


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (b"select 1", None),
        (b"select 1 FORMAT Arrow", "Arrow"),
        (b"select 1 format JSON ; ", "JSON"),
        (b"select 1 format CSV settings max_threads = 1", "CSV"),
        (b"select 'format CSV'", None),
        (b"select format('{}', a) from t", None),
    ],
)
def test_the_output_format_is_the_one_at_the_end(statement: bytes, expected: str | None) -> None:
    assert output_format(statement) == expected


def test_leading_words_pass_over_comments_and_brackets() -> None:
    assert leading_words(b"/* a */ ( -- b\n (Select 1))", 1) == ["SELECT"]
    assert leading_words(b"kill query where 1", 2) == ["KILL", "QUERY"]
    assert leading_words(b"\x01select", 1) == []


SHOWN = b"if(Settings['query_cache_tag'] = '', query_id, Settings['query_cache_tag'])"


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (b"kill query where query_id = 'query_id' sync", b"kill query where " + SHOWN + b" = 'query_id' sync"),
        (
            b"select query_id from system.processes as p where p.query_id = 'x'",
            b"select query_id from (SELECT * REPLACE (" + SHOWN + b" AS query_id) FROM system.processes) as p"
            b" where p.query_id = 'x'",
        ),
        (b"select 'from system.processes'", b"select 'from system.processes'"),
        (b"describe table system.processes", b"describe table system.processes"),
        (b"select query_id from kill.processes", b"select query_id from kill.processes"),
        (b"select query_id from t -- from system.query_log", b"select query_id from t -- from system.query_log"),
    ],
)
def test_only_statements_about_queries_see_the_clients_ids(statement: bytes, expected: bytes) -> None:
    assert with_client_ids(statement) == expected
