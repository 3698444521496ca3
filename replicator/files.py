"""NDJSON, CSV and Parquet files as chunks of columns, for ``produce``.

Guarantees that values stay as the file writes them: numbers of NDJSON and CSV keep their digits as text, Parquet
keeps its types; rows keep their order. What cannot be read is a ``UsageError`` that names the file and the line,
or is counted where bad rows are to be skipped. Must never guess a type from a sample or hold a whole file.
"""

from __future__ import annotations

import csv
import gc
import io
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from attrs import define, field, frozen

from replicator import ndjson
from replicator.errors import UsageError

FORMATS = ("ndjson", "csv", "parquet")
BLOCK_BYTES = 4 << 20
LINE_BYTES_MAX = 32 << 20
SKIPPED_SHOWN = 5
_SUFFIXES = {
    ".ndjson": "ndjson", ".jsonl": "ndjson", ".json": "ndjson", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}


@frozen(kw_only=True)
class FileOptions:
    """How to read a file. ``columns`` names those of a CSV file without a header line."""

    path: Path
    format: str = "auto"
    columns: Sequence[str] = ()
    delimiter: str | None = None
    skip_bad: bool = False
    rows_max: int = 50_000


@frozen(kw_only=True)
class Wanted:
    """Which columns the reader of NDJSON must take apart (None: all), and which to leave out of the objects."""

    columns: Collection[str] | None = None
    without: Collection[str] = ()


@frozen(kw_only=True)
class Chunk:
    """Some rows: their columns, and for NDJSON also the objects as the file writes them."""

    batch: pa.RecordBatch
    objects: pa.Array | None = None

    @property
    def rows(self) -> int:
        return self.batch.num_rows if self.objects is None else len(self.objects)

    def slice(self, start: int, rows: int) -> Chunk:
        objects = None if self.objects is None else self.objects.slice(start, rows)
        return Chunk(batch=self.batch.slice(start, rows), objects=objects)


@define
class Reading:
    """What is known while a file is read."""

    bytes_read: int = 0
    bytes_total: int | None = None
    skipped: int = 0
    skipped_first: list[str] = field(factory=list)

    def skip(self, what: str) -> None:
        """Count a bad row; the first few are kept for the report."""
        self.skipped += 1
        if len(self.skipped_first) < SKIPPED_SHOWN:
            self.skipped_first.append(what)


def read_file(options: FileOptions, wanted: Wanted, reading: Reading) -> Iterator[Chunk]:
    """The file in chunks of at most ``rows_max`` rows."""
    kind = _format_of(options)
    readers: dict[str, Callable[..., Iterator[Chunk]]] = {"ndjson": _ndjson, "csv": _csv, "parquet": _parquet}
    with _as_usage(options.path):
        for chunk in readers[kind](options, wanted, reading):
            for start in range(0, chunk.rows, options.rows_max):
                yield chunk.slice(start, options.rows_max)


def _format_of(options: FileOptions) -> str:
    path = options.path
    if options.format != "auto" and options.format not in FORMATS:
        raise UsageError(f"format {options.format!r} is not known", hint=f"one of auto, {', '.join(FORMATS)}")
    if str(path) == "-":
        if options.format not in ("auto", "ndjson"):
            raise UsageError(f"{options.format} cannot be read from standard input", hint="give a file")
        return "ndjson"
    if not path.exists():
        raise UsageError(f"{path}: no such file", hint="check the path")
    if path.is_dir():
        raise UsageError(f"{path} is a directory", hint="give one file; run once per file")
    if path.is_file() and path.stat().st_size == 0:
        raise UsageError(f"{path} is empty", hint="there is nothing to produce")
    if options.format != "auto":
        return options.format
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in _COMPRESSIONS]
    kind = _SUFFIXES.get(suffixes[-1]) if suffixes else None
    if kind is None:
        raise UsageError(f"{path}: the name does not tell the format", hint=f"give --format {' or '.join(FORMATS)}")
    return kind


@contextmanager
def _as_usage(path: Path) -> Iterator[None]:
    """Errors of reading as ours."""
    try:
        yield
    except PermissionError as error:
        raise UsageError(f"{path}: not permitted to read it", hint="check its mode and owner") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        text = str(error).splitlines()[0][:300]
        hint = "check the file and --format"
        if "straddl" in text:
            text = f"a row is larger than {BLOCK_BYTES} bytes, or a quote is never closed"
        elif "UTF8" in text or "utf-8" in text:
            hint = "convert it to UTF-8, for example with iconv"
        elif "Expected" in text and "columns" in text:
            hint = "mend the row, or pass --skip-bad"
        raise UsageError(f"{path}: {text}", hint=hint) from error


class _Counted(io.RawIOBase):
    """A binary source whose bytes are counted as they are read, and on request its quotes."""

    def __init__(self, source: Any, seen: Callable[[bytes], None]) -> None:
        self._source, self._seen = source, seen

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        piece = self._source.read(size)
        self._seen(piece)
        return piece


@contextmanager
def _opened(path: Path, reading: Reading) -> Iterator[Any]:
    """The file's bytes, decompressed where its name says so."""
    if str(path) == "-":
        yield sys.stdin.buffer
        return

    def seen(piece: bytes) -> None:
        reading.bytes_read += len(piece)

    reading.bytes_total = path.stat().st_size or None
    codec = _COMPRESSIONS.get(path.suffix.lower())
    with path.open("rb") as file:
        source = _Counted(file, seen)
        yield pa.CompressedInputStream(pa.PythonFile(source, "r"), codec) if codec else source


# ── NDJSON ──


