"""Programs in Python and Rust, and curl, read one after another query while the writer is at full speed.

Rounds without readers and rounds with them alternate. Every answer must be one moment of the log: as many changes as
its highest offset, each once, never fewer than before. What the readers cost the writer is the ratio of the rounds.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import click
import redis
from attrs import define, field
from pipeline_room import PipelineRoom

from ops.bench.meter import process_cpu
from ops.soak.report import Report, bar, close
from ops.soak.serving import Serving
from ops.soak.stage import Stage, stage

CRATE = Path(__file__).parents[1] / "examples" / "rust"
SQL = "select count(*) as changes, max(log_offset) as newest, count(distinct log_offset) as offsets from change_log"
BLOCK = 500
WAITING_MAX = 200_000
"""The producer waits while Redis holds more."""
SETTLE_SECONDS = 3.0
"""What a round takes to get going is not measured."""


@click.command(help=__doc__)
@click.option("--rounds", default=5, show_default=True, help="Of each kind.")
@click.option("--seconds", default=20, show_default=True, help="How long a round is.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def main(rounds: int, seconds: int, as_json: bool) -> None:
    with stage() as set_up, bar(2 * rounds, "rounds") as (progress, task):
        report = Report(soak="readers", seed=0, engines=set_up.engines())
        Reading(set_up, report, partial(progress.update, task)).play(rounds, seconds)
        set_up.keep = not report.clean
    if set_up.keep:
        print(f"left for a look: {set_up.directory}", file=sys.stderr)
    sys.exit(close(report, as_json))


@define
class Reading:
    """One service, one writer, and readers in every other round."""

    stage: Stage
    report: Report
    show: Any
    room: PipelineRoom = field(init=False)
    serving: Serving = field(init=False)
    commands: dict[str, list[str]] = field(init=False)
    """Each prints, as one JSON document, how often it asked, or the answer that was inconsistent."""
    speeds: dict[bool, list[float]] = field(factory=lambda: {False: [], True: []})
    cpu: dict[bool, list[float]] = field(factory=lambda: {False: [], True: []})

    def play(self, rounds: int, seconds: int) -> None:
        self.room = self.stage.fresh_room(batch_size=100_000, sync="sync_interval_sec = 1", serve="port = 0")
        path = self.room.directory / "config" / "replicator.toml"
        path.write_text(path.read_text().replace("[redis]\n", '[redis]\ntrim = "confirmed"\n'))
        self.serving = Serving(room=self.room, report=self.report)
        with self.serving.up(), writing(self.stage.stack.redis.url):
            self.commands = self._commands()
            self.report.figures["readers"] = " ".join(self.commands)
            for number in range(2 * rounds):
                self._round(seconds, with_readers=number % 2 == 1)
                self.show(completed=number + 1, now=f"{self.speeds[number % 2 == 1][-1]:,.0f} changes/s")
        self._figures()

    def _commands(self) -> dict[str, list[str]]:
        config = str(self.room.directory / "config" / "duckdb_rust_config.toml")
        address = self.serving.ask(lambda client: client.url)
        token = Path(f"{self.room.path}.read_token")
        commands = {
            "python": [sys.executable, "-m", "ops.soak.readers_watch", "manager", config],
            "curl": [sys.executable, "-m", "ops.soak.readers_watch", "curl", address, str(token)],
        }
        if cargo := shutil.which("cargo"):
            target = self.stage.directory / "target"
            build = [cargo, "build", "--quiet", "--release", "--locked", "--target-dir", str(target)]
            subprocess.run(build, cwd=CRATE, check=True)
            commands["rust"] = [str(target / "release" / "db_manager"), config, "watch"]
        else:
            print("no cargo here: the program in Rust does not read", file=sys.stderr)
        return commands

    def _round(self, seconds: int, *, with_readers: bool) -> None:
        environment = {**self.room.environment, "PATH": "/usr/bin:/bin"}
        readers = {}
        if with_readers:
            for name, command in self.commands.items():
                words = [*command, str(seconds), SQL]
                readers[name] = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
        time.sleep(SETTLE_SECONDS)
        began, head, cpu = time.monotonic(), self._head(), process_cpu(self.serving.pid)
        time.sleep(max(1.0, seconds - SETTLE_SECONDS))
        grown, took = self._head() - head, time.monotonic() - began
        self.speeds[with_readers].append(grown / took)
        if cpu is not None and grown:
            self.cpu[with_readers].append(((process_cpu(self.serving.pid) or cpu) - cpu) / grown * 1e6)
        for name, reader in readers.items():
            self._take(name, reader)

    def _head(self) -> int:
        return int(self.serving.status()["log"]["head_offset"])

    def _take(self, name: str, reader: subprocess.Popen[str]) -> None:
        said, _ = reader.communicate(timeout=120)
        answer = json.loads(said) if said.strip() else {}
        if reader.returncode or not answer.get("asked"):
            self.report.wrong.append(f"{name}: exit code {reader.returncode}, {said.strip() or 'nothing said'}")
        self.report.count("answers", name, int(answer.get("asked", 0)))

    def _figures(self) -> None:
        figures, (alone, beside) = self.report.figures, (median(self.speeds[False]), median(self.speeds[True]))
        for name, kind in (("alone", False), ("beside_readers", True)):
            figures[f"changes_per_second_{name}"] = [round(each) for each in self.speeds[kind]]
            figures[f"service_cpu_seconds_per_million_{name}"] = round(median(self.cpu[kind] or [0]), 2)
        figures["writer_speed_beside_readers"] = round(beside / alone, 3)
        self.report.entries = int(alone)
        sql = "select count(), uniqExact(log_offset), max(log_offset) from {db}.change_log"
        ((rows, offsets, newest),) = self.room.sink_rows(sql)
        self.report.physical_duplicates = int(rows) - int(offsets)
        if int(offsets) != int(newest):
            self.report.lost.append(f"ClickHouse holds {offsets} offsets up to {newest}")


# ── the writer ──


@contextmanager
def writing(redis_url: str) -> Iterator[None]:
    """Entries of about 150 bytes as fast as Redis takes them, as long as not too many wait."""
    spawn = multiprocessing.get_context("spawn")
    stop = spawn.Event()
    process = spawn.Process(target=_write, args=(redis_url, stop), daemon=True)
    process.start()
    try:
        yield
    finally:
        stop.set()
        process.join(30)
        process.kill()


def _write(redis_url: str, stop: Event) -> None:
    """The same block of commands again and again: what it costs to make them is not the service's affair."""
    address, answers = urlsplit(redis_url), BLOCK
    block = b"".join(_command(number) for number in range(BLOCK))
    with (
        redis.Redis.from_url(redis_url) as client,
        socket.create_connection((address.hostname, address.port or 6379)) as link,
    ):
        while not stop.is_set():
            while client.xlen("trades") > WAITING_MAX and not stop.wait(0.01):
                pass
            for _ in range(20):
                link.sendall(block)
                answers = BLOCK
                while answers > 0:
                    answers -= link.recv(1 << 16).count(b"$")


def _command(number: int) -> bytes:
    data = json.dumps({"n": number, "text": "a trade of about a hundred bytes, as most of them are"}).encode()
    words = [b"XADD", b"trades", b"*", b"key", b"K%d" % number, b"data", data]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


if __name__ == "__main__":
    main()
