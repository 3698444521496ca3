"""The repository under test: where it is and which files belong to it."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOT_OURS = (".venv", "dist", "build")


@cache
def committed() -> list[Path]:
    """The files git knows, or those of an unpacked source distribution; relative to ROOT."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = listed.stdout.split("\0") if listed.returncode == 0 else []
    found = [Path(name) for name in names if name] or [p.relative_to(ROOT) for p in ROOT.rglob("*")]
    return [path for path in found if (ROOT / path).is_file() and not path.parts[0].startswith(NOT_OURS)]
