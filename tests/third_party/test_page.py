"""The page in a real browser: Chromium as an npm package brings it, started with flags of our own, else an installed
Chrome. One browser and one page process serve all tests; each test has a tab of its own."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from asked import EVERY_KIND, FORM, URL, Person, choice, sampling
from conftest import COMMAND, PATIENCE, RawHost, server_table

from .harness import NODE, npm_modules

PACKAGES = {"@sparticuz/chromium": "147.0.0", "playwright-core": "1.65.1"}
PICTURE = Path(__file__).parent.parent / "page.png"
INSTALLED = ("google-chrome", "google-chrome-stable", "chromium", "chromium-browser")
UNPACK = "import('@sparticuz/chromium').then(({ default: one }) => one.executablePath()).then(console.log)"


def chromium(modules: Path) -> str | None:
    """Its program, unpacked beside the packages; None: the package has none for this machine, and none is installed."""
    if sys.platform == "linux" and os.uname().machine == "x86_64":
        place = modules.parent / "unpacked"
        if not place.exists():
            building = modules.parent / f"unpacking-{os.getpid()}"
            building.mkdir()
            env = os.environ | {"TMPDIR": str(building)}
            subprocess.run([NODE, "-e", UNPACK], env=env, cwd=modules.parent, check=True, timeout=PATIENCE)
            try:
                building.rename(place)
            except OSError:  # another run was faster
                shutil.rmtree(building, ignore_errors=True)
        return str(place / "chromium")
    return next((path for name in INSTALLED if (path := shutil.which(name))), None)


class Driver:
    """Runs JavaScript with the browser in hand, and waits for what comes of it."""

    def __init__(self, modules: Path, program: str) -> None:
        command = [NODE, str(Path(__file__).parent / "page_driver.mjs"), str(modules), program]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.lines: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.version = self._result()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(b"")

    def _result(self) -> Any:
        line = self.lines.get(timeout=PATIENCE)
        assert line, "the browser could not be started, or died"
        said = json.loads(line)
        assert "error" not in said, said["error"]
        return said["result"]

    def run(self, code: str, **values: Any) -> Any:
        """With `values` as constants."""
        assert self.process.stdin
        constants = "".join(f"const {name} = {json.dumps(value)};" for name, value in values.items())
        self.process.stdin.write(json.dumps(constants + code).encode() + b"\n")
        self.process.stdin.flush()
        return self._result()

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(PATIENCE)
        self.process.stdout.close()


class Asker:
    """The page's process, with the test in mcpmux's place."""

    def __init__(self, folder: Path) -> None:
        self.person = Person(folder)
        self.process = subprocess.Popen([*COMMAND, "_page"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.answers: dict[int, Any] = {}
        self._number = 0
        self._heard = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        opener = {"command": self.person.env["BROWSER"].split(), "env": {}, "by_file": True}
        self._send({"host": "claude-ai", "opener": opener})

    def _send(self, message: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            message = json.loads(line)
            with self._heard:
                if "id" in message:
                    self.answers[message["id"]] = message.get("result", message.get("error"))
                self._heard.notify_all()

    def asks(self, params: Any) -> int:
        """Its number."""
        self._number += 1
        self._send({"jsonrpc": "2.0", "id": self._number, "method": "ask", "params": params})
        return self._number

    def withdraws(self, number: int, reason: str) -> None:
        self._send(
            {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": number, "reason": reason}}
        )

    def answer(self, number: int) -> Any:
        with self._heard:
            assert self._heard.wait_for(lambda: number in self.answers, PATIENCE)
        return self.answers[number]

    def address(self) -> str:
        """Of a tab that the person has wanted."""
        self._number += 1
        self._send({"jsonrpc": "2.0", "id": self._number, "method": "open", "params": {}})
        assert self.answer(self._number) == {}
        return self.person.address_now()

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    modules = npm_modules(PACKAGES)
    program = chromium(modules)
    if program is None:
        pytest.skip("needs Chromium: its npm package is for Linux on x86-64 only, and no Chrome is installed")
    driver = Driver(modules, program)
    yield driver
    driver.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    asker = Asker(tmp_path_factory.mktemp("person"))
    yield asker
    asker.close()


OPEN = """
if (tools.context) await tools.context.close();
tools.context = await browser.newContext({ colorScheme: "light", viewport: { width: 900, height: 700 }, locale: "en-GB",
  timezoneId: "UTC", deviceScaleFactor: 1 });
