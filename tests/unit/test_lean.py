"""What the service keeps out of its memory."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
from replicator.lean import keep_out_pandas
keep_out_pandas()
import pyarrow as pa
import replicator.running
assert pa.table({"a": [1, None]}).num_rows == 2
assert not any(type(finder).__name__ == "_Absent" for finder in sys.meta_path)
print("pandas" in sys.modules)
"""


def test_the_service_does_not_load_pandas_where_it_is_installed() -> None:
    assert subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True).stdout == b"False\n"
