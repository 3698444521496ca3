"""The contract and integration suites on real images: two Redis servers, two ClickHouse versions.

Each pair runs the suites below in a pytest of its own, whose engines come from the images. TEST_REDIS_IMAGES and
TEST_CLICKHOUSE_IMAGES (comma separated) name others. Where no Docker engine can supply an image, its pair is skipped
with the reason.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

import pytest
from container_engines import absent
from repository import ROOT

REDIS = os.environ.get("TEST_REDIS_IMAGES", "valkey/valkey:8.1,redis:7.4").split(",")
CLICKHOUSE = os.environ.get(
    "TEST_CLICKHOUSE_IMAGES", "clickhouse/clickhouse-server:25.3,clickhouse/clickhouse-server:25.8"
).split(",")
PAIRS = [(REDIS[n % len(REDIS)], CLICKHOUSE[n % len(CLICKHOUSE)]) for n in range(max(len(REDIS), len(CLICKHOUSE)))]
SUITES = (
    "tests/contract",
    "tests/integration/test_service_run.py",
    "tests/integration/test_unknown_outcome.py",
    "tests/integration/test_poison.py",
    "tests/integration/test_losses.py",
    "tests/integration/test_sink_returns.py",
    "tests/integration/test_alter.py",
    "tests/integration/test_arrow_traps.py",
    "tests/integration/test_verify.py",
    "tests/unit/test_both_sides.py",
)
SUITE_SECONDS = 1_500
reason = cache(absent)


@pytest.mark.timeout(SUITE_SECONDS + 60)
@pytest.mark.parametrize(("redis_image", "clickhouse_image"), PAIRS, ids=["/".join(pair) for pair in PAIRS])
def test_the_suites_pass_on_real_images(redis_image: str, clickhouse_image: str) -> None:
    why = reason(redis_image) or reason(clickhouse_image)
    if why:
        pytest.skip(why)
    chosen = os.environ.get("TEST_CONTAINER_SUITES", "").split() or SUITES
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen],
        cwd=ROOT,
        env={**os.environ, "TEST_REDIS_IMAGE": redis_image, "TEST_CLICKHOUSE_IMAGE": clickhouse_image},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SUITE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:]
