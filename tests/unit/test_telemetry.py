"""Log lines: one per event, as text for a person and as JSON for everybody else, without a secret in any of them."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from replicator.errors import ConfigError
from replicator.telemetry import LogOptions, configure_logging, join_log_file, set_level


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    root.handlers.clear()  # configure_logging closes what it finds
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    logging.captureWarnings(False)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_where_no_person_watches_with_event_and_fields() -> None:
    stream = io.StringIO()
    configure_logging(LogOptions(), stream=stream)
    structlog.get_logger("x").info("batch_delivered", rows=3, offsets="1..3")
    logging.getLogger("other").warning("said %s", "this")
    ours, theirs = lines(stream)
    assert (
        ours.items()
        >= {"event": "batch_delivered", "rows": 3, "offsets": "1..3", "level": "info", "logger": "x"}.items()
    )
    assert str(ours["timestamp"]).endswith("Z")
    assert theirs.items() >= {"event": "said this", "level": "warning", "logger": "other"}.items()


def test_coloured_text_on_a_terminal_and_plain_text_when_asked() -> None:
    terminal, plain = Terminal(), io.StringIO()
    configure_logging(LogOptions(), stream=terminal)
    structlog.get_logger().info("batch_delivered", rows=3)
    configure_logging(LogOptions(format="text"), stream=plain)
    structlog.get_logger().info("batch_delivered", rows=3)
    assert "\x1b[" in terminal.getvalue()
    assert "\x1b[" not in plain.getvalue()
    assert "rows=3" in plain.getvalue()


def test_no_secret_reaches_any_line(tmp_path: Path) -> None:
    stream = io.StringIO()
    secrets = ["s3cret'%&", 'with"quote', "abc"]
    configure_logging(LogOptions(secrets=secrets, path=tmp_path / "a.log"), stream=stream)
    log = structlog.get_logger()
    log.info("connecting", url="http://u:s3cret'%&@host", password='with"quote')
    try:
        raise ValueError("login with s3cret'%& failed")
    except ValueError:
        log.error("loop_failed", exc_info=True)
    logging.getLogger("driver").error('tried with"quote')
    for text in (stream.getvalue(), (tmp_path / "a.log").read_text()):
        assert "s3cret" not in text
        assert 'with"quote' not in text
        assert 'with\\"quote' not in text
        assert len(text.splitlines()) == 3
        assert "ValueError" in text


def test_levels_hold_for_ours_and_quiet_the_noisy() -> None:
    stream = io.StringIO()
    configure_logging(LogOptions(level="INFO"), stream=stream)
    log = structlog.get_logger("x")

    def speak() -> list[object]:
        stream.seek(0)
        stream.truncate()
        log.debug("ours")
        logging.getLogger("urllib3.connectionpool").info("theirs")
        return [line["event"] for line in lines(stream)]

    assert speak() == []
    set_level("DEBUG")
    assert speak() == ["ours"]
    set_level("TRACE")
    assert speak() == ["ours", "theirs"]
    set_level("ERROR")
    log.warning("not this")
    assert speak() == []


def test_the_file_is_made_with_its_directory_and_rotates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replicator.telemetry.LOG_FILE_BYTES_MAX", 2000)
    path = tmp_path / "deep" / "a.log"
    configure_logging(LogOptions(path=path), stream=io.StringIO())
    for number in range(60):
        structlog.get_logger().info("event", number=number)
    assert path.stat().st_size <= 2000
    assert path.with_name("a.log.1").exists()


def test_a_file_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"log_path .*file/a\.log"):
        configure_logging(LogOptions(path=tmp_path / "file" / "a.log"))


def test_a_disk_full_of_logs_is_said_once_and_stops_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    stream = io.StringIO()
    configure_logging(LogOptions(path=Path("/dev/full")), stream=stream)
    for _ in range(5):
        structlog.get_logger().info("event")
    assert len(lines(stream)) == 5
    assert capsys.readouterr().err.count("cannot be written") == 1


def test_python_warnings_become_log_lines() -> None:
    code = (
        "import warnings; from replicator.telemetry import *; configure_logging(LogOptions());"
        "warnings.simplefilter('always'); warnings.warn('old way', DeprecationWarning)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    [line] = [json.loads(line) for line in done.stderr.splitlines()]
    assert "old way" in line["event"]


PROGRAM = """
import sys
from pathlib import Path
import structlog
from replicator import telemetry
telemetry.LOG_FILE_BYTES_MAX, telemetry.LOG_FILES_KEPT = 20_000, 100
leave = telemetry.join_log_file(telemetry.LogOptions(path=Path(sys.argv[1]), secrets=["hidden"]))
for number in range(400):
    structlog.get_logger("replicator.test").info("line", by=sys.argv[2], number=number, what="hidden")
leave()
"""


def test_processes_share_one_log_file_over_its_rotations(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "shared.log"
    programs = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, path, str(by)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for by in range(3)
    ]
    for program in programs:
        out, err = program.communicate(timeout=60)
        assert (program.returncode, out, err) == (0, b"", b"")
    files = sorted(path.parent.iterdir())
    assert len(files) > 3, "it was put aside more than once"
    assert {each.stat().st_mode & 0o777 for each in files} == {0o600}
    lines = [json.loads(line) for each in files for line in each.read_text().splitlines()]
    assert {line["what"] for line in lines} == {"***"}
    written = sorted((int(line["by"]), line["number"]) for line in lines)
    assert written == [(by, number) for by in range(3) for number in range(400)]


def test_a_program_s_own_logging_stays_as_it_is(tmp_path: Path) -> None:
    ours, root = logging.getLogger("replicator"), logging.getLogger()
    before, level = list(root.handlers), ours.level
    leave = join_log_file(LogOptions(path=tmp_path / "x.log"))
    again = join_log_file(LogOptions(path=tmp_path / "x.log"))
    try:
        structlog.get_logger("replicator.test").info("once")
        leave()
        structlog.get_logger("replicator.test").info("twice")
        assert root.handlers == before
    finally:
        again()
        ours.setLevel(level)
    structlog.get_logger("replicator.test").info("gone")
    events = [json.loads(line)["event"] for line in (tmp_path / "x.log").read_text().splitlines()]
    assert events == ["once", "twice"]
