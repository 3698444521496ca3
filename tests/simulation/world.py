"""The world around one process: producers, faults, operators, all drawn from one seed; and the run from start to healing.

`run` plays one seed and returns what came of it. A seed switches on some kinds of faults and leaves others out, so that
rare combinations come up often.
"""

from __future__ import annotations

import random
import traceback
from collections import Counter

from attrs import define, field
from simulation import faults
from simulation.clickhouse_end import SimClickHouse
from simulation.disk import Disk
from simulation.kernel import Kernel
from simulation.model import BrokenPromiseError, Model, Written
from simulation.patches import simulated
from simulation.process import Running, columns_expected, declare
from simulation.redis_end import SimRedis

from replicator.catalog import Catalog
from replicator.errors import ReplicatorError

STEPS = 120
HEALING_SECONDS = 120.0
STILL_SECONDS = 6.0
"""How long nothing happens before the end is looked at: longer than the pause between two comparisons of the sink."""


@define(eq=False)
class Room:
    """What one run after another uses: a disk that is wiped in between."""

    disk: Disk
    catalog: Catalog

    @classmethod
    def make(cls) -> Room:
        disk = Disk(Kernel(random.Random(0)))
        catalog = declare(disk)
        disk.is_ready()
        return cls(disk=disk, catalog=catalog)

    def close(self) -> None:
        self.disk.root.close()


@define(eq=False, kw_only=True)
class Outcome:
    seed: int
    steps: int
    turns: int
    kinds: frozenset[str] | None
    """The kinds of faults that were asked for; None: those that the seed drew."""
    drawn: frozenset[str]
    """Those that there were."""
    trace: list[str]
    counts: Counter[str]
    broken: str = ""
    """Which promise; empty when all held."""
    refused: str = ""
    """Why the service ended for good, where that was right."""


