"""The page in a real browser: Debian's Chromium through its own chromedriver.

selenium speaks the protocol that the driver implements and brings neither a browser nor a driver: what is tested with
is what the distribution keeps up to date. (playwright brings 140 MB and expects a browser of its own build.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attrs import define, field
from replicator_process import until
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webelement import WebElement

ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1280,1000",
)  # fmt: skip
AXE = Path(__file__).parent / "vendor" / "axe.js"
RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")
PATIENCE_SECONDS = 60.0
HOSTILE_STREAM = '<img src=x onerror="window.owned=1">\N{RIGHT-TO-LEFT OVERRIDE}'
LONG_STREAM = "long_" * 40
READ_TOKEN = "look-but-do-not-touch-0123456789"


def start_chrome(browser: str, driver: str, profile: Path) -> Chrome:
    options = ChromeOptions()
    options.binary_location = browser
    for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return Chrome(options=options, service=Service(driver))


@define
class Page:
    """What a person sees and does there."""

    chrome: Chrome
    url: str = ""
    requests: list[dict[str, Any]] = field(factory=list)
    """Every request since it was opened."""
    faults: list[str] = field(factory=list)
    """What the browser's console said."""

    def open(self, url: str, token: str | None = None) -> Page:
        """A fresh tab's view of the page; with a token, signed in."""
        self.url = url
        self.chrome.get(f"{url}/page/icon.svg")
        self.script("sessionStorage.clear(); localStorage.clear()")
        self.heed()
        self.requests, self.faults = [], []
        self.chrome.get(f"{url}/")
        if token is not None:
            self.sign_in(token)
            self.until(lambda: self.link == "live", "it is live")
        return self

    def sign_in(self, token: str) -> None:
        self.until(lambda: self.one("#token").is_displayed(), "the form is there")
        self.one("#token").clear()
        self.one("#token").send_keys(token)
        self.one("#sign-in-form button").click()

    # ── looking ──

    def one(self, selector: str) -> WebElement:
        return self.chrome.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        return str(self.script("return document.querySelector(arguments[0]).textContent", selector))

    def texts(self, selector: str) -> list[str]:
        found = self.script("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector)
        return [str(text) for text in found]

    def row(self, table: str, name: str) -> list[str]:
        """The cells of a row, by its first one; empty where there is none."""
        wanted = "return [...document.querySelectorAll(arguments[0])].map(r => [...r.children].map(c => c.textContent))"
        return next((cells for cells in self.script(wanted, f"{table} tbody tr") if cells[0] == name), [])

    def figure(self, selector: str) -> int | None:
        found = self.text(selector)
        return None if found == "unknown" else int(found.replace(",", ""))

    @property
    def state(self) -> str:
        return self.text("#state")

    @property
    def link(self) -> str:
        return str(self.one("#link").get_attribute("data-link"))

    def script(self, code: str, *arguments: Any) -> Any:
        return self.chrome.execute_script(code, *arguments)

    def until(self, condition: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
        try:
            return until(condition, what, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; the page says:\n{self.text('body')[:3000]}") from None

    # ── how it is looked at ──

    def show_as(self, *, width: int = 1280, height: int = 1000, dark: bool = False, still: bool = False) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wanted = {
            "prefers-color-scheme": "dark" if dark else "light",
            "prefers-reduced-motion": "reduce" if still else "",
        }
        features = [{"name": name, "value": value} for name, value in wanted.items()]
        self.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    # ── what went over the wire, and what the console said ──

    def heed(self) -> Page:
        """Take in what the browser has noted since."""
        for line in self.chrome.get_log("performance"):
            message = json.loads(line["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"])
        self.faults += [line["message"] for line in self.chrome.get_log("browser")]
        return self

    def axe(self) -> Iterator[str]:
        """What axe-core finds wrong, a line for each."""
        self.script(AXE.read_text())
        run = (
            "const done = arguments[arguments.length - 1];"
            "axe.run(document, {runOnly: arguments[0]}).then(r => done(r.violations), e => done(String(e)))"
        )
        found = self.chrome.execute_async_script(run, list(RULES))
        assert isinstance(found, list), found
        for violation in found:
            for node in violation["nodes"]:
                summary = re.sub(r"\s+", " ", node["failureSummary"])
                yield f"{violation['id']} ({violation['impact']}): {node['target']}: {summary}"
