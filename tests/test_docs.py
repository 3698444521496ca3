"""The documentation is complete and does not lie: every command, setting, variable and table is in it, and what its
examples call exists.
"""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import click
import pytest
from repository import ROOT, committed

from ops.reference import PAGES
from replicator.cli import cli
from replicator.config import VARIABLES
from replicator.config.values import PROFILE_SECTIONS, REPLICATOR_SECTIONS, SECRETS_SECTIONS, TableConfig, written_keys
from replicator.schema import COLUMN_KEYS
from replicator.status_reasons import ReasonKind

README = (ROOT / "README.md").read_text()
DOCUMENTS = {path: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "ops").glob("*.md")))}
EVERYTHING = "\n".join(DOCUMENTS.values())
SECTIONS = [item for part in (PROFILE_SECTIONS, REPLICATOR_SECTIONS, SECRETS_SECTIONS) for item in part.items()]
MIGRATIONS = [p.read_text() for p in sorted((ROOT / "migrations").rglob("*.sql"))]
MAKE_TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@cache
def commands() -> dict[str, click.Command]:
    """Every command by the words that call it."""
    return dict(_walk(cli, ()))


def _walk(group: click.Group, words: tuple[str, ...]) -> list[tuple[str, click.Command]]:
    context = click.Context(group)
    found: list[tuple[str, click.Command]] = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        found.append((" ".join((*words, name)), command))
        if isinstance(command, click.Group):
            found += _walk(command, (*words, name))
    return found


def _table_cells(heading: str) -> str:
    return README.partition(f"## {heading}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("name", [name for name in commands() if " " not in name])
def test_every_command_is_documented(name: str) -> None:
    assert f"`replicator {name}`" in _table_cells("Commands")


@pytest.mark.parametrize("name", [name for name in commands() if " " in name])
def test_every_subcommand_stands_beside_its_command(name: str) -> None:
    group, _, verb = name.rpartition(" ")
    (line,) = [line for line in _table_cells("Commands").splitlines() if f"`replicator {group}`" in line]
    assert f"`{verb}`" in line


@pytest.mark.parametrize("name", commands())
def test_every_command_and_option_has_help(name: str) -> None:
    command = commands()[name]
    assert command.help, f"{name} has no help"
    bare = [p.name for p in command.params if isinstance(p, click.Option) and not p.help and not p.show_default]
    assert [option for option in bare if option not in SAYS_IT_BY_ITS_VALUES] == []


SAYS_IT_BY_ITS_VALUES = {"file_format"}


@pytest.mark.parametrize(("section", "kind"), SECTIONS)
def test_every_setting_is_documented(section: str, kind: type) -> None:
    rows = [line for line in _table_cells("Settings").splitlines() if f"`[{section}]`" in line]
    for key in written_keys(kind):
        assert any(f"`{key}`" in row for row in rows), f"[{section}] {key}"


def test_every_key_of_a_table_is_documented() -> None:
    (row,) = [line for line in _table_cells("Settings").splitlines() if "`[[tables]]`" in line]
    assert [key for key in written_keys(TableConfig) if f"`{key}`" not in row] == []


@pytest.mark.parametrize("key", COLUMN_KEYS)
def test_every_key_of_a_column_is_documented(key: str) -> None:
    (row,) = [line for line in _table_cells("Settings").splitlines() if "`[tables.columns]`" in line]
    assert f"`{key}`" in row
    example = (ROOT / "config" / "replicator.toml").read_text()
    assert key == "type" or f"{key} = " in example


@pytest.mark.parametrize("variable", [v.name for v in VARIABLES])
def test_every_environment_variable_is_documented(variable: str) -> None:
    assert f"`{variable}`" in _table_cells("Settings")
    assert f"{variable}=" in (ROOT / "config" / "env.example").read_text()


@pytest.mark.parametrize(
    "table",
    sorted({name for text in MIGRATIONS for name in re.findall(r"create table (?:if not exists )?(\w+)", text)}),
)
def test_every_table_is_documented(table: str) -> None:
    assert f"`{table}`" in _table_cells("What is where")


def test_every_module_stands_in_the_order_of_reading() -> None:
    listed = set(re.findall(r"`(\w+)/?`", _table_cells("The code, in reading order"))) - {"ops", "tests"}
    modules = {path.parts[1].removesuffix(".py") for path in committed() if path.parts[0] == "replicator"}
    modules -= {"__init__", "__main__", "sql"}
    families = {name for name in modules if any(name.startswith(f"{other}_") for other in listed)}
    assert modules - listed - families == set(), "not in the README"
    gone = {
        n for n in listed if not (ROOT / "replicator" / n).is_dir() and not (ROOT / "replicator" / f"{n}.py").exists()
    }
    assert gone == set(), "in the README, but there is no such module"


@pytest.mark.parametrize("page", PAGES)
def test_generated_pages_are_what_the_code_says(page: str) -> None:
    assert (ROOT / "ops" / page).read_text() == PAGES[page](), "python -m ops.reference"


def test_every_kind_of_reason_has_a_heading_in_the_runbook() -> None:
    reasons = DOCUMENTS[ROOT / "ops" / "runbook.md"].partition("\n## Reasons\n")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^### (\w+)$", reasons, re.MULTILINE)) == sorted(ReasonKind)


# ── what the examples call ──


def example_lines() -> list[str]:
    """Every line of every shell block."""
    blocks = re.findall(r"```sh\n(.*?)```", EVERYTHING, re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_every_make_target_named_exists() -> None:
    named = set(re.findall(r"`make (\w+)", EVERYTHING)) | {
        line.split()[1] for line in example_lines() if line.startswith("make ")
    }
    assert named and named <= MAKE_TARGETS


def test_every_command_called_exists_with_its_options() -> None:
    called = re.findall(r"(?:^|[;&|] *)(replicator [^;&|>#\n]*)", "\n".join(example_lines()), re.MULTILINE)
    assert len(called) > 5
    for line in called:
        words = shlex.split(line)[1:]
        names = [" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in commands()]
        assert names, line
        options = {text for p in commands()[names[0]].params for text in p.opts} | {"--config-dir", "--help"}
        assert [word for word in words if word.startswith("--") and word not in options] == [], line


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", DOCUMENTS[path])
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_every_exit_code_is_documented() -> None:
    codes = _table_cells("Commands")
    assert all(f"| {code} |" in codes for code in (0, 1, 2, 3, 4, 130))


def test_python_examples_compile() -> None:
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", EVERYTHING, re.DOTALL)):
        compile(block, f"python example {number}", "exec")


def test_toml_examples_are_tables_that_load() -> None:
    import tomli

    from replicator.schema import table_schema

    for block in re.findall(r"```toml\n(.*?)```", EVERYTHING, re.DOTALL):
        # a table as TOML has it: [tables.columns] belongs to the [[tables]] above it
        for table in tomli.loads(block)["tables"]:
            assert table_schema(table["name"], table["columns"], table["key"]).columns
