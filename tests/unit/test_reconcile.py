"""Who may send, and who holds it up."""

from __future__ import annotations

import threading
from typing import Any

from contract.fakes import wait_until

from replicator.reconcile import Reconciler

NOBODY: Any = None
"""Whom none of this asks."""


def test_who_holds_up_delivery_goes_before_it() -> None:
    """Deliver lets go only to begin again at once: the lock alone would be its own each time."""
    turned, ended, held = threading.Event(), threading.Event(), threading.Event()
    reconciler = Reconciler(
        database=NOBODY,
        changelog=NOBODY,
        source=NOBODY,
        streams=NOBODY,
        standing=NOBODY,
        sink_return=NOBODY,
        known_version=NOBODY,
        interrupt=lambda _: turned.set(),
        redis_silent=NOBODY,
        stop=ended,
    )

    def deliver() -> None:
        while not ended.is_set():
            with reconciler.may_send():
                turned.wait()
                turned.clear()

    def hold_up() -> None:
        for _ in range(100):
            with reconciler.nothing_sent("somebody else has work"):
                assert reconciler.sending.locked()
        held.set()

    threads = [threading.Thread(target=work, daemon=True) for work in (deliver, hold_up)]
    for thread in threads:
        thread.start()
    try:
        wait_until(held.is_set, 20)
    finally:
        ended.set()
        turned.set()
    for thread in threads:
        thread.join()
