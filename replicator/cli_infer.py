"""The command `infer`: read a sample of a stream and print the tables it seems to hold."""

from __future__ import annotations

import json
from collections import defaultdict

import click

from replicator.cli_answer import settings_of
from replicator.decode import decode
from replicator.errors import UsageError
from replicator.infer import Sample, gather, key_candidates, parse_payload, propose
from replicator.service import build_source


@click.command("infer")
@click.argument("stream")
@click.option(
    "--sample", "entries", default=2_000, show_default=True, type=click.IntRange(1, 100_000), help="Entries to read."
)
@click.option("--json", "as_json", is_flag=True, help="The evidence as JSON.")
@click.pass_context
def infer_command(context: click.Context, stream: str, entries: int, as_json: bool) -> None:
    """Propose [[tables]] for what STREAM holds: types, key candidates, nullability.

    Reads the oldest and the newest entries and writes nothing anywhere.
    """
    source = build_source(settings_of(context))
    read = source.sample(stream, entries)
    if not read.ids:
        raise UsageError(f"stream {stream!r} is empty or does not exist", hint="name a stream that holds entries")
    decoded = decode(read, {})
    payloads = defaultdict(list)
    for table, payload in zip(
        decoded.changes["table_name"].to_pylist(), decoded.changes["payload"].to_pylist(), strict=True
    ):
        payloads[table].append(_parsed(payload))
    rejected = decoded.rejections.num_rows
    samples = [
        Sample(stream=stream, table=table, payloads=[p for p in rows if p], rejected=rejected, entries=len(read.ids))
        for table, rows in payloads.items()
    ]
    useful = [sample for sample in samples if sample.payloads]
    if not useful:
        raise UsageError(
            f"none of {len(read.ids)} entries of {stream!r} holds a change with a payload",
            hint='send them as "Write changes" in the README shows',
        )
    click.echo(
        json.dumps([_evidence(s) for s in useful], indent=2) if as_json else "\n".join(map(propose, useful)), nl=as_json
    )


def _parsed(payload: str | None) -> dict[str, object]:
    try:
        return dict(parse_payload(payload or "{}"))
    except ValueError:
        return {}


def _evidence(sample: Sample) -> dict[str, object]:
    columns = gather(sample)
    rows = len(sample.payloads)
    return {
        "stream": sample.stream,
        "table": sample.table,
        "changes": rows,
        "entries_not_decoded": sample.rejected,
        "key_candidates": key_candidates(columns, rows),
        "columns": [
            {
                "name": c.name,
                "type": c.type_name,
                "seen": c.seen,
                "nulls": c.nulls,
                "different": len(c.values),
                "example": c.example,
            }
            for c in columns
        ],
    }