const tab = tools.page = await tools.context.newPage();
tab.setDefaultTimeout(PATIENCE * 1000);
tools.errors = [];
tab.on("pageerror", (error) => tools.errors.push(error.message));
if (still) await tab.clock.install({ time: new Date("2026-11-26T09:00:00Z") });
await tab.goto(address);
await tab.waitForFunction(() => document.getElementById("status")?.textContent.includes("."));
"""


# Again if the page has moved just then: such a click does nothing. `dead` is the page's own.
PRESS = """
const act = async () => key ? (await button.focus(), page.keyboard.press(key)) : button.click();
const key = typeof KEY === "undefined" ? "" : KEY, button = card.getByRole("button", { name: label, exact: true });
await page.evaluate(() => {
  window.took = false;
  addEventListener("click", (click) => { window.took = click.timeStamp >= dead; }, { capture: true });
});
while (!(await page.evaluate(() => window.took))) {
  await page.waitForFunction(() => !document.body.classList.contains("still"));
  await act();
}
"""


class Tab:
    def __init__(self, driver: Driver, address: str, *, still: bool = False) -> None:
        self._driver = driver
        self.run(OPEN, address=address, still=still)

    def run(self, code: str, **values: Any) -> Any:
        return self._driver.run(code, PATIENCE=PATIENCE, **values)

    def card(self, number: int, what: str, **values: Any) -> Any:
        """`what` is done with the card of a question, when its buttons are no longer dead."""
        ready = "await page.waitForFunction((id) => !document.body.classList.contains('still') && "
        ready += "document.getElementById(id), `q${number}`);"
        card = "const card = page.locator('article', { has: page.locator(`#q${number}`) });"
        return self.run(ready + card + what, number=number, **values)

    def presses(self, number: int, label: str) -> None:
        self.card(number, PRESS, label=label)

    def text(self) -> str:
        return self.run("return page.evaluate(() => document.body.innerText)")

    def until(self, text: str) -> None:
        self.run("await page.waitForFunction((text) => document.body.innerText.includes(text), text)", text=text)


@pytest.fixture
def tab(driver: Driver, shared: Asker) -> Iterator[Tab]:
    tab = Tab(driver, shared.address())
    yield tab
    assert tab.run("return tools.errors") == []


# ── questions ──

FILL = """
const field = (label) => card.getByLabel(label, { exact: false }).first();
await field("text *").fill(text);
await field("mail *").fill("a@b.c");
await field("uri *").fill("https://x.y");
await field("day *").fill("2026-11-26");
await field("time *").fill("2026-11-26T09:00:01");
await field("int *").fill("2");
await field("float *").fill("2.5");
await card.getByRole("radio", { name: "no", exact: true }).check();
await card.getByRole("radio", { name: "Green" }).first().check();
await card.getByRole("radio", { name: "Red" }).last().check();
await card.getByRole("checkbox", { name: "b" }).check();
"""
FILLED = {"text": "abc", "mail": "a@b.c", "uri": "https://x.y", "day": "2026-11-26", "time": "2026-11-26T09:00:01.000Z"}
FILLED |= {"int": 2, "float": 2.5, "bool": False, "enum": "g", "one": "#f00", "some": ["b"]}


@pytest.mark.requirement("page-answers")
def test_every_kind_of_field_is_filled_in_and_checked_before_it_is_sent(tab: Tab, shared: Asker):
    schema = {"type": "object", "properties": EVERY_KIND, "required": list(EVERY_KIND)[:-1]}
    number = shared.asks(FORM | {"requestedSchema": schema})
    tab.card(number, FILL, text="a")
    tab.presses(number, "Send")
    tab.run("await page.waitForFunction(() => document.activeElement.getAttribute('aria-invalid') === 'true')")
    assert number not in shared.answers
    tab.card(number, FILL, text="abc")
    tab.presses(number, "Send")
    assert shared.answer(number) == {"action": "accept", "content": FILLED}
    tab.until("you chose “Send”")


@pytest.mark.requirement("page-answers")
def test_what_the_browser_lets_pass_is_checked_here_and_shown_at_its_field(tab: Tab, shared: Asker):
    schema = {"properties": {"some": EVERY_KIND["some"]}, "required": ["some"]}
    number = shared.asks(FORM | {"requestedSchema": schema})
    tab.presses(number, "Send")
    tab.until("so many are expected: at least 1")
    tab.presses(number, "Decline")
    assert shared.answer(number) == {"action": "decline"}


def test_a_withdrawn_question_goes_and_says_why(tab: Tab, shared: Asker):
    number = shared.asks(FORM)
    tab.until("Your name?")
    assert tab.run("return page.title()") == "(1) mcpmux · claude-ai"
    shared.withdraws(number, "the host gave up")
    tab.until("no longer asked: the host gave up")
    assert tab.run("return page.locator('article').count()") == 0


@pytest.mark.requirement("page-sampling")
def test_a_request_for_a_model_is_edited_and_allowed_and_another_denied(tab: Tab, shared: Asker):
    first, second = shared.asks(sampling()), shared.asks(sampling())
    tab.card(first, "await card.getByLabel('User', { exact: true }).first().fill('Sum up, without names')")
    tab.presses(first, "This call")
    content = shared.answer(first)["content"]
    assert content["decision"] == "once"
    assert content["params"]["messages"][0]["content"]["text"] == "Sum up, without names"
    assert content["params"]["systemPrompt"] == "Be brief"
    tab.presses(second, "Deny")
    assert shared.answer(second)["content"] == {"decision": "no"}


@pytest.mark.requirement("approvals")
def test_a_tool_call_is_denied_by_keyboard(tab: Tab, shared: Asker):
    number = shared.asks(choice())
    tab.card(number, PRESS, label="Deny", KEY="Enter")
    assert shared.answer(number)["content"] == {"decision": "no"}


class Site(ThreadingHTTPServer):
    """A page elsewhere, on another local port."""

    def __init__(self, html: str = "") -> None:
        self.hits: queue.Queue[tuple[str, dict[str, str]]] = queue.Queue()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.hits.put((self.path, dict(self.headers)))
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(html.encode())

            do_POST = do_GET  # noqa: N815

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()


@pytest.mark.requirement("page-addresses")
def test_an_address_is_opened_on_consent_and_learns_nothing_of_the_page(tab: Tab, shared: Asker):
    site = Site()
    try:
        declined = shared.asks(URL | {"url": f"{site.url}/declined"})
        tab.presses(declined, "Decline")
        assert shared.answer(declined) == {"action": "decline"}
        number = shared.asks(URL | {"url": f"{site.url}/pay"})
        tab.until("It is not encrypted")
        opened = "const next = context.waitForEvent('page');"
        press = "const label = 'Open 127.0.0.1';" + PRESS
        look = "const site = await next; await site.waitForLoadState();"
        look += "return site.evaluate(() => [location.pathname, window.opener === null, document.referrer])"
        assert tab.card(number, opened + press + look) == ["/pay", True, ""]
        assert shared.answer(number) == {"action": "accept"}
        path, heads = site.hits.get(timeout=PATIENCE)
        assert path == "/pay" and "Referer" not in heads
    finally:
        site.close()


# ── attacks ──

EVIL = """
const tried = [];
const attempt = async (name, act) => tried.push([name, await act().catch(() => "failed")]);
const body = JSON.stringify({ id: NUMBER, button: 0, hash: "", values: ["x"], key: "" });
for (const path of ["/answer", "/events", "/open"])
  for (const mode of ["cors", "no-cors"])
    await attempt(mode + path, async () => (await fetch(PAGE + path, {
      method: "POST", body, mode, credentials: "include",
      headers: { "Content-Type": mode === "cors" ? "application/json" : "text/plain" } })).type);