def _ndjson(options: FileOptions, wanted: Wanted, reading: Reading) -> Iterator[Chunk]:
    with _opened(options.path, reading) as source:
        for first_line, lines in _lines(source, options.path):
            with _collector_paused():
                good, rows = _parse(lines, first_line, options, reading)
            if not good:
                continue
            if wanted.without:
                good = [ndjson.dump({name: row[name] for name in row if name not in wanted.without}) for row in rows]
            batch = ndjson.columns(rows, wanted.columns)
            yield Chunk(batch=batch, objects=pa.array(good, pa.string()))


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Thousands of new objects make the cyclic collector walk them again and again: half the time of parsing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _lines(source: Any, path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Runs of whole lines with the number of the first."""
    number, rest = 1, b""
    while block := source.read(BLOCK_BYTES):
        whole, newline, after = block.rpartition(b"\n")
        if newline:
            lines = (rest + whole).split(b"\n")
            yield number, lines
            number += len(lines)
            rest = after
        else:
            rest += block
        if len(rest) > LINE_BYTES_MAX:
            hint = "one object per line is needed" if rest.lstrip()[:1] != b"[" else ndjson.ARRAY_HINT
            raise UsageError(f"{path}: line {number} is over {LINE_BYTES_MAX} bytes", hint=hint)
    if rest.strip():
        yield number, [rest]


def _parse(
    lines: Sequence[bytes], first_line: int, options: FileOptions, reading: Reading
) -> tuple[list[str], list[dict[str, Any]]]:
    """The lines that are JSON objects, as text and taken apart."""
    good, rows = [], []
    for number, line in enumerate(lines, first_line):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")  # noqa: PLW2901 - a byte order mark is no content
        if not line or line.isspace():
            continue
        try:
            text = line.decode().strip()
            rows.append(ndjson.parse(text))
            good.append(text)
        except ValueError as error:
            problem = ndjson.problem(error, line)
            if not options.skip_bad:
                hint = ndjson.ARRAY_HINT if line.lstrip()[:1] == b"[" else "mend the line, or pass --skip-bad"
                raise UsageError(f"{options.path}: line {number}: {problem}", hint=hint) from None
            reading.skip(f"line {number}: {problem}")
    return good, rows


# ── CSV ──


def _csv(options: FileOptions, wanted: Wanted, reading: Reading) -> Iterator[Chunk]:  # noqa: ARG001 - one signature
    suffixes = [suffix.lower() for suffix in options.path.suffixes]
    delimiter = options.delimiter or ("\t" if ".tsv" in suffixes else ",")
    if len(delimiter.encode()) != 1:
        raise UsageError(f"delimiter {delimiter!r} is not one character", hint="give one, such as ';'")
    names = list(options.columns) or _header(options.path, delimiter)
    if not options.columns and sum(map(_is_number, names)) * 2 > len(names):
        raise UsageError(
            f"{options.path}: the first line looks like a row, not like names: {','.join(names)[:100]}",
            hint="name the columns with --columns a,b,…",
        )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or "" in names:
        problem = f"column {repeated[0]!r} stands twice" if repeated else "a column has no name"
        raise UsageError(f"{options.path}: {problem}", hint="mend the header, or name the columns with --columns")

    def bad(row: Any) -> str:
        if not options.skip_bad:
            return "error"
        reading.skip(f"row {row.number}: {row.actual_columns} columns instead of {row.expected_columns}")
        return "skip"

    quotes = [0]

    def count(piece: bytes) -> None:
        quotes[0] += piece.count(b'"')

    with _opened(options.path, reading) as source:
        reader = pa_csv.open_csv(
            pa.PythonFile(_Counted(source, count), "r"),
            read_options=pa_csv.ReadOptions(
                use_threads=False, block_size=BLOCK_BYTES, column_names=names if options.columns else None
            ),
            parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=bad),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                null_values=[""],
            ),
        )
        yield from _until_closed(reader, quotes, options.path)


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def _header(path: Path, delimiter: str) -> list[str]:
    """The names in the first record."""
    with _opened(path, Reading()) as source:
        start = bytes(source.read(1 << 20)).removeprefix(b"\xef\xbb\xbf")
    if b"\n" not in start:
        start += b"\n"
    text = start[: start.rindex(b"\n") + 1].decode(errors="surrogateescape")  # only the names must be UTF-8
    names = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
    return [name.encode(errors="surrogateescape").decode() for name in names]


def _until_closed(reader: pa_csv.CSVStreamingReader, quotes: Sequence[int], path: Path) -> Iterator[Chunk]:
    """All batches; the last only once it is sure that its last value does not run to the end for want of a quote."""
    last: pa.RecordBatch | None = None
    for batch in reader:
        if last is not None:
            yield Chunk(batch=last)
        last = batch if batch.num_rows else None
    if last is None:
        return
    ending = last.column(last.num_columns - 1)[last.num_rows - 1].as_py() or ""
    if quotes[0] % 2 and "\n" in ending:
        raise UsageError(f"{path}: a quoted value in the last row is never closed", hint="close the quote")
    yield Chunk(batch=last)


# ── Parquet ──


def _parquet(options: FileOptions, wanted: Wanted, reading: Reading) -> Iterator[Chunk]:  # noqa: ARG001 - one signature
    if options.delimiter or options.columns:
        raise UsageError("--columns and --delimiter are for CSV files", hint="leave them out")
    with pq.ParquetFile(options.path) as file:
        reading.bytes_total = options.path.stat().st_size
        rows = max(1, file.metadata.num_rows)
        seen = 0
        for batch in file.iter_batches(batch_size=options.rows_max):
            batch.validate(full=True)
            seen += batch.num_rows
            reading.bytes_read = reading.bytes_total * seen // rows
            yield Chunk(batch=batch)
