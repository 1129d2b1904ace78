"""The page of `qeff serve` in a real browser: Chromium, where it is installed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from tests.serving.programs import program
from tests.serving.running import KEY, Served, serving

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None, reason="needs chromium and chromedriver (Debian: chromium, chromium-driver)"
)


@pytest.fixture(scope="module")
def served(artifact: Path) -> Iterator[Served]:
    with serving(program(artifact, delay=0.02)) as server:
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path_factory.mktemp('browser')}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def page(browser: webdriver.Chrome, served: Served) -> webdriver.Chrome:
    """The page, freshly loaded, with the API key given."""
    browser.get_log("performance")
    browser.get(served.url)
    assert "sesame" not in browser.page_source
    settle(browser, lambda: "key" in text(browser, "#status").lower())
    browser.find_element(By.TAG_NAME, "summary").click()
    fill(browser, "key", KEY + "\t")
    settle(browser, lambda: text(browser, "#model") == "tiny" and not text(browser, "#status"))
    return browser


def text(browser: webdriver.Chrome, css: str) -> str:
    return browser.find_element(By.CSS_SELECTOR, css).text


def fill(browser: webdriver.Chrome, name: str, value: str) -> None:
    field = browser.find_element(By.ID, name)
    field.clear()
    field.send_keys(value)


def settle(browser: webdriver.Chrome, condition: Any) -> None:
    WebDriverWait(browser, 20, poll_frequency=0.05).until(lambda _: condition())


def say(browser: webdriver.Chrome, message: str) -> None:
    fill(browser, "prompt", message)
    browser.find_element(By.ID, "send").click()


def idle(browser: webdriver.Chrome) -> bool:
    return browser.find_element(By.ID, "send").is_enabled()


def answers(browser: webdriver.Chrome, role: str = "assistant") -> list[str]:
    found = browser.find_elements(By.CSS_SELECTOR, f".message.{role}")
    return [str(box.get_property("textContent")) for box in found]


def test_a_chat_of_two_turns_streams_and_shows_its_rate(page: webdriver.Chrome, served: Served) -> None:
    fill(page, "max_tokens", "12")
    fill(page, "system", "Be brief.")
    messages: list[Any] = [{"role": "system", "content": "Be brief."}]
    for turn, message in enumerate(("The fox", "<b>And</b> the dog?")):
        say(page, message)
        settle(page, lambda turn=turn: idle(page) and len(answers(page)) == turn + 1)
        messages.append({"role": "user", "content": message})
        expected = served.client.chat.completions.create(model="tiny", messages=messages, max_tokens=12, temperature=0)
        assert answers(page)[turn] == expected.choices[0].message.content
        assert answers(page, "user")[turn] == message  # as text, not as markup
        messages.append({"role": "assistant", "content": expected.choices[0].message.content})
        assert expected.usage is not None
        assert text(page, "#status").startswith(f"{expected.usage.completion_tokens} tokens, ")
        assert text(page, "#status").endswith(" tokens/s")
    page.find_element(By.ID, "clear").click()
    assert answers(page) == answers(page, "user") == []


def test_a_stopped_answer_frees_its_row(page: webdriver.Chrome, served: Served) -> None:
    fill(page, "max_tokens", "120")
    page.find_element(By.ID, "plain").click()
    say(page, "The quick brown fox")
    settle(page, lambda: bool(answers(page)) and len(answers(page)[0]) > 4)
    page.find_element(By.ID, "stop").click()
    settle(page, lambda: idle(page))
    whole = served.client.completions.create(model="tiny", prompt="The quick brown fox", max_tokens=120, temperature=0)
    assert whole.choices[0].text.startswith(answers(page)[0])
    assert len(answers(page)[0]) < len(whole.choices[0].text)
    settle(page, lambda: b"qeff_answers_running 0.0" in served.send("GET", "/metrics")[2])


def test_a_refused_request_is_shown_and_nothing_else_is_contacted(page: webdriver.Chrome, served: Served) -> None:
    fill(page, "max_tokens", "100000")
    say(page, "The fox")
    settle(page, lambda: idle(page) and bool(answers(page, "error")))
    assert "100000" in answers(page, "error")[0]
    assert answers(page) == []
    sent = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    hosts = {
        urlsplit(message["params"]["request"]["url"]).netloc
        for message in sent
        if message["method"] == "Network.requestWillBeSent"
    }
    assert hosts == {urlsplit(served.url).netloc}
