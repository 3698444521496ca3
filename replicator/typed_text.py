"""One column's value as a producer wrote it: does it fit, why not, and what is it, as SQL for DuckDB. Pure.

Every function takes ``text``, the SQL of a column that holds the JSON value's text (a string without its quotes, any
other value as written). Guarantees: whatever ``fits`` accepts, ``value`` turns into the exact value; a number may
come as a JSON number or as a string that holds one; instants are ISO 8601 (no offset means UTC) or whole epoch
milliseconds; floats take the nearest value of their width. Nothing here rounds, wraps or guesses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from replicator.column_types import ColumnType, Kind, parse_type
from replicator.schema import Column, literal

_NUMBER = r"(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]{1,3}))?"
_UUID = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_BASE64 = "([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"
_LOCAL_TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]%s)?)?"
_OFFSET = r"[+-](0[0-9]|1[0-5])(:?[0-5][0-9])?"
_SHOWN_CHARACTERS = 60
EPOCH_MS_MIN, EPOCH_MS_BEYOND = 10**11, 10**14
EPOCH_NS_MIN = 10**17
"""Whole numbers in the first band are epoch milliseconds; seconds lie below, micro- and nanoseconds above."""

Reasons = Sequence[tuple[str, str]]
"""Pairs of an SQL condition and what is wrong when it holds, most telling first."""


def value(column_type: ColumnType, text: str) -> str:
    """The typed value of a text that fits. The query fails on one that does not."""
    match column_type.kind:
        case Kind.VARCHAR | Kind.JSON:
            return text
        case Kind.BLOB:
            return f"from_base64({text})"
        case Kind.TIMESTAMP:
            return _instant(column_type, text)
        case Kind.INTEGER | Kind.DECIMAL:
            return _number(column_type, text)
    return f"cast({text} as {column_type.duckdb})"


def decimal_text(column_type: ColumnType, number: str) -> str:
    """A decimal as text with all digits of its scale. DuckDB writes none before the point where the type has none."""
    text = f"cast({number} as varchar)"
    if column_type.digits > column_type.scale:
        return text
    return f"case when {number} < 0 then '-0' || substr({text}, 2) else '0' || {text} end"


def fits(column: Column, text: str, payload: str) -> str:
    """Whether a text fits its column; SQL NULL only where ``text`` is NULL. The common forms are decided first."""
    fast, exact = _FITS[column.type.kind](column, text, payload)
    return fast if exact is None else f"case when {fast} then true when {text} is null then null else {exact} end"


def reason(column: Column, text: str, payload: str) -> str:
    """What is wrong with a text that is not NULL, as text; SQL NULL when it fits."""
    branches = " ".join(
        f"when {condition} then {literal(complaint)}"
        for condition, complaint in _REASONS[column.type.kind](column, text, payload)
    )
    return f"case {branches} end"


def shown(text: str) -> str:
    """A value for a person, clipped."""
    clipped = (
        f"left({text}, {_SHOWN_CHARACTERS}) || case when length({text}) > {_SHOWN_CHARACTERS} then '…' else '' end"
    )
    return f"'\"' || {clipped} || '\"'"


def json_pointer(name: str) -> str:
    """The path of a member, as an SQL constant."""
    return literal("/" + name.replace("~", "~0").replace("/", "~1"))


def _full(text: str, pattern: str) -> str:
    return f"regexp_full_match({text}, {literal(pattern)})"


def _castable(text: str, column_type: ColumnType) -> str:
    return f"try_cast({text} as {column_type.duckdb}) is not null"


# Numbers ---------------------------------------------------------------------------------------------------------


def _plain(text: str) -> str:
    """A number without exponent, every digit kept; SQL NULL when the text is no JSON number."""
    part = {place: f"regexp_extract({text}, {literal(_NUMBER)}, {place})" for place in (1, 2, 3, 4)}
    digits = f"({part[2]} || {part[3]})"
    point = f"(length({part[2]}) + cast({part[4]} as integer))"
    whole = f"left({digits}, greatest({point}, 0)) || repeat('0', greatest({point} - length({digits}), 0))"
    fraction = f"repeat('0', greatest(-{point}, 0)) || substr({digits}, greatest({point}, 0) + 1)"
    expanded = f"{part[1]} || '0' || {whole} || '.' || {fraction}"
    return f"case when not {_full(text, _NUMBER)} then null when {_has_exponent(text)} then {expanded} else {text} end"


def _has_exponent(text: str) -> str:
    return f"contains({text}, 'e') or contains({text}, 'E')"


def _number(column_type: ColumnType, text: str) -> str:
    """A cast that exponents do not reach: DuckDB 2.0.0 casts 0.0000000774659e11 to DECIMAL(9,2) as another number."""
    plain = f"case when {_has_exponent(text)} then {_plain(text)} else {text} end"
    return f"cast({plain} as {column_type.duckdb})"


def _surplus(text: str, scale: int) -> str:
    return f"length(rtrim(split_part({_plain(text)}, '.', 2), '0')) > {scale}"


def _integer_fits(column: Column, text: str, _payload: str) -> tuple[str, str]:
    castable = _castable(_plain(text), column.type)
    fast = f"coalesce(cast(try_cast({text} as {column.type}) as varchar) = {text}, false)"
    return fast, f"coalesce(not {_surplus(text, 0)}, false) and {castable}"


def _decimal_fits(column: Column, text: str, _payload: str) -> tuple[str, str]:
    scale = column.type.scale
    decimals = rf"(\.[0-9]{{1,{scale}}})?" if scale else ""
    exact = f"{_plain(text)} is not null" if column.round else f"coalesce(not {_surplus(text, scale)}, false)"
    fast = f"{_full(text, '-?(0|[1-9][0-9]*)' + decimals)} and {_castable(text, column.type)}"
    return fast, f"{exact} and {_castable(_plain(text), column.type)}"


def _number_reasons(column: Column, text: str, _payload: str) -> Reasons:
    kind, scale = column.type, column.type.scale
    reasons = [(f"{_plain(text)} is null", f"is not a number, as {kind} needs")]
    if kind.kind is Kind.INTEGER:
        reasons.append((_surplus(text, 0), f"is not a whole number, as {kind} needs"))
    elif not column.round:
        remedy = f"send at most {scale} decimals, widen the column or set round = true"
        reasons.append((_surplus(text, scale), f"has more decimals than {kind} holds ({remedy})"))
    return [*reasons, (f"not {_castable(_plain(text), kind)}", f"is out of range for {kind}")]


_NAMED_FLOATS = "('NaN', 'Infinity', '-Infinity')"


def _float_fits(column: Column, text: str, _payload: str) -> tuple[str, None]:
    number = f"{_full(text, _NUMBER)} and isfinite(try_cast({text} as {column.type.duckdb}))"
    return f"case when {number} then true else {text} in {_NAMED_FLOATS} end", None


def _float_reasons(column: Column, text: str, _payload: str) -> Reasons:
    unnamed = f"{text} not in {_NAMED_FLOATS}"
    return [
        (f"{unnamed} and not {_full(text, _NUMBER)}", f"is not a number, as {column.type} needs"),
        (f"{unnamed} and not isfinite(try_cast({text} as {column.type.duckdb}))", f"is out of range for {column.type}"),
    ]


# Texts -----------------------------------------------------------------------------------------------------------


def _is_string(column: Column, text: str, payload: str) -> str:
    """Whether the value was a JSON string. Looks again at the payload only where its text could be something else."""
    ambiguous = (
        f"({text} >= '-' and {text} < ':') or ({text} >= '[' and {text} < '\\') or ({text} >= '{{' and {text} < '|') "
        f"or {text} in ('true', 'false', 'NaN', 'Infinity')"
    )
    kind = f"coalesce(try(json_type({payload}, {json_pointer(column.name)})), 'VARCHAR')"
    return f"case when {ambiguous} then {kind} = 'VARCHAR' else true end"


def _varchar_fits(column: Column, text: str, payload: str) -> tuple[str, None]:
    return f"case when {text} is not null then {_is_string(column, text, payload)} end", None


def _varchar_reasons(column: Column, text: str, payload: str) -> Reasons:
    return [(f"not ({_is_string(column, text, payload)})", f"is not a JSON string, as {column.type} needs (quote it)")]


def _blob_fits(column: Column, text: str, payload: str) -> tuple[str, None]:
    return f"{_full(text, _BASE64)} and {_is_string(column, text, payload)}", None


def _blob_reasons(column: Column, text: str, payload: str) -> Reasons:
    return [*_varchar_reasons(column, text, payload), (f"not {_full(text, _BASE64)}", "is not base64, as BLOB needs")]


def _enum_fits(column: Column, text: str, payload: str) -> tuple[str, None]:
    return f"{text} in ({_labels(column)}) and {_is_string(column, text, payload)}", None


def _labels(column: Column) -> str:
    return ", ".join(map(literal, column.type.values))


def _enum_reasons(column: Column, text: str, payload: str) -> Reasons:
    known = ", ".join(column.type.values[:20]) + (", …" if len(column.type.values) > 20 else "")
    return [
        *_varchar_reasons(column, text, payload),
        (f"{text} not in ({_labels(column)})", f"is not one of the enum's labels: {known}"),
    ]


def _uuid_fits(_column: Column, text: str, _payload: str) -> tuple[str, None]:
    return _full(text, _UUID), None


def _uuid_reasons(_column: Column, text: str, _payload: str) -> Reasons:
    return [(f"not {_full(text, _UUID)}", "is not a UUID (8-4-4-4-12 hexadecimal digits)")]


def _boolean_fits(_column: Column, text: str, _payload: str) -> tuple[str, None]:
    return f"{text} in ('true', 'false')", None


def _boolean_reasons(_column: Column, text: str, _payload: str) -> Reasons:
    return [(f"{text} not in ('true', 'false')", "is neither true nor false, as BOOLEAN needs")]


def _json_fits(_column: Column, text: str, _payload: str) -> tuple[str, None]:
    return f"case when {text} is not null then true end", None


def _json_reasons(_column: Column, _text: str, _payload: str) -> Reasons:
    return [("false", "")]


# Instants --------------------------------------------------------------------------------------------------------


def _instant(column_type: ColumnType, text: str) -> str:
    """Cast ignores an offset, so one that is not zero is taken off the text and subtracted."""
    unit, type_name = ("ns", "TIMESTAMP_NS") if column_type.scale == 9 else ("us", "TIMESTAMP")
    make = "make_timestamp_ns" if unit == "ns" else "make_timestamp"
    per_second = 10**column_type.scale
    tail = f"substr({text}, 17)"
    shifted = (
        f"right({text}, 1) <> 'Z' and right({text}, 6) <> '+00:00' and (contains({tail}, '+') or contains({tail}, '-'))"
    )
    part = [f"regexp_extract({text}, '([+-])([0-9]{{2}}):?([0-9]{{2}})?$', {place})" for place in (1, 2, 3)]
    seconds = f"(try_cast({part[1]} as bigint) * 3600 + try_cast('0' || {part[2]} as bigint) * 60)"
    offset = f"case when {part[0]} = '-' then -{seconds} else {seconds} end * {per_second}"
    local = f"try_cast(regexp_replace({text}, '[+-][0-9]{{2}}(:?[0-9]{{2}})?$', '') as {type_name})"
    iso = f"case when {shifted} then {make}(epoch_{unit}({local}) - {offset}) else try_cast({text} as {type_name}) end"
    epoch = f"{make}(try_cast({text} as bigint) * {per_second // 1000})"
    usual = f"suffix({text}, 'Z') and substr({text}, 5, 1) = '-'"
    instant = f"case when {usual} then try_cast({text} as {type_name}) when substr({text}, 5, 1) = '-' then {iso} else {epoch} end"
    return f"make_timestamptz(epoch_us({instant}))" if column_type.zoned else instant


def _bounds(column_type: ColumnType) -> tuple[str, str]:
    """What DateTime64 holds too; DuckDB's own range is wider, but its last nanosecond means infinity."""
    last = "2262-04-11 23:47:16.854775806" if column_type.scale == 9 else "2299-12-31 23:59:59.999999"
    name = "TIMESTAMP_NS" if column_type.scale == 9 else "TIMESTAMP"
    return f"{name} '1900-01-01 00:00:00'", f"{name} '{last}'"


