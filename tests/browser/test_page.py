"""The page as people meet it: who is let in, what is shown and how, and what a hostile name or a stranger can do."""

from __future__ import annotations

import json

import pytest
import redis
from browser_room import HOSTILE_STREAM, LONG_STREAM, READ_TOKEN, Page
from replicator_process import Replicator
from selenium.webdriver.common.keys import Keys

HOSTILE = '<script>window.owned=1</script><img src=x onerror="window.owned=1">'


def trades(producer: redis.Redis, first: int, last: int) -> None:
    pipe = producer.pipeline(transaction=False)
    for n in range(first, last + 1):
        pipe.xadd("trades", {"data": json.dumps({"trade_id": f"T{n}", "quantity": n})})
    pipe.execute()


# ── signing in ──


def test_nobody_sees_anything_before_signing_in(page: Page, service: Replicator) -> None:
    page.open(service.url)
    page.until(lambda: page.one("#token").is_displayed(), "the form is there")
    assert not page.one("#board").is_displayed()
    assert page.script("return document.activeElement.id") == "token"
    assert not [r for r in page.heed().requests if "/api/" in r["url"]]


def test_a_wrong_token_is_refused_in_words_and_kept_nowhere(page: Page, service: Replicator) -> None:
    page.open(service.url).sign_in("wrong-token-wrong-token")
    page.until(lambda: "not known" in page.text("#sign-in-fault"), "it says so")
    assert page.one("#sign-in-fault").get_attribute("role") == "alert"
    assert not page.one("#board").is_displayed()
    assert page.script("return [sessionStorage.length, localStorage.length, document.cookie]") == [0, 0, ""]
    page.sign_in("with spaces and é")
    page.until(lambda: "no spaces" in page.text("#sign-in-fault"), "it says so")


def test_the_token_stays_in_this_tab_and_out_of_every_address(looking: Page, service: Replicator) -> None:
    looking.heed()
    assert looking.script("return [document.cookie, location.href, document.referrer]") == ["", f"{service.url}/", ""]
    assert looking.script("return JSON.stringify(localStorage)") == "{}"
    assert not [r["url"] for r in looking.requests if READ_TOKEN in r["url"]]
    with_token = [r["url"] for r in looking.requests if "Authorization" in r["headers"]]
    assert with_token == [f"{service.url}/api/v1/live"]
    assert READ_TOKEN not in service.log_text
    looking.chrome.refresh()
    looking.until(lambda: looking.link == "live", "a reload stays signed in")
    looking.one("#sign-out").click()
    looking.until(lambda: looking.one("#token").is_displayed(), "signed out")
    assert looking.script("return sessionStorage.length") == 0


# ── what is shown ──


def test_the_page_shows_what_status_says(looking: Page, service: Replicator, producer: redis.Redis) -> None:
    trades(producer, 1, 40)
    producer.xadd(HOSTILE_STREAM, {"data": json.dumps({"n": 1})})
    status = service.until_status(
        lambda r: r["state"] == "ok" and r["sink"]["confirmed_offset"] == r["log"]["head_offset"] >= 41, "delivered"
    )
    head = status["log"]["head_offset"]
    looking.until(lambda: looking.figure("#sink-confirmed") == head, "it has come through to ClickHouse")
    assert (looking.figure("#log-head"), looking.figure("#redis-backlog")) == (head, 0)
    looking.until(lambda: looking.state == "ok", "all is well")
    assert looking.text("#summary") == "Everything works. Everything logged is in ClickHouse."
    rows = str(service.command("state", "trades", "--json").json["rows"].__len__())
    looking.until(lambda: looking.row("#tables", "trades")[4:6] == [rows, rows], "rows on both sides are counted")
    assert looking.row("#tables", "trades")[:4] == ["trades", "goes on", "0", "0"]
    assert looking.row("#streams", "trades")[1:3] == ["0", status["streams"][-1]["last_entry_id"]]
    assert looking.texts("#plots figure canvas").__len__() == 3
    assert looking.chrome.title == "ok · main · replicator"


