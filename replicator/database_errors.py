"""What DuckDB's errors mean: for the one who waits for the file, and for the one who opens it. Pure."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb

from replicator.errors import DatabaseUnavailable, LogCorrupt, ReplicatorError

_DAMAGE = re.compile(r"Could not read enough bytes|[Cc]orrupt|checksum .* does not match")
NO_MEMORY = re.compile(r"(?:failed to|could not) (?:pin|allocate)|[Oo]ut of [Mm]emory")
UNREADABLE = (duckdb.InvalidInputException, duckdb.ConversionException, duckdb.OutOfRangeException)
"""What a statement raises that meets a stored value it cannot read."""
_STORAGE = (duckdb.IOException, duckdb.ConnectionException, duckdb.FatalException, duckdb.InternalException)


def unavailable(path: Path, error: duckdb.Error) -> ReplicatorError | None:
    """What the error means for whoever uses the file; None when it is a statement that is wrong."""
    text, committing = first_line(error), isinstance(error, duckdb.TransactionException)
    unnamed = type(error) is duckdb.Error  # what a damaged block is reported as
    if not (committing or unnamed or isinstance(error, (*_STORAGE, duckdb.OutOfMemoryException))):
        return None
    if _DAMAGE.search(text):
        return LogCorrupt(f"{path} is damaged: {text}", hint="keep the file, then rebuild it with `replicator restore`")
    if NO_MEMORY.search(text):
        hint = "raise [performance] cache_size_mb"
        return DatabaseUnavailable(f"DuckDB ran out of memory: {text}", hint=hint, code="memory")
    if isinstance(error, duckdb.FatalException | duckdb.InternalException):
        hint = "free disk space if it is full; the file is reopened, nothing acknowledged is lost"
        return DatabaseUnavailable(f"DuckDB gave up on {path}: {text}", hint=hint, code="fatal")
    if committing and "Could not" not in text:
        return DatabaseUnavailable(f"transaction conflict: {text}", code="conflict")
    hint = "check its disk and permissions; free space if it is full"
    return DatabaseUnavailable(f"cannot use {path}: {text}", hint=hint, code="io")


def opening_error(path: Path, error: Exception) -> ReplicatorError:
    text = str(error)
    holder = re.search(r"PID (\d+)", text)
    if ("lock" in text.lower() and "Conflicting" in text) or "Could not set lock" in text:
        who = f"process {holder[1]}" if holder else "another process"
        return DatabaseUnavailable(
            f"{path} is in use by {who}",
            hint="one process owns the file: stop that one, or ask it over HTTP",
            code="locked",
        )
    # A file of another engine (SQLite …) is known by its first bytes, and its extension looked for.
    if re.search(r"not a valid DuckDB|newer version|storage version|^IO Error: Extension .* not found", text):
        return LogCorrupt(
            f"{path} is not a database that DuckDB {duckdb.__version__} can read: {first_line(error)}",
            hint="name another path, upgrade, or rebuild it with `replicator restore`",
        )
    known = unavailable(path, error) if isinstance(error, duckdb.Error) else None
    if known is not None and known.code != "io":
        return known
    if isinstance(error, duckdb.IOException | OSError | duckdb.PermissionException):
        return DatabaseUnavailable(
            f"cannot open {path}: {first_line(error)}", hint="check the path and its permissions"
        )
    return LogCorrupt(
        f"{path} cannot be read: {first_line(error)}",
        hint="keep the file, then rebuild it with `replicator restore`",
    )


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:400] if str(error).strip() else type(error).__name__


_MIDWAY = {
    "Out of Memory Error": duckdb.OutOfMemoryException,
    "IO Error": duckdb.IOException,
    "FATAL Error": duckdb.FatalException,
    "INTERNAL Error": duckdb.InternalException,
}


def met_midway(error: OSError) -> duckdb.Error:
    """DuckDB's own error from what Arrow made of it while an answer was read."""
    kind = _MIDWAY.get(str(error).partition(":")[0], duckdb.InvalidInputException)
    return kind(str(error))