@define(eq=False)
class World:
    kernel: Kernel
    rng: random.Random
    room: Room
    redis: SimRedis
    sink: SimClickHouse
    model: Model
    plan: faults.Plan
    counts: Counter[str] = field(factory=Counter)
    running: Running | None = None
    healing: bool = False
    starts: int = 0
    marks: int = 0

    @classmethod
    def make(cls, seed: int, room: Room, kinds: frozenset[str] | None = None) -> World:
        rng = random.Random(seed)
        kernel = Kernel(rng, switch_chance=rng.choice([0.05, 0.3, 0.6]))
        disk = room.disk
        disk.kernel = kernel
        disk.wipe()
        redis = SimRedis(kernel=kernel, clock=lambda: kernel.wall - redis.lag_seconds)
        sink = SimClickHouse(kernel, columns_expected=lambda: columns_expected(room.catalog))
        model = Model(disk=disk, redis=redis, sink=sink)
        sink.loses = model.sink_lost_in_flight
        world = cls(kernel, rng, room, redis, sink, model, plan=faults.Plan.draw(rng, kinds))
        kernel.at = world.plan.dies(world)
        disk.meet = world.plan.commit_fault(world)
        redis.faulty = world.plan.redis_fault(world)
        sink.faulty, sink.delay = world.plan.sink_fault(world), world.plan.delay(world)
        sink.refuses = lambda change: '"poison":1' in (change["payload"] or "")
        return world

    # ── processes ──

    def start(self) -> None:
        self.starts += 1
        self.kernel.note(f"process {self.starts} starts")
        self.running = Running.start(
            self.starts, kernel=self.kernel, disk=self.room.disk, redis=self.redis, sink=self.sink, catalog=self.room.catalog
        )  # fmt: skip
        self.model.settle_doubt()

    def kill(self) -> None:
        if self.running is not None:
            self.kernel.kill(self.running.process)
            self.kernel.note(f"{self.running.process.name} is gone")
            self.running = None

    def tend(self) -> None:
        """What a supervisor does: start what has died, unless it has said that no start mends it."""
        running = self.running
        if running is None or running.alive:
            return
        if running.failed is not None:
            raise running.failed
        self.kernel.note(f"{running.process.name} is gone")
        self.counts["crash"] += 1
        self.running = None

    # ── producers ──

    def write(self, stream: str, entry_id: str = "*") -> None:
        self.marks += 1
        rng, mark = self.rng, self.marks
        key, op = f"K{rng.randrange(4)}", rng.choices(["c", "u", "d"], [1, 4, 1])[0]
        extra = ',"poison":1' if self.plan.poison and rng.random() < 0.1 else ""
        body = f'{{"k":"{key}","n":{mark}{extra}}}'
        if self.plan.malformed and rng.random() < 0.15:
            body = body[:-1]
        given = self.redis.add(stream, entry_id, [b"op", op.encode(), b"data", body.encode()])
        self.model.written[mark] = Written(mark=mark, stream=stream, entry_id=given, key=key, op=op)
        self.kernel.note(f"{mark} {op} {key} is written to {stream} as {given}")

    # ── the run ──

    def play(self, steps: int) -> None:
        self.start()
        for _ in range(steps):
            self._one_step()
        self._heal()

    def _one_step(self) -> None:
        if self.running is None and self.rng.random() < 0.3:
            self.start()
        if self.rng.random() < self.plan.pace:
            self.plan.act(self)
        self._turn()

    def _turn(self) -> None:
        self.kernel.turn()
        if self.kernel.failures:
            raise self.kernel.failures[0]
        self.tend()
        self.model.check(self._said_checkpoint())

    def _said_checkpoint(self) -> int | None:
        """What `status` would say of the pipeline's checkpoint."""
        service = self.running.service if self.running is not None and self.running.alive else None
        return service.deliver.checkpoint if service is not None and service.deliver.loaded else None

    def _heal(self) -> None:
        """All faults end: everything must come right by itself, and stay so."""
        self.kernel.note("all faults end")
        self.healing = True
        self.redis.up or self.redis.restart()
        self.sink.start()
        self.sink.view_throws = False
        deadline, still_since = self.kernel.clock + HEALING_SECONDS, self.kernel.clock
        while self.kernel.clock < deadline:
            if self.running is None:
                self.start()
            before = self.room.disk.commits
            self._turn()
            if self.room.disk.commits != before or not self._delivered():
                still_since = self.kernel.clock
            elif self.kernel.clock - still_since > STILL_SECONDS:
                return self.model.check_end()
        raise BrokenPromiseError(f"not healed within {HEALING_SECONDS:g} s: {self._unhealed()}")

    def _delivered(self) -> bool:
        service = self.running.service if self.running is not None else None
        if service is None or not service.deliver.loaded or not all(loop.running for loop in service.loops.values()):
            return False
        done = service.deliver.checkpoint >= service.changelog.head and service.deliver.quiet
        return done and not any(reason == "outage" and status == "open" for *_, reason, status in self.model.parked())

    def _unhealed(self) -> str:
        service = self.running.service if self.running is not None else None
        if service is None:
            return "no process"
        loops = {name: health.error for name, health in service.loops.items()}
        return f"checkpoint {service.deliver.checkpoint} of {service.changelog.head}, parked {self.model.parked()}, {loops}"


def run(seed: int, room: Room, steps: int = STEPS, kinds: frozenset[str] | None = None) -> Outcome:
    """Play one seed, with ``kinds`` of faults instead of those that the seed draws."""
    world = World.make(seed, room, kinds)
    broken = refused = ""
    with simulated(world.kernel):
        try:
            world.play(steps)
        except BrokenPromiseError as error:
            broken = str(error)
        except ReplicatorError as error:
            refused = f"{type(error).__name__}: {error}"
            if not world.plan.may_refuse(world, error):
                broken = f"the service ended: {refused}"
        except Exception as error:
            broken = f"{type(error).__name__}: {error}\n{''.join(traceback.format_exception(error))}"
        finally:
            world.kill()
    world.counts["doubled"] += world.model.doubled
    return Outcome(
        seed=seed,
        steps=steps,
        turns=world.kernel.turns,
        kinds=kinds,
        drawn=world.plan.kinds,
        trace=world.kernel.trace,
        counts=world.counts,
        broken=broken,
        refused=refused,
    )
