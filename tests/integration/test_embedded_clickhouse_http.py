"""The front answers plain HTTP (curl, urllib3) as ClickHouse does: codes, statuses, headers, formats, codings."""

from __future__ import annotations

import base64
import gzip
import io
import json
import socket
import subprocess
import zlib
from collections.abc import Iterator
from urllib.parse import quote, urlencode

import lz4.frame
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import urllib3

from replicator.embedded.clickhouse import ClickHouse

try:
    from compression import zstd
except ImportError:
    from backports import zstd

ROWS = b'{"a":1,"b":"x"}\n{"a":2,"b":"y"}\n'
EXPECTED = "1\tx\n2\ty\n"
CODINGS = {
    "identity": lambda body: body,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstd.compress,
    "lz4": lz4.frame.compress,
}
FORMATS = [
    "JSONEachRow",
    "CSV",
    "TSV",
    "TabSeparatedWithNames",
    "Arrow",
    "ArrowStream",
    "Parquet",
    "Native",
    "RowBinary",
]


class Http:
    """A plain HTTP client of one database."""

    def __init__(self, server: ClickHouse, database: str) -> None:
        self.server, self.database = server, database
        self.pool = urllib3.PoolManager(retries=False)

    def __call__(self, body=b"", *, query: str = "", method: str = "POST", headers=None, **parameters: object):
        values = {"database": self.database, **({"query": query} if query else {}), **parameters}
        credentials = {"X-ClickHouse-User": self.server.user, "X-ClickHouse-Key": self.server.password}
        url = f"{self.server.endpoint}/?{urlencode(values)}"
        return self.pool.request(
            method, url, body=body, headers={**credentials, **(headers or {})}, decode_content=False
        )

    def text(self, body: str, **parameters: object) -> str:
        response = self(body.encode(), **parameters)
        assert response.status == 200, response.data
        return response.data.decode()


@pytest.fixture
def http(clickhouse_server: ClickHouse, clickhouse_database: str) -> Iterator[Http]:
    client = Http(clickhouse_server, clickhouse_database)
    client.text(
        "create table t (a Int32, b String) engine = MergeTree order by a"
        " settings non_replicated_deduplication_window = 1000"
    )
    yield client
    client.pool.clear()


@pytest.mark.parametrize("coding", CODINGS)
def test_a_body_arrives_in_every_coding(http: Http, coding: str) -> None:
    body = CODINGS[coding](ROWS)
    response = http(body, query="insert into t format JSONEachRow", headers={"Content-Encoding": coding})
    assert response.status == 200, response.data
    assert http.text("select * from t order by a") == EXPECTED


@pytest.mark.parametrize("coding", ["identity", "gzip", "zstd"])
def test_a_chunked_body_arrives_whole(http: Http, coding: str) -> None:
    many = b"".join(b'{"a":%d,"b":"%d"}\n' % (i, i) for i in range(50_000))
    body = CODINGS[coding](b"insert into t format JSONEachRow\n" + many)
    pieces = (body[at : at + 7919] for at in range(0, len(body), 7919))
    assert http(pieces, headers={"Content-Encoding": coding}).status == 200
    assert http.text("select count(), sum(a) from t") == "50000\t1249975000\n"


def test_several_gzip_members_are_one_body(http: Http) -> None:
    body = b"".join(gzip.compress(line) for line in ROWS.splitlines(keepends=True))
    http(body, query="insert into t format JSONEachRow", headers={"Content-Encoding": "gzip"})
    assert http.text("select * from t order by a") == EXPECTED


@pytest.mark.parametrize("format_name", FORMATS)
def test_every_format_goes_out_and_comes_in(http: Http, format_name: str) -> None:
    http(ROWS, query="insert into t format JSONEachRow")
    out = http(f"select * from t order by a format {format_name}".encode())
    assert out.headers["X-ClickHouse-Format"] == format_name
    http.text("truncate table t")
    assert http(out.data, query=f"INSERT INTO t (a, b) FORMAT {format_name}").status == 200
    assert http.text("select * from t order by a") == EXPECTED


