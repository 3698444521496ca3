"""The command line itself: help, usage errors, exit codes, and how an error of whatever kind is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from replicator import cli
from replicator.errors import (
    ConfigError,
    DatabaseUnavailable,
    LogCorrupt,
    OwnershipLost,
    ReplicatorError,
    SinkRefused,
    SinkUnavailable,
    SourceUnavailable,
    UsageError,
)


def replicator(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ}
    command = [sys.executable, "-m", "replicator", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=cwd, env=kept, check=False, stdin=subprocess.DEVNULL
    )


def test_help_names_every_command_and_loads_no_engine(tmp_path: Path) -> None:
    done = replicator("--help", cwd=tmp_path)
    assert done.returncode == 0
    for name in cli.COMMANDS:
        assert f"\n  {name} " in done.stdout, name
    loaded = "import sys, replicator.cli; sys.exit(bool({'duckdb', 'redis', 'pyarrow', 'fastapi'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_has_help_and_a_way_to_json(name: str) -> None:
    command = cli.cli.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    assert command.help
    leaves = list(command.commands.values()) if isinstance(command, cli.click.Group) else [command]
    for leaf in leaves:
        options = {option for parameter in leaf.params for option in parameter.opts}
        assert leaf.help
        assert "--json" in options or name in ("run", "stack"), leaf.name


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("status", "--nonsense"), ("pause",), ("failed", "show", "x"), ("status", "--watch", "--json")],
)
def test_wrong_usage_ends_with_two_and_says_what(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = replicator(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_no_configuration_is_said_with_what_to_do(tmp_path: Path) -> None:
    done = replicator("status", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "config: the configuration directory does not exist" in done.stderr


def test_init_writes_what_is_missing_and_never_touches_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "replicator.toml").write_text("# mine\n")
    done = replicator("init", "--json", cwd=tmp_path)
    assert done.returncode == 0
    written = {Path(path).name for path in json.loads(done.stdout)["written"]}
    assert "duckdb_rust_config.toml" in written
    assert "replicator.toml" not in written
    assert (tmp_path / "config" / "replicator.toml").read_text() == "# mine\n"
    assert json.loads(replicator("init", "--json", cwd=tmp_path).stdout)["written"] == []


def test_a_database_that_is_not_there_is_said(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    done = replicator("failed", "list", cwd=tmp_path)
    assert done.returncode == 3
    assert "there is no database at" in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2),
        (ConfigError("x"), 2),
        (SourceUnavailable("x"), 3),
        (SinkUnavailable("x"), 3),
        (SinkRefused("x"), 3),
        (DatabaseUnavailable("x"), 3),
        (LogCorrupt("x"), 3),
        (OwnershipLost("x"), 3),
        (ReplicatorError("x"), 3),
    ],
)
def test_each_error_has_its_exit_code(error: ReplicatorError, code: int) -> None:
    assert cli.exit_code(error) == code


def test_an_error_is_told_in_full_with_its_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    cli.say_error(ConfigError(["first", "second"], hint="do this"))
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "Error: first\nError: second\n  → do this\n"


def test_our_own_fault_is_owned_up_to_with_what_to_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(**_: object) -> None:
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(cli.cli, "main", broken)
    monkeypatch.setattr(sys, "argv", ["replicator", "status", "--json", "--reason=private"])
    assert cli._run() == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "fault of replicator itself" in said.err
    assert "ZeroDivisionError: inside" in said.err
    assert "command `status --json --reason`" in said.err


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    command = f"{sys.executable} -m replicator check --no-connect --json | head -c 10"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False
    )
    assert done.stderr == ""
