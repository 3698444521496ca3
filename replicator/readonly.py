"""What a reader may ask: one statement that only reads our tables, judged by its parsed tree.

Guarantees: only known kinds of nodes, functions and relations pass; what is new or unknown is refused, whatever the
statement's type or text looks like. Beneath it the instance itself is locked (see `database`) and the query runs in a
READ ONLY transaction: each holds alone. Must never judge by searching the text, nor run anything it did not pass.
"""

from __future__ import annotations

# ruff: noqa: SIM905 - many words read best as words
import json
from collections.abc import Iterator
from typing import Any

from attrs import define, field

from replicator.database import Session, statement
from replicator.errors import UsageError

SQL_CHARACTERS_MAX = 100_000
DEPTH_MAX = 500
"""Levels of the serialized tree: about 150 nested terms."""
LAMBDA_DEPTH_MAX = 5
"""Binding nested lambdas takes time that doubles with each, and cannot be interrupted. Source: measured on DuckDB 2.0.0."""
NAME_PARTS_MAX = 10

EXPRESSIONS = frozenset(
    "BETWEEN CASE CAST COLLATE COLUMN_REF COMPARISON CONJUNCTION CONSTANT FUNCTION LAMBDA LAMBDA_REF OPERATOR "
    "PARAMETER POSITIONAL_REFERENCE STAR SUBQUERY TYPE WINDOW".split()
)
NODES = frozenset(
    "SELECT_NODE SET_OPERATION_NODE RECURSIVE_CTE_NODE CTE_NODE "
    "BASE_TABLE EMPTY EXPRESSION_LIST JOIN PIVOT SHOW_REF SUBQUERY TABLE_FUNCTION "
    "DISTINCT_MODIFIER LIMIT_MODIFIER LIMIT_PERCENT_MODIFIER ORDER_MODIFIER "
    "ORDER_DEFAULT ASCENDING DESCENDING".split()
)
TABLE_FUNCTIONS = frozenset(
    "duckdb_columns duckdb_tables duckdb_views generate_series json_each json_tree range unnest".split()
)
CATALOG_VIEWS = frozenset("duckdb_columns duckdb_tables duckdb_views".split())
INFORMATION_VIEWS = frozenset("columns schemata tables".split())
LISTINGS = frozenset(('"tables"', "__show_tables_expanded"))
FUNCTIONS_REFUSED = frozenset(
    "current_setting currval get_block_size getenv getvariable json_serialize_plan nextval parse_duckdb_log_message "
    "pg_sleep query setseed setval sleep_ms stats variant_bytes_to_variant vector_type write_log "
    "combine combine_aggr finalize to_aggregate_state".split()
)
"""Functions of DuckDB that write, wait, read settings, or take raw bytes for a structure of its own."""

HINT = (
    "ask with one SELECT over tables, views, json_each, json_tree, range and unnest; to change data, XADD to its stream"
)


class QueryRefused(UsageError):
    """The statement could do more than read our tables."""


def check_query(session: Session, sql: str) -> dict[str, Any]:
    """The parsed tree of one statement that only reads our tables. Raises QueryRefused, or UsageError for no SQL."""
    if "\x00" in sql:
        raise _refused("the query holds a NUL character")
    try:
        sql.encode()
    except UnicodeEncodeError as error:
        raise _refused("the query is not UTF-8") from error
    if len(sql) > SQL_CHARACTERS_MAX:
        raise _refused(f"the query has {len(sql):,} characters; at most {SQL_CHARACTERS_MAX:,} are taken")
    tree = _parsed(session, sql)
    relations = frozenset(name for (name,) in session.rows(statement("readonly/relations")))
    macros = frozenset(name for (name,) in session.rows(statement("readonly/macros")))
    functions = (_asked_once(session, "functions") | {"unnest"}) - FUNCTIONS_REFUSED
    internal = _asked_once(session, "internal_views")
    _Judge(functions=functions, relations=relations, macros=macros, internal=internal).visit(tree)
    return tree


def _parsed(session: Session, sql: str) -> dict[str, Any]:
    try:
        row = session.row("select json_serialize_sql(?)", [sql])
        assert row is not None
        parsed = json.loads(row[0])
    except RecursionError as error:
        raise _refused("the query is nested too deeply") from error
    if parsed["error"]:
        text = str(parsed["error_message"])
        if "Only SELECT" in text:
            raise _refused("only a SELECT may be asked")
        raise UsageError(f"the query cannot be parsed: {text[:400]}", code="syntax")
    if len(parsed["statements"]) != 1:
        raise _refused(f"one statement may be asked, not {len(parsed['statements'])}")
    node: dict[str, Any] = parsed["statements"][0]["node"]
    return node


_names: dict[str, frozenset[str]] = {}


def _asked_once(session: Session, name: str) -> frozenset[str]:
    """Names that are the same in every file of this DuckDB."""
    if name not in _names:
        _names[name] = frozenset(row[0] for row in session.rows(statement(f"readonly/{name}")))
    return _names[name]


