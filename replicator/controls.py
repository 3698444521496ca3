"""What operators have switched: paused loops and tables. Survives restarts; every switch leaves a record.

Guarantees: what `is_paused` says is what the file says. Never decides by itself.
"""

from __future__ import annotations

import threading

from attrs import define, field

from replicator.database import Database, Session, now

CAPTURE = "capture"
DELIVER = "deliver"
_PREFIX = "paused:"


@define
class Controls:
    """Subjects are ``capture``, ``deliver`` and ``table:<name>``."""

    database: Database
    _paused: set[str] = field(factory=set)
    _lock: threading.Lock = field(factory=threading.Lock)

    @classmethod
    def open(cls, database: Database) -> Controls:
        session = database.session()
        rows = session.rows("select key from meta where starts_with(key, ?)", [_PREFIX])
        session.close()
        return cls(database=database, paused={key.removeprefix(_PREFIX) for (key,) in rows})

    def is_paused(self, subject: str) -> bool:
        return subject in self._paused

    def lane_paused(self, lane: str) -> bool:
        return bool(self._paused) and (DELIVER in self._paused or f"table:{lane}" in self._paused)

    @property
    def paused(self) -> list[str]:
        return sorted(self._paused)

    def pause(self, subject: str, *, actor: str) -> bool:
        """Pause a subject. Returns whether anything changed: pausing what is paused is success too."""
        return self._switch(subject, actor, on=True)

    def resume(self, subject: str, *, actor: str) -> bool:
        """Resume a subject. Returns whether anything changed."""
        return self._switch(subject, actor, on=False)

    def _switch(self, subject: str, actor: str, *, on: bool) -> bool:
        with self._lock:
            changed = (subject in self._paused) is not on
            session = self.database.session()
            with session.transaction():
                if changed and on:
                    session.execute("insert into meta values (?, ?)", [_PREFIX + subject, str(now())])
                elif changed:
                    session.execute("delete from meta where key = ?", [_PREFIX + subject])
                effect = ("paused" if on else "resumed") if changed else ("already paused" if on else "not paused")
                record_action(session, actor, "pause" if on else "resume", subject, effect)
            session.close()
            if changed:
                (self._paused.add if on else self._paused.discard)(subject)
        return changed


def record_action(session: Session, actor: str, action: str, subject: str, effect: str) -> None:
    """Who asked for what, when, with what effect. Inside the caller's transaction where there is one."""
    session.execute(
        "insert into operator_actions (asked_at, actor, action, subject, effect) values (?, ?, ?, ?, ?)",
        [now(), actor, action, subject, effect],
    )