def test_what_is_not_known_is_never_zero(looking: Page) -> None:
    drawn = looking.script(
        """
        return import('/page/text.js').then(t => [null, undefined].flatMap(
            x => [t.number(x), t.rate(x), t.size(x), t.seconds(x)]))
        """
    )
    assert set(drawn) == {"unknown"}
    assert looking.row("#streams", LONG_STREAM)[2] == "not read yet"


def test_nothing_comes_from_elsewhere_and_the_console_is_silent(looking: Page, service: Replicator) -> None:
    looking.until(lambda: looking.texts("#plots canvas"), "it is drawn")
    looking.heed()
    strangers = [r["url"] for r in looking.requests if not r["url"].startswith(f"{service.url}/")]
    assert strangers == []
    assert looking.faults == []


def test_an_operators_deeds_and_the_commands_are_shown(
    looking: Page, service: Replicator, producer: redis.Redis
) -> None:
    producer.xadd("trades", {"data": json.dumps({"trade_id": HOSTILE, "quantity": HOSTILE})})
    service.http("POST", "/api/v1/pause", body={"subject": "deliver"}, X_Replicator_Actor="ann@desk")
    looking.until(lambda: "ann@desk" in looking.text("#actions"), "the action is shown")
    looking.until(lambda: looking.state == "degraded", "it is degraded")
    looking.until(lambda: looking.texts("#kept .kept-rows code"), "the rejected entry is shown")
    command = looking.script("return document.querySelector('.kept-rows code').title")
    assert command.startswith(f"replicator --config-dir {service.config_dir} rejected show ")
    assert service.command(*command.split()[3:]).code == 0
    grants = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"], "origin": service.url}
    looking.chrome.execute_cdp_cmd("Browser.grantPermissions", grants)
    looking.one(".kept-rows .copy").click()
    looking.until(lambda: looking.text(".kept-rows .copy") == "Copied", "it says so")
    assert looking.text("#spoken") == "Command copied"
    assert looking.script("return navigator.clipboard.readText()") == command
    assert "paused" in looking.text("#deliver-name")
    service.http("POST", "/api/v1/resume", body={"subject": "deliver"})
    looking.until(lambda: "paused" not in looking.text("#deliver-name"), "it goes on")


# ── hostile strings ──


def test_hostile_names_and_payloads_are_text(looking: Page, producer: redis.Redis) -> None:
    producer.xadd("trades", {"data": json.dumps({"trade_id": "x", "quantity": HOSTILE})})
    looking.until(lambda: "<script>" in looking.text("#kept"), "the reason quotes the payload")
    shown = looking.texts("#streams tbody th")
    assert '<img src=x onerror="window.owned=1">\\u{202e}' in shown
    assert LONG_STREAM in shown
    assert looking.script("return [...document.querySelectorAll('main img, main script, main iframe')].length") == 0
    assert looking.script("return window.owned === undefined")
    assert looking.script("return document.documentElement.scrollWidth <= innerWidth")


def test_thousands_of_tables_stay_usable(looking: Page) -> None:
    """Drawn from a frame of our own making: the next real one takes its place."""
    drawn = looking.script(
        """
        return import('/page/lists.js').then(lists => {
            const n = 5000, each = f => Array.from({length: n}, (_, i) => f(i));
            const zeros = each(() => 0), none = each(() => null);
            const tables = {table: each(i => i === 17 ? '<b>bad' : `table_${i}`), checkpoint: zeros, confirmed: zeros,
                pending: zeros, parked: zeros, paused: each(() => false), circuit: each(() => 'closed'), attempt: zeros,
                next_try_seconds: none, last_error: none, stopped: each(i => i === 17 ? 'a view is at fault' : null),
                log_rows: none, sink_rows: none, mismatches: none};
            lists.drawTables({tables, verify: {last_at: null}});
            const rows = [...document.querySelectorAll('#tables tbody tr')];
            return [rows.length, rows[0].textContent, document.getElementById('tables-more').textContent,
                document.getElementById('tables-count').textContent];
        })
        """
    )
    assert drawn == [100, "<b>badstoppeda view is at fault00unknownunknown0never", "Show 100 more of 4,900", "5,000"]


