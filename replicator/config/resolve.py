"""One section resolved: the layers merged by precedence, then every key judged, with all problems collected.

A wrong value is recorded with file, key, value and remedy, and its default stands in for it, so that the rest can
still be judged; the load fails at the end.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from attrs import define, evolve, field, fields, frozen
from cattrs import ClassValidationError, Converter, ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn, override

from replicator.config.checks import PathText, WrongValueError, shown, shown_key, type_name, without_credentials
from replicator.config.layers import (
    PIPELINE_FILE,
    READER_FILE,
    SECRETS_FILE,
    WRITER_FILE,
    Document,
    Findings,
    Sourced,
    variable_for,
)
from replicator.config.values import (
    PROFILE_SECTIONS,
    REPLICATOR_SECTIONS,
    SECRETS_SECTIONS,
    Key,
    Setting,
    TableConfig,
    key_of,
    written_keys,
)
from replicator.errors import ConfigError

SECTIONS: Mapping[str, Mapping[str, type]] = {
    WRITER_FILE: PROFILE_SECTIONS,
    READER_FILE: PROFILE_SECTIONS,
    PIPELINE_FILE: {**REPLICATOR_SECTIONS, "tables": TableConfig},
    SECRETS_FILE: SECRETS_SECTIONS,
}
OLD_NAMES = {"sync_interval_sec": "backup_interval_sec"}
_SENSITIVE = re.compile(r"pass|secret|token|key|cred|auth", re.IGNORECASE)


@cache
def _structurer(kind: type) -> Any:
    """cattrs' function for one section: unknown keys forbidden, each key judged by its own check."""
    converter = Converter(detailed_validation=True, forbid_extra_keys=True)
    hooks = {}
    for attribute in fields(kind):
        key = key_of(attribute)
        hooks[attribute.name] = override(omit=True) if key.home else override(struct_hook=partial(_judge, key.check))
    return make_dict_structure_fn(kind, converter, _cattrs_forbid_extra_keys=True, **hooks)


def _judge(check: Any, value: Any, _: Any) -> Any:
    return check(value)


@frozen(kw_only=True)
class Spot:
    """One section as it stands: its class, the file whose keys it has, its name, and how an error names it.

    ``role`` differs from the file's own name where a profile is called otherwise.
    """

    kind: type
    role: str
    name: str
    place: str

    def key(self, name: str) -> tuple[str, str, str]:
        return (self.role, self.name, name)

    def anchored(self, name: str, value: Any, base: Path) -> Any:
        """The value with what a path's check needs to know; any other value as it is."""
        known = written_keys(self.kind).get(name)
        if not known or not known.path:
            return value
        variable = variable_for(self.role, self.name, name)
        return PathText(written=value, base=base, variable=variable.name if variable else None)


