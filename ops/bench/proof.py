"""What proof and recovery cost: verify, repair, replay, restore, and a table as it was. ``python -m ops.bench.proof``.

Each step runs in a process of its own, so that its peak memory is its own. CPU is this process's, DuckDB's threads
included; the sink's is ClickHouse's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from attrs import evolve
from rich.console import Console
from rich.table import Table

from ops.bench import report
from ops.bench.meter import Meter
from ops.bench.room import ROOT, Room, template
from ops.bench.tables import MAKE_CHANGES
from replicator.embedded.stack import Stack
from replicator.replay_plan import ReplayRequest
from replicator.service import Service
from replicator.service_alone import sync_once
from replicator.service_job import Jobs
from replicator.service_replay import Replaying, ReplayTask
from replicator.service_restore import restore
from replicator.service_verify import Task, Verification
from replicator.state_past import rows_as_of
from replicator.verify_report import VerifyRequest

PLANTED = 10
FILL_AT_ONCE = 500_000
PATIENCE_SECONDS = 7200.0
Measured = dict[str, Any]


def _fill(room: Room, rows: int, keys: int) -> None:
    """A log of so many changes; nothing is delivered."""
    service = Service.build(room.settings())
    session = service.database.session()
    for first in range(1, rows + 1, FILL_AT_ONCE):
        session.execute(MAKE_CHANGES.format(keys=keys, first=first, last=min(rows, first + FILL_AT_ONCE - 1)))
    session.close()
    service.shut_down()


def _deliver(room: Room, rows: int) -> Measured:
    with Meter(room.servers) as meter:
        done = sync_once(room.settings(), actor="bench", timeout_seconds=PATIENCE_SECONDS)
    assert done["delivered"], done
    return meter.sample(rows).as_dict()


def _verified(room: Room, work: Callable[[Service, Verification], int], *, of: int) -> Measured:
    service = Service.build(room.settings())
    try:
        with Meter(room.servers) as meter:
            faults = work(service, Verification(service=service, jobs=Jobs(service.database, service.stop)))
        return meter.sample(of, faults=faults).as_dict()
    finally:
        service.shut_down()


def _verify(room: Room, rows: int, *, quick: bool) -> Measured:
    task = Task(request=VerifyRequest(reread_log=not quick))
    found = _verified(room, lambda _, verification: verification.run(task)["mismatches"], of=rows)
    assert not found["more"]["faults"], found
    return found


def _repair(room: Room, rows: int) -> Measured:
    """Ten rows gone from T_log, far apart, are found, sent again and compared."""

    def work(service: Service, verification: Verification) -> int:
        service.ownership.acquire(service.stop)
        mended = verification.run(Task(request=VerifyRequest(), repair=True, actor="bench"))
        assert (mended["sent_rows"], mended["mismatches"]) == (PLANTED, 0), mended
        return PLANTED

    step = rows // PLANTED
    service = Service.build(room.settings())
    gone = ", ".join(str(7 + n * step) for n in range(PLANTED))
    service.sink.command(f"delete from trades_log where _offset in ({gone})", settings={"lightweight_deletes_sync": 2})
    service.shut_down()
    return _verified(room, work, of=rows)


def _replay(room: Room, rows: int) -> Measured:
    service = Service.build(room.settings())
    try:
        service.ownership.acquire(service.stop)
        jobs = Jobs(service.database, service.stop)
        with Meter(room.servers) as meter:
            task = ReplayTask(request=ReplayRequest(first="1"), actor="bench")
            done = Replaying(service=service, jobs=jobs).run(task)
        assert done["sent_rows"] == rows, done
        return meter.sample(rows).as_dict()
    finally:
        service.shut_down()


def _restore(room: Room, rows: int) -> Measured:
    """With the comparison at its end."""
    for path in room.directory.glob("log.duckdb*"):
        path.unlink()
    with Meter(room.servers) as meter:
        done = restore(room.settings(), actor="bench", dry_run=False, watch=lambda *_: None)
    assert (done["changes_restored"], done["mismatches"]) == (rows, 0), done
    return meter.sample(rows).as_dict()


def _as_of(room: Room, rows: int) -> Measured:
    """The whole table in the middle of twice as many changes, a hundred rows of it shown; and one key of it."""
    _fill(room, rows, rows // 10)
    service = Service.build(room.settings())
    session, history = service.database.session(), service.catalog.history("trades")
    with Meter(room.servers) as whole:
        rows_as_of(session, history, as_of=str(rows // 2))
    with Meter(room.servers) as one:
        found = rows_as_of(session, history, as_of=str(rows // 2), key="T77")
    assert len(found.rows) <= 1
    session.close()
    service.shut_down()
    seconds = one.sample(rows).seconds
    return whole.sample(rows, one_key_seconds=seconds).as_dict()


def _filled(room: Room, rows: int) -> Measured:
    with Meter(room.servers) as meter:
        _fill(room, rows, rows // 10)
    return meter.sample(rows).as_dict()


STEPS: dict[str, Callable[[Room, int], Measured]] = {
    "fill": _filled,
    "deliver": _deliver,
    "verify": lambda room, rows: _verify(room, rows, quick=False),
    "verify --quick": lambda room, rows: _verify(room, rows, quick=True),
    "verify --repair of 10 rows": _repair,
    "replay": _replay,
    "restore": _restore,
    "as of": _as_of,
}


def _run(step: str, room: Room, rows: int) -> Measured:
    """In a process of its own."""
    command = [sys.executable, "-m", "ops.bench.proof", "--step", step, "--room", json.dumps(room.as_dict())]
    done = subprocess.run([*command, "--rows", str(rows)], cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"{step} failed:\n{done.stderr[-3000:]}")
    found: Measured = json.loads(done.stdout.splitlines()[-1])
    return found


@click.command()
@click.option("--rows", default=5_000_000, show_default=True, help="Changes in the log.")
@click.option(
    "--past-rows", default=10_000_000, show_default=True, help="Changes of which a table is asked for as it was."
)
@click.option("--save/--no-save", "saved", default=True, show_default=True, help="Write ops/bench/results/proof.json.")
@click.option("--step", type=click.Choice(list(STEPS)), hidden=True)
@click.option("--room", "room_text", hidden=True)
def main(rows: int, past_rows: int, saved: bool, step: str | None, room_text: str | None) -> None:
    """Measure verify, repair, replay, restore and as-of one after the other, each in a fresh process."""
    if step and room_text:
        click.echo(json.dumps(STEPS[step](Room(**json.loads(room_text)), rows)))
        return
    console, results = Console(), {}
    with tempfile.TemporaryDirectory(prefix="bench") as temporary:
        directory = Path(temporary)
        with Stack(directory=directory / "stack") as stack:
            room = evolve(template(stack, directory), name="proof", typed=True, directory=directory / "proof")
            past = evolve(room, name="past", directory=directory / "past")
            for each in STEPS:
                count = past_rows if each == "as of" else rows
                results[each] = _run(each, past if each == "as of" else room, count)
                console.print(f"{each}: {results[each]['seconds']:.1f} s", highlight=False)
    _show(results, console)
    if saved:
        whole = {
            "name": "proof",
            "rows": rows,
            "past_rows": past_rows,
            "environment": report.environment(),
            "results": results,
        }
        console.print(f"written to {report.save(whole, Path(__file__).parent / 'results').relative_to(ROOT)}")


def _show(results: dict[str, Measured], console: Console) -> None:
    table = Table("what", "rows", "seconds", "rows/s", "CPU s/M", "ClickHouse CPU s/M", "peak MB")
    for name, found in results.items():
        count, seconds = found["changes"], found["seconds"]
        ours, theirs = found["cpu_seconds"], found["server_cpu_seconds"].get("clickhouse", 0.0)
        per_million = [f"{each / count * 1e6:.2f}" for each in (ours, theirs)]
        rate = f"{count / seconds:,.0f}"
        table.add_row(name, f"{count:,}", f"{seconds:.1f}", rate, *per_million, f"{found['peak_mb']:.0f}")
    console.print(table)


if __name__ == "__main__":
    main()
