"""What commands tell people: one of a thing in the singular, and a table called a table."""

from __future__ import annotations

import pytest

from replicator import cli_deliver, cli_past, cli_rebuild, cli_replay
from replicator.cli_status_view import kept_aside

BATCH = {"first_offset": 1, "last_offset": 1, "rows": 1, "send_seq": 1, "frozen_at": "then", "delivered_at": None}
PARKED = {"attempts": 1, "last_failed_at": "then", "first_failed_at": "then", "status": "open", "error_message": "no"}


@pytest.mark.filterwarnings("ignore:'get_text_stream' is deprecated")  # cli_answer.table asks click, as ever
def test_a_trace_of_one_row_and_one_attempt(capsys: pytest.CaptureFixture[str]) -> None:
    cli_past._show_batch({"batch": {**BATCH, "attempt": 1}, "failed_syncs": [PARKED]})
    shown = capsys.readouterr().out
    assert "(1 row, send 1)" in shown and "1 attempt, the last" in shown
    cli_past._show_state({"columns": ["n"], "rows": [[1]], "table": "trades", "as_of_offset": 1, "more": False})
    assert capsys.readouterr().out.endswith(": 1 row shown\n")


@pytest.mark.parametrize(("rows", "words"), [(1, "1 row"), (2000, "2,000 rows")])
def test_replay_and_rebuild_count_rows(rows: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli_replay._show({"replay": 1, "sent_rows": rows, "seconds": 1.0})
    assert f"replay 1: {words} sent in" in capsys.readouterr().out
    cli_replay._show({"dry_run": True, "rows": rows, "safe": True})
    assert f"safe: {words} would be sent again" in capsys.readouterr().out
    rebuilt = {
        "table": "t",
        "changes": [],
        "problems": [],
        "safe": True,
        "rows_from_log": rows,
        "rows_from_old_table": 1,
    }
    cli_rebuild._show({**rebuilt, "dry_run": False, "copied_rows": rows})
    assert f"made anew: {words} copied" in capsys.readouterr().out
    cli_rebuild._show({**rebuilt, "dry_run": True})
    assert f"safe: {words} would come from the log, 1 from the old table" in capsys.readouterr().out


def test_sync_counts_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    done = {"head_offset": 1, "from_offset": 0, "delivered": True, "seconds": 1.0, "checkpoint_offset": 1}
    cli_deliver._show_sync({**done, "parked_rows": 1, "waits_for": None})
    told = capsys.readouterr()
    assert told.out.startswith("delivered 1 change in") and told.err.startswith("1 row is parked:")
    cli_deliver._show_sync({**done, "parked_rows": 2, "waits_for": None})
    assert capsys.readouterr().err.startswith("2 rows are parked:")


def test_a_paused_table_is_called_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    cli_deliver._show_switch({"subject": "table:trades", "paused": True, "changed": True})
    cli_deliver._show_switch({"subject": "capture", "paused": False, "changed": False})
    assert capsys.readouterr().out == "table trades is paused\ncapture was already running\n"


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (1, "1 failed sync (1 row, the oldest 5 min old), 1 rejected entry, 1 gap"),
        (2, "2 failed syncs (2 rows, the oldest 5 min old), 2 rejected entries, 2 gaps"),
    ],
)
def test_the_status_counts_what_is_kept_aside(count: int, words: str) -> None:
    report = {
        "failed_syncs": {"open": count, "rows": count, "oldest_age_seconds": 300.0},
        "rejected_entries": {"open": count},
        "gaps": {"open": count},
    }
    assert kept_aside(report) == words


def test_the_status_says_where_a_count_is_not_known() -> None:
    unknown = {"failed_syncs": {"open": None, "rows": None}, "rejected_entries": {"open": None}, "gaps": {"open": 0}}
    assert kept_aside(unknown) == "unknown failed syncs (unknown rows), unknown rejected entries, 0 gaps"
