"""Kills without end: the service at every failpoint and at random, ClickHouse and Valkey alone and together.

Each cycle is a fresh room, a live producer and a shuffled list of strokes; then everything is left to settle, and
producer, log and sink are compared.
"""

from __future__ import annotations

import contextlib
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess

import click
from attrs import define, field
from contract.fakes import wait_until
from findings import compare
from pipeline_room import PipelineRoom
from storm_room import UNDER_WAY, Producer, check_between, killed, settle, wait_for_traffic

from ops.soak.report import Report, bar, close
from ops.soak.stage import Stage, stage
from replicator import failpoints

REFUSED = ("bisect.between_children", "park.after")
"""Those that a row reaches which ClickHouse refuses: in every other cycle, for each such row costs many inserts."""
STARTING = ("migration.inside", "sink_migration.inside", "alter.inside")
RARE = ("redrive.after_send", "fold.inside")
"""Those that take ten seconds to bring about: met once in RARE_CYCLES cycles."""
RARE_CYCLES = 4
SETTLE_SECONDS = 600
PATIENCE_SECONDS = 180
CIRCUIT_SECONDS = 15
RANDOM_STROKES = (*["service"] * 3, *["starting"] * 8, "clickhouse", "valkey", "both", "all")
assert {*UNDER_WAY, *REFUSED, *STARTING, *RARE} <= set(failpoints.NAMES)


@click.command(help=__doc__)
@click.option("--kills", default=2000, show_default=True, help="End after the cycle that reaches so many.")
@click.option("--minutes", default=0.0, help="End after the cycle in which so many minutes have passed.")
@click.option("--seed", type=int, help="Replay a seed.  [default: chosen and printed]")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def main(kills: int, minutes: float, seed: int | None, as_json: bool) -> None:
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    print(f"seed {seed}", file=sys.stderr)
    with stage() as set_up, bar(kills, "kills") as (progress, task):
        report = Report(soak="storm", seed=seed, engines=set_up.engines())
        began = time.monotonic()
        while report.clean and report.total("kills") < kills:
            Cycle(set_up, report, seed + report.cycles, partial(progress.update, task)).play()
            if minutes and time.monotonic() - began > minutes * 60:
                break
        set_up.keep = not report.clean
    if set_up.keep:
        print(f"left for a look: {set_up.directory}", file=sys.stderr)
    sys.exit(close(report, as_json))


@define
class Cycle:
    """One room from its first start to its comparison. ``seed`` alone decides what strikes, and when."""

    stage: Stage
    report: Report
    seed: int
    show: Callable[..., None]
    room: PipelineRoom = field(init=False)
    chance: random.Random = field(init=False)

    def play(self) -> None:
        self.chance = random.Random(self.seed)
        self.room = self.stage.fresh_room()
        for point in STARTING:
            self._at_failpoint(point, self.chance.randint(1, 2))
        settle(self.room, SETTLE_SECONDS)
        refused, rare, calm = self.seed % 2 == 0, self.seed % RARE_CYCLES == 1, Producer(self.room)
        if rare:
            with calm.adding():
                wait_for_traffic(self.room, 60)
            self._at_failpoint("fold.inside", 1)  # it folds when nothing new comes
        if refused:
            _refuse_poison(self.room)
        producer = Producer(self.room, poison=8 * refused, poison_every=self.chance.choice((10, 40, 100)))
        strokes = [*UNDER_WAY, *RANDOM_STROKES, *(REFUSED if refused else ())]
        strokes += ["redrive.after_send"] if rare else []
        self.chance.shuffle(strokes)
        with producer.adding():
            for stroke in strokes:
                self._strike(stroke)
        self._note("settling")
        settle(self.room, SETTLE_SECONDS)
        self.report.take(compare(self.room, calm.acknowledged + producer.acknowledged), self.seed)

    def _note(self, doing: str) -> None:
        self.show(completed=self.report.total("kills"), now=doing)

    def _strike(self, stroke: str) -> None:
        if stroke == "redrive.after_send":
            self._park_an_outage()
        if stroke in failpoints.NAMES:
            self._at_failpoint(stroke, self.chance.randint(1, 3) if stroke in UNDER_WAY else 1)
        elif stroke == "service":
            child = self._started()
            time.sleep(self.chance.random())  # when it strikes is part of the storm
            self._kill(child, "service at random")
        elif stroke == "starting":
            child = self.room.child()
            time.sleep(2 * self.chance.random())
            self._kill(child, "service while it starts")
        else:
            self._at_engines(stroke)
        check_between(self.room)

    def _at_failpoint(self, point: str, nth: int) -> None:
        self._note(point)
        child = self.room.child(f"{point}=kill@{nth}")
        by_itself = killed(child, PATIENCE_SECONDS)
        self.report.count("kills", point if by_itself else f"service, {point} not reached in time")

    def _await_event(self, event: str, seconds: float) -> None:
        """Until a child logs it once more."""
        before = self.room.child_log.count(event)
        wait_until(lambda: self.room.child_log.count(event) > before, seconds)

    def _started(self) -> BaseProcess:
        """A child that has made its first commit, and how long that took."""
        before = self.room.child_log.count("changes_appended")
        began = time.monotonic()
        child = self.room.child()
        wait_until(lambda: self.room.child_log.count("changes_appended") > before, PATIENCE_SECONDS)
        self.report.restart_seconds.append(time.monotonic() - began)
        return child

    def _kill(self, child: BaseProcess, what: str) -> None:
        self._note(what)
        child.kill()
        child.join(10)
        self.report.count("kills", what)

    def _at_engines(self, which: str) -> None:
        """Twice, while the service runs; then the service as well, with them or a moment later."""
        engines = {"clickhouse": [self.room.clickhouse], "valkey": [self.stage.stack.redis]}
        down = engines.get(which) or [engine for several in engines.values() for engine in several]
        child = self._started()
        name = {"clickhouse": "ClickHouse", "valkey": "Valkey", "both": "both engines", "all": "all three at once"}[
            which
        ]
        for _ in range(2):
            time.sleep(self.chance.random() * 0.7)
            for engine in down:
                engine.kill()
            if which == "all" and child.is_alive():
                child.kill()
                child.join(10)
            self.report.count("kills", name)
            self._note(name)
            time.sleep(self.chance.random() * 0.5)  # how long they are down is part of the storm
            for engine in down:
                engine.start()
            if not child.is_alive():
                child = self._started()
        self._kill(child, "service at random")

    def _park_an_outage(self) -> None:
        """ClickHouse is killed until a batch was on its way to it: where only the ledger was, nothing is parked."""
        child = self._started()
        while True:
            self._await_event("batch_delivered", PATIENCE_SECONDS)
            self.room.clickhouse.kill()
            self.report.count("kills", "ClickHouse")
            with contextlib.suppress(AssertionError):
                self._await_event("circuit_opened", CIRCUIT_SECONDS)
                break
            self.room.clickhouse.start()
        self._kill(child, "service at random")
        self.room.clickhouse.start()


def _refuse_poison(room: PipelineRoom) -> None:
    room.clickhouse.execute(
        f"alter table {room.database}.change_log add constraint clean "
        "check not position(assumeNotNull(payload), 'poison')"
    )