def unzoned(column_type: ColumnType) -> ColumnType:
    """The type without its zone: what is compared with bounds must not depend on the session's zone."""
    return column_type if not column_type.zoned else _UNZONED


def _in_bounds(column_type: ColumnType, instant: str) -> str:
    low, high = _bounds(column_type)
    return f"coalesce({instant} between {low} and {high}, false)"


def _time_pattern(column_type: ColumnType) -> str:
    return _LOCAL_TIME % f"{{1,{column_type.scale}}}0*"


def _timestamp_fits(column: Column, text: str, _payload: str) -> tuple[str, str]:
    plain = unzoned(column.type)
    # What DuckDB parses and has this shape has no more decimals than the scale: an offset before Z does not parse.
    long = 21 + column.type.scale
    shape = f"{text} like '____-__-__T__:__:__%Z' and {text} not like '% Z' and strlen({text}) <= {long}"
    fast = f"{shape} and {_in_bounds(plain, f'try_cast({text} as {plain})')}"
    exact = f"({_full(text, f'{_time_pattern(column.type)}(Z|{_OFFSET})?')} or {_is_epoch_ms(text)})"
    return fast, f"{exact} and {_in_bounds(plain, f'try({_instant(plain, text)})')}"


def _is_epoch_ms(text: str) -> str:
    number = f"abs(try_cast({text} as hugeint))"
    return f"coalesce({_full(text, '-?[0-9]{1,30}')} and {number} >= {EPOCH_MS_MIN} and {number} < {EPOCH_MS_BEYOND}, false)"


