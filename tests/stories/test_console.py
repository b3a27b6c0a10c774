"""The console in a real browser, on the real services."""

import http.client
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from deployed import House, fairlead

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
NUM_TOKENS = 32
WAIT_MS = 30_000
LAPTOP, PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 740}


class Answered(NamedTuple):
    """A streamed answer as its client saw it."""

    id: str
    second_s: float
    """When its second piece was read."""
    ended_s: float


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    started = House(tmp_path_factory.mktemp("console")).start()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    yield from opened(browser, "light", LAPTOP)


def opened(browser: Any, scheme: str, viewport: dict[str, int]) -> Iterator[Any]:
    """A page on which every error and warning fails the test."""
    context = browser.new_context(color_scheme=scheme, viewport=viewport)
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.said = []
    page.on("console", lambda message: page.said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    yield page
    context.close()


def admin_key(house: House) -> str:
    return re.search(r"\bfl-admin-[\w-]+", house.text)[0]  # type: ignore[index]


def sign_in(page: Any, house: House, where: str = "") -> None:
    page.goto(f"{house.url}/console{where}")
    page.get_by_label("Admin key").fill(admin_key(house))
    page.get_by_role("button", name="Open the console").click()
    page.get_by_role("status").get_by_text("live").wait_for()


def stream(house: House, prompt: str = "import os\n" * 20) -> Answered:
    connection = http.client.HTTPConnection("127.0.0.1", house.port, timeout=60)
    connection.connect()
    body = {"model": "demo", "prompt": prompt, "max_tokens": NUM_TOKENS, "ignore_eos": True, "stream": True}
    headers = {"authorization": f"Bearer {house.key}", "content-type": "application/json"}
    before = time.monotonic()
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    times = []
    for line in answer:
        if line.startswith(b"data: {"):
            times.append(time.monotonic() - before)
            document = json.loads(line.removeprefix(b"data: "))
    ended_s = time.monotonic() - before
    connection.close()
    return Answered(document["id"], times[1], ended_s)


def near(seconds: float) -> Any:
    """Each of the parts is shown to a thousandth of a millisecond."""
    return pytest.approx(seconds, abs=0.0005)


def numbers(page: Any, table: str) -> list[list[float]]:
    """The cells of a table that are figures, by row."""
    rows = page.get_by_role("table", name=table).locator("tbody tr").all()
    return [[float(cell) for cell in row.locator("td.number").all_inner_texts()] for row in rows]


def test_the_waterfall_of_a_request_shows_its_tokens_and_its_parts_sum_to_its_latency(page: Any, house: House) -> None:
    sign_in(page, house)
    page.get_by_role("heading", name="No request yet").wait_for()
    stream(house)  # the first one pays for what is set up once
    answered = stream(house, "class Queue:\n" * 30)  # another prompt: nothing of it is cached
    page.get_by_role("region", name="Requests that ended of late").get_by_role("link").first.wait_for()
    assert not page.get_by_role("heading", name="No request yet").is_visible()
    link = page.locator(f"#recent a[href='#request={answered.id}']")
    link.focus()
    page.keyboard.press("Enter")
    page.get_by_role("heading", name=answered.id).wait_for()
    assert page.url.endswith(f"/console#request={answered.id}")

    page.locator("#waterfall .ytick").first.wait_for()
    rows = page.locator("#waterfall .ytick text").all_text_contents()
    assert sorted(rows) == sorted(["prompt", *(str(number) for number in range(1, NUM_TOKENS + 1))])
    page.get_by_text("As a table").click()
    (first,) = numbers(page, "Parts of the first token, ms")
    after = numbers(page, "Parts of each token, ms")
    assert [int(row[0]) for row in after] == list(range(2, NUM_TOKENS + 1))
    told = house.get(f"/v1/fairlead/requests/{answered.id}", admin_key(house))
    written_s = told["choices"][0]["written_s"]
    assert sum(first) / 1000 == near(written_s[0])
    for row in after:
        assert sum(row[3:9]) == pytest.approx(row[2], abs=0.005)
    assert (sum(first) + sum(sum(row[3:9]) for row in after)) / 1000 == near(written_s[-1])
    # A busy machine wakes the reader late. Whoever writes looks at its clock just after: what comes next is read later.
    assert written_s[0] <= answered.second_s
    assert written_s[-1] <= answered.ended_s

    box = page.locator("#waterfall .barlayer .trace").last.locator("path").last.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    hover = page.locator("#waterfall .hoverlayer .hovertext")
    hover.wait_for()
    assert re.search(r"\d ms", hover.text_content())
    assert "step" in hover.text_content()
    page.get_by_role("link", name="← All requests").click()
    page.get_by_role("heading", name="Recent requests").wait_for()
    assert page.said == []


@pytest.mark.parametrize(("scheme", "viewport"), [("dark", LAPTOP), ("light", PHONE), ("dark", PHONE)])
def test_the_page_fits_and_complains_of_nothing(
    browser: Any, house: House, scheme: str, viewport: dict[str, int]
) -> None:
    answered = stream(house)
    for page in opened(browser, scheme, viewport):
        sign_in(page, house)
        page.get_by_role("region", name="Requests that ended of late").wait_for()
        for chart in page.locator(".plot").all():
            chart.scroll_into_view_if_needed()
            chart.locator(".main-svg").first.wait_for(state="attached")
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", back)[:3])) < 3 * 60) == (scheme == "dark")
        assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
        page.goto(f"{house.url}/console#request={answered.id}")
        page.locator("#waterfall .ytick").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
        assert page.said == []


def test_a_tenants_key_is_told_what_it_lacks_and_none_is_kept(page: Any, house: House) -> None:
    page.goto(f"{house.url}/console")
    page.get_by_label("Admin key").fill(house.key)
    page.get_by_role("button", name="Open the console").click()
    page.get_by_text("this needs an admin key").wait_for()
    assert page.evaluate("Object.keys(sessionStorage)") == []
    assert "fl-" not in page.url


def test_a_key_that_is_revoked_leaves_nothing_of_what_it_opened(page: Any, house: House) -> None:
    added = fairlead("keys", "add", "--data-dir", str(house.data), "--admin")
    page.goto(f"{house.url}/console")
    page.get_by_label("Admin key").fill(re.search(r"\bfl-admin-[\w-]+", added.stdout)[0])  # type: ignore[index]
    page.get_by_role("button", name="Open the console").click()
    page.get_by_role("status").get_by_text("live").wait_for()
    revoked = re.search(r"\bkey_\w+", added.stderr)[0]  # type: ignore[index]
    fairlead("keys", "revoke", revoked, "--data-dir", str(house.data))
    page.get_by_text("no longer valid").wait_for()
    assert [page.locator(place).inner_text() for place in ("#link", "#about")] == ["", ""]
    assert not page.locator("#board").is_visible()


def test_the_theme_can_be_chosen_and_is_remembered(page: Any, house: House) -> None:
    page.goto(f"{house.url}/console")
    for _ in range(2):
        page.get_by_role("button", name="Theme").click()
    assert page.get_by_role("button", name="Theme: dark").is_visible()
    page.reload()
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"


def test_what_comes_from_outside_is_text(page: Any, house: House) -> None:
    page.goto(f"{house.url}/console")
    markup = "<img src=x onerror=alert(1)>"
    made = page.evaluate(
        "async (text) => { const { h, plain } = await import('/console/dom.js');"
        " const p = h('p', {}, text); return [p.childElementCount, p.textContent, plain(text)]; }",
        markup,
    )
    assert made == [0, markup, "&lt;img src=x onerror=alert(1)&gt;"]


def test_a_changed_policy_is_shown_with_what_it_changed(page: Any, house: House) -> None:
    sign_in(page, house)
    text = house.policy.read_text()
    changed = re.sub(r"ttft_s: 0\.5\b", "ttft_s: 0.6", text, count=1)
    assert changed != text
    house.policy.write_text(changed)
    panel = page.get_by_role("region", name="Policy in force")
    panel.get_by_text("revision 2").first.wait_for()
    assert "0.6" in panel.get_by_role("list").first.inner_text()


def test_a_lost_connection_is_said_and_mended(page: Any, house: House) -> None:
    sign_in(page, house)
    os.kill(gateway_of(house), signal.SIGKILL)
    page.get_by_text("connection lost; trying again").wait_for()
    assert "past" in page.locator("#board").get_attribute("class"), "or its figures look like those of now"
    page.get_by_role("status").get_by_text("live").wait_for()
    assert page.locator("#board.past").count() == 0
    assert page.get_by_role("heading", name="Promises by class").is_visible()


def gateway_of(house: House) -> int:
    """Its process."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            mine = str(house.run_folder).encode() in (process / "environ").read_bytes()
        except OSError:
            continue
        if mine and b"serve\0gateway" in command:
            return int(process.name)
    raise AssertionError("no gateway runs")
