"""An outage and a restart, watched live without a reload."""

from __future__ import annotations

import pytest
import redis
from browser_room import READ_TOKEN, Page
from replicator_process import Replicator
from test_page import trades

from replicator.embedded.clickhouse import ClickHouse

pytestmark = pytest.mark.timeout(400)


def test_an_outage_of_clickhouse_and_its_recovery(
    looking: Page, service: Replicator, producer: redis.Redis, _clickhouse: ClickHouse
) -> None:
    service.until_status(lambda r: r["clickhouse"]["reachable"] and r["sink"]["lag_changes"] == 0, "all is delivered")
    looking.script("window.sameDocument = true")
    _clickhouse.stop()
    trades(producer, 1001, 1040)
    looking.until(lambda: looking.text("#sink-state") == "does not answer", "the page says that ClickHouse is silent")
    looking.until(lambda: (looking.figure("#figures dd") or 0) >= 40, "the lag is shown")
    assert looking.state == "degraded"
    assert looking.one("#state").get_attribute("data-state") == "degraded"
    assert looking.text("#sink-confirmed") == "unknown"
    assert looking.one("#edge-deliver").get_attribute("data-flow") == "stopped"
    looking.until(lambda: "degraded" in looking.text("#spoken"), "it is spoken")
    assert any("does not answer" in reason for reason in looking.texts("#reasons li"))
    assert list(looking.axe()) == []
    _clickhouse.start()
    looking.until(lambda: looking.figure("#figures dd") == 0, "it is caught up")
    looking.until(lambda: looking.text("#sink-state") == "answers", "ClickHouse answers")
    looking.until(lambda: any("ended: ClickHouse" in told for told in looking.texts("#events li")), "it is told")
    assert looking.one("#edge-deliver").get_attribute("data-flow") != "stopped"
    assert looking.script("return window.sameDocument"), "without a reload"


def test_a_service_that_stops_is_stale_and_comes_back(looking: Page, service: Replicator) -> None:
    looking.script("window.sameDocument = true")
    points = "return document.querySelectorAll('#events li').length"
    assert looking.script(points) >= 1
    assert service.stop() == 0
    looking.until(lambda: looking.link == "stale", "it says that it is stale")
    said = looking.text("#link-text")
    assert said.startswith("stale since ") and "trying again" in said
    assert "stale" in looking.text("#spoken")
    assert looking.one("#board").is_displayed(), "what was known is still there"
    assert list(looking.axe()) == []
    service.start()
    looking.until(lambda: looking.link == "live", "it is live again")
    assert looking.script("return window.sameDocument"), "without a reload"


def test_a_fresh_page_knows_the_hour_before_it(looking: Page, service: Replicator) -> None:
    with_words = ".plot-words"
    looking.until(lambda: "At most" in looking.texts(with_words)[0], "there are points")
    looking.open(service.url, READ_TOKEN)
    looking.until(lambda: "At most" in looking.texts(with_words)[0], "and they are there again")