def _timestamp_reasons(column: Column, text: str, _payload: str) -> Reasons:
    plain, number = unzoned(column.type), f"abs(try_cast({text} as hugeint))"
    whole = _full(text, "-?[0-9]{1,30}")
    advice = "send epoch milliseconds or ISO 8601"
    any_iso = _full(text, (_LOCAL_TIME % "+") + f"(Z|{_OFFSET})?")
    known = _full(text, f"{_time_pattern(column.type)}(Z|{_OFFSET})?")
    last = "2262-04-11" if column.type.scale == 9 else "2299-12-31"
    finer = "" if column.type.scale == 9 else "; declare TIMESTAMP_NS for nanoseconds"
    return [
        (f"{whole} and {number} < {EPOCH_MS_MIN}", f"looks like epoch seconds: {advice}"),
        (f"{whole} and {number} >= {EPOCH_NS_MIN}", f"looks like epoch nanoseconds: {advice}"),
        (f"{whole} and {number} >= {EPOCH_MS_BEYOND}", f"looks like epoch microseconds: {advice}"),
        (f"not {whole} and not {any_iso}", f"is not a timestamp: {advice}"),
        (f"not {whole} and not {known}", f"has more decimals than {column.type} holds{finer}"),
        (f"try({_instant(plain, text)}) is null", "is not a timestamp that exists"),
        (
            f"not {_in_bounds(plain, f'try({_instant(plain, text)})')}",
            f"is outside 1900-01-01..{last}, all that ClickHouse holds",
        ),
    ]


