"""Millions of changes through a log that keeps few of them and a Redis that keeps fewer: both stay small, nothing is missing.

The service with trimming, retention by size, snapshots and scheduled comparisons, all at once. What only an hour would
allow to be deleted may go after seconds here; everything else is as it ships.
"""

from __future__ import annotations

import io
import sys
import time
from functools import partial
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.ipc
from attrs import define, field
from pipeline_room import PipelineRoom

from ops.soak.report import Report, bar, close
from ops.soak.serving import Serving
from ops.soak.stage import Stage, stage
from replicator.errors import ReplicatorError

ROWS = 20_000
"""Changes in one Arrow entry."""
ENTRIES_WAITING_MAX = 50
"""The producer waits while Redis holds more: what is bounded is what the service leaves there."""
KEYS = 50_000
SETTLED_SECONDS = 20.0
SAMPLES = 20
SECTIONS = """
[retention]
max_bytes = {bytes}
[verify]
interval_sec = 40
watermark_age_sec = 0
[snapshots]
interval_sec = 60
keep = 2
log_changes = 100000
"""


@click.command(help=__doc__)
@click.option("--changes", default=10_000_000, show_default=True, help="How many to write.")
@click.option("--log-mb", default=64, show_default=True, help="What the log may use.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def main(changes: int, log_mb: int, as_json: bool) -> None:
    with stage() as set_up, bar(changes, "changes") as (progress, task):
        report = Report(soak="retention", seed=0, engines=set_up.engines())
        report.figures |= {"changes": changes, "log_mb_limit": log_mb}
        Pruned(set_up, report, partial(progress.update, task)).play(changes, log_mb)
        set_up.keep = not report.clean
    if set_up.keep:
        print(f"left for a look: {set_up.directory}", file=sys.stderr)
    sys.exit(close(report, as_json))


@define
class Pruned:
    """One run, from an empty log to a verified end."""

    stage: Stage
    report: Report
    show: Any
    room: PipelineRoom = field(init=False)
    serving: Serving = field(init=False)
    samples: list[dict[str, float]] = field(factory=list)
    last: Any = None
    """The quantity that each key was given last."""

    def play(self, changes: int, log_mb: int) -> None:
        self.room = self.stage.fresh_room(batch_size=100_000, sync="sync_interval_sec = 1", serve="port = 0")
        path = self.room.directory / "config" / "replicator.toml"
        text = path.read_text().replace("[redis]\n", '[redis]\ntrim = "confirmed"\n')
        text = text.replace("connect_timeout_sec = 2", "connect_timeout_sec = 30")
        path.write_text(text + SECTIONS.format(bytes=log_mb << 20))
        self.serving = Serving(room=self.room, report=self.report, settled_seconds=SETTLED_SECONDS)
        self.last = np.full(KEYS, -1, dtype=np.int64)
        with self.serving.up():
            began = time.monotonic()
            self._write(changes)
            self.report.figures["changes_per_second"] = round(changes / (time.monotonic() - began))
            self.serving.until(
                lambda s: s["log"]["head_offset"] == changes and s["sink"]["lag_changes"] == 0, "all delivered"
            )
            self._verified()
            status = self.serving.status()
        self._figures(status)
        self._compare(changes, status)

    def _write(self, changes: int) -> None:
        chance, client = np.random.default_rng(7), self.room.source
        for first in range(0, changes, ROWS):
            while client.xlen("orders") > ENTRIES_WAITING_MAX:
                time.sleep(0.02)
            keys = chance.integers(0, KEYS, ROWS)
            numbers = np.arange(first, first + ROWS)
            self.last[keys] = numbers  # of a key that is drawn twice the last counts, as in the stream
            client.xadd("orders", {"batch": _arrow(keys, numbers)})
            if first % max(ROWS, changes // SAMPLES // ROWS * ROWS) == 0 and first:
                self._sample(first)

    def _sample(self, written: int) -> None:
        try:
            status = self.serving.status()
        except ReplicatorError:  # a machine so busy that it does not answer in time: one sample less
            return
        used = self.room.source.info("memory")["used_memory"]
        sample = {
            "written": written,
            "redis_mb": round(used / 1e6, 1),
            "file_mb": round(status["log"]["bytes"] / 1e6, 1),
            "kept_changes": status["log"]["head_offset"] - status["log"]["oldest_offset"] + 1,
        }
        self.samples.append(sample)
        self.show(completed=written, now=str(sample))

    def _verified(self) -> None:
        """Every row that both sides still hold, and every key."""
        job = None
        while job is None:
            try:
                job = self.serving.ask(lambda client: client.post("/api/v1/verify", {}))
            except ReplicatorError:  # one on schedule is running
                time.sleep(1)
        path = f"/api/v1/verify/{job['id']}"
        while job["state"] == "running":
            time.sleep(1)
            job = self.serving.ask(lambda client: client.get(path))
        mismatches = int(job["result"]["mismatches"]) if job["result"] else -1
        self.report.figures["verify_mismatches"] = mismatches
        if mismatches:
            self.report.wrong.append(f"verify: {job['error'] or job['result']}")

    # ── at the end ──

    def _figures(self, status: dict[str, Any]) -> None:
        """The largest of the first quarter, when nothing could be deleted yet, and of the second half."""
        half = self.samples[len(self.samples) // 2 :]
        for what in ("redis_mb", "file_mb", "kept_changes"):
            self.report.figures[f"{what}_by_sample"] = " ".join(str(sample[what]) for sample in self.samples)
            self.report.figures[f"{what}_most_in_second_half"] = max(sample[what] for sample in half)
        self.report.figures["changes_deleted"] = status["retention"]["changes_deleted"]
        self.report.figures["entries_trimmed"] = status["trim"]["entries"]
        self.report.figures["snapshots_kept"] = status["snapshots"]["kept"]

    def _compare(self, changes: int, status: dict[str, Any]) -> None:
        """ClickHouse against what was written, both databases' current rows against each key's last quantity."""
        report = self.report
        report.entries = changes // ROWS
        sql = "select count(), uniqExact(_offset), uniqExact(quantity) from {db}.orders_log"
        ((rows, offsets, distinct),) = self.room.sink_rows(sql)
        report.physical_duplicates = int(rows) - int(offsets)
        if not int(offsets) == int(distinct) == changes:
            report.lost.append(f"{changes:,} written, ClickHouse holds {offsets} offsets, {distinct} of the quantities")
        wanted = {f"O{key}": int(number) for key, number in enumerate(self.last) if number >= 0}
        held = {key: int(number) for key, number in self.room.sink_rows("select order_id, quantity from {db}.orders")}
        with self.room.file() as session:
            here = dict(session.rows("select order_id, quantity from orders"))
        for where, found in (("ClickHouse", held), ("DuckDB", here)):
            if found != wanted:
                report.wrong.append(f"orders in {where} is not what was written last")
        if status["gaps"]["open"]:
            report.wrong.append(f"gaps: {status['gaps']}")
        if not status["retention"]["changes_deleted"]:
            report.wrong.append(f"nothing was deleted: {status['retention']}")


def _arrow(keys: Any, numbers: Any) -> bytes:
    table = pa.table(
        {
            "order_id": pa.array([f"O{key}" for key in keys.tolist()]),
            "quantity": pa.array(numbers),
            "price": pa.array([f"{number}.25" for number in numbers.tolist()]),
        }
    )
    sink = io.BytesIO()
    with pyarrow.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return sink.getvalue()
