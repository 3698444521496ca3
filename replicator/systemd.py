"""What systemd is told: ready, reloading, stopping, still alive. Does nothing elsewhere.

Source: sd_notify(3), systemd 255.
"""

from __future__ import annotations

import os
import socket
import time

PATIENCE_SECONDS = 0.5


def notify(state: str) -> None:
    """Send ``READY=1`` and the like to the service manager, where there is one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.settimeout(PATIENCE_SECONDS)  # a manager that does not read must not keep the service waiting
        try:
            channel.connect(address)
            channel.send(state.encode())
        except OSError:
            return  # the manager has gone or is deaf; there is nobody to tell


def reloading() -> None:
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_seconds() -> float | None:
    """How often the manager wants to hear from us, None when it does not."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 2_000_000