_DAY = "[0-9]{4}-[0-9]{2}-[0-9]{2}"


def _day_in_bounds(text: str) -> str:
    return f"coalesce(try_cast({text} as date) between date '1900-01-01' and date '2299-12-31', false)"


def _date_fits(_column: Column, text: str, _payload: str) -> tuple[str, None]:
    return f"case when {text} is not null then {_full(text, _DAY)} and {_day_in_bounds(text)} end", None


def _date_reasons(_column: Column, text: str, _payload: str) -> Reasons:
    return [
        (f"not {_full(text, _DAY)} or try_cast({text} as date) is null", "is not a date (YYYY-MM-DD)"),
        (f"not {_day_in_bounds(text)}", "is outside 1900-01-01..2299-12-31, all that ClickHouse holds"),
    ]


_UNZONED = parse_type("TIMESTAMP")

_FITS: Mapping[Kind, Callable[[Column, str, str], tuple[str, str | None]]] = {
    Kind.INTEGER: _integer_fits,
    Kind.DECIMAL: _decimal_fits,
    Kind.FLOAT: _float_fits,
    Kind.BOOLEAN: _boolean_fits,
    Kind.VARCHAR: _varchar_fits,
    Kind.BLOB: _blob_fits,
    Kind.UUID: _uuid_fits,
    Kind.DATE: _date_fits,
    Kind.TIMESTAMP: _timestamp_fits,
    Kind.JSON: _json_fits,
    Kind.ENUM: _enum_fits,
}
_REASONS: Mapping[Kind, Callable[[Column, str, str], Reasons]] = {
    Kind.INTEGER: _number_reasons,
    Kind.DECIMAL: _number_reasons,
    Kind.FLOAT: _float_reasons,
    Kind.BOOLEAN: _boolean_reasons,
    Kind.VARCHAR: _varchar_reasons,
    Kind.BLOB: _blob_reasons,
    Kind.UUID: _uuid_reasons,
    Kind.DATE: _date_reasons,
    Kind.TIMESTAMP: _timestamp_reasons,
    Kind.JSON: _json_reasons,
    Kind.ENUM: _enum_reasons,
}
