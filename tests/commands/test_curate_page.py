"""The page of `hybrid curate`, in a browser: it loads nothing, runs nothing, and is for all readers."""

import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise

import pytest


# Of the text of an element to what lies behind it, as WCAG 2.2 defines it.
CONTRASTS = """
const luminance = color => color.match(/[\\d.]+/g).slice(0, 3)
    .map(part => part / 255).map(part => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4)
    .reduce((sum, part, i) => sum + part * [.2126, .7152, .0722][i], 0);
const ground = element => {
    const color = getComputedStyle(element).backgroundColor;
    return color == 'rgba(0, 0, 0, 0)' ? ground(element.parentElement) : color;
};
return [...document.querySelectorAll('body *')]
    .filter(element => [...element.childNodes].some(node => node.nodeType == 3 && node.data.trim()))
    .map(element => {
        const [dark, light] = [getComputedStyle(element).color, ground(element)].map(luminance).sort((a, b) => a - b);
        return (light + .05) / (dark + .05);
    });
"""


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: the extra browser")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs chromium and chromedriver: Debian's packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def page(browser, curated):
    address = (curated[0] / "index.html").as_uri()
    browser.get(address)
    return address


def look_as(browser, scheme: str, width: int) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


@pytest.mark.slow
def test_nothing_is_loaded_or_run(browser, page):
    assert not browser.get_log("browser")  # where refused scripts and missing images would be named
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    assert {url for url in asked if not url.startswith("data:image/")} == {page}
    pictures = browser.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert len(pictures) > 20 and all(pictures)
    assert browser.execute_script("return document.scripts.length") == 0
    assert "<img src=x onerror=alert(1)>.png" in browser.find_element("tag name", "main").text


@pytest.mark.slow
def test_keyboard(browser, page):
    from selenium.webdriver.common.keys import Keys

    browser.find_element("tag name", "body").send_keys(Keys.TAB)
    skip = browser.switch_to.active_element
    assert skip.text == "Skip to the findings" and skip.rect["x"] >= 0
    assert browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    skip.send_keys(Keys.ENTER)
    assert browser.switch_to.active_element.tag_name == "main"
    links = browser.find_elements("css selector", "nav a")
    links[2].send_keys(Keys.ENTER)
    heading = browser.switch_to.active_element
    assert heading.tag_name == "h2" and heading.text == links[2].text


@pytest.mark.slow
def test_structure(browser, page):
    def texts(selector: str, what: str) -> list:
        return browser.execute_script(f"return [...document.querySelectorAll('{selector}')].map(one => one.{what})")

    levels = [int(tag[1]) for tag in texts("h1, h2, h3", "tagName")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(texts("img", "alt")) and all(texts("th", "scope")) and all(texts("html", "lang")) and browser.title
    links = [link.rsplit("#")[1] for link in texts("nav a", "href")]
    assert len(links) == 11 and set(links) <= set(texts("h2", "id"))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_width(browser, page, scheme):
    look_as(browser, scheme, 400)
    contrasts = browser.execute_script(CONTRASTS)
    assert len(contrasts) > 50 and min(contrasts) >= 4.5
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 400
    brightness = browser.execute_script("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g)")
    assert (int(brightness[0]) > 127) == (scheme == "light")


class Tags(HTMLParser):
    """Names of the tags of a page, and of all their attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.names, self.attributes, self.addresses = set(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses |= {re.match("#|data:image/|", value)[0] for name, value in attrs if name in ("src", "href")}


def test_tags(curated):
    """What holds without a browser: names are text, and nothing points to a place outside of the page."""
    text = (curated[0] / "index.html").read_text(encoding="utf-8")
    tags = Tags(text)
    assert not tags.names & {"script", "link", "iframe", "object", "embed", "form", "base", "svg"}
    assert not [name for name in tags.attributes if name.startswith("on")] and "style" not in tags.attributes
    assert tags.addresses == {"#", "data:image/"} and "url(" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;.png" in text
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in text