def _refused(what: str) -> QueryRefused:
    return QueryRefused(what, hint=HINT, code="refused")


@define
class _Judge:
    """Walks the tree; ``names`` of common table expressions are gathered first, since they pass as relations."""

    functions: frozenset[str]
    relations: frozenset[str]
    macros: frozenset[str]
    """Ours, such as T_as_of: they read tables as a view does."""
    internal: frozenset[str]
    names: set[str] = field(factory=set)

    def visit(self, tree: Any) -> None:
        self.names = {name.lower() for name in _cte_names(tree)}
        for name in self.names:
            if not name.isprintable() or any(c in name for c in "/\\.:*?"):
                raise _refused(f"{name[:80]!r} may not be the name of a common table expression")
        if taken := self.names & self.internal:
            raise _refused(f"{min(taken)} is DuckDB's own name and may not be given to a common table expression")
        self._walk(tree, 0, 0)

    def _walk(self, node: Any, depth: int, lambdas: int) -> None:
        if depth > DEPTH_MAX:
            raise _refused("the query is nested too deeply")
        if isinstance(node, list):
            for item in node:
                self._walk(item, depth + 1, lambdas)
        elif isinstance(node, dict):
            self._judge(node)
            lambdas += node.get("class") == "LAMBDA"
            if lambdas > LAMBDA_DEPTH_MAX:
                raise _refused(f"lambdas may be nested {LAMBDA_DEPTH_MAX} deep")
            skip = "function" if node.get("type") == "TABLE_FUNCTION" else None
            for key, value in node.items():
                if key == skip:
                    self._walk(value["arguments"], depth + 1, lambdas)
                elif isinstance(value, dict | list):
                    self._walk(value, depth + 1, lambdas)

    def _judge(self, node: dict[str, Any]) -> None:
        kind, expression = node.get("type"), node.get("class")
        if expression is not None:
            if expression not in EXPRESSIONS:
                raise _refused(f"a {str(expression).lower()} expression may not be asked")
            if expression in ("FUNCTION", "WINDOW"):
                self._function(node)
            elif expression == "TYPE" and (node["catalog"] or node["schema"]):
                raise _refused(f"the type {node['type_name']} of another schema may not be asked")
            elif len(node.get("column_names") or ()) > NAME_PARTS_MAX:
                raise _refused(f"a name has at most {NAME_PARTS_MAX} parts")
        elif isinstance(kind, str):
            if kind not in NODES:
                raise _refused(f"{kind.lower().replace('_', ' ')} may not be asked")
            if kind == "BASE_TABLE":
                self._relation(node)
            elif kind == "TABLE_FUNCTION":
                self._table_function(node["function"])
            elif kind == "SHOW_REF":
                self._listing(node)

    def _function(self, node: dict[str, Any]) -> None:
        """Its name alone counts: what stands before it may be a schema or, as in ``price.round()``, a column."""
        name = str(node["function_name"])
        if name.lower() not in self.functions:
            raise _refused(f"the function {name[:80]} may not be asked")

    def _table_function(self, function: dict[str, Any]) -> None:
        name = str(function.get("function_name", "")).lower()
        if function.get("catalog") or function.get("schema") or name not in TABLE_FUNCTIONS | self.macros:
            raise _refused(f"the table function {name[:80]} may not be asked")

    def _relation(self, node: dict[str, Any]) -> None:
        schema, name = str(node["schema_name"]).lower(), str(node["table_name"])
        plain = name.lower()
        if node["catalog_name"] or node["at_clause"] or len(node["qualified_name"]["path"]) > 2:
            raise _refused(f"{'.'.join(node['qualified_name']['path'])[:80]}: other databases may not be asked")
        ours = schema in ("", "main") and (plain in self.relations or (not schema and plain in self.names))
        catalog = (schema == "information_schema" and plain in INFORMATION_VIEWS) or (
            not schema and plain in CATALOG_VIEWS
        )
        if not ours and not catalog:
            raise QueryRefused(
                f"there is no table {name[:80]} that may be asked",
                hint="`show tables` lists them; files, settings and other databases may not be asked",
                code="refused",
            )

    def _listing(self, node: dict[str, Any]) -> None:
        """SHOW, DESCRIBE and SUMMARIZE, of a query or of one of our tables."""
        name = str(node["table_name"])
        if node["query"] is None and name not in LISTINGS and name.strip('"').lower() not in self.relations:
            raise _refused(f"show {name[:80]} may not be asked")


def _cte_names(node: Any) -> Iterator[str]:
    stack = [node]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            if isinstance(node.get("cte_map"), dict):
                yield from (str(entry["key"]) for entry in node["cte_map"]["map"])
            stack += [value for value in node.values() if isinstance(value, dict | list)]
        elif isinstance(node, list):
            stack += node
