"""What ships: templates that load as they are, name every key, and are written without touching what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tomli
from config_room import PIPELINE, RUST, SECRETS, Room, make_room

from replicator.config import VARIABLES, config_templates_dir, load_settings, migrations_dir, write_templates
from replicator.config.resolve import SECTIONS
from replicator.config.values import written_keys
from replicator.errors import ConfigError


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return make_room(tmp_path)


@pytest.fixture
def shipped(room: Room) -> Room:
    write_templates(room.directory)
    return room


def test_the_templates_load_without_a_warning(shipped: Room) -> None:
    settings = shipped.load()
    assert settings.warnings == ()
    assert [table.name for table in settings.tables] == ["orders", "trades", "positions"]
    assert settings.redis.streams == ("orders", "trades", "positions")


def test_the_examples_put_in_place_change_nothing(shipped: Room) -> None:
    before = shipped.load()
    (shipped.directory / "env.example").rename(shipped.directory / ".env")
    secrets = (shipped.directory / "secrets.example.toml").rename(shipped.directory / SECRETS)
    secrets.chmod(0o600)
    after = shipped.load()
    assert all("placeholder" in warning for warning in after.warnings)
    for name in ("writer", "reader", "redis", "clickhouse", "serve", "tables"):
        assert getattr(after, name) == getattr(before, name)


@pytest.mark.parametrize("name", sorted(SECTIONS))
def test_every_key_stands_in_its_template_with_a_comment(name: str) -> None:
    template = config_templates_dir() / ("secrets.example.toml" if name == SECRETS else name)
    documented: set[tuple[str, str]] = set()
    section = ""
    for line in template.read_text().splitlines():
        if header := re.match(r"\[+([a-z_]+)(\.columns)?\]+", line):
            section = header[1]
            documented |= {(section, "columns")} if header[2] and "#" in line else set()
        elif key := re.match(r"(?:# )?([a-z_]+) = [^#]+# .+$", line):
            documented.add((section, key[1]))
    expected = {(section, key) for section, kind in SECTIONS[name].items() for key in written_keys(kind)}
    assert expected <= documented


def test_what_the_pipeline_template_says_is_default_is_so(shipped: Room, tmp_path: Path) -> None:
    shipped_settings = shipped.load()
    empty = tmp_path / "other" / "config"
    empty.mkdir(parents=True)
    defaults = load_settings(empty, environ={})
    rows = {(r.file, r.section, r.key): r.value.replace("/other/", "/") for r in defaults.explain()}
    for row in shipped_settings.explain():
        if row.file == PIPELINE and not row.section.startswith("tables.") and row.key != "streams":
            assert row.value == rows[row.file, row.section, row.key]


def test_the_example_environment_names_every_variable() -> None:
    text = (config_templates_dir() / "env.example").read_text()
    named = re.findall(r"^(?:# )?([A-Z_]+)=", text, re.MULTILINE)
    assert sorted(named) == sorted(variable.name for variable in VARIABLES)


def test_templates_never_overwrite_and_say_what_they_wrote(room: Room) -> None:
    room.write(RUST, "# mine\n")
    written = write_templates(room.directory)
    assert sorted(path.name for path in written) == [
        "duckdb_python_config.toml",
        "env.example",
        "replicator.toml",
        "secrets.example.toml",
    ]
    assert (room.directory / RUST).read_text() == "# mine\n"
    assert write_templates(room.directory) == []


def test_templates_that_cannot_be_written_are_an_error_with_the_place(room: Room) -> None:
    room.write("file", "")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_templates(room.directory / "file" / "config")


def test_what_ships_is_found_beside_the_package(tmp_path: Path) -> None:
    assert tomli.loads((config_templates_dir() / PIPELINE).read_text())["tables"]
    assert list((migrations_dir() / "duckdb").glob("*.sql"))
