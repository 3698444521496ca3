"""What the service does without, so that its memory is spent on changes.

Guarantees that nothing changes but memory: what is kept out is loaded by libraries of their own accord, never used by us.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


class _Absent:
    """Finds pandas nowhere."""

    def find_spec(self, name: str, _path: Sequence[str] | None = None, _target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("pandas is kept out of the service", name=name)


def keep_out_pandas() -> None:
    """Have pyarrow take pandas as not installed; call it before anything makes an Arrow array.

    pyarrow loads it with its first array where it finds it, as it does beside the embedded ClickHouse, which needs it in
    a process of its own: 37 MB, and a third of a second at start. Source: measured with pyarrow 26 and pandas 3.
    """
    absent = _Absent()
    sys.meta_path.insert(0, absent)  # type: ignore[arg-type]
    try:
        import pyarrow as pa  # noqa: PLC0415 - only now

        pa.array([])
    finally:
        sys.meta_path.remove(absent)  # type: ignore[arg-type]
