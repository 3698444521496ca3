"""The names of our own tables, on both sides: no declared table may have one of them."""

from __future__ import annotations

OWN_TABLES = frozenset(
    {
        "change_log",
        "checkpoints",
        "claimed_ids",
        "failed_syncs",
        "fold_positions",
        "log_returns",
        "meta",
        "operator_actions",
        "parked_changes",
        "rebuild_keys",
        "rebuilds",
        "rejected_entries",
        "removed_rows",
        "replays",
        "schema_migrations",
        "stream_gaps",
        "stream_positions",
        "sync_batches",
        "table_schemas",
    }
)


def is_ours(name: str) -> bool:
    """Whether a table of ours has this name or may get it one day: case does not count."""
    folded = name.casefold()
    return folded in OWN_TABLES or folded.startswith("replicator_")
