"""The verbs of the commands and of ``/api/v1``: sync, pause, resume, failed, rejected, gaps, actions.

Works on the running service's parts, or on the file alone when none runs, with the same answers. Guarantees: whatever
changes something leaves a row in ``operator_actions``; a dry run changes nothing. Answers hold plain JSON values.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from attrs import define, evolve, field, frozen

from replicator.capture import Capture
from replicator.controls import CAPTURE, DELIVER, Controls, record_action
from replicator.database import Database, Session, now, statement
from replicator.decode_parts import unpack_raw
from replicator.deliver import Deliver
from replicator.deliver_requests import ask, let_go, redrive, try_now
from replicator.errors import ChangeRejected, ReplicatorError, SinkUnavailable, UsageError
from replicator.ledger import Ledger
from replicator.model import FailedSync, ParkReason
from replicator.retry import sentence_of_parked

LIST_MAX = 10_000
POLL_SECONDS = 0.02
RAW_SHOWN_BYTES = 4096
Answer = dict[str, Any]
Part = TypeVar("Part", Deliver, Capture)
_LISTS = {"sync": "failed", "entry": "rejected", "gap": "gaps"}


@frozen(kw_only=True)
class Selection:
    """Which rows are meant. For a change one of ``ids``, ``subject``, ``older_than_seconds`` or ``all`` is needed."""

    ids: tuple[int, ...] = ()
    subject: str | None = None
    """The table of failed syncs, the stream of rejected entries and gaps."""
    older_than_seconds: float | None = None
    all: bool = False
    status: str | None = "open"
    limit: int = LIST_MAX

    def for_change(self) -> Selection:
        """The selection, if it says what it means."""
        if not (self.ids or self.subject or self.older_than_seconds is not None or self.all):
            raise UsageError("nothing is selected", hint="name ids, a table or stream, an age, or say all")
        return evolve(self, status="open")


@define
class Operations:
    """``deliver`` and ``capture`` are None when no service runs: then only the file can be changed."""

    database: Database
    controls: Controls
    ledger: Ledger
    deliver: Deliver | None = None
    tables: Callable[[], Sequence[str]] = field(default=lambda: ())
    capture: Capture | None = None

    @contextmanager
    def _session(self) -> Iterator[Session]:
        session = self.database.session()
        try:
            yield session
        finally:
            session.close()

    def _record(self, actor: str, action: str, subject: str, effect: str) -> None:
        with self._session() as session:
            record_action(session, actor, action, subject, effect)

    @contextmanager
    def _recorded(self, actor: str, action: str, subject: str) -> Iterator[list[str]]:
        """A row for what is done inside, with the effect that is said there, or what it ended by."""
        effect: list[str] = []
        try:
            yield effect
        except ReplicatorError as error:
            effect.append(f"not done: {error}")
            raise
        finally:
            self._record(actor, action, subject, "; ".join(effect))

    # ── delivering ──

    def sync(self, *, actor: str, timeout_seconds: float = 60.0, batch_rows_max: int | None = None) -> Answer:
        """Deliver what is waiting, now: up to the head as it is at this moment, and what an outage has parked.

        ``batch_rows_max`` caps batches that are not frozen yet.
        """
        deliver = self._running("sync", self.deliver)
        head, started = deliver.capture.released_head, time.monotonic()
        from_offset = ask(deliver, lambda: try_now(deliver, batch_rows_max))
        while not _reached(deliver, head) and time.monotonic() - started < timeout_seconds:
            if deliver.stop.is_set():
                break
            deliver.flush.set()
            time.sleep(POLL_SECONDS)
        delivered, checkpoint = _reached(deliver, head), deliver.checkpoint
        effect = f"checkpoint {checkpoint} of {head}"
        self._record(actor, "sync", "", effect if delivered else f"{effect} when time was up")
        return {
            "delivered": delivered,
            "head_offset": head,
            "from_offset": min(from_offset, checkpoint),
            "checkpoint_offset": checkpoint,
            "seconds": round(time.monotonic() - started, 3),
            "parked_rows": sum(row["row_count"] for row in self.failed(Selection())),
            "waits_for": None if delivered else self._waiting(deliver),
        }

    def _waiting(self, deliver: Deliver) -> str:
        """Why delivery does not go on, in the words of the first table that has any."""
        for name, state in dict(deliver.lanes).items():
            if self.controls.lane_paused(name):
                return f"table {name} is paused"
            if state.stopped_reason or state.last_error:
                return f"{name}: {state.stopped_reason or state.last_error}"
        return "there is more than could be sent in the time given"

    @staticmethod
    def _running(what: str, part: Part | None) -> Part:
        if part is None:
            raise SinkUnavailable(
                f"the service is not running, so {what} is not possible", hint="start it with `replicator run`"
            )
        return part

    # ── pausing ──

    def pause(self, subject: str, *, actor: str) -> Answer:
        return self._switch(subject, actor, paused=True)

    def resume(self, subject: str, *, actor: str) -> Answer:
        return self._switch(subject, actor, paused=False)

    def _switch(self, subject: str, actor: str, *, paused: bool) -> Answer:
        name = subject.removeprefix("table:")
        if subject not in (CAPTURE, DELIVER):
            known = {*self.tables(), *self._lanes_seen()}
            if name not in known:
                raise UsageError(
                    f"there is nothing named {subject} to {'pause' if paused else 'resume'}",
                    hint=f"capture, deliver, or one of the tables {', '.join(sorted(known)) or '(none yet)'}",
                )
            subject = f"table:{name}"
        changed = (self.controls.pause if paused else self.controls.resume)(subject, actor=actor)
        return {"subject": subject, "paused": paused, "changed": changed, "all_paused": self.controls.paused}

    def _lanes_seen(self) -> set[str]:
        with self._session() as session:
            return set(self.ledger.positions(session)) | set(self.deliver.lanes if self.deliver else ())

    # ── failed syncs ──

    def failed(self, selection: Selection) -> list[Answer]:
        """Rows of failed_syncs, oldest offsets first."""
        sql = statement("operations/failed").replace("failed_syncs", self.ledger.failed_table)
        parameters = {"table": selection.subject, **_bounds(selection)}
        names = (
            "id", "table", "first_offset", "last_offset", "row_count", "reason", "error_code", "error_column",
            "error_message", "attempts", "first_failed_at", "last_failed_at", "status", "note",
        )  # fmt: skip
        return self._rows(sql, parameters, names, selection)

    def failed_show(self, failed_id: int, *, limit: int = 100) -> Answer:
        """One row of failed_syncs, with the copies of the changes at fault."""
        [found] = self._named(self.failed(Selection(ids=(failed_id,), status=None)), (failed_id,), "failed sync")
        names = ("log_offset", "version", "table_name", "op", "key", "payload", "event_id", "stream", "entry_id")
        with self._session() as session:
            rows = session.rows(statement("operations/parked_rows"), {"id": failed_id, "limit": limit})
        return {
            **_with_sentence(found),
            "changes": [dict(zip((*names, "entry_row"), row, strict=True)) for row in rows],
        }

    def failed_retry(
        self, selection: Selection, *, actor: str, wait_seconds: float = 30.0, dry_run: bool = False
    ) -> Answer:
        """Send parked ranges again now, and wait a while for what becomes of them."""
        chosen = self._chosen(self.failed(selection.for_change()), selection, "failed sync")
        if dry_run:
            return {"dry_run": True, "failed": chosen}
        ids = [row["id"] for row in chosen]
        with self._recorded(actor, "failed retry", _ids(ids)) as effect:
            deliver = self._running("a retry", self.deliver)
            asked = [ask(deliver, partial(redrive, deliver, each, requested_by=actor)) for each in self._failures(ids)]
            after = self._await({row["id"]: row["attempts"] for row in chosen}, wait_seconds)
            resolved = sum(row["status"] == "resolved" for row in after)
            effect.append(f"{resolved} resolved, {len(after) - resolved} not")
        return {"dry_run": False, "failed": after, "requested": sum(asked), "resolved": resolved}

    def _await(self, attempts: dict[int, int], wait_seconds: float) -> list[Answer]:
        deadline = time.monotonic() + wait_seconds
        while True:
            rows = self.failed(Selection(ids=tuple(attempts), status=None)) if attempts else []
            waiting = [r for r in rows if r["status"] == "open" and r["attempts"] == attempts[r["id"]]]
            if not waiting or time.monotonic() > deadline:
                return rows
            time.sleep(POLL_SECONDS)

    def failed_discard(self, selection: Selection, *, actor: str, reason: str, dry_run: bool = False) -> Answer:
        """Give parked rows up for good. They stay on record, with the reason."""
        reason = _reason(reason)
        chosen = self._chosen(self.failed(selection.for_change()), selection, "failed sync")
        if dry_run:
            return {"dry_run": True, "failed": chosen}
        ids = [row["id"] for row in chosen]
        if self.deliver is not None:
            deliver = self.deliver
            for failed in self._failures(ids):
                ask(deliver, lambda failed=failed: let_go(deliver, failed))  # type: ignore[misc]
        with self._session() as session, session.transaction():
            for failed_id in ids:
                sql = f"update {self.ledger.failed_table} set status = 'discarded', note = ? where id = ?"
                session.execute(f"{sql} and status = 'open'", [reason, failed_id])
            record_action(session, actor, "failed discard", _ids(ids), f"{len(ids)} discarded: {reason}")
        rows = self.failed(Selection(ids=tuple(ids), status=None)) if ids else []
        return {"dry_run": False, "failed": rows, "discarded": sum(row["status"] == "discarded" for row in rows)}

    def _failures(self, ids: Sequence[int]) -> list[FailedSync]:
        with self._session() as session:
            return [failed for failed in self.ledger.open_failures(session) if failed.id in set(ids)]

    # ── rejected entries ──

    def rejected(self, selection: Selection) -> list[Answer]:
        """Rejected entries without their raw bytes, oldest first."""
        return [{name: value for name, value in row.items() if name != "raw"} for row in self._rejected(selection)]

    def rejected_show(self, rejected_id: int) -> Answer:
        """One rejected entry with its fields as text where they are, and its raw bytes in base64."""
        rows = self._rejected(Selection(ids=(rejected_id,), status=None))
        [found] = self._named(rows, (rejected_id,), "rejected entry")
        raw = found.pop("raw")
        return {**found, "fields": _fields(raw), "raw_base64": base64.b64encode(raw).decode()}

    def rejected_retry(
        self,
        selection: Selection,
        *,
        actor: str,
        as_new: bool = False,
        dry_run: bool = False,
        wait_seconds: float = 30.0,
    ) -> Answer:
        """Decode rejected entries again and log those that fit by now. ``kept`` says why of each that stays.

        Where its key has a newer change, an entry is logged only ``as_new``: it then counts as the newest.
        """
        chosen = self._chosen(self.rejected(selection.for_change()), selection, "rejected entry")
        if dry_run:
            return {"dry_run": True, "rejected": chosen}
        ids = [row["id"] for row in chosen]
        with self._recorded(actor, "rejected retry", _ids(ids)) as effect:
            capture = self._running("a retry", self.capture)
            kept = capture.readmit(ids, as_new=as_new, timeout_seconds=wait_seconds) if ids else {}
            logged = len(ids) - len(kept)
            effect.append(f"{logged} logged{' as new' if as_new else ''}, {len(kept)} kept")
        rows = self.rejected(Selection(ids=tuple(ids), status=None)) if ids else []
        return {
            "dry_run": False,
            "rejected": [{**row, "kept": kept.get(row["id"])} for row in rows],
            "logged": logged,
        }

    def rejected_discard(self, selection: Selection, *, actor: str, reason: str, dry_run: bool = False) -> Answer:
        """Close rejected entries. Their bytes stay on record."""
        reason = _reason(reason)
        chosen = self._chosen(self.rejected(selection.for_change()), selection, "rejected entry")
        if dry_run:
            return {"dry_run": True, "rejected": chosen}
        ids = [row["id"] for row in chosen]
        with self._session() as session, session.transaction():
            session.execute("update rejected_entries set status = 'discarded' where list_contains($1, id)", [ids])
            record_action(session, actor, "rejected discard", _ids(ids), f"{len(ids)} discarded: {reason}")
        rows = self.rejected(Selection(ids=tuple(ids), status=None)) if ids else []
        return {"dry_run": False, "rejected": rows, "discarded": len(rows)}

    def _rejected(self, selection: Selection) -> list[Answer]:
        names = ("id", "stream", "stream_epoch", "entry_id", "entry_row", "raw", "reason", "rejected_at", "status")
        parameters = {"stream": selection.subject, **_bounds(selection)}
        return self._rows(statement("operations/rejected"), parameters, names, selection)

    # ── gaps, actions ──

    def gaps(self, selection: Selection) -> list[Answer]:
        """Entries that left Redis unread, oldest first."""
        parameters = {"stream": selection.subject, **_bounds(selection)}
        del parameters["older_than"]
        names = ("id", "stream", "after_entry_id", "before_entry_id", "entries_lost", "cause", "found_at", "status")
        return self._rows(statement("operations/gaps"), parameters, names, selection)

    def gaps_ack(self, selection: Selection, *, actor: str, note: str = "") -> Answer:
        """Acknowledge gaps: the loss stays on record, the status is no longer red for it."""
        chosen = self._chosen(self.gaps(selection.for_change()), selection, "gap")
        ids = [row["id"] for row in chosen]
        with self._session() as session, session.transaction():
            session.execute("update stream_gaps set status = 'acknowledged' where list_contains($1, id)", [ids])
            effect = f"{len(ids)} acknowledged" + (f": {note.strip()}" if note.strip() else "")
            record_action(session, actor, "gaps ack", _ids(ids), effect)
        rows = self.gaps(Selection(ids=tuple(ids), status=None)) if ids else []
        return {"gaps": rows, "acknowledged": len(rows)}

    def actions(self, *, limit: int = 100) -> list[Answer]:
        """What operators have asked for, newest first."""
        names = ("id", "asked_at", "actor", "action", "subject", "effect")
        return self._rows(statement("operations/actions"), {"limit": limit}, names, Selection())

    # ── rows ──

    def _rows(self, sql: str, parameters: Answer, names: Sequence[str], selection: Selection) -> list[Answer]:
        with self._session() as session:
            if len(selection.ids) <= 1:
                wanted = {**parameters, "id": selection.ids[0] if selection.ids else None}
                rows = session.rows(sql, wanted if "$id" in sql else parameters)
            else:
                rows = [row for i in selection.ids for row in session.rows(sql, {**parameters, "id": i})]
        return [{n: _plain(value) for n, value in zip(names, row, strict=True)} for row in rows]

    def _chosen(self, rows: list[Answer], selection: Selection, what: str) -> list[Answer]:
        return self._named(rows, selection.ids, f"open {what}") if selection.ids else rows

    @staticmethod
    def _named(rows: list[Answer], ids: Sequence[int], what: str) -> list[Answer]:
        """The rows, if every id asked for is among them."""
        missing = [str(i) for i in ids if i not in {row["id"] for row in rows}]
        if missing:
            raise UsageError(
                f"there is no {what} {', '.join(missing)}",
                code="not_found",
                hint=f"`replicator {_LISTS[what.rpartition(' ')[2]]} list` shows what there is",
            )
        return rows


def _reached(deliver: Deliver, head: int) -> bool:
    """Whether everything up to ``head`` is in ClickHouse, but for rows that it refuses."""
    return (
        deliver.loaded
        and deliver.checkpoint >= head
        and not any(state.redrives for state in list(deliver.lanes.values()))
    )


def _bounds(selection: Selection) -> Answer:
    older = selection.older_than_seconds
    try:
        before = None if older is None else now() - timedelta(seconds=older)
    except OverflowError as error:
        raise UsageError(f"an age of {older} s lies before all time", hint="give a smaller one") from error
    return {"status": selection.status, "older_than": before, "limit": selection.limit}


def _with_sentence(failed: Answer) -> Answer:
    """A failed sync with what its error means for the operator, before what was said in so many words."""
    code, message = failed["error_code"], failed["error_message"]
    said = sentence_of_parked(ParkReason(failed["reason"]), code, failed["attempts"])
    before = {name: value for name, value in failed.items() if name != "error_message"}
    return {**before, "sentence": said, "error_message": message}


def _reason(text: str) -> str:
    if not text.strip():
        raise UsageError("a reason is needed", hint="say why, it stays on record: --reason '…'")
    return text.strip()


def _ids(ids: Sequence[int]) -> str:
    text = ", ".join(map(str, ids[:20]))
    return f"{text} and {len(ids) - 20} more" if len(ids) > 20 else text


def _plain(value: Any) -> Any:
    return f"{value.isoformat()}Z" if isinstance(value, datetime) else value


def _fields(raw: bytes) -> list[Answer] | None:
    """The entry's fields and values in turn, each shortened and as text; None where the bytes are not a whole entry."""
    try:
        parts = unpack_raw(raw)
    except (ValueError, ChangeRejected):
        return None
    texts = [part[:RAW_SHOWN_BYTES].decode("utf-8", "backslashreplace") for part in parts]
    return [{"field": name, "value": value} for name, value in zip(texts[::2], texts[1::2], strict=False)]


def file_operations(database: Database, failed_table: str) -> Operations:
    """The verbs on the file alone."""
    return Operations(database=database, controls=Controls.open(database), ledger=Ledger.open(database, failed_table))
