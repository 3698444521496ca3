"""ClickHouse away for minutes while a producer goes on: what is parked, what comes back by itself, how fast.

The service is `replicator run` with the configuration that ships (its ladder, its batch size), asked over HTTP.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
from attrs import define, field
from findings import Findings
from pipeline_room import PipelineRoom

from ops.soak.report import Report, bar, close
from ops.soak.stage import Stage, stage
from ops.soak.traffic import Traffic, Written
from replicator.client import connect
from replicator.config import load_settings
from replicator.errors import ReplicatorError

LADDER = "retry_backoff_sec = [5, 15, 30, 60]"
SYNC = "sync_interval_sec = 1\nmax_retry_attempts = 4"
BEFORE_SECONDS = 10
PATIENCE_SECONDS = 1800
CAUGHT_UP_SECONDS = 5
"""A lag of what is written in this time, with the producer still writing, counts as caught up."""


@click.command(help=__doc__)
@click.option("--minutes", default=10.0, show_default=True, help="How long ClickHouse is away.")
@click.option("--rate", default=5000, show_default=True, help="Events per second, from before until caught up.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def main(minutes: float, rate: int, as_json: bool) -> None:
    with stage() as set_up, bar(minutes * 60, "seconds away") as (progress, task):
        report = Report(soak="outage", seed=0, engines=set_up.engines())
        report.figures |= {"minutes": minutes, "rate": rate}
        Outage(set_up, report, partial(progress.update, task)).play(minutes * 60, rate)
        set_up.keep = not report.clean
    if set_up.keep:
        print(f"left for a look: {set_up.directory}", file=sys.stderr)
    sys.exit(close(report, as_json))


@define
class Outage:
    """One outage, from a lag of nothing to a lag of nothing."""

    stage: Stage
    report: Report
    show: Callable[..., None]
    room: PipelineRoom = field(init=False)
    parked_most: dict[str, int] = field(factory=dict)
    """Parked rows by table, at most."""
    peak_mb: float = 0.0
    service_pid: int = 0

    def play(self, away_seconds: float, rate: int) -> None:
        self.room = self.stage.fresh_room(batch_size=100_000, sync=SYNC, ladder=LADDER, serve="port = 0")
        figures, traffic = self.report.figures, Traffic()
        with self._serving():
            with traffic.flowing(self.stage.stack.redis.url, rate):
                self._until(lambda s: s["sink"]["checkpoint_offset"], "first delivery")
                time.sleep(BEFORE_SECONDS)
                began_at = self._until(bool, "an answer")["log"]["head_offset"]
                self.stage.stack.clickhouse.kill()
                self._wait_away(away_seconds)
                self.stage.stack.clickhouse.start()
                figures["logged_while_away"] = self._until(bool, "an answer")["log"]["head_offset"] - began_at
                self._catch_up()
            assert traffic.written is not None
            self._until(lambda s: s["log"]["head_offset"] >= sum(traffic.written.entries.values()), "all is logged")
            self._until(lambda s: s["sink"]["lag_changes"] == 0 and not s["failed_syncs"]["open"], "all is delivered")
            figures["verify_mismatches"] = self._verified()
        figures["parked_rows_at_most"] = self.parked_most
        figures["peak_mb"] = round(self.peak_mb)
        figures["written_per_second"] = round(sum(traffic.written.entries.values()) / traffic.written.seconds)
        self.report.take(self._compare(traffic.written), 0)

    def _wait_away(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            status = self._status_if_answered()
            if status:
                self.show(completed=seconds - left, now=f"{status['log']['head_offset']:,} logged")
            time.sleep(min(2.0, left))

    def _catch_up(self) -> None:
        began = time.monotonic()
        start = self._until(bool, "an answer")["sink"]["confirmed_offset"] or 0
        first = self._until(lambda s: (s["sink"]["confirmed_offset"] or 0) > start, "the first delivery")
        moving = time.monotonic()
        last = self._until(self._caught_up, "caught up")
        took = time.monotonic() - moving
        self.report.figures |= {
            "seconds_until_it_noticed": round(moving - began, 1),
            "catch_up_seconds": round(took, 1),
            "catch_up_changes_per_second": round(
                (last["sink"]["checkpoint_offset"] - first["sink"]["checkpoint_offset"]) / max(took, 0.1)
            ),
        }

    def _caught_up(self, status: dict[str, Any]) -> bool:
        lag = status["sink"]["lag_changes"]
        near = lag is not None and lag < CAUGHT_UP_SECONDS * self.report.figures["rate"]
        return near and not status["failed_syncs"]["open"]

    # ── the service ──

    @contextmanager
    def _serving(self) -> Iterator[None]:
        command = [sys.executable, "-m", "replicator", "--config-dir", str(self.room.directory / "config"), "run"]
        with (self.room.directory / "service.log").open("ab") as log:
            service = subprocess.Popen(
                command, stdout=log, stderr=log, env={"PATH": os.environ["PATH"], **self.room.environment}
            )
        self.service_pid = service.pid
        try:
            yield
            service.terminate()
            code = service.wait(60)
            if code:
                self.report.wrong.append(f"the service ended with exit code {code}")
        finally:
            service.kill()
            service.wait()

    def _ask(self, ask: Callable[[Any], Any]) -> Any:
        client = connect(load_settings(self.room.directory / "config", environ=self.room.environment))
        assert client is not None
        return ask(client)

    def _status(self) -> dict[str, Any]:
        status: dict[str, Any] = self._ask(lambda client: client.get("/api/v1/status"))
        for each in status["tables"]:
            self.parked_most[each["table"]] = max(self.parked_most.get(each["table"], 0), each["parked"])
        self.peak_mb = max(self.peak_mb, _peak_mb(self.service_pid))
        return status

    def _status_if_answered(self) -> dict[str, Any] | None:
        """None while it is not up yet, or does not come to it on a machine that has other things to do; counted."""
        try:
            return self._status()
        except (ReplicatorError, AssertionError):
            self.report.count("status", "unanswered")
            return None

    def _until(self, holds: Callable[[dict[str, Any]], Any], what: str) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            status = self._status_if_answered()
            if status and holds(status):
                return status
            if status:
                self.show(now=f"until {what}: {status['sink']['lag_changes']} behind")
            time.sleep(0.5)
        raise AssertionError(f"not within {PATIENCE_SECONDS} s: {what}")

    def _verified(self) -> int:
        """Every row and key on both sides, by the service's own proof."""
        job = self._ask(lambda client: client.post("/api/v1/verify", {}))
        path = f"/api/v1/verify/{job['id']}"
        while job["state"] == "running":
            time.sleep(1)
            job = self._ask(lambda client: client.get(path))
            self.show(now=f"verifying {job['rows']:,}")
        mismatches = int(job["result"]["mismatches"]) if job["result"] else -1
        if mismatches:
            self.report.wrong.append(f"verify: {job['error'] or job['result']}")
        return mismatches

    # ── at the end ──

    def _compare(self, written: Written) -> Findings:
        """Counts and current rows against what the producer knows; millions of rows are compared where they lie."""
        found = Findings(entries=sum(written.entries.values()))
        with self.room.file() as session:
            by_stream = "select stream, count(*), count(distinct entry_id) from change_log group by 1"
            logged = {stream: (rows, ids) for stream, rows, ids in session.rows(by_stream)}
            found.wrong += [f"failed_syncs: {each}" for each in session.rows("from failed_syncs where status = 'open'")]
            resolved = session.rows("select table_name, count(*) from failed_syncs where reason = 'outage' group by 1")
        self.report.figures["parked_batches"] = dict(resolved)
        found.wrong += too_many_parked(dict(resolved))
        for stream, table, offset in (("trades", "change_log", "log_offset"), ("orders", "orders_log", "_offset")):
            entries, (rows, ids) = written.entries[stream], logged.get(stream, (0, 0))
            ((held, offsets),) = self.room.sink_rows(f"select count(), uniqExact({offset}) from {{db}}.{table}")
            found.physical_duplicates += int(held) - int(offsets)
            for where, count in (("the log", ids), ("ClickHouse", int(offsets))):
                if count < entries:
                    found.lost.append(f"{stream}: {entries:,} written, {count:,} in {where}")
            if rows > ids:
                found.doubled.append(f"{stream}: {rows:,} rows of {ids:,} entries in the log")
        held_orders = {k: int(q) for k, q in self.room.sink_rows("select order_id, quantity from {db}.orders")}
        if held_orders != {key: quantity for key, quantity in written.orders.items() if quantity is not None}:
            found.wrong.append("orders in ClickHouse is not what the producer wrote last")
        return found


def too_many_parked(batches: Mapping[str, int]) -> list[str]:
    """One outage parks one batch of a table at most; what is beyond that, in words."""
    return [f"{table}: {count} batches parked by one outage" for table, count in batches.items() if count > 1]


def _peak_mb(pid: int) -> float:
    """The most memory that a process has had, or -1 where the system does not tell."""
    path = Path(f"/proc/{pid}/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), -1.0)
