"""One case, once, in a process of its own: ``python -m ops.bench.case '<the room as JSON>' <where to>`` writes its sample."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from replicator.lean import keep_out_pandas

keep_out_pandas()  # as `replicator run` does, before anything is loaded

from ops.bench import baseline, large, limits, live, ours  # noqa: E402
from ops.bench.meter import Sample  # noqa: E402
from ops.bench.room import Room  # noqa: E402

CASES: Mapping[str, Callable[[Room], Sample]] = {
    "drain": limits.drain,
    "append": limits.append,
    "insert": limits.insert,
    "capture": ours.capture,
    "deliver": ours.deliver,
    "end_to_end": ours.end_to_end,
    "handwritten": baseline.handwritten,
    "latency": live.latency,
    "idle": live.idle,
    "beside": large.beside,
    "start": large.start,
    "backlog": large.backlog,
}


def main() -> None:
    room = Room(**json.loads(sys.argv[1]))
    room.directory.mkdir(parents=True, exist_ok=True)
    sample = CASES[room.case](room)
    Path(sys.argv[2]).write_text(json.dumps(sample.as_dict()))


if __name__ == "__main__":
    main()
