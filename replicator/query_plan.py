"""What a reader's query needs of each table, found in its parsed tree. Pure.

The query itself is computed in another process, so the service only hands over columns and rows. Guarantees: what is
handed over is never less than what the query sees; of one table, named once and filtered by plain comparisons, it is
not more rows either. Must never leave a condition away that it cannot write exactly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import field, frozen

from replicator.errors import UsageError
from replicator.schema import quote

Tree = Any
Columns = Mapping[str, str]
"""The columns of a relation with their types, in order."""

CARRIED = re.compile(
    r"(?:BOOLEAN|U?(?:TINY|SMALL|BIG)INT|U?INTEGER|FLOAT|DOUBLE|DECIMAL\(\d+,\d+\)|VARCHAR|BLOB|DATE|TIME"
    r"|TIMESTAMP(?:_S|_MS|_NS| WITH TIME ZONE)?)(?:\[\d*\])*"
)
"""Types that Arrow carries as they are. Others travel as text and are made anew."""
NARROW = re.compile(r"BOOLEAN|U?(?:TINY|SMALL|BIG)INT|U?INTEGER")
COMPARISONS = {
    "COMPARE_EQUAL": "=",
    "COMPARE_NOTEQUAL": "<>",
    "COMPARE_LESSTHAN": "<",
    "COMPARE_GREATERTHAN": ">",
    "COMPARE_LESSTHANOREQUALTO": "<=",
    "COMPARE_GREATERTHANOREQUALTO": ">=",
}
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_DATED = ("date", "timestamp", "timestamptz", "timestamp with time zone")


@frozen(kw_only=True)
class Feed:
    """One relation as the query needs it. ``once``: its rows are read in one pass and need not be kept."""

    relation: str
    columns: Columns
    arguments: tuple[str, ...] = ()
    """Of a table macro."""
    condition: str = ""
    parameters: tuple[Any, ...] = field(default=(), repr=False)
    once: bool = False

    @property
    def source_sql(self) -> str:
        """What the service selects."""
        names = ", ".join(
            quote(name) if CARRIED.fullmatch(kind) else f"cast({quote(name)} as varchar) as {quote(name)}"
            for name, kind in self.columns.items()
        )
        source = quote(self.relation) + (f"({', '.join(self.arguments)})" if self.arguments else "")
        return f"select {names} from {source}" + (f" where {self.condition}" if self.condition else "")

    @property
    def target_columns(self) -> str:
        """What the other process selects from the rows as they arrive."""
        return ", ".join(
            quote(name) if CARRIED.fullmatch(kind) else f"cast({quote(name)} as {kind}) as {quote(name)}"
            for name, kind in self.columns.items()
        )


def plan(
    tree: Tree, relations: Mapping[str, Columns], parameters: Sequence[Any] | Mapping[str, Any] | None
) -> list[Feed]:
    """The feeds of a judged query. ``relations`` are all that may be named, table macros among them.

    Raises UsageError where a macro is asked for in a way that cannot be handed over.
    """
    known = {name.lower(): name for name in relations}
    hidden = {name.lower() for node in _nodes(tree) for name in _cte_names(node)}
    named = [node for node in _sources(tree) if _name(node) in known]
    mentioned = _mentioned(tree, known)
    values = _values(parameters)
    feeds = []
    for key in dict.fromkeys(map(_name, named)):
        uses = [node for node in named if _name(node) == key]
        columns = relations[known[key]]
        wanted = columns if mentioned is None else {n: t for n, t in columns.items() if n.lower() in mentioned}
        arguments, needed = _arguments(uses, values)
        condition, compared = _condition(tree, uses[0], columns, values) if len(uses) == 1 else ("", [])
        feeds.append(
            Feed(
                relation=known[key],
                columns=wanted or _narrowest(columns),
                arguments=tuple(arguments),
                condition=condition,
                parameters=(*needed, *compared),
                once=len(named) == 1 and not hidden and _one_pass(tree, uses[0]),
            )
        )
    return feeds


def _name(source: Mapping[str, Any]) -> str:
    found: str = source["table_name"] if source["type"] == "BASE_TABLE" else source["function"]["function_name"]
    return found.lower()


def _arguments(uses: Sequence[Mapping[str, Any]], values: Mapping[str, Any]) -> tuple[list[str], list[Any]]:
    """What a macro is called with: constants and parameters, the same wherever the query names it."""
    if uses[0]["type"] == "BASE_TABLE":
        return [], []
    writer = _Writer(columns={}, qualifier="", parameters=values)
    written = []
    for use in uses:
        try:
            parts = [writer.write(argument["expression"]) for argument in use["function"]["arguments"]]
        except _Unwritable:
            raise UsageError(
                f"{_name(use)} takes a number, a time or a parameter, written out", hint="compute it first, then ask"
            ) from None
        written.append(([text for text, _ in parts], [value for _, needed in parts for value in needed]))
    if any(other != written[0] for other in written):
        raise UsageError(f"a query may ask {_name(uses[0])} for one moment only", hint="ask for the other by itself")
    return written[0]


def _nodes(tree: Tree) -> Iterator[dict[str, Any]]:
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            yield node
            stack += [value for value in node.values() if isinstance(value, dict | list)]
        elif isinstance(node, list):
            stack += node


def _cte_names(node: Mapping[str, Any]) -> Iterator[str]:
    found = node.get("cte_map")
    if isinstance(found, dict):
        yield from (entry["key"] for entry in found["map"])


def _sources(tree: Tree) -> list[dict[str, Any]]:
    """The tables and table functions whose rows are read: DESCRIBE and SHOW read none."""
    if isinstance(tree, list):
        return [found for item in tree for found in _sources(item)]
    if not isinstance(tree, dict) or (tree.get("type") == "SHOW_REF" and tree["show_type"] != "SUMMARY"):
        return []
    own = [tree] if tree.get("type") in ("BASE_TABLE", "TABLE_FUNCTION") else []
    return own + [found for value in tree.values() for found in _sources(value)]


def _mentioned(tree: Tree, known: Mapping[str, str]) -> set[str] | None:
    """Every name that may mean a column, in lower case; None when all columns are meant."""
    names: set[str] = set()
    aliases = set(known)
    for node in _nodes(tree):
        kind = node.get("type")
        if kind in ("STAR", "PIVOT", "SHOW_REF") or node.get("class") == "POSITIONAL_REFERENCE":
            return None
        if node.get("ref_type") == "NATURAL" or node.get("column_name_alias"):
            return None
        if kind in ("BASE_TABLE", "TABLE_FUNCTION"):
            aliases.add(node["alias"].lower())
        names.update(name.lower() for name in (*(node.get("column_names") or ()), *(node.get("using_columns") or ())))
        if node.get("class") in ("FUNCTION", "WINDOW"):
            names.update(str(node.get(key, "")).lower() for key in ("schema", "catalog"))
    tails = {node["column_names"][-1].lower() for node in _nodes(tree) if node.get("column_names")}
    return None if tails & aliases else names


def _narrowest(columns: Columns) -> Columns:
    """One column, for queries that only count."""
    name = next((name for name, kind in columns.items() if NARROW.fullmatch(kind)), next(iter(columns)))
    return {name: columns[name]}


def _one_pass(tree: Tree, table: Mapping[str, Any]) -> bool:
    odd = any(node.get("class") == "SUBQUERY" or node.get("type") in ("SHOW_REF", "PIVOT") for node in _nodes(tree))
    return not odd and not table.get("schema_name")


# ── conditions ──


class _Unwritable(Exception):
    """A condition holds something that is not simply a comparison."""


def _values(parameters: Sequence[Any] | Mapping[str, Any] | None) -> dict[str, Any]:
    if isinstance(parameters, Mapping):
        return dict(parameters)
    return {str(place): value for place, value in enumerate(parameters or (), start=1)}


def _condition(
    tree: Tree, table: Mapping[str, Any], columns: Columns, parameters: Mapping[str, Any]
) -> tuple[str, list[Any]]:
    """Those conditions of the SELECT that reads from the table alone which can be written for its source."""
    node = next((n for n in _nodes(tree) if n.get("from_table") is table and n.get("type") == "SELECT_NODE"), None)
    if node is None or node["where_clause"] is None or node["sample"] or table["sample"] or table["column_name_alias"]:
        return "", []
    where = node["where_clause"]
    parts = where["children"] if where["type"] == "CONJUNCTION_AND" else [where]
    writer = _Writer(
        columns={name.lower(): name for name in columns},
        qualifier=(table["alias"] or _name(table)).lower(),
        parameters=parameters,
    )
    written: list[str] = []
    values: list[Any] = []
    for part in parts:
        try:
            text, needed = writer.write(part)
        except _Unwritable:
            continue
        written.append(text)
        values += needed
    return " and ".join(written), values


@frozen(kw_only=True)
class _Writer:
    """Writes a condition anew from its tree: columns quoted, constants as literals, parameters as ``?``."""

    columns: Mapping[str, str]
    qualifier: str
    parameters: Mapping[str, Any] = field(repr=False)

    def write(self, node: Mapping[str, Any]) -> tuple[str, list[Any]]:  # noqa: PLR0911 - one for each kind of node
        """The text and the values of its parameters in order. Raises _Unwritable."""
        kind, values = node["type"], []

        def inner(child: Mapping[str, Any]) -> str:
            text, needed = self.write(child)
            values.extend(needed)
            return text

        match node["class"]:
            case "COLUMN_REF":
                return self._column(node["column_names"]), []
            case "CONSTANT":
                return _literal(node["literal"]), []
            case "PARAMETER" if isinstance(self.parameters.get(node["identifier"]), str | int | float):
                return "?", [self.parameters[node["identifier"]]]
            case "COMPARISON" if kind in COMPARISONS:
                return f"({inner(node['left'])} {COMPARISONS[kind]} {inner(node['right'])})", values
            case "BETWEEN" if kind == "COMPARE_BETWEEN":
                text = f"{inner(node['input'])} between {inner(node['lower'])} and {inner(node['upper'])}"
                return f"({text})", values
            case "CONJUNCTION":
                word = {"CONJUNCTION_AND": " and ", "CONJUNCTION_OR": " or "}[kind]
                return f"({word.join([inner(child) for child in node['children']])})", values
            case "OPERATOR":
                return f"({_operator(kind, [inner(child) for child in node['children']])})", values
            case "CAST" if _is_dated(node):
                return f"cast({inner(node['child'])} as {node['type_expr']['type_name']})", values
        raise _Unwritable

    def _column(self, path: Sequence[str]) -> str:
        name = self.columns.get(path[-1].lower())
        if name is None or len(path) > 2 or (len(path) == 2 and path[0].lower() != self.qualifier):
            raise _Unwritable
        return quote(name)


def _operator(kind: str, parts: Sequence[str]) -> str:
    match kind:
        case "COMPARE_IN":
            return f"{parts[0]} in ({', '.join(parts[1:])})"
        case "OPERATOR_NOT":
            return f"not {parts[0]}"
        case "OPERATOR_IS_NULL":
            return f"{parts[0]} is null"
        case "OPERATOR_IS_NOT_NULL":
            return f"{parts[0]} is not null"
    raise _Unwritable


def _literal(literal: Mapping[str, Any]) -> str:
    kind, text = literal["kind"], str(literal["text"])
    if kind == "STRING":
        return "'" + text.replace("'", "''") + "'"
    if kind in ("INTEGER", "NUMERIC") and _NUMBER.fullmatch(text):
        return text
    if kind == "BOOLEAN" and text in ("true", "false"):
        return text
    raise _Unwritable


def _is_dated(node: Mapping[str, Any]) -> bool:
    kind = node["type_expr"]
    plain = not (kind["schema"] or kind["catalog"] or kind["children"]) and not node["try_cast"]
    return plain and str(kind["type_name"]).lower() in _DATED and node["child"]["class"] in ("CONSTANT", "PARAMETER")
