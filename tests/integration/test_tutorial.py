"""The tutorial works: its shell blocks, run as they stand, in one shell, in an empty directory."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

SECONDS = 400


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 60)
def test_every_block_of_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    text = (ROOT / "ops" / "tutorial.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    assert len(blocks) > 7
    script = "set -euo pipefail\nexec 2>&1\n" + "\n".join(blocks)
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    process = subprocess.Popen(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**kept, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    try:
        out, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
        pytest.fail(f"it does not end:\n{out[-4000:]}")
    finally:
        if process.poll() is None or process.returncode:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    log = tmp_path / "run.log"
    assert process.returncode == 0, out[-6000:] + (log.read_text()[-3000:] if log.exists() else "")
    assert "OK" in out, "the status at the end"
