"""A query asked from outside: of the running service, or of the file where none runs, with the same answer.

Guarantees: an answer that was cut off is an error, never taken for whole. Never opens a file that a service owns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import urllib3

from replicator.client import Client, ServiceUnavailable
from replicator.config import Profile
from replicator.query_question import Format, Question, plain_values

ANSWER_SECONDS_BEYOND = 30.0
PIECE_BYTES = 1 << 20
PATH = "/api/v1/query"


@contextmanager
def asked(client: Client, question: Question, form: Format) -> Iterator[Iterator[bytes]]:
    """The running service's answer, piece by piece. Raises what it answers, and ServiceUnavailable when it is cut off."""
    seconds = question.seconds + question.wait_seconds + ANSWER_SECONDS_BEYOND
    accept = form.media_type.partition(";")[0]
    with client.stream(PATH, question.as_json(), accept=accept, timeout_seconds=seconds) as answer:
        yield _whole(answer)


def _whole(answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    try:
        yield from answer.stream(PIECE_BYTES)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise ServiceUnavailable(
            "the answer was cut off: the query failed midway, or the service stopped",
            hint="the service's log says why (query_cut_off); ask again, for less",
        ) from error


@contextmanager
def asked_of_file(profile: Profile, question: Question, form: Format) -> Iterator[Iterator[bytes]]:
    """The answer of the file itself, for when no service runs. Raises DatabaseUnavailable, and what the query does."""
    from replicator.database import Database, DatabaseOptions  # noqa: PLC0415 - the service's answer needs no DuckDB here
    from replicator.query import Ask, Queries, require_captured  # noqa: PLC0415

    performance = profile.performance
    options = DatabaseOptions(
        path=profile.database.path,
        read_only=True,
        threads=performance.max_threads,
        memory_mb=performance.cache_size_mb,
        temp_directory=performance.temp_directory,
    )
    directory: Path = performance.temp_directory or profile.database.path.parent
    database = Database.open(options)
    queries = Queries(database=database, directory=directory / "queries")
    try:
        require_captured(database.session(), question)
        ask = Ask(
            sql=question.sql,
            parameters=plain_values(question.parameters),
            form=form,
            seconds=question.seconds,
            rows_max=question.rows_max,
        )
        yield queries.open(ask).start().pieces()
    finally:
        queries.close()
        database.close()
