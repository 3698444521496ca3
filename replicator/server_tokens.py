"""The two tokens of the HTTP interface, and the note beside the database that says where it answers.

Guarantees: a token is compared in constant time; generated ones lie in files that only their owner can read. Never
logs one.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
from pathlib import Path

from attrs import field, frozen

from replicator.config import Settings
from replicator.errors import ConfigError

TOKEN_BYTES = 32


@frozen(kw_only=True)
class Tokens:
    """``admin`` may everything, ``read`` may look."""

    admin: str = field(repr=False)
    read: str = field(repr=False)

    def role(self, given: str) -> str | None:
        """``admin``, ``read``, or None."""
        offered = given.encode("utf-8", "surrogateescape")
        admin = hmac.compare_digest(offered, self.admin.encode())
        read = hmac.compare_digest(offered, self.read.encode())
        return "admin" if admin else "read" if read else None


def token_path(settings: Settings, role: str) -> Path:
    """Where a generated token lies."""
    return beside(settings, f"{role}_token")


def address_path(settings: Settings) -> Path:
    """Where the running service says how it is reached."""
    return beside(settings, "service.json")


def beside(settings: Settings, suffix: str) -> Path:
    path = settings.writer.database.path
    return path.with_name(f"{path.name}.{suffix}")


def ensure_tokens(settings: Settings) -> Tokens:
    """The configured tokens; what is not configured is generated once, into its file."""
    admin = settings.serve.admin_token or _generated(token_path(settings, "admin"))
    read = settings.serve.read_token or _generated(token_path(settings, "read"))
    return Tokens(admin=admin, read=read)


def find_token(settings: Settings, role: str) -> str | None:
    """The token a command uses: configured, or found beside the database."""
    configured = settings.serve.admin_token if role == "admin" else settings.serve.read_token
    if configured:
        return configured
    try:
        return token_path(settings, role).read_text().strip() or None
    except (FileNotFoundError, PermissionError):
        return None


def write_private(path: Path, text: str) -> None:
    """Put a text into a file of mode 0600 at once, whole or not at all."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}.new")
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    scratch.replace(path)


def _generated(path: Path) -> str:
    try:
        found = path.read_text().strip() if path.exists() else ""
        if found:
            path.chmod(0o600)
            return found
        token = secrets.token_urlsafe(TOKEN_BYTES)
        write_private(path, token + "\n")
    except OSError as error:
        raise ConfigError(
            f"{path}: the generated token cannot be kept there: {error.strerror}",
            hint="make the database's directory writable, or configure [serve] admin_token and read_token",
        ) from error
    return token


def write_address(settings: Settings, url: str, instance_id: str) -> None:
    """Say where the service answers, for commands on this machine."""
    note = {"url": url, "pid": os.getpid(), "instance_id": instance_id}
    write_private(address_path(settings), json.dumps(note) + "\n")


def remove_address(settings: Settings) -> None:
    address_path(settings).unlink(missing_ok=True)


def read_address(settings: Settings) -> dict[str, object]:
    """What the running service last said, empty when there is nothing to read."""
    try:
        note = json.loads(address_path(settings).read_text())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}
