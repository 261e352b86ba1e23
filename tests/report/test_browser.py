"""The audit in a real browser: headless Chromium, from the file system; what it says and asks for is recorded."""

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from gradsae_fast.report.palette import DARK, LIGHT

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Chromium and chromedriver")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(executable_path=DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(params=["index.html", "latents", "documents"])
def page(request: pytest.FixtureRequest, audit: Path) -> Path:
    return sorted(audit.glob(f"{request.param}/*.html"))[-1] if "." not in request.param else audit / request.param


def events_of(browser: Any, method: str) -> list[Any]:
    """The browser's events of a kind since it was last asked for any."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [event["params"] for event in events if event["method"] == method]


def requests_of(browser: Any) -> list[str]:
    """The addresses that the browser asked for, or tried to."""
    return [event["request"]["url"] for event in events_of(browser, "Network.requestWillBeSent")]


def style(browser: Any, selector: str, name: str) -> str:
    script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    return str(browser.execute_script(script, selector, name))


def rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"


def emulate(browser: Any, *, scheme: str = "light", width: int = 1280) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def test_a_page_opens_from_the_file_system_and_asks_for_nothing_else(browser: Any, page: Path) -> None:
    emulate(browser)
    requests_of(browser)
    browser.get(page.as_uri())
    assert requests_of(browser) == [page.as_uri()]
    assert browser.get_log("browser") == []
    assert style(browser, "html", "backgroundColor") == rgb(LIGHT["paper"])  # the policy let the stylesheet in
    assert browser.find_element("tag name", "h1").is_displayed()


def test_dark_mode_is_dark(browser: Any, page: Path) -> None:
    emulate(browser, scheme="dark")
    browser.get(page.as_uri())
    assert style(browser, "html", "backgroundColor") == rgb(DARK["paper"])
    assert style(browser, "h1", "color") == rgb(DARK["ink"])


@pytest.mark.parametrize("width", [320, 360, 768])
def test_a_phone_shows_the_page_without_scrolling_sideways(browser: Any, page: Path, width: int) -> None:
    emulate(browser, width=width)
    browser.get(page.as_uri())
    for name in browser.find_elements("tag name", "summary"):
        name.click()
    wide, inner = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide <= inner == width


def test_tab_leads_from_the_skip_link_through_the_links(browser: Any, audit: Path) -> None:
    emulate(browser)
    browser.get((audit / "index.html").as_uri())
    focused = []
    for _ in range(12):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        element = browser.switch_to.active_element
        focused.append(element.get_attribute("href") or element.get_attribute("role") or element.tag_name)
        outline = element.value_of_css_property("outline-style")
        assert outline == "solid", focused
    assert focused[0].endswith("#main")
    assert any("latents/" in target for target in focused)
    assert "summary" in focused
    assert "region" in focused  # tables that may scroll can be scrolled with the keyboard


def test_a_screen_reader_finds_names_for_everything(browser: Any, page: Path) -> None:
    emulate(browser)
    browser.get(page.as_uri())
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            name = node.get("name", {}).get("value", "")
            roles.setdefault(node["role"]["value"], []).append(name)
    assert len(roles["main"]) == len(roles["banner"]) == len(roles["contentinfo"]) == 1
    for role in ("link", "image", "region", "table", "navigation"):
        assert all(roles.get(role, [])), role
    headings = browser.execute_script("return [...document.querySelectorAll('h1,h2,h3')].map(h => h.tagName)")
    assert headings.count("H1") == 1
    assert headings[0] == "H1"


def test_hostile_pages_run_nothing_and_ask_for_nothing(browser: Any, hostile_audit: Path) -> None:
    emulate(browser, width=360)
    for name in ("index.html", "documents/000000.html", "documents/000007.html", "latents/000030.html"):
        requests_of(browser)
        page = hostile_audit / name
        browser.get(page.as_uri())
        assert requests_of(browser) == [page.as_uri()]
        assert browser.get_log("browser") == []
        assert browser.execute_script("return document.scripts.length") == 0
        wide, inner = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert wide <= inner


def test_even_a_script_that_came_through_would_not_run(browser: Any, audit: Path, tmp_path: Path) -> None:
    html = (audit / "index.html").read_text(encoding="utf-8")
    page = tmp_path / "injected.html"
    attack = "<script>document.title = 'run'</script><img src='https://example.invalid/x' onerror='document.title=1'>"
    page.write_text(html.replace("</main>", f"{attack}</main>"), encoding="utf-8")
    requests_of(browser)
    browser.get(page.as_uri())
    assert browser.title.startswith("Overview")
    assert [event["blockedReason"] for event in events_of(browser, "Network.loadingFailed")] == ["csp"]
    assert len(browser.get_log("browser")) >= 2  # the policy's complaints


def test_a_printed_page_keeps_its_marks(browser: Any, audit: Path) -> None:
    emulate(browser)
    browser.get(sorted((audit / "latents").iterdir())[-1].as_uri())
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert printed.startswith(b"%PDF")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert style(browser, "mark", "printColorAdjust") == "exact"
    assert style(browser, "header nav", "display") == "none"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
