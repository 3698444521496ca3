"""The same attempts without HTTP: each of the three fences is tried alone. What a program asks of the file through
DuckDBManager, what the judge says, and what the locked instance does to a statement that nobody judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from attrs import define
from readonly_attacks import CANARY, EXHAUSTION, FILES, SETTINGS, SEVERAL, SHAPES, WRITES

from replicator.config import migrations_dir
from replicator.database import Database, DatabaseOptions, Session
from replicator.db_manager_answer import read
from replicator.errors import ReplicatorError, UsageError
from replicator.query_question import Question
from replicator.readonly import check_query

ATTACKS = [*SEVERAL, *WRITES, *FILES, *SETTINGS]
ATTEMPTS_OF_NO_HARM = (SHAPES["number"], SHAPES["right to left"])
"""Odd to look at, and a SELECT all the same."""
CONTENT = "select (select count(*) from change_log), (select count(*) from meta), (select list(v) from trades)"


@define
class Attacked:
    database: Database
    secret: Path

    def spell(self, sql: str) -> str:
        names = {"secret": self.secret, "out": self.secret.with_name("stolen"), "directory": self.secret.parent}
        for name, value in {**names, "database": self.database.options.path}.items():
            sql = sql.replace("{" + name + "}", str(value))
        return sql

    def standing(self) -> tuple[object, set[str]]:
        session = self.database.session()
        found = session.row(CONTENT)
        session.close()
        return found, {path.name for path in self.secret.parent.iterdir() if path.suffix != ".wal"}


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    directory = tmp_path_factory.mktemp("attacked")
    secret = directory / "secret.csv"
    secret.write_text(f"a,b\n1,{CANARY}\n")
    database = Database.open(DatabaseOptions(path=directory / "log.duckdb", threads=1, memory_mb=64))
    database.migrate(migrations_dir() / "duckdb")
    database.session().execute("create view trades as select 'x' as v")
    found = Attacked(database, secret)
    before = found.standing()
    yield found
    assert found.standing() == before
    assert secret.read_text() == f"a,b\n1,{CANARY}\n"
    database.close()


@pytest.mark.parametrize("sql", [*ATTACKS, *SHAPES.values()], ids=range(len(ATTACKS) + len(SHAPES)))
def test_neither_the_judge_nor_the_manager_lets_it_through(attacked: Attacked, sql: str) -> None:
    session = attacked.database.session()
    if sql not in ATTEMPTS_OF_NO_HARM:
        with pytest.raises(UsageError):
            check_query(session, attacked.spell(sql))
    session.close()
    if sql != SHAPES["number"]:
        with pytest.raises(ReplicatorError):
            read(attacked.database, Question(sql=attacked.spell(sql), seconds=10))


def test_the_locked_instance_alone_keeps_files_settings_and_tables(attacked: Attacked) -> None:
    """Nobody judges here: in a READ ONLY transaction each is an error, or gives nothing and changes nothing."""
    before = attacked.standing()
    for sql in ATTACKS:
        if sql.startswith(("commit", "rollback", "begin", *SEVERAL)) or "sleep" in sql:
            continue  # only the judge stands before what ends the transaction itself; only the limit of time before sleep
        session = attacked.database.session()
        assert CANARY not in repr(unjudged(session, attacked.spell(sql))), sql
        session.close()
        assert attacked.standing() == before, sql


def unjudged(session: Session, sql: str) -> object:
    cursor = session.cursor()
    cursor.execute("begin transaction read only")
    try:
        return cursor.execute(sql).fetchmany(10)
    except (duckdb.Error, UnicodeEncodeError) as error:
        return str(error).replace(sql, "")
    finally:
        try:
            cursor.rollback()
        except duckdb.Error:
            session.close()


def test_the_attempts_are_many_and_distinct() -> None:
    spelled = {" ".join(sql.lower().split()) for sql in (*ATTACKS, *SHAPES.values(), *EXHAUSTION)}
    assert len(spelled) >= 200
