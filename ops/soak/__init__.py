"""What the tests do in minutes, for hours, with figures: ``python -m ops.soak storm``, ``faults``, ``outage`` …

Runs from a checkout. The rooms, the fault proxy and the comparison are those of the tests, in ``tests/``.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))
