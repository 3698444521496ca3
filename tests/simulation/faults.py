"""What goes wrong, how often, and in which runs: a plan is drawn from the seed, each kind of fault in it or left out."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attrs import define, field
from simulation.clickhouse_end import SinkFault
from simulation.disk import CommitFault
from simulation.kernel import Process
from simulation.model import LANES
from simulation.redis_end import RedisFault

from replicator.deliver_requests import redrive, try_now
from replicator.errors import LogCorrupt, OwnershipLost, ReplicatorError
from replicator.sink import LEDGER

if TYPE_CHECKING:
    from simulation.world import World

STREAMS = ("trades", "orders")
KINDS = (
    "crash", "commit", "redis_packets", "redis_down", "trim", "xdel", "flush", "recreate", "rollback",
    "sink_requests", "sink_down", "sink_copy", "sink_truncated", "sink_dropped", "view", "window", "slow",
    "poison", "malformed", "log_copy", "operator", "sleep", "wall",
)  # fmt: skip


@define(eq=False)
class Plan:
    kinds: frozenset[str]
    pace: float
    """How often the world acts rather than a thread."""
    crash_chance: float
    fault_chance: float
    copies: dict[str, list[Any]] = field(factory=lambda: {"redis": [], "sink": [], "log": []})
    undo: list[tuple[float, Callable[[], None]]] = field(factory=list)
    """What ends by itself, and when."""

    @classmethod
    def draw(cls, rng: random.Random, kinds: frozenset[str] | None) -> Plan:
        share = rng.choice([0.1, 0.25, 0.5])
        drawn = frozenset(kind for kind in KINDS if rng.random() < share)
        return cls(
            kinds=drawn if kinds is None else kinds,
            pace=rng.choice([0.05, 0.1, 0.2]),
            crash_chance=rng.choice([0.001, 0.004, 0.01]),
            fault_chance=rng.choice([0.02, 0.05, 0.15]),
        )

    @property
    def poison(self) -> bool:
        return "poison" in self.kinds

    @property
    def malformed(self) -> bool:
        return "malformed" in self.kinds

    # ── at each step of a process ──

    def dies(self, world: World) -> Callable[[str, Process], None]:
        def at(place: str, process: Process) -> None:
            if "crash" in self.kinds and not world.healing and world.rng.random() < self.crash_chance:
                world.kernel.note(f"dies at {place}")
                world.kernel.die(process)

        return at

    def commit_fault(self, world: World) -> Callable[[], CommitFault | None]:
        return lambda: self._some(world, "commit", list(CommitFault))

    def redis_fault(self, world: World) -> Callable[[], RedisFault | None]:
        return lambda: self._some(world, "redis_packets", list(RedisFault))

    def sink_fault(self, world: World) -> Callable[[str], SinkFault | None]:
        return lambda about: self._some(world, "sink_requests", list(SinkFault))

    def _some(self, world: World, kind: str, faults: list[Any]) -> Any:
        if kind not in self.kinds or world.healing or world.rng.random() >= self.fault_chance:
            return None
        world.counts[kind] += 1
        return world.rng.choice(faults)

    def delay(self, world: World) -> Callable[[], float]:
        def seconds() -> float:
            if "slow" in self.kinds and not world.healing and world.rng.random() < 0.1:
                return world.rng.choice([0.5, 3.0, 20.0])
            return 0.0

        return seconds

    # ── between the steps ──

    def act(self, world: World) -> None:
        """One act: something is written as a rule; else a fault of a kind that is in the plan, or the end of one."""
        while self.undo and self.undo[0][0] <= world.kernel.clock:
            self.undo.pop(0)[1]()
        rng = world.rng
        choice = [kind for kind in sorted(self.kinds) if hasattr(self, f"_{kind}")]
        if not choice or rng.random() < 0.65:
            if world.redis.up:
                world.write(rng.choice(STREAMS))
            return
        self._keep_copies(world)
        kind = rng.choice(choice)
        if getattr(self, f"_{kind}")(world):
            world.counts[kind] += 1

    def _keep_copies(self, world: World) -> None:
        for kind, copy in (("redis", world.redis.dump), ("sink", world.sink.copy), ("log", world.room.disk.copy)):
            wanted = {"redis": "rollback", "sink": "sink_copy", "log": "log_copy"}[kind]
            if wanted in self.kinds and world.rng.random() < 0.5:
                self.copies[kind] = [*self.copies[kind][-2:], copy()]

    def _later(self, world: World, undo: Callable[[], None]) -> None:
        self.undo.append((world.kernel.clock + world.rng.choice([0.2, 2.0, 8.0]), undo))
        self.undo.sort(key=lambda each: each[0])

    # Redis

    def _redis_down(self, world: World) -> bool:
        if not world.redis.up:
            return False
        world.kernel.note("redis goes down")
        world.redis.kill()
        self._later(world, lambda: world.redis.up or world.redis.restart())
        return True

    def _trim(self, world: World) -> bool:
        name = world.rng.choice(STREAMS)
        stream = world.redis.stream(name)
        if stream is None or not stream.entries or not world.redis.up:
            return False
        keep = world.rng.randrange(len(stream.entries))
        with world.model.redis_loses(name):
            world.redis._xtrim(name.encode(), b"MAXLEN", b"%d" % keep)
        world.kernel.note(f"{name} is trimmed to {keep}")
        return True

    def _xdel(self, world: World) -> bool:
        name = world.rng.choice(STREAMS)
        stream = world.redis.stream(name)
        if stream is None or not stream.entries or not world.redis.up:
            return False
        gone = world.rng.choice(list(stream.entries))
        with world.model.redis_loses(name):
            world.redis._xdel(name.encode(), b"%d-%d" % gone)
        world.kernel.note(f"{name} loses {gone} by XDEL")
        return True

    def _flush(self, world: World) -> bool:
        if world.rng.random() < 0.5 or not world.redis.up:
            return False
        with world.model.redis_loses(*STREAMS, history=True):
            world.redis.run("FLUSHALL")
        world.kernel.note("FLUSHALL")
        return True

    def _recreate(self, world: World) -> bool:
        name = world.rng.choice(STREAMS)
        if world.redis.stream(name) is None or not world.redis.up:
            return False
        with world.model.redis_loses(name, history=True):
            world.redis.run("DEL", name)
        world.kernel.note(f"DEL {name}")
        if world.rng.random() < 0.7:
            lower = world.rng.random() < 0.5
            base = 1000 if lower else int(world.redis.clock() * 1000) + 1
            for sequence in range(world.rng.randrange(1, 4)):
                world.write(name, f"{base}-{sequence + 1}")
        return True

    def _rollback(self, world: World) -> bool:
        """A restart from an older copy, or a failover to a replica that lagged."""
        if not self.copies["redis"]:
            return False
        world.redis.promoted = world.rng.random() < 0.5
        world.redis.lag_seconds = world.rng.choice([0.0, 0.0, 5.0])
        with world.model.redis_loses(*STREAMS, history=True, rollback=True):
            world.redis.restart(world.rng.choice(self.copies["redis"]))
        world.kernel.note(f"redis comes back as an older copy, promoted: {world.redis.promoted}")
        return True

    # ClickHouse

    def _sink_down(self, world: World) -> bool:
        if not world.sink.up:
            return False
        world.kernel.note("clickhouse is killed")
        world.sink.kill()
        self._later(world, world.sink.start)
        return True

    def _sink_copy(self, world: World) -> bool:
        if not self.copies["sink"]:
            return False
        before = world.model.held()
        world.sink.kill()
        world.sink.put_back(world.rng.choice(self.copies["sink"]))
        world.model.sink_lost(before)
        world.kernel.note("clickhouse is killed, and comes back as an older copy")
        self._later(world, world.sink.start)
        return True

    def _sink_truncated(self, world: World) -> bool:
        name = world.rng.choice(list(LANES.values()))
        if name not in world.sink.tables or world.rng.random() < 0.5:
            return False
        before = world.model.held()
        world.sink.truncate(name)
        world.model.sink_lost(before)
        world.kernel.note(f"{name} is truncated")
        return True

    def _sink_dropped(self, world: World) -> bool:
        name = world.rng.choice([*LANES.values(), LEDGER])
        if name not in world.sink.objects or world.rng.random() < 0.5:
            return False
        before = world.model.held()
        world.sink.drop(name)
        world.model.sink_lost(before)
        world.kernel.note(f"{name} is dropped")
        return True

    def _view(self, world: World) -> bool:
        world.sink.view_throws = not world.sink.view_throws
        world.kernel.note(f"the view throws: {world.sink.view_throws}")
        return True

    def _window(self, world: World) -> bool:
        world.model.tokens_forgotten = True
        world.sink.window = world.rng.choice([1, 2, 10_000])
        world.kernel.note(f"tokens remembered: {world.sink.window}")
        return True

    # the machine

    def _log_copy(self, world: World) -> bool:
        """The DuckDB file is put back to an older copy while nobody has it."""
        if not self.copies["log"] or world.rng.random() < 0.5:
            return False
        copy = world.rng.choice(self.copies["log"])
        if "meta" not in copy or "instance_id" not in copy["meta"]["key"].to_pylist():
            return False
        world.kill()
        world.room.disk.put_back(copy)
        world.model.log_went_back()
        world.kernel.note(f"the log is put back to an older copy, head {max(world.model.read_log(), default=0)}")
        return True

    def _sleep(self, world: World) -> bool:
        world.kernel.clock += world.rng.choice([5.0, 15.0, 70.0])
        world.kernel.note("the machine wakes up from sleep")
        return True

    def _wall(self, world: World) -> bool:
        world.kernel.wall_offset += world.rng.choice([-300.0, -2.0, 300.0])
        world.kernel.note("the wall clock is set")
        return True

    # people

    def _operator(self, world: World) -> bool:
        service = world.running.service if world.running is not None and world.running.alive else None
        if service is None or not service.deliver.loaded:
            return False
        deliver, rng = service.deliver, world.rng
        failed = service.ledger.open_failures(world.room.disk.open(None).session())
        if failed and rng.random() < 0.8:
            chosen = rng.choice(failed)
            deliver.requests.put(lambda: _ask(deliver, chosen))
            world.kernel.note(f"an operator has {chosen.offsets} sent again")
        else:
            deliver.requests.put(lambda: try_now(deliver))
        return True

    # ── what may end a service for good ──

    def may_refuse(self, world: World, error: ReplicatorError) -> bool:
        """Only where both ends, or the log and a witness of it, went back at once."""
        return isinstance(error, LogCorrupt | OwnershipLost) and world.model.log_returned


def _ask(deliver: Any, failed: Any) -> None:
    current = [each for each in deliver.ledger.open_failures(deliver.session) if each.id == failed.id]
    if current:
        redrive(deliver, current[0], requested_by="operator")