def test_the_policy_keeps_out_what_is_written_into_the_page(looking: Page) -> None:
    blocked = looking.script(
        """
        return (async () => {
        const tried = {};
        const inline = document.createElement('script');
        try { inline.text = 'window.inline = 1'; document.body.append(inline); } catch (e) { tried.text = e.name; }
        try { document.body.innerHTML += '<p>'; } catch (e) { tried.html = e.name; }
        const evaluate = () => { try { (0, eval)('window.evaluated = 1'); } catch (e) { tried.eval = e.name; } };
        await new Promise(done => setTimeout(() => done(evaluate())));  // here the driver itself may evaluate
        tried.ran = window.inline === 1 || window.evaluated === 1;
        return fetch('http://127.0.0.1:9/').then(() => 'reached', () => 'kept in').then(f => ({...tried, fetch: f}));
        })();
        """
    )
    assert blocked == {"text": "TypeError", "html": "TypeError", "eval": "EvalError", "ran": False, "fetch": "kept in"}
    assert any("Content Security Policy" in fault for fault in looking.heed().faults)


# ── for everybody ──


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_wrong(looking: Page, dark: bool) -> None:
    looking.show_as(dark=dark, still=True)
    assert list(looking.axe()) == []


def test_axe_finds_nothing_wrong_with_signing_in(page: Page, service: Replicator) -> None:
    page.open(service.url).sign_in("wrong")
    page.until(lambda: page.text("#sign-in-fault"), "the fault is shown")
    assert list(page.axe()) == []


def test_it_fits_a_phone(looking: Page) -> None:
    looking.show_as(width=375, height=800)
    looking.until(lambda: looking.script("return innerWidth") == 375, "it is a phone")
    assert looking.script("return document.documentElement.scrollWidth") == 375
    edges = "return [...document.querySelectorAll('.node')].map(n => n.getBoundingClientRect().top)"
    tops = looking.script(edges)
    assert tops == sorted(set(tops)), "the flow goes downwards"
    assert list(looking.axe()) == []


def test_the_keyboard_reaches_everything(looking: Page) -> None:
    looking.chrome.refresh()
    looking.until(lambda: looking.link == "live", "it is live again")
    reached = []
    for _ in range(60):
        looking.chrome.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(
            looking.script(
                "const e = document.activeElement; const o = getComputedStyle(e).outlineStyle;"
                "return [e.id || e.className || e.getAttribute('aria-labelledby') || e.tagName, o, e.matches(':focus-visible')]"
            )
        )
        if reached[-1][0] == "tables-filter":
            break
    names = [name for name, _, _ in reached]
    assert names[:3] == ["skip", "theme", "sign-out"]
    assert names[-1] == "tables-filter"
    assert all(outline != "none" and visible for _, outline, visible in reached)


def test_the_skip_link_leads_past_the_bar(looking: Page) -> None:
    looking.one(".skip").send_keys(Keys.ENTER)
    assert looking.script("return document.activeElement.id") == "main"


def test_colours_are_chosen_and_remembered(looking: Page) -> None:
    ground = "return getComputedStyle(document.body).backgroundColor"
    light = looking.script(ground)
    looking.one("#theme").click()
    assert looking.text("#theme") == "Colours: dark"
    dark = looking.script(ground)
    assert dark != light
    looking.chrome.refresh()
    looking.until(lambda: looking.link == "live", "it is live again")
    assert (looking.text("#theme"), looking.script(ground)) == ("Colours: dark", dark)


def test_nothing_moves_for_those_who_asked_for_it(looking: Page) -> None:
    moving = (  # in one go: the next event of the stream draws what is true
        "document.getElementById('edge-capture').dataset.flow = 'moving';"
        "return getComputedStyle(document.querySelector('.edge .run')).animationName"
    )
    assert looking.script(moving) == "run"
    looking.show_as(still=True)
    assert looking.script(moving) == "none"
