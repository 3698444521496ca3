"""Every fault of the proxies on both connections, under a live producer; sometimes the service is killed in the middle.

A fault lasts for a moment, meets each request (or only inserts) with a chance, and is counted each time it strikes.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from urllib.parse import urlsplit

import click
from attrs import define, field
from findings import compare
from pipeline_room import PipelineRoom
from proxy import Break, Delay, ErrorCode, Fault, HttpProxy, Request, Status, TcpProxy
from storm_room import Producer, settle

from ops.soak.report import Report, bar, close
from ops.soak.stage import Stage, stage

SETTLE_SECONDS = 600
CHANCE = 0.4
"""How many of the requests a fault spoils while it lasts."""
MOMENTS = (0.3, 1.0, 1.0, 3.0)
HTTP_FAULTS: dict[str, Fault] = {
    **{kind.value.replace("_", " "): kind for kind in Break},
    **{f"HTTP {code}": Status(code) for code in (429, 502, 503)},
    **{
        f"code {code}": ErrorCode(code)
        for code in (159, 202, 209, 210, 241, 242, 252, 319, 425, 999, 16, 60, 81, 497, 516)
    },
    "delay": Delay(0.4),
}
"""Codes that refuse rows are not among them: what they park is for an operator, not for recovery."""
OTHERS = ("http refused", "redis refused", "redis reset", "redis cut short", "redis silent", "kill -9")


@click.command(help=__doc__)
@click.option("--rounds", default=6, show_default=True, help="How often each kind is brought about.")
@click.option("--seed", type=int, help="Replay a seed.  [default: chosen and printed]")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def main(rounds: int, seed: int | None, as_json: bool) -> None:
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    print(f"seed {seed}", file=sys.stderr)
    kinds = len(HTTP_FAULTS) + len(OTHERS)
    with stage() as set_up, bar(rounds * kinds, "faults") as (progress, task):
        report = Report(soak="faults", seed=seed, engines=set_up.engines())
        for number in range(rounds):
            if report.clean:
                Cycle(set_up, report, seed + number, partial(progress.update, task)).play()
        set_up.keep = not report.clean
    if set_up.keep:
        print(f"left for a look: {set_up.directory}", file=sys.stderr)
    sys.exit(close(report, as_json))


@define
class Cycle:
    """One room in which each kind comes once, in an order that ``seed`` decides."""

    stage: Stage
    report: Report
    seed: int
    show: Callable[..., None]
    http: HttpProxy = field(init=False)
    tcp: TcpProxy = field(init=False)
    room: PipelineRoom = field(init=False)
    chance: random.Random = field(init=False)

    def play(self) -> None:
        self.chance = random.Random(self.seed)
        self.stage.stack.start()
        port = urlsplit(self.stage.stack.redis.url).port
        assert port is not None
        with HttpProxy(self.stage.stack.clickhouse.endpoint) as self.http, TcpProxy("127.0.0.1", port) as self.tcp:
            host, proxied = self.tcp.address
            self.room = self.stage.fresh_room(
                redis_url=f"redis://{host}:{proxied}/0",
                endpoint=self.http.url,
                ladder="retry_backoff_sec = [0.1, 0.2, 0.4]",
            )
            settle(self.room, SETTLE_SECONDS)
            producer = Producer(self.room)
            kinds = [*HTTP_FAULTS, *OTHERS]
            self.chance.shuffle(kinds)
            child = self.room.child()
            with producer.adding():
                for kind in kinds:
                    self.show(advance=1, now=kind)
                    if kind == "kill -9":
                        child.kill()
                        child.join(10)
                        child = self.room.child()
                        self.report.count("faults", "kill -9 amid them")
                    else:
                        self._spoil(kind, self.chance.choice(MOMENTS))
                    time.sleep(self.chance.random())  # how long all is well is part of it
            child.kill()
            child.join(10)
            self.show(now="settling")
            settle(self.room, SETTLE_SECONDS)
            self.report.take(compare(self.room, producer.acknowledged), self.seed)

    def _spoil(self, kind: str, seconds: float) -> None:
        if kind in HTTP_FAULTS:
            self._spoil_requests(kind, seconds)
            return
        if kind == "http refused":
            self.http.refuse()
            time.sleep(seconds)
            self.http.listen()
        elif kind == "redis refused":
            self.tcp.refuse()
            time.sleep(seconds)
            self.tcp.listen()
        elif kind == "redis reset":
            self.tcp.reset_all()
        elif kind == "redis silent":
            self.tcp.silent = True
            time.sleep(seconds)
            self.tcp.silent = False
        else:
            before, self.tcp.cut_after = self.tcp.cuts, self.chance.randint(1, 4000)
            self.tcp.reset_all()
            time.sleep(seconds)
            self.tcp.cut_after = None
            self.report.count("faults", kind, self.tcp.cuts - before)
            return
        self.report.count("faults", kind)

    def _spoil_requests(self, kind: str, seconds: float) -> None:
        inserts_only, struck, lock = self.chance.random() < 0.6, [], threading.Lock()
        dice = random.Random(self.chance.random())

        def rule(request: Request) -> Fault:
            with lock:
                if (inserts_only and not request.inserts_into) or dice.random() >= CHANCE:
                    return None
                struck.append(request.inserts_into)
            return HTTP_FAULTS[kind]

        self.http.rule = rule
        time.sleep(seconds)
        self.http.rule = lambda _: None
        self.http.release()
        self.report.count("faults", f"{kind} of an insert", sum(map(bool, struck)))
        self.report.count("faults", f"{kind} of another request", sum(not table for table in struck))