await attempt("read", async () => (await (await fetch(PAGE + "/")).text()).length);
await attempt("frame", () => new Promise((done) => {
  const frame = document.createElement("iframe");
  frame.src = PAGE + "/";
  frame.onload = () => done(frame.contentDocument?.body.innerText ?? "not ours");
  document.body.append(frame);
}));
await attempt("script", () => new Promise((done) => {
  const script = document.createElement("script");
  script.src = PAGE + "/";
  script.onload = () => done("loaded");
  script.onerror = () => done("refused");
  document.body.append(script);
}));
const form = document.createElement("form");
Object.assign(form, { method: "post", action: PAGE + "/answer", target: "elsewhere", enctype: "text/plain" });
document.body.append(form);
form.submit();
return { tried, cookies: document.cookie };
"""


@pytest.mark.requirement("page-walls")
def test_a_page_on_another_local_port_reads_and_answers_nothing(tab: Tab, shared: Asker):
    number = shared.asks(FORM)
    tab.until("Your name?")
    where = tab.run("return new URL(page.url()).origin")
    site = Site("<!doctype html><title>evil</title>")
    try:
        run = "const evil = await context.newPage(); await evil.goto(url);"
        run += "return evil.evaluate((code) => new Function(`return (async () => { ${code} })()`)(), evil_code)"
        evil_code = f"const PAGE = {json.dumps(where)}, NUMBER = {number};" + EVIL
        said = tab.run(run, url=site.url, evil_code=evil_code)
        tried = dict(said["tried"])
        assert tried.pop("frame") in ("not ours", "")
        assert tried.pop("script") == "refused"
        assert set(tried.values()) == {"failed"} and said["cookies"] == ""
        assert tab.run("return context.cookies()") == []
        assert number not in shared.answers
        tab.presses(number, "Decline")  # the page itself is as it was
        assert shared.answer(number) == {"action": "decline"}
    finally:
        site.close()


@pytest.mark.requirement("page-harmless")
def test_what_a_server_says_is_shown_as_text_and_runs_nothing(tab: Tab, shared: Asker):
    evil = "<img src=x onerror='window.evil=1'><script>window.evil=1</script><h2>mcpmux asks you</h2>\u202e"
    schema = {"properties": {evil: {"type": "string", "title": evil, "description": evil, "default": evil}}}
    schema["properties"]["one"] = {"enum": [evil], "enumNames": [evil]}
    number = shared.asks(FORM | {"message": evil, "call": evil, "requestedSchema": schema})
    tab.until("window.evil=1")
    assert tab.run("return page.evaluate(() => [window.evil, document.querySelectorAll('img, h2').length])") == [
        None,
        1,
    ]
    assert "\u202e" not in tab.text()
    tab.presses(number, "Decline")
    big = shared.asks(FORM | {"message": "x" * 2**20})
    tab.until("x" * 1000)
    tab.presses(big, "Decline")
    assert shared.answer(big) == {"action": "decline"}


@pytest.mark.requirement("page-walls")
def test_a_click_that_lands_after_the_page_has_moved_does_nothing(driver: Driver, shared: Asker):
    tab = Tab(driver, shared.address(), still=True)
    first = shared.asks(choice())
    tab.until("May git run delete?")
    tab.run("await page.clock.pauseAt(new Date('2026-11-26T10:00:00Z'))")
    second = shared.asks(FORM)
    tab.until("Your name?")
    press = "await page.getByRole('button', { name: 'This call', exact: true }).click();"
    tab.run(press + "await page.clock.runFor(480);" + press)
    assert tab.run("return page.locator('article').count()") == 2 and first not in shared.answers
    tab.run("await page.clock.runFor(40);" + press)
    assert shared.answer(first)["content"] == {"decision": "once"}
    shared.withdraws(second, "")


def test_a_tab_that_is_loaded_again_goes_on_and_a_key_that_is_used_twice_ends_it(driver: Driver, shared: Asker):
    address = shared.address()
    tab = Tab(driver, address)
    number = shared.asks(FORM)
    tab.until("Your name?")
    assert "#" not in tab.run("return page.url()")
    tab.run("await page.reload()")
    tab.until("Your name?")
    tab.run(
        "const other = await context.newPage(); await other.goto(address); await other.waitForSelector('[role=alert]')",
        address=address,
    )
    tab.until("its key was used twice")
    assert "Your name?" not in tab.text()
    assert shared.answer(number)["action"] == "cancel"


@pytest.mark.requirement("page-walls")
def test_a_tab_that_has_lost_mcpmux_is_blank_and_comes_to_nobody_who_has_its_port(driver: Driver, tmp_path: Path):
    asker = Asker(tmp_path)
    address = asker.address()
    tab = Tab(driver, address, still=True)
    asker.asks(FORM)
    tab.until("Your name?")
    asker.close()
    tab.until("no longer connected")
    assert "Your name?" not in tab.text()
    assert tab.run("return page.evaluate(() => sessionStorage.length)") == 0
    port = int(re.search(r":(\d+)/", address)[1])  # type: ignore[index]
    with socket.create_server(("127.0.0.1", port)) as thief:
        tab.run("await page.clock.runFor(600_000)")
        thief.settimeout(0)
        with pytest.raises(BlockingIOError):
            thief.accept()


# ── through mcpmux ──


@pytest.mark.requirement("asked-by-page")
def test_two_questions_of_two_servers_are_asked_at_once(driver: Driver, serve: Callable[..., RawHost], tmp_path: Path):
    person = Person(tmp_path)
    host = serve(server_table("one"), server_table("two"), env=person.env)
    host.initialize()
    host.tools()
    question = {"method": "elicitation/create", "params": {key: FORM[key] for key in ("message", "requestedSchema")}}
    calls = [host.ask("tools/call", {"name": f"{name}__ask", "arguments": question}) for name in ("one", "two")]
    tab = Tab(driver, "http://{}/#{}".format(*person.address(host)))
    tab.until("two asks you")
    tab.until("one asks you")
    answers = {}
    for name in ("two", "one"):
        find = f"const card = page.locator('article', {{ hasText: '{name} asks you' }});"
        ready = "await page.waitForFunction(() => !document.body.classList.contains('still'));"
        fill = "await card.getByRole('textbox').fill(name); const label = 'Send';"
        tab.run(ready + find + fill + PRESS, name=name)
        tab.until(f"{name} asks you “Your name?”: you chose “Send”")
    for name, call in zip(("one", "two"), calls, strict=True):
        answers[name] = json.loads(host.answer(call)["result"]["content"][0]["text"])["result"]
        assert answers[name] == {"action": "accept", "content": {"name": name}}


# ── how it looks ──

ORDER = {
    "name": {"type": "string", "title": "Name on the parcel", "minLength": 2},
    "when": {
        "type": "string",
        "title": "Delivery",
        "oneOf": [{"const": "d", "title": "By day"}, {"const": "n", "title": "At night"}],
    },
}
SHOWN = [
    {**FORM, "asker": "shop", "call": "shop__order", "message": "Where is the order to go?",
     "requestedSchema": {"type": "object", "properties": ORDER, "required": ["name"]}},
    choice("May git run delete_branch?", shown=[{"title": "Arguments", "text": '{\n  "branch": "main"\n}'}]),
    {**URL, "asker": "bank", "call": "bank__pay", "message": "Log in to confirm", "url": "https://bank.example/7?id=1"},
]  # fmt: skip


def look(document: str) -> str:
    """What the picture is made from: the page without its nonces, and the questions."""
    plain = re.sub('nonce="[0-9a-f]+"', "", document)
    return hashlib.sha256((plain + json.dumps(SHOWN)).encode()).hexdigest()


def test_the_pages_picture_is_of_this_page_and_no_screen_makes_it_scroll_sideways(
    driver: Driver, pytestconfig: pytest.Config, tmp_path: Path
):
    """If this fails for the picture: `uv run pytest tests/third_party/test_page.py --new-pictures`, and look at it."""
    asker = Asker(tmp_path)
    tab = Tab(driver, asker.address())
    for question in SHOWN:
        asker.asks(question)
    tab.until("Log in to confirm")
    document = tab.run("return (await context.request.get(new URL('/', page.url()).href)).text()")
    if pytestconfig.getoption("--new-pictures"):
        draw = "await page.emulateMedia({ colorScheme }); await page.setViewportSize({ width, height: 400 });"
        draw += "const height = await page.evaluate(() => document.documentElement.scrollHeight);"
        draw += "await page.setViewportSize({ width, height }); await page.waitForTimeout(900);"
        draw += "await page.screenshot({ path })"
        for name, scheme, width in (("dark", "dark", 900), ("narrow", "light", 340), ("page", "light", 640)):
            drawn = str(PICTURE if name == "page" else tmp_path / f"{name}.png")
            tab.run(draw, colorScheme=scheme, width=width, path=drawn)
            print(drawn)
        PICTURE.write_bytes(PICTURE.read_bytes() + look(document).encode())  # after a picture's end anything may stand
    for width in (900, 320):
        tab.run("await page.setViewportSize({ width, height: 700 })", width=width)
        assert tab.run("return page.evaluate(() => document.documentElement.scrollWidth <= innerWidth)")
    asker.close()
    assert PICTURE.read_bytes().endswith(look(document).encode())
