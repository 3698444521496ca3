"""A query sent as a form: its parameters as fields, its external tables as files.

Pure. Forms are for queries, not for loads: they are held in memory whole.
"""

from __future__ import annotations

from email.message import Message

from attrs import field, frozen

TABLE_SUFFIXES = ("_format", "_types", "_structure")
"""What a URL says about an external table, after its name."""


@frozen(kw_only=True)
class Form:
    """The parts of a multipart body, by name."""

    fields: dict[str, str] = field(factory=dict)
    files: dict[str, bytes] = field(factory=dict)


@frozen(kw_only=True)
class ExternalTable:
    """Rows that come with a query and last as long as it does."""

    name: str
    structure: str
    format_name: str
    path: str

    def preparations(self) -> list[str]:
        """The statements that make it a temporary table."""
        name = "`" + self.name.replace("\\", "\\\\").replace("`", "\\`") + "`"
        path = self.path.replace("\\", "\\\\").replace("'", "\\'")
        return [
            f"CREATE TEMPORARY TABLE {name} ({self.structure})",
            f"INSERT INTO {name} FROM INFILE '{path}' COMPRESSION 'none' FORMAT {self.format_name}",
        ]


def is_form(content_type: str) -> bool:
    """Whether a body of this type is a form."""
    return content_type.strip().lower().startswith("multipart/form-data")


def read_form(content_type: str, body: bytes) -> Form:
    """Take a multipart body apart."""
    boundary = str(_header(content_type).get_param("boundary", "")).encode()
    form = Form()
    for part in (b"\r\n" + body).split(b"\r\n--" + boundary)[1:]:
        head, found, content = part.partition(b"\r\n\r\n")
        if not found:
            continue  # the closing boundary
        disposition = _disposition(head)
        name = str(disposition.get_param("name", ""))
        if disposition.get_param("filename") is None:
            form.fields[name] = content.decode("utf-8", "surrogateescape")
        else:
            form.files[name] = content
    return form


def described_table(name: str, path: str, values: dict[str, str]) -> ExternalTable:
    """An external table as the URL describes it; its columns are called _1, _2 … when only their types are given."""
    types = values.get(f"{name}_types", "")
    numbered = ", ".join(f"_{at} {column}" for at, column in enumerate(types.split(","), start=1) if column)
    return ExternalTable(
        name=name,
        structure=values.get(f"{name}_structure") or numbered,
        format_name=values.get(f"{name}_format", "TabSeparated"),
        path=path,
    )


def _disposition(head: bytes) -> Message:
    for line in head.decode("utf-8", "surrogateescape").split("\r\n"):
        title, _, text = line.partition(":")
        if title.strip().lower() == "content-disposition":
            return _header(text.strip())
    return _header("")


def _header(text: str) -> Message:
    message = Message()
    message["Content-Type"] = text  # get_param reads this header
    return message
