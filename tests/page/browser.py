"""A real Chromium on the page of a live server, as a person would use it."""

import json
import shutil
from collections.abc import Callable
from typing import Any, cast

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests.api.live import wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
TEXT_OF = "const copy = arguments[0].cloneNode(true); copy.querySelectorAll('del').forEach((e) => e.remove()); "


def start_browser() -> webdriver.Chrome:
    """A browser without a window; its sandbox is off, which containers and root do not let it have."""
    assert CHROMIUM and DRIVER
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


class Page:
    """The page of one server in a fresh tab's state."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str, width: int = 1280, height: int = 860, *, is_dark: bool = False) -> None:
        """Opens a server's page with nothing stored, and waits until it knows the model."""
        self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        self.driver.get("about:blank")
        self.driver.get(f"{url}/")
        self.run("sessionStorage.clear(); localStorage.clear()")
        self.driver.refresh()

    def resize(self, width: int, height: int) -> None:
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    def command(self, name: str, **arguments: Any) -> dict[str, Any]:
        """A command of Chrome's own protocol."""
        return cast("dict[str, Any]", self.driver.execute_cdp_cmd(name, arguments))

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def is_shown(self, selector: str) -> bool:
        return any(element.is_displayed() for element in self.all(selector))

    def view(self, name: str) -> None:
        self.run("location.hash = arguments[0]", name)
        self.wait(lambda: bool(self.run("return document.body.dataset.view === arguments[0]", name)))

    def set(self, name: str, value: str) -> None:
        """Fills in a field of the settings."""
        self.run("document.getElementById('composer').elements[arguments[0]].value = arguments[1]", name, value)

    def ask(self, text: str) -> None:
        """Types a message and sends it with the Enter key."""
        self.wait(self.is_connected)
        prompt = self.find("#prompt")
        prompt.clear()
        prompt.send_keys(text, Keys.ENTER)

    def is_connected(self) -> bool:
        return bool(self.run("return !/connect|ready/.test(document.getElementById('model').textContent)"))

    def is_idle(self) -> bool:
        return not self.is_shown("#stop") and not self.all(".message.open")

    def wait(self, condition: Callable[[], bool]) -> None:
        wait_until(condition)

    def answer(self, number: int = -1) -> str:
        """The text of an answer as its tokens show it, without what was rejected."""
        tokens = self.all(".answer .tokens")[number]
        return str(self.run(f"{TEXT_OF} return copy.textContent", tokens))

    def says(self, selector: str, text: str) -> bool:
        return text in str(self.run("return document.querySelector(arguments[0])?.textContent ?? ''", selector))

    def is_too_wide(self) -> bool:
        """Whether one has to scroll sideways."""
        return bool(self.run("return document.documentElement.scrollWidth > document.documentElement.clientWidth"))

    def faults(self) -> list[str]:
        """What the console complains of, a breach of the policy for instance; refused requests are no fault."""
        logs = cast("list[dict[str, Any]]", self.driver.get_log("browser"))  # type: ignore[no-untyped-call]
        return [json.dumps(log) for log in logs if log["level"] == "SEVERE" and log["source"] != "network"]