def test_arrow_and_parquet_are_readable_by_others(http: Http) -> None:
    http(ROWS, query="insert into t format JSONEachRow")
    arrow = http(b"select * from t order by a", default_format="Arrow").data
    parquet = http(b"select * from t order by a format Parquet").data
    rows = [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    assert pa.ipc.open_file(arrow).read_all().to_pylist() == rows
    assert pq.read_table(io.BytesIO(parquet)).to_pylist() == rows


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd", "lz4"])
@pytest.mark.parametrize("wait", [0, 1])
def test_an_answer_is_compressed_on_request(http: Http, coding: str, wait: int) -> None:
    response = http(
        b"select number from numbers(1000) format JSONCompact",
        enable_http_compression=1,
        wait_end_of_query=wait,
        headers={"Accept-Encoding": coding},
    )
    assert response.headers["Content-Encoding"] == coding
    decode = {"gzip": gzip.decompress, "deflate": zlib.decompress, "zstd": zstd.decompress, "lz4": lz4.frame.decompress}
    assert json.loads(decode[coding](response.data))["rows"] == 1000


def test_an_answer_is_plain_unless_compression_is_enabled(http: Http) -> None:
    response = http(b"select 1", headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in response.headers
    assert response.data == b"1\n"


def test_the_query_may_be_in_the_url_the_body_or_both(http: Http) -> None:
    assert http(query="select 1", method="GET").data == b"1\n"
    assert http(b"select 2").data == b"2\n"
    assert http(b"from numbers(3)", query="select count()").data == b"3\n"


@pytest.mark.parametrize(
    "statement",
    [
        "insert into t values (1, 'x'), (2, 'y')",
        "insert into t (a, b) VALUES (1, 'x'), (1 + 1, 'y');",
        "/* why */ insert into t -- FORMAT CSV\n (b, a) settings async_insert = 0 format CSV x,1\ny,2\n",
        "INSERT INTO TABLE t FORMAT TSV\n1\tx\n2\ty\n",
        "insert into t select number + 1, char(120 + number) from numbers(2)",
        "insert into t (select number + 1, char(120 + number) from numbers(2))",
        "with 1 as one insert into t select number + one, char(120 + number) from numbers(2)",
    ],
)
def test_inserts_are_understood_in_every_spelling(http: Http, statement: str) -> None:
    assert http.text(statement) == ""
    assert http.text("select * from t order by a") == EXPECTED


def test_an_insert_without_rows_inserts_nothing(http: Http) -> None:
    assert http(b"", query="insert into t format CSV").status == 200
    assert http.text("select count() from t") == "0\n"


def test_parameters_bind_by_type(http: Http) -> None:
    assert http.text("select {a:Int64} + 1, {b:String}", param_a="41", param_b="it's\\t%") == "42\tit\\'s\\t%\n"
    assert http.text("select {n:Nullable(String)} is null", param_n="\\N") == "1\n"
    assert http.text("select count() from {t:Identifier}", param_t="t") == "0\n"
    assert http.text("select {a:Array(String)}", param_a="['x','y']") == "['x','y']\n"
    assert http(b"select {missing:Int32}").headers["X-ClickHouse-Exception-Code"] == "456"


def test_answers_carry_clickhouses_headers(http: Http) -> None:
    response = http(b"select number from numbers(10)", query_id="my-query", wait_end_of_query=1)
    assert response.headers["X-ClickHouse-Query-Id"] == "my-query"
    assert response.headers["X-ClickHouse-Format"] == "TabSeparated"
    assert response.headers["Content-Type"].startswith("text/tab-separated-values")
    assert response.headers["X-ClickHouse-Timezone"] == "UTC"
    assert response.headers["X-ClickHouse-Server-Display-Name"]
    summary = json.loads(response.headers["X-ClickHouse-Summary"])
    assert summary["read_rows"] == "10"
    assert summary["result_rows"] == "10"
    inserted = http(ROWS, query="insert into t format JSONEachRow")
    assert json.loads(inserted.headers["X-ClickHouse-Summary"])["written_rows"] == "2"
    assert "X-ClickHouse-Format" not in inserted.headers


def test_the_default_format_comes_from_the_url_or_a_header(http: Http) -> None:
    assert http(b"select 1 as a", default_format="JSONEachRow").data == b'{"a":1}\n'
    assert http(b"select 1 as a", headers={"X-ClickHouse-Format": "CSVWithNames"}).data == b'"a"\n1\n'
    assert http(b"select 1 as a format TSVWithNames", default_format="JSONEachRow").data == b"a\n1\n"


@pytest.mark.parametrize(
    ("statement", "code", "status"),
    [
        ("select * from no_such_table", 60, 404),
        ("selec 1", 62, 400),
        ("", 62, 400),
        ("select no_such_column from t", 47, 404),
        ("select no_such_function(1)", 46, 404),
        ("select 1 format NoSuchFormat", 73, 404),
        ("insert into t format NoSuchFormat 1", 73, 404),
        ("insert into t (nothing) format CSV 1", 16, 500),
        ("insert into t format CSV x,y", 27, 400),
        ("1 + 1", 62, 400),
        ("-- nothing", 62, 400),
        ("\x01\x02", 62, 400),
        ("ÿselect 1", 62, 400),
        ("select 1 settings no_such_setting = 1", 115, 404),
        ("select throwIf(1)", 395, 500),
        ("select sleepEachRow(1) from numbers(3) settings max_execution_time = 0.1, max_block_size = 1", 159, 408),
        ("drop database no_such_database", 81, 404),
    ],
)
@pytest.mark.parametrize("wait", [0, 1])
def test_errors_carry_clickhouses_code_status_and_text(
    http: Http, statement: str, code: int, status: int, wait: int
) -> None:
    response = http(statement.encode(), wait_end_of_query=wait)
    text = response.data.decode()
    assert (response.headers["X-ClickHouse-Exception-Code"], response.status) == (str(code), status), text
    assert text.startswith(f"Code: {code}. DB::Exception: ")
    assert text.endswith("\n")


def test_an_unknown_database_or_setting_in_the_url_is_an_error(http: Http) -> None:
    assert http(b"select 1", database="no_such").headers["X-ClickHouse-Exception-Code"] == "81"
    assert http(b"select 1", no_such=1).headers["X-ClickHouse-Exception-Code"] == "115"
    assert http(b"select 1", **{"a'b": 1}).headers["X-ClickHouse-Exception-Code"] == "115"
    assert http(b"select 1", max_threads="x").status == 400


def test_an_error_midway_cuts_the_stream_after_clickhouses_exception_block(http: Http) -> None:
    response = http.pool.request(
        "POST",
        f"{http.server.endpoint}/?max_block_size=1000",
        body=b"select throwIf(number = 500000) from numbers(1000000)",
        headers={"X-ClickHouse-User": http.server.user, "X-ClickHouse-Key": http.server.password},
        preload_content=False,
    )
    assert response.status == 200
    received = b""
    with pytest.raises(urllib3.exceptions.ProtocolError):
        for piece in response.stream(65536):
            received += piece
    tag = response.headers["X-ClickHouse-Exception-Tag"].encode()
    assert b"\r\n__exception__\r\n" + tag + b"\r\nCode: 395." in received
    assert received.endswith(tag + b"\r\n__exception__\r\n")


def test_a_stream_left_early_ends_its_query(http: Http) -> None:
    comment = f"left early by {http.database}"
    response = http.pool.request(
        "POST",
        f"{http.server.endpoint}/?{urlencode({'log_comment': comment})}",
        body=b"select number from system.numbers",
        headers={"X-ClickHouse-User": http.server.user, "X-ClickHouse-Key": http.server.password},
        preload_content=False,
    )
    running = (
        f"select count() from system.processes where Settings['log_comment'] = '{comment}' and query like '%numbers'"
    )
    assert response.read(100_000).startswith(b"0\n1\n")
    assert http.text(running) == "1\n"
    response.close()
    while http.text(running) != "0\n":
        pass


def test_an_upload_cut_short_inserts_nothing(http: Http) -> None:
    login = base64.b64encode(f"{http.server.user}:{http.server.password}".encode()).decode()
    target = f"/?{urlencode({'database': http.database, 'query': 'insert into t format CSV'})}"
    for length in ("Content-Length: 1000\r\n\r\n1,x\n2,y\n", "Transfer-Encoding: chunked\r\n\r\n4\r\n1,x\n\r\n"):
        with socket.create_connection(("127.0.0.1", http.server.port)) as upload:
            upload.sendall(f"POST {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {login}\r\n{length}".encode())
    http.text("insert into t values (5, 'after')")
    assert http.text("select a from t") == "5\n"


def test_a_get_may_only_read(http: Http) -> None:
    assert http(query="select 1", method="GET").status == 200
    assert http(query="select 1 settings max_threads = 1", method="GET", max_threads=1).status == 200
    refused = http(query="truncate table t", method="GET")
    assert refused.headers["X-ClickHouse-Exception-Code"] == "164"


@pytest.mark.parametrize("how", ["headers", "basic", "url"])
def test_user_and_password_are_checked(clickhouse_server: ClickHouse, how: str) -> None:
    server = clickhouse_server

    def ask(user: str, password: str) -> urllib3.BaseHTTPResponse:
        url, headers = f"{server.endpoint}/?query=select+1", {}
        if how == "headers":
            headers = {"X-ClickHouse-User": user, "X-ClickHouse-Key": password}
        elif how == "basic":
            headers = urllib3.make_headers(basic_auth=f"{user}:{password}")
        else:
            url += f"&user={quote(user)}&password={quote(password)}"
        return urllib3.request("GET", url, headers=headers)

    assert ask(server.user, server.password).data == b"1\n"
    for user, password in [
        (server.user, "wrong"),
        ("nobody", server.password),
        ("nöbody", "pässword".encode("latin-1").decode("latin-1")),
    ]:
        if how == "headers" and not user.isascii():
            continue
        refused = ask(user, password)
        assert (refused.status, refused.headers["X-ClickHouse-Exception-Code"]) == (403, "516")
    without = ask(server.user, "")
    assert (without.status, without.headers["X-ClickHouse-Exception-Code"]) == (401, "194")


def test_a_refused_request_with_a_large_body_still_gets_its_answer(clickhouse_server: ClickHouse) -> None:
    url = f"{clickhouse_server.endpoint}/?query=insert+into+t+format+CSV"
    response = urllib3.request(
        "POST", url, body=b"x" * (20 << 20), headers={"X-ClickHouse-User": "nobody"}, retries=False
    )
    assert response.status == 401


def test_health_is_answered_without_credentials(clickhouse_server: ClickHouse) -> None:
    for path in ("/ping", "/", "/replicas_status"):
        response = urllib3.request("GET", clickhouse_server.endpoint + path)
        assert (response.status, response.data) == (200, b"Ok.\n")
    assert urllib3.request("GET", clickhouse_server.endpoint + "/nowhere").status == 404


@pytest.mark.parametrize(
    ("coding", "code"), [("gzip", "354"), ("deflate", "354"), ("zstd", "561"), ("lz4", "614"), ("nonsense", "89")]
)
def test_a_body_that_is_not_what_it_says_is_refused(http: Http, coding: str, code: str) -> None:
    for body in (b"this is not compressed", *([CODINGS[coding](ROWS)[:-5]] if coding in CODINGS else [])):
        response = http(body, query="insert into t format JSONEachRow", headers={"Content-Encoding": coding})
        assert response.headers["X-ClickHouse-Exception-Code"] == code, response.data
    assert http.text("select count() from t") == "0\n"


def test_ten_megabytes_of_garbage_are_a_syntax_error(http: Http) -> None:
    garbage = bytes(range(256)) * 40_000
    assert http(garbage).headers["X-ClickHouse-Exception-Code"] == "62"
    assert http(garbage * 2).headers["X-ClickHouse-Exception-Code"] == "62"
    assert http(garbage, query="insert into t format JSONEachRow").status in (400, 500)
    assert http.text("select count() from t") == "0\n"


def test_bytes_that_are_not_utf8_pass_unchanged(http: Http) -> None:
    assert http(b"select hex('\xff\xfe')").data == b"FFFE\n"
    command = ["curl", "-sS", "--user", f"{http.server.user}:{http.server.password}"]
    url = f"{http.server.endpoint}/?query=select+hex('%FF'),'%zz'"
    assert subprocess.run([*command, url], capture_output=True, check=True, timeout=30).stdout == b"FF\t%zz\n"
    assert http(b"select {a:String}", param_a="\udcff".encode("utf-8", "surrogateescape")).status == 400


def test_curl_inserts_and_selects(http: Http, tmp_path) -> None:
    data_file = tmp_path / "rows.csv"
    data_file.write_text("1,x\n2,y\n")
    base = f"{http.server.endpoint}/?database={http.database}"
    login = ["--user", f"{http.server.user}:{http.server.password}"]

    def curl(*arguments: str) -> str:
        command = ["curl", "-sS", "--fail-with-body", *login, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout

    curl("--data-binary", f"@{data_file}", f"{base}&query=insert%20into%20t%20format%20CSV")
    assert curl(base, "-d", "select * from t order by a") == EXPECTED
    data_file.write_text("3,x\n4,y\n")
    assert curl("-G", base, "--data-urlencode", "query=select sum(a) from t") == "3\n"
    curl("-H", "Transfer-Encoding: chunked", "--data-binary", f"@{data_file}", f"{base}&query=insert+into+t+format+CSV")
    assert curl(base, "-d", "select count() from t") == "4\n"
    compressed = curl("--compressed", f"{base}&enable_http_compression=1", "-d", "select count() from t format JSON")
    assert json.loads(compressed)["rows"] == 1