@define(kw_only=True)
class Resolver:
    """The state of one load: the variables that are set, what was found wrong, and where each value came from."""

    base: Path
    variables: Mapping[str, Sourced]
    findings: Findings
    sources: dict[tuple[str, str, str], str] = field(factory=dict)

    def sections(self, document: Document, role: str, defaults: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Every section of a file but ``[[tables]]``, by name."""
        known = SECTIONS[role]
        for name in document.tables:
            if name not in known:
                self._unknown_section(document, role, name)
        resolved = {}
        for name, kind in known.items():
            if name != "tables":
                spot = Spot(kind=kind, role=role, name=name, place=f"{document.path} [{name}]")
                resolved[name] = self._section(spot, document.tables.get(name, {}), defaults.get(name, {}))
        return resolved

    def _section(self, spot: Spot, written: Any, defaults: Mapping[str, Any]) -> Any:
        if not isinstance(written, dict):
            value = "(hidden)" if spot.role == SECRETS_FILE else shown(written)
            self.findings.problems.append(
                f"{spot.place}: {spot.name} = {value} is {type_name(written)}; "
                f"write the header [{spot.name}] on a line of its own"
            )
            written = {}
        source = SECRETS_FILE if spot.role == SECRETS_FILE else "file"
        values = {k: Sourced(value=v, source="default", place=spot.place) for k, v in defaults.items()}
        values |= {k: Sourced(value=v, source=source, place=spot.place) for k, v in written.items()}
        for key in written_keys(spot.kind):
            variable = variable_for(spot.role, spot.name, key)
            if variable and variable.name in self.variables:
                values[key] = self.variables[variable.name]
        section = self.judge(spot, values, defaults)
        if section is None:  # even the default cannot be used here, so nothing can be said of the rest
            raise ConfigError(self.findings.problems)
        return section

    def judge(self, spot: Spot, values: Mapping[str, Sourced], defaults: Mapping[str, Any]) -> Any:
        """The section's value, wrong keys replaced by their defaults; None where one without a default is wrong."""
        values = self._without_old_names(spot, values)
        raw = {key: spot.anchored(key, found.value, self.base) for key, found in values.items()}
        structure = _structurer(spot.kind)
        bad: set[str] = set()
        try:
            section = structure(raw, spot.kind)
        except ClassValidationError as error:
            bad = self._record(spot, values, error)
            good = {key: value for key, value in raw.items() if key not in bad}
            good |= {key: spot.anchored(key, defaults[key], self.base) for key in bad & set(defaults)}
            try:
                section = structure(good, spot.kind)
            except ClassValidationError:
                return None
        self.sources |= {spot.key(key): found.source for key, found in values.items() if key not in bad}
        return section

    def clash(self, text: str, *keys: tuple[str, str, str]) -> None:
        """A contradiction between keys, unless one of them is already known to be wrong."""
        if not self.findings.wrong.intersection(keys):
            self.findings.problems.append(text)

    def warn(self, text: str) -> None:
        self.findings.warnings.append(text)

    def explain(self, role: str, name: str, section: Any) -> list[Setting]:
        """One row per key that may be written in this section."""
        return [
            Setting(
                file=role,
                section=name,
                key=key,
                value=_displayed(known, getattr(section, key)),
                source=self.sources.get((role, name, key), "default"),
                consumer=known.reader if role == READER_FILE else known.consumer,
            )
            for key, known in written_keys(type(section)).items()
        ]

    def _without_old_names(self, spot: Spot, values: Mapping[str, Sourced]) -> dict[str, Sourced]:
        """The values under today's names; two names for one key must not differ."""
        values = dict(values)
        for key, old in OLD_NAMES.items():
            if key not in written_keys(spot.kind) or old not in values:
                continue
            found = values.pop(old)
            if key in values and values[key].value != found.value:
                self.findings.wrong.add(spot.key(key))
                self.findings.problems.append(
                    f"{found.place} {old} = {shown(found.value)}: contradicts {key} = {shown(values[key].value)}, "
                    f"the same setting under its other name; keep {key}"
                )
            values[key] = evolve(found, place=f"{found.place} {old}")
        return values

    def _record(self, spot: Spot, values: Mapping[str, Sourced], error: ClassValidationError) -> set[str]:
        """Every problem of a section as a sentence; the keys they concern."""
        bad: set[str] = set()
        located, general = error.group_exceptions()
        for exception, note in located:
            bad.add(note.name)
            self.findings.wrong.add(spot.key(note.name))
            if isinstance(exception, WrongValueError):
                known = written_keys(spot.kind)[note.name]
                self.findings.problems.append(_sentence(note.name, known, values[note.name], exception))
            elif isinstance(exception, KeyError):
                self.findings.problems.append(f"{spot.place} {note.name}: is missing; every table needs it")
            else:
                raise exception  # ours: a check raises WrongValueError and nothing else
        for exception in general:
            if not isinstance(exception, ForbiddenExtraKeysError):
                raise exception
            bad |= exception.extra_fields
            for key in sorted(exception.extra_fields):
                self.findings.problems.append(_unknown_key(spot, key, values[key]))
        return bad

    def _unknown_section(self, document: Document, role: str, name: str) -> None:
        value = document.tables[name]
        homes, files = _homes(name), [file for file, sections in SECTIONS.items() if name in sections]
        if isinstance(value, dict):
            problem = f"[{shown_key(name)}] is not a known section"
        else:
            problem = f"{shown_key(name)} = {_shown_unknown(role, name, value)} stands outside any section"
        if homes and not isinstance(value, dict):
            remedy = f"it belongs in {homes[0]}"
        else:
            remedy = f"it belongs in {files[0]}" if files else _guess(name, SECTIONS[role], "sections")
        self.findings.problems.append(f"{document.path}: {problem}; {remedy}")


def _unknown_key(spot: Spot, key: str, found: Sourced) -> str:
    value = _shown_unknown(spot.role, key, found.value)
    return f"{found.place} {shown_key(key)} = {value}: is not a known key; {_remedy(spot, key)}"


def _shown_unknown(role: str, key: str, value: Any) -> str:
    """An unknown key's value, unless it could be a secret under a wrong name."""
    return "(hidden)" if role == SECRETS_FILE or _SENSITIVE.search(key) else shown(value)


def _sentence(key: str, known: Key, found: Sourced, wrong: WrongValueError) -> str:
    """``place key = value: problem; remedy``; the place of a variable already names it."""
    if known.secret:
        value = "(hidden)"
    elif known.url and isinstance(found.value, str):
        value = shown(without_credentials(found.value))
    else:
        value = shown(found.value)
    subject = f"{found.place} {key}{wrong.at}" if found.place.endswith("]") else found.place
    return f"{subject} = {value}: {wrong.problem}; {wrong.remedy}"


def _homes(key: str) -> list[str]:
    """The sections, with their files, in which a key may be written."""
    return [
        f"[{section}] of {file}"
        for file, sections in SECTIONS.items()
        for section, kind in sections.items()
        if key in written_keys(kind)
    ]


def _remedy(spot: Spot, key: str) -> str:
    derived = {a.name: key_of(a).home for a in fields(spot.kind) if key_of(a).home}
    if key in derived:
        return f"it belongs in {derived[key]}, or in the environment"
    candidates = written_keys(spot.kind)
    close = difflib.get_close_matches(key[:60], candidates, n=1, cutoff=0.75)
    homes = _homes(key)
    if not close and homes:
        return f"it belongs in {homes[0]}"
    return _guess(key, candidates, f"keys of [{spot.name}]")


def _guess(word: str, candidates: Mapping[str, Any], what: str) -> str:
    close = difflib.get_close_matches(word[:60], candidates, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"the {what} are: {', '.join(candidates)}"


def _displayed(known: Key, value: Any) -> str:
    if known.secret:
        return "(hidden)" if value else "(not set)"
    if value is None or value in ((), "", {}):
        return "(not set)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(str(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown_type(declared)}" for name, declared in value.items())
    return without_credentials(value) if known.url else str(value)


def shown_type(declared: Any) -> str:
    return str(declared.get("type", "?")) if isinstance(declared, dict) else str(declared)
