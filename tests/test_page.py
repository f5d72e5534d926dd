"""The page that asks the person where the host cannot: what it shows, who may read and answer it, and that nothing is
ever accepted by default. Our choice (README, "When a server asks you something")."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import stat
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from asked import DECISIONS, EVERY_KIND, FORM, NAME, URL, Person, choice, sampling
from conftest import COMMAND, PATIENCE, RawHost, is_running, server_table
from script import PAGE, TOOL, Script

import mcpmux
from mcpmux import Opener, Page, PageSetup

CUT_SHORT = (ConnectionError, http.client.IncompleteRead)  # an answer whose page has ended
HOST = "127.0.0.1:7"
ORIGIN = {"origin": f"http://{HOST}"}
# ── a page without its process, and a clock of the test's own ──


class Tab:
    """What a browser does, over the same ASGI interface as the web server's."""

    def __init__(self, inside: Inside) -> None:
        self.inside = inside
        self.token = ""
        self.cards: dict[int, dict[str, Any]] = {}
        self.bye = ""
        self.news: list[dict[str, Any]] = []
        self._heard = asyncio.Event()
        self._left = asyncio.Event()

    async def post(self, path: str, body: Any, **heads: str) -> tuple[int, Any]:
        given = ORIGIN | {"content-type": "application/json", "authorization": f"Bearer {self.token}"} | heads
        return await self.inside.request("POST", path, json.dumps(body).encode(), given)

    async def comes(self, key: str) -> None:
        status, said = await self.post("/open", {"key": key})
        assert status == 200, said
        self.token = said["token"]
        await self.listens()

    async def listens(self) -> None:
        scope = self.inside.scope("POST", "/events", ORIGIN | {"content-type": "application/json"})
        scope["headers"].append((b"authorization", f"Bearer {self.token}".encode()))
        self._left.clear()
        asked = iter([{"type": "http.request", "body": b"{}", "more_body": False}])

        async def receive() -> Any:
            for one in asked:
                return one
            await self._left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                assert message["status"] == 200
            for event in re.findall(rb"data: (.*)\n\n", message.get("body", b"")):
                self._take(json.loads(event))

        self.task = asyncio.create_task(self.inside.page(scope, receive, send))
        await self.hears()

    def _take(self, news: dict[str, Any]) -> None:
        self.bye = news.get("bye", self.bye)
        for id in news.get("gone", ()):
            self.cards.pop(id, None)
        self.cards |= {one["question"]["id"]: one for one in news.get("add", ())}
        self.news.append(news)
        self._heard.set()

    async def hears(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self._heard.wait()
        self._heard.clear()

    async def leaves(self) -> None:
        self._left.set()
        await self.task

    async def presses(self, label: str, id: int = 1, **said: Any) -> tuple[int, Any]:
        card = self.cards[id]
        labels = [button["label"] for button in card["question"]["buttons"]]
        body = {"id": id, "hash": card["hash"], "button": labels.index(label), "values": []} | said
        return await self.post("/answer", body)


class Inside:
    """A page whose lines, browser and clock belong to the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.lines: list[Any] = []
        self.opened: list[str] = []
        self.trouble: OSError | None = None
        self._opened, self._wrote = asyncio.Event(), asyncio.Event()
        self.page = Page(PageSetup("claude-ai", Opener(["browser"], by_file=False)), self._write, lambda: self.now)
        self.page.host = HOST
        loop = asyncio.get_running_loop()

        def go_to(opener: Opener, address: str) -> None:
            self.opened.append(address)
            loop.call_soon_threadsafe(self._opened.set)
            if self.trouble:
                raise self.trouble

        monkeypatch.setattr(mcpmux, "go_to", go_to)

    def _write(self, line: bytes) -> None:
        self.lines.append(json.loads(line))
        self._wrote.set()

    async def waits_for(self, id: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while not self.is_answered(id):
                await self._wrote.wait()
                self._wrote.clear()

    def says(self, method: str, params: Any, id: int | None = None) -> None:
        line = {"jsonrpc": "2.0", "method": method, "params": params} | ({} if id is None else {"id": id})
        self.page.take(mcpmux.decode_line(json.dumps(line).encode()))

    def asks(self, params: Any = FORM, id: int = 1) -> None:
        self.says("ask", params, id)

    def answer(self, id: int = 1) -> Any:
        [answer] = [one for one in self.lines if one.get("id") == id]
        return answer.get("result", answer.get("error"))

    def is_answered(self, id: int = 1) -> bool:
        return any(one.get("id") == id for one in self.lines)

    def passes(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.now += 1
            self.page.look()

    async def key(self) -> str:
        """Of the next browser."""
        async with asyncio.timeout(PATIENCE):
            await self._opened.wait()
        self._opened.clear()
        return self.opened[-1].partition("#")[2]

    async def tab(self) -> Tab:
        tab = Tab(self)
        await tab.comes(await self.key())
        return tab

    def scope(self, method: str, path: str, heads: dict[str, str]) -> dict[str, Any]:
        given = {"host": HOST} | heads
        headers = [(key.encode(), value.encode()) for key, value in given.items() if value]
        about = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
        return about | {"headers": headers, "scheme": "http", "server": ("127.0.0.1", 7), "http_version": "1.1"}

    async def request(self, method: str, path: str, body: bytes, heads: dict[str, str]) -> tuple[int, Any]:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.page(self.scope(method, path, heads), receive, send)
        self.heads = {key.decode(): value.decode() for key, value in sent[0]["headers"]}
        whole = b"".join(one.get("body", b"") for one in sent[1:])
        return sent[0]["status"], json.loads(whole) if whole[:1] == b"{" else whole


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Inside], Awaitable[None]]], None]:
    """Runs a scene with a page."""

    def run(scene: Callable[[Inside], Awaitable[None]]) -> None:
        async def play() -> None:
            await scene(Inside(monkeypatch))
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

        asyncio.run(play())

    return run


Run = Callable[[Callable[[Inside], Awaitable[None]]], None]

# ── what is shown and answered ──


@pytest.mark.requirement("page-answers")
def test_a_form_is_shown_and_its_answer_is_the_elicitations_result(inside: Run):
    async def scene(page: Inside) -> None:
        page.asks()
        tab = await page.tab()
        question = tab.cards[1]["question"]
        assert (question["title"], question["call"], question["message"]) == ("git asks you", "git__log", "Your name?")
        assert [button["label"] for button in question["buttons"]] == ["Send", "Decline", "Cancel"]
        assert tab.news[0]["host"] == "mcpmux · claude-ai"
        assert tab.cards[1]["left"] == 300
        assert await tab.presses("Send", values=["Ada"]) == (200, {})
        assert page.answer() == {"action": "accept", "content": {"name": "Ada"}}
        await tab.hears()
        assert not tab.cards and "you chose “Send”" in tab.news[-1]["lately"][0]
        page.asks(id=2)
        page.asks(id=3)
        await tab.hears()
        assert len(page.opened) == 1  # the open tab is used again
        await tab.presses("Decline", 2)
        await tab.presses("Cancel", 3)
        assert (page.answer(2), page.answer(3)) == ({"action": "decline"}, {"action": "cancel"})

    inside(scene)


WELL = ["abc", "a@b.c", "https://x.y", "2026-11-26", "2026-11-26T09:00:00.000Z", "2", "2.5", 1, 1, 0, [1, 0, 1], []]
TAKEN = [
    "abc",
    "a@b.c",
    "https://x.y",
    "2026-11-26",
    "2026-11-26T09:00:00.000Z",
    2,
    2.5,
    False,
    "g",
    "#f00",
    ["b", "a"],
]


@pytest.mark.requirement("page-answers")
def test_every_kind_of_field_that_elicitation_allows_is_taken(inside: Run):
    async def scene(page: Inside) -> None:
        schema = {"type": "object", "properties": EVERY_KIND, "required": list(EVERY_KIND)[:-1]}
        page.asks(FORM | {"requestedSchema": schema})
        tab = await page.tab()
        fields = tab.cards[1]["question"]["fields"]
        kinds = [one["input"]["input"] if "input" in one else ("many" if one["many"] else "one") for one in fields]
        assert kinds == [
            "text",
            "email",
            "url",
            "date",
            "datetime-local",
            "number",
            "number",
            *["one"] * 3,
            *["many"] * 2,
        ]
        assert [one["needed"] for one in fields] == [True] * 11 + [False]
        assert fields[9]["choices"] == ["Red", "Green"] and fields[10]["choices"] == ["A", "b"]
        assert await tab.presses("Send", values=WELL) == (200, {})
        assert page.answer()["content"] == dict(zip(EVERY_KIND, TAKEN, strict=False))

    inside(scene)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("text", one) for one in ("a", "abcde", None, "", 7, ["abc"])),
        ("mail", "a"),
        ("uri", "x"),
        ("day", "2026-13-01"),
        ("time", "now"),
        *(("int", one) for one in ("0", "4", "2.5", "x", None)),
        *(("float", one) for one in ("nan", "inf", "", "1e999", "9" * 400)),
        *(("enum", one) for one in (2, -1, "r", None, [0])),
        *(("some", one) for one in ([], [2], ["a"], "a", None)),
        ("bool", "yes"),
    ],
)
@pytest.mark.requirement("page-answers")
def test_what_does_not_fit_the_schema_is_not_taken_and_the_question_stays(field: str, value: Any, inside: Run):
    async def scene(page: Inside) -> None:
        schema = {"type": "object", "properties": {field: EVERY_KIND[field]}, "required": [field]}
        page.asks(FORM | {"requestedSchema": schema})
        tab = await page.tab()
        status, said = await tab.presses("Send", values=[value])
        assert status == 422 and said["wrong"]["0"]
        assert not page.is_answered()

    inside(scene)


DEFAULTS = [
    ({"type": "string", "default": "x"}, "x"),
    ({"type": "integer", "default": 3}, "3"),
    ({"type": "boolean", "default": False}, [1]),
    ({"type": "string", "enum": ["a", "b"], "default": "b"}, [1]),
    ({"type": "array", "items": {"enum": ["a", "b"]}, "default": ["a", "b"]}, [0, 1]),
    ({"type": "boolean"}, []),
]


@pytest.mark.parametrize(("field", "preset"), DEFAULTS)
def test_a_default_is_filled_in_for_the_person(field: dict[str, Any], preset: Any):
    shown = mcpmux.shown_of(1, FORM | {"requestedSchema": {"properties": {"f": field}}}, 0.0)
    assert shown.view["fields"][0]["preset"] == preset


NONSENSE: list[Any] = [
    7,
    {"properties": 7},
    {"properties": {"a": 7, "b": {"type": ["x"]}, "c": {"enum": 3}, "d": {"oneOf": [3, {}]}}, "required": "abc"},
    {"properties": {"__proto__": {"type": "string"}, "": {}}, "required": [3, "x"]},
    {"properties": {"a": {"type": "string", "minLength": "x", "format": 3, "title": {}, "default": {}}}},
    {"properties": {"a": {"type": "array"}, "b": {"type": "array", "items": 3}, "c": {"type": "object"}}},
    {"properties": {"a": {"enum": [["x"], {"y": 1}, None], "enumNames": ["x"]}}},
]


@pytest.mark.parametrize("schema", NONSENSE)
def test_a_schema_of_nonsense_is_shown_as_far_as_it_makes_sense(schema: Any):
    shown = mcpmux.shown_of(1, FORM | {"requestedSchema": schema}, 0.0)
    json.dumps(shown.view)
    for field in shown.fields.values():
        mcpmux.typed("x", field) if not mcpmux.choices_of(field) and field.get("type") != "array" else None


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        (FORM | {"mode": "video"}, "a mode that mcpmux does not know: video"),
        (FORM | {"requestedSchema": {"properties": {f"f{n}": {} for n in range(101)}}}, "101 fields"),
        ({"mode": "sampling"}, "could not be shown"),
        (FORM | {"shown": 7}, "could not be shown"),
    ],
)
@pytest.mark.requirement("never-accept")
def test_what_cannot_be_shown_is_cancelled_with_the_reason(params: Any, reason: str, inside: Run):
    async def scene(page: Inside) -> None:
        page.asks(params)
        assert page.answer()["action"] == "cancel" and reason in page.answer()["reason"]
        assert not page.opened

    inside(scene)


def test_a_field_that_looks_like_a_secret_is_warned_of_and_confirmed_twice(inside: Run):
    async def scene(page: Inside) -> None:
        page.asks(FORM | {"requestedSchema": {"properties": {"k": {"type": "string", "title": "API key"}}}})
        tab = await page.tab()
        question = tab.cards[1]["question"]
        assert "looks like a secret" in question["notes"][0] and "want git to have it" in question["secret"]
        status, said = await tab.presses("Send", values=["hunter2"])
        assert status == 422 and "Say first" in said["text"] and not page.is_answered()
        await tab.presses("Send", values=["hunter2"], sure=True)
        assert page.answer()["content"] == {"k": "hunter2"}

    inside(scene)


# ── addresses ──


@pytest.mark.parametrize(
    ("url", "host", "said"),
    [
        ("https://pay.example/7?a=1#b", "pay.example", ""),
        ("https://PAY.example:8443/", "pay.example", ""),
        ("http://pay.example/", "pay.example", "not encrypted"),
        ("https://pаypal.com/", "xn--pypal-4ve.com", "other alphabets"),
        ("https://xn--pypal-4ve.com/", "xn--pypal-4ve.com", "other alphabets"),
        ("https://[::1]:8080/x", "[::1]", ""),
        ("https://paypal.com@evil.example/", "", "made to deceive"),
        ("https://good.example\\@evil.example/", "", "made to deceive"),
        ("https://good.example/\u202egpj.exe", "", "made to deceive"),
        ("https://good.example\n.evil.example/", "", "made to deceive"),
        ("javascript:alert(1)", "", "made to deceive"),
        ("data:text/html,<script>1</script>", "", "made to deceive"),
        ("file:///etc/passwd", "", "made to deceive"),
        ("https:evil.example", "", "made to deceive"),
        ("https://[", "", "made to deceive"),
        ("https://x:y/", "", "made to deceive"),
        ("", "", "made to deceive"),
    ],
)
@pytest.mark.requirement("page-addresses")
def test_an_address_is_shown_with_its_host_apart_and_what_deceives_is_not_opened(url: str, host: str, said: str):
    address, notes = mcpmux.address_of(url)
    assert address["host"] == host and said in " ".join(notes)
    assert address["before"] + address["host"] + address["after"] == (address["url"] or mcpmux.harmless(url))
    shown = mcpmux.shown_of(1, URL | {"url": url}, 0.0)
    assert [one.label for one in shown.buttons] == ([f"Open {host}"] if host else []) + ["Decline", "Cancel"]


def test_an_address_is_accepted_without_content(inside: Run):
    async def scene(page: Inside) -> None:
        page.asks(URL)
        tab = await page.tab()
        await tab.presses("Open pay.example", values=["x"])
        assert page.answer() == {"action": "accept"}

    inside(scene)


# ── mcpmux's own questions ──


@pytest.mark.parametrize(("label", "decision"), [("This call", "once"), ("Deny", "no")])
def test_an_approval_has_a_button_for_each_decision(label: str, decision: str, inside: Run):
    async def scene(page: Inside) -> None:
        page.asks(choice())
        tab = await page.tab()
        question = tab.cards[1]["question"]
        assert [one["label"] for one in question["buttons"]] == ["This call", "This tool until mcpmux ends", "Deny"]
        assert question["title"] == "mcpmux asks you" and question["parts"] == [{"label": "Tool", "text": "delete"}]
        await tab.presses(label)
        assert page.answer() == {"action": "accept", "content": {"decision": decision}}

    inside(scene)


def test_a_server_cannot_ask_in_the_name_of_mcpmux_nor_with_buttons_of_its_own():
    asked = FORM | {"requestedSchema": json.loads(bytes(mcpmux.choice_form("x", DECISIONS)["requestedSchema"]))}
    shown = mcpmux.shown_of(1, asked, 0.0)
    assert shown.view["title"] == "git asks you" and [one.label for one in shown.buttons] == [
        "Send",
        "Decline",
        "Cancel",
    ]


@pytest.mark.requirement("page-sampling")
def test_a_sampling_request_is_shown_whole_and_its_texts_may_be_edited(inside: Run):
    async def scene(page: Inside) -> None:
        page.asks(sampling())
        tab = await page.tab()
        parts = tab.cards[1]["question"]["parts"]
        by_label = {one["label"]: one for one in parts}
        assert by_label["Server"]["text"] == "notes"
        assert by_label["Model, size and price"]["text"] == "a/one, b/two; 400 tokens at most; at most $0.012"
        assert [one["text"] for one in parts if "slot" in one] == ["Be brief", "Sum up", "rain"]
        assert by_label["User: picture"]["image"] == "data:image/png;base64,aGVyb24="
        assert by_label["User"]["text"] == "image, image/svg+xml, 6 bytes"  # a picture that may hold a script
        assert '"place": "Rome"' in by_label["Assistant"]["text"] and "Tool: weather" in by_label
        await tab.presses("This call", edits={"1": "Sum up, without names", "9": "x", "x": "y"})
        content = page.answer()["content"]
        assert content["decision"] == "once"
        expected = sampling()["sampling"]["params"]
        expected["messages"][0]["content"]["text"] = "Sum up, without names"
        assert content["params"] == expected

    inside(scene)


def test_a_sampling_request_that_was_not_edited_comes_back_without_its_params(inside: Run):
    async def scene(page: Inside) -> None:
        page.asks(sampling(usd=None))
        tab = await page.tab()
        assert "nobody knows its price" in str(tab.cards[1]["question"]["parts"])
        await tab.presses("Deny", edits={})
        assert page.answer()["content"] == {"decision": "no"}

    inside(scene)


def test_a_models_answer_is_shown_before_its_server_gets_it_and_nothing_is_edited(inside: Run):
    async def scene(page: Inside) -> None:
        page.asks(sampling(reply={"role": "assistant", "content": {"type": "text", "text": "Milk."}, "model": "a/one"}))
        tab = await page.tab()
        parts = tab.cards[1]["question"]["parts"]
        assert parts[-1] == {"label": "The model's answer", "text": "Milk."} and not any("slot" in one for one in parts)

    inside(scene)


# ── words that would do harm ──


@pytest.mark.requirement("page-harmless")
def test_what_a_server_says_is_text_and_nothing_in_it_moves_or_hides_other_text(inside: Run):
    async def scene(page: Inside) -> None:
        evil = "<script>alert(1)</script><b>\u202eevil\u2066\x1b[2J"
        schema = {"properties": {evil: {"type": "string", "title": evil, "description": evil, "default": evil}}}
        page.asks(FORM | {"message": evil, "requestedSchema": schema, "call": evil})
        tab = await page.tab()
        told = json.dumps(tab.cards[1], ensure_ascii=False)
        assert not re.search("[\u202e\u2066\x1b]", told)
        assert "<script>" in told  # as a text among texts: the page makes no HTML of it
        status, document = await page.request("GET", "/", b"", {})
        assert status == 200 and b"innerHTML" not in document and b"insertAdjacent" not in document
        await tab.presses("Send", values=["x"])
        assert page.answer()["content"] == {evil: "x"}

    inside(scene)


@pytest.mark.requirement("page-harmless")
def test_a_text_of_a_megabyte_and_thousands_of_questions_are_borne(inside: Run):
    async def scene(page: Inside) -> None:
        page.asks(FORM | {"message": "x" * mcpmux.MB})
        tab = await page.tab()
        assert len(tab.cards[1]["question"]["message"]) == mcpmux.MB
        for number in range(2, 10_001):
            page.asks(id=number)
        while tab.news[-1]["more"] != 10_000 - mcpmux.CARDS_MOST:
            await tab.hears()
        assert list(tab.cards) == list(range(1, mcpmux.CARDS_MOST + 1)) and len(page.opened) == 1
        await tab.presses("Decline", 5)
        await tab.hears()
        assert mcpmux.CARDS_MOST + 1 in tab.cards and 5 not in tab.cards
        tab.task.cancel()

    inside(scene)


# ── who may not read or answer ──


@pytest.mark.parametrize(
    ("heads", "status"),
    [
        ({"origin": "http://127.0.0.1:8"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"content-type": "text/plain"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"host": "127.0.0.1:8"}, 421),
        ({"host": "localhost:7"}, 421),
        ({"host": "evil.example"}, 421),
        ({"host": ""}, 421),
        ({"authorization": ""}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": "Bearer x"}, 401),
    ],
)
@pytest.mark.requirement("page-walls")
def test_who_is_not_the_page_itself_with_its_token_reads_and_answers_nothing(
    heads: dict[str, str], status: int, inside: Run
):
    async def scene(page: Inside) -> None:
        page.asks()
        tab = await page.tab()
        card = tab.cards[1]
        for path in ("/events", "/answer"):
            said = {"id": 1, "hash": card["hash"], "button": 0, "values": ["x"]}
            got, answer = await tab.post(path, said, **heads)
            assert got == status and "Your name" not in str(answer)
        assert not page.is_answered()
        assert (await tab.presses("Decline"))[0] == 200  # the page itself still can

    inside(scene)


@pytest.mark.parametrize(
    ("method", "path", "heads", "status"),
    [
        ("GET", "/", {}, 200),
        ("GET", "/", {"sec-fetch-dest": "iframe"}, 404),
        ("GET", "/", {"sec-fetch-dest": "script"}, 404),
        ("GET", "/", {"host": "evil.example"}, 421),
        ("GET", "/events", ORIGIN, 404),
        ("GET", "/answer", ORIGIN, 404),
        ("PUT", "/answer", ORIGIN, 404),
        ("OPTIONS", "/answer", {"origin": "http://evil.example"}, 404),
        ("POST", "/", ORIGIN, 404),
        ("POST", "/../etc/passwd", ORIGIN, 404),
    ],
)
@pytest.mark.requirement("page-walls")
def test_there_is_one_page_and_three_ways_in(method: str, path: str, heads: dict[str, str], status: int, inside: Run):
    async def scene(page: Inside) -> None:
        page.asks()
        await page.key()
        got, body = await page.request(method, path, b"{}", heads)
        assert got == status and b"git" not in bytes(str(body), "utf-8")
        assert "access-control-allow-origin" not in page.heads and "set-cookie" not in page.heads
        assert page.heads["cache-control"] == "no-store" and page.heads["x-frame-options"] == "DENY"
        if status == 200:
            policy = page.heads["content-security-policy"]
            [nonce] = set(re.findall("'nonce-(.*?)'", policy))
            assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
            assert body.count(f'nonce="{nonce}"'.encode()) == 2  # its style and its script
            assert not re.search(rb'(src|href)="|https?://', body)

    inside(scene)


@pytest.mark.requirement("page-walls")
def test_a_key_opens_once_and_is_not_guessed(inside: Run):
    async def scene(page: Inside) -> None:
        page.asks()
        key = await page.key()
        thief = Tab(page)
        for guess in ("", "x", key[:-1], key + "0", None, 7):
            assert (await thief.post("/open", {"key": guess}))[0] == 403
        tab = Tab(page)
        await tab.comes(key)
        status, said = await thief.post("/open", {"key": key})
        assert status == 403 and "everything was cancelled" in said["text"]
        await tab.hears()
        assert "its key was used twice" in tab.bye
        assert page.answer() == {
            "action": "cancel",
            "reason": "its key was used twice, so another program may have read it",
        }
        assert any(one["params"]["level"] == "warning" for one in page.lines if one.get("method") == "log")
        assert (await tab.post("/events", {}))[0] == 401

    inside(scene)


def test_a_key_lives_a_minute(inside: Run):
    async def scene(page: Inside) -> None:
        page.asks(choice(opens=True))
        key = await page.key()
        page.now += mcpmux.KEY_LIVES
        assert (await Tab(page).post("/open", {"key": key}))[0] == 403

    inside(scene)


@pytest.mark.requirement("never-accept")
def test_an_answer_names_exactly_what_was_shown(inside: Run):
    async def scene(page: Inside) -> None:
        page.asks(choice())
        page.asks(choice("May git run push?"), 2)
        tab = await page.tab()
        other = tab.cards[2]["hash"]
        for said, status in [
            ({"hash": other}, 409),
            ({"hash": ""}, 409),
            ({"hash": None}, 409),
            ({"button": 3}, 422),
            ({"button": -1}, 422),
            ({"button": "0"}, 422),
        ]:
            assert (await tab.presses("This call", **said))[0] == status, said
        assert (await tab.post("/answer", [1]))[0] == 409
        assert not page.is_answered() and not page.is_answered(2)
        status, _ = await page.request(
            "POST",
            "/answer",
            b"x" * (mcpmux.POST_MOST + 1),
            ORIGIN | {"content-type": "application/json", "authorization": f"Bearer {tab.token}"},
        )
        assert status == 413

    inside(scene)


@pytest.mark.requirement("one-ending")
def test_a_question_that_is_answered_or_withdrawn_is_answered_no_more(inside: Run):
    async def scene(page: Inside) -> None:
        page.asks()
        page.asks(id=2)
        tab = await page.tab()
        cards = dict(tab.cards)
        await tab.presses("Decline")
        page.says("notifications/cancelled", {"requestId": 2, "reason": "the call is over"})
        await tab.hears()
        assert not tab.cards and "no longer asked: the call is over" in tab.news[-1]["say"]
        tab.cards = cards
        assert (await tab.presses("Send", values=["x"]))[0] == (await tab.presses("Send", 2, values=["x"]))[0] == 409
        assert page.answer() == {"action": "decline"} and not page.is_answered(2)
        page.says("notifications/cancelled", {"requestId": 7})

    inside(scene)


# ── nobody there ──


@pytest.mark.requirement("page-unattended")
def test_what_nobody_comes_for_is_cancelled_and_the_browser_is_opened_no_more(inside: Run):
    async def scene(page: Inside) -> None:
        for number in (1, 2, 3):
            page.asks(id=number)
        await page.key()
        page.passes(59)
        assert not page.is_answered()
        page.passes(1)
        for number in (1, 2, 3):
            assert page.answer(number) == {"action": "cancel", "reason": "nobody came to the page within 60 s"}
        page.asks(id=4)
        assert "`mcpmux page` opens it" in page.answer(4)["reason"]
        assert len(page.opened) == 1
        page.says("open", {}, 5)  # the person does
        tab = await page.tab()
        await page.waits_for(5)
        assert page.answer(5) == {}
        page.asks(id=6)
        await tab.hears()
        assert 6 in tab.cards and len(page.opened) == 2

    inside(scene)


def test_what_its_host_gives_up_sooner_counts_as_well(inside: Run):
    async def scene(page: Inside) -> None:
        for number in (1, 2, 3):
            page.asks(id=number)
            page.passes(55)
            page.says("notifications/cancelled", {"requestId": number, "reason": "timed out"})
        page.asks(id=4)
        assert "`mcpmux page` opens it" in page.answer(4)["reason"]

    inside(scene)


@pytest.mark.requirement("page-unattended")
def test_the_browser_is_opened_once_a_minute_and_for_a_hosts_call_only(inside: Run):
    async def scene(page: Inside) -> None:
        page.asks(FORM | {"opens": False, "call": ""})
        assert not page.opened
        page.asks(id=2)
        await page.key()
        page.passes(30)
        page.asks(id=3)
        page.passes(30)
        assert page.is_answered(2) and not page.is_answered(3) and len(page.opened) == 1
        page.asks(id=4)
        await page.key()
        assert len(page.opened) == 2

    inside(scene)


def test_tools_that_have_changed_wait_for_a_person_who_looks(inside: Run):
    async def scene(page: Inside) -> None:
        page.asks(choice("Tools of git have changed.", opens=False, call=""))
        page.passes(200)
        assert not page.is_answered() and not page.opened
        page.says("open", {}, 2)
        tab = await page.tab()
        assert 1 in tab.cards

    inside(scene)


@pytest.mark.requirement("never-accept")
def test_a_browser_that_cannot_be_opened_is_no_answer(inside: Run):
    async def scene(page: Inside) -> None:
        page.trouble = OSError(2, "No such file")
        page.asks()
        await page.waits_for(1)
        assert page.answer() == {"action": "cancel", "reason": "no browser could be opened: No such file"}
        page.says("open", {}, 2)
        await page.waits_for(2)
        assert "no browser could be opened" in page.answer(2)["message"]

    inside(scene)


def test_a_tab_that_is_loaded_again_goes_on_and_one_that_was_left_does_not(inside: Run):
    async def scene(page: Inside) -> None:
        page.asks()
        tab = await page.tab()
        await tab.leaves()
        page.passes(4)
        tab.cards = {}
        await tab.listens()
        assert 1 in tab.cards
        await tab.leaves()
        page.passes(5)
        assert (await tab.post("/events", {}))[0] == 401
        page.passes(60)
        assert page.answer()["action"] == "cancel"

    inside(scene)


def test_of_a_tab_that_was_copied_one_goes_on(inside: Run):
    async def scene(page: Inside) -> None:
        page.asks()
        tab = await page.tab()
        copy = Tab(page)
        copy.token = tab.token
        await copy.listens()
        await tab.hears()
        assert "another tab" in tab.bye and 1 in copy.cards

    inside(scene)


# ── where a browser can be had ──

SOCKETS = {"run/user/{uid}/wayland-1": {"WAYLAND_DISPLAY": "wayland-1"}, "tmp/.X11-unix/X0": {"DISPLAY": ":0"}}


def opener(
    tmp_path: Path, *files: str, platform: str = "linux", programs: str = "xdg-open", **env: str
) -> Opener | str:
    uid = os.getuid() if sys.platform != "win32" else 0
    for name in (*files, *(f"bin/{one}" for one in programs.split())):
        path = tmp_path / name.format(uid=uid)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        path.chmod(0o755)
    return mcpmux.opener_for(platform, {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path)} | env, tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="looks for programs as Linux does")
@pytest.mark.parametrize(
    ("files", "env", "programs", "found"),
    [
        ((), {"DISPLAY": ":0"}, "xdg-open", "xdg-open"),
        ((), {"WAYLAND_DISPLAY": "wayland-0"}, "firefox", "firefox"),
        ((), {"DISPLAY": ":0"}, "lynx w3m", "no browser was found"),
        ((), {}, "xdg-open", "there is no display"),
        ((), {"DISPLAY": ":0", "SSH_CONNECTION": "x"}, "xdg-open", "mcpmux runs over SSH"),
        ((".dockerenv",), {"DISPLAY": ":0"}, "xdg-open", "mcpmux runs in a container"),
        (("run/.containerenv",), {"DISPLAY": ":0"}, "xdg-open", "mcpmux runs in a container"),
        ((), {"WSL_DISTRO_NAME": "Ubuntu"}, "wslview", "wslview"),
        ((), {"BROWSER": "lynx:/opt/mine --new"}, "", "/opt/mine"),
        ((), {"BROWSER": "w3m", "DISPLAY": ":0"}, "xdg-open", "xdg-open"),
    ],
)
@pytest.mark.requirement("page-or-not")
def test_a_browser_is_found_or_it_is_said_why_not(
    files: tuple[str, ...], env: dict[str, str], programs: str, found: str, tmp_path: Path
):
    got = opener(tmp_path, *files, programs=programs, **env)
    assert found in (got if isinstance(got, str) else got.command[0])


@pytest.mark.skipif(sys.platform == "win32", reason="looks for displays as Linux does")
@pytest.mark.parametrize("file", SOCKETS)
def test_a_display_that_a_host_keeps_from_us_is_found_by_its_socket(file: str, tmp_path: Path):
    got = opener(tmp_path, file)
    assert isinstance(got, Opener) and SOCKETS[file].items() <= got.env.items()


def test_browser_counts_more_than_ssh_and_is_then_somewhere_else(tmp_path: Path):
    got = opener(tmp_path, BROWSER="mine", SSH_CONNECTION="x")
    assert isinstance(got, Opener) and got.command == ["mine"] and not got.by_file
    for platform in ("darwin", "win32"):
        assert isinstance(opener(tmp_path, platform=platform), Opener)
        assert "over SSH" in str(opener(tmp_path, platform=platform, SSH_TTY="x"))


def test_the_address_stands_in_a_file_that_others_cannot_read_and_that_goes_when_it_was_read(
    inside: Run, monkeypatch: pytest.MonkeyPatch
):
    async def scene(page: Inside) -> None:
        page.page.setup = PageSetup("claude-ai", Opener(["browser"]))
        page.asks()
        await page.key()
        file = Path(urllib.request.url2pathname(urllib.parse.urlsplit(page.opened[0]).path))
        if sys.platform != "win32":
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
        found = re.search("#([0-9a-f]+)", file.read_text())
        assert found
        await Tab(page).comes(found[1])
        assert not file.exists()

    inside(scene)


# ── the real process ──

ASK_FORM = {"method": "elicitation/create", "params": {"message": "Your name?", "requestedSchema": NAME}}


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path)


def first_news(stream: Any) -> dict[str, Any]:
    while not (line := stream.readline()).startswith(b"data: "):
        assert line
    return json.loads(line[6:])


@pytest.mark.requirement("asked-by-page")
def test_a_host_that_cannot_ask_has_its_person_asked_in_the_browser(
    serve: Callable[..., RawHost], person: Person, tmp_path: Path
):
    host = serve(server_table("fake"), env=person.env)
    host.initialize()
    number = host.ask("tools/call", {"name": "fake__ask", "arguments": ASK_FORM})
    where, key = person.address(host)
    _, said = person.post(where, "/open", {"key": key})
    connection, stream = person.events(where, said["token"])
    news = first_news(stream)
    assert news["host"] == "mcpmux · raw"
    [card] = news["add"]
    assert card["question"]["title"] == "fake asks you" and card["question"]["call"] == "fake__ask"
    answer = {"id": card["question"]["id"], "hash": card["hash"], "button": 0, "values": ["Ada"]}
    assert person.post(where, "/answer", answer, authorization=f"Bearer {said['token']}")[0] == 200
    content = json.loads(host.answer(number)["result"]["content"][0]["text"])
    assert content == {"result": {"action": "accept", "content": {"name": "Ada"}}}
    host.close()
    with pytest.raises(http.client.IncompleteRead):  # the page ends with mcpmux
        stream.read()
    connection.close()
    for file in (tmp_path / "home").rglob("*"):  # what was asked and answered is nowhere on the disk
        assert not file.is_file() or not {b"Your name?", b"Ada"} & set(
            re.findall(rb"Your name\?|Ada", file.read_bytes())
        )
    assert "Ada" not in host.log() and key not in host.log()


@pytest.mark.requirement("never-accept")
def test_a_page_that_dies_cancels_what_it_showed_and_the_next_question_has_another(
    serve: Callable[..., RawHost], person: Person
):
    host = serve(server_table("fake"), env=person.env)
    host.initialize()
    number = host.ask("tools/call", {"name": "fake__ask", "arguments": ASK_FORM})
    where, key = person.address(host)
    children = Path(f"/proc/{host.process.pid}/task/{host.process.pid}/children")
    if sys.platform != "linux":
        pytest.skip("reads the process table in /proc")
    pages = [pid for pid in children.read_text().split() if b"_page" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(pages[0]), signal.SIGKILL)
    assert json.loads(host.answer(number)["result"]["content"][0]["text"])["result"] == {"action": "cancel"}
    with pytest.raises(OSError):
        person.post(where, "/open", {"key": key})


def test_a_browser_that_was_opened_outlives_mcpmux(serve: Callable[..., RawHost], tmp_path: Path):
    if sys.platform != "linux":
        pytest.skip("reads the process table in /proc")
    program, pid = tmp_path / "browser.py", tmp_path / "pid"
    os.mkfifo(pid)
    program.write_text(f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n")
    host = serve(server_table("fake"), env={"BROWSER": f"{sys.executable} {program}"})
    host.initialize()
    host.ask("tools/call", {"name": "fake__ask", "arguments": ASK_FORM})
    browser = int(pid.read_text())
    host.close()
    try:
        assert is_running(browser)
    finally:
        os.kill(browser, signal.SIGKILL)


# ── commands ──


def test_the_example_of_page_asks_one_question_of_each_kind_and_prints_the_answers(
    person: Person, home: dict[str, str]
):
    command = subprocess.Popen([*COMMAND, "page", "--try"], stdout=subprocess.PIPE, env=home | person.env)
    where, _, key = person.address_of(command).removeprefix("http://").partition("/#")
    token = person.post(where, "/open", {"key": key})[1]["token"]
    connection, stream = person.events(where, token)
    cards = first_news(stream)["add"]
    assert len(cards) == 4
    kinds = [("address" in one["question"], bool(one["question"]["fields"]), "slot" in str(one)) for one in cards]
    assert kinds == [(False, True, False), (True, False, False), (False, False, False), (False, False, True)]
    for one in cards:
        question = one["question"]
        last = {"id": question["id"], "hash": one["hash"], "button": len(question["buttons"]) - 1}
        with contextlib.suppress(*CUT_SHORT):  # the last one ends the command and its page
            assert person.post(where, "/answer", last, authorization=f"Bearer {token}")[0] == 200
    assert command.communicate(timeout=PATIENCE)[0].count(b"decision") == 2 and command.returncode == 0
    connection.close()


def test_page_has_the_running_mcpmux_open_it_and_gets_no_key(
    serve: Callable[..., RawHost], person: Person, home: dict[str, str], tmp_path: Path
):
    run = [*COMMAND, "page", "--config", str(tmp_path / "mcpmux.toml")]
    host = serve(server_table("fake"), env=person.env)
    host.initialize()
    done = subprocess.run(run, env=home, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.returncode) == ("the mcpmux of raw opens its page\n", 0)
    where, key = person.address(host)
    assert key not in done.stdout + done.stderr
    assert person.post(where, "/open", {"key": key})[0] == 200
    host.close()
    done = subprocess.run(run, env=home, capture_output=True, text=True, timeout=PATIENCE)
    assert "No mcpmux runs with" in done.stdout and done.returncode == 1
    done = subprocess.run([*run, "--try"], env=home, capture_output=True, text=True, timeout=PATIENCE)
    assert "there is no page here: mcpmux runs over SSH" in done.stderr and done.returncode == 2


def test_call_asks_on_the_page_if_it_is_told_to(person: Person, home: dict[str, str], tmp_path: Path):
    config = tmp_path / "mcpmux.toml"
    config.write_text(server_table("fake"))
    run = [*COMMAND, "call", "fake__ask", json.dumps(ASK_FORM), "--page", "--config", str(config)]
    command = subprocess.Popen(run, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=home | person.env)
    where, _, key = person.address_of(command).removeprefix("http://").partition("/#")
    token = person.post(where, "/open", {"key": key})[1]["token"]
    connection, stream = person.events(where, token)
    [card] = first_news(stream)["add"]
    answer = {"id": card["question"]["id"], "hash": card["hash"], "button": 0, "values": ["Ada"]}
    with contextlib.suppress(*CUT_SHORT):  # it ends the command, and the page with it
        assert person.post(where, "/answer", answer, authorization=f"Bearer {token}")[0] == 200
    assert b'"content": {"name": "Ada"}' in command.communicate(timeout=PATIENCE)[0] and command.returncode == 0
    connection.close()
    done = subprocess.run(run, env=home, capture_output=True, text=True, timeout=PATIENCE)
    assert "there is no page here" in done.stderr and done.returncode == 2


# ── the core and the page together ──


class Whole:
    """A core whose page is a real one, with a tab; hosts and servers are the test's."""

    def __init__(self, page: Inside, *, host_is_modern: bool, server_is_modern: bool) -> None:
        self.page = page
        self.modern, self.given = server_is_modern, 0
        self.s = Script(
            {"git": mcpmux.ServerOptions(command="git", approve=["delete"])},
            offers={"git": {"tools/list": [TOOL, TOOL | {"name": "delete"}]}},
            modern=["git"] if server_is_modern else [],
            sampling=mcpmux.SamplingOptions(),
            consents={},
            page=True,
        )
        self.calls = self.s.host_asks_modern if host_is_modern else self.s.host_asks
        if host_is_modern:
            self.calls("first", "tools/list")
            self.s.advance(0.3)

    def server_asks(self, method: str, params: dict[str, Any]) -> None:
        if self.modern:
            asked = {"a": {"method": method, "params": params}}
            self.s.server_answers("git", "tools/call", {"resultType": "input_required", "inputRequests": asked})
        else:
            self.s.server_sends("git", id="q", method=method, params=params)

    def answer(self) -> Any:
        """What the server has got for what it asked."""
        if self.modern:
            return self.s.server_hears("git", "tools/call")["params"]["inputResponses"]["a"]
        return self.s.answer_to_server("git", "q")["result"]

    async def decides(self, label: str, **said: Any) -> None:
        """The person sees what was asked, and presses a button."""
        for line in self.s.to_page[self.given :]:
            self.page.page.take(mcpmux.decode_line(line.raw))
        self.given = len(self.s.to_page)
        tab = await self.page.tab()
        [number] = tab.cards
        assert (await tab.presses(label, number, **said))[0] == 200
        [line] = [one for one in self.page.lines if one.get("id") == number]
        self.s.feed(mcpmux.ServerLines(PAGE, self.s.runs[PAGE], [json.dumps(line).encode()]))


PAIRINGS = [(host, server) for host in (False, True) for server in (False, True)]


@pytest.mark.parametrize(("host_is_modern", "server_is_modern"), PAIRINGS)
@pytest.mark.requirement("asked-by-page")
def test_every_pairing_of_hosts_without_any_capability_and_servers_is_answered_by_the_page(
    host_is_modern: bool, server_is_modern: bool, inside: Run
):
    async def form(page: Inside) -> None:
        whole = Whole(page, host_is_modern=host_is_modern, server_is_modern=server_is_modern)
        whole.calls(1, "tools/call", name="git__log")
        whole.server_asks("elicitation/create", {key: FORM[key] for key in ("message", "requestedSchema")})
        await whole.decides("Send", values=["Ada"])
        assert whole.answer() == {"action": "accept", "content": {"name": "Ada"}}

    async def address(page: Inside) -> None:
        whole = Whole(page, host_is_modern=host_is_modern, server_is_modern=server_is_modern)
        whole.calls(1, "tools/call", name="git__log")
        whole.server_asks("elicitation/create", {key: URL[key] for key in ("mode", "message", "url")})
        await whole.decides("Open pay.example")
        assert whole.answer() == {"action": "accept"}

    async def approval(page: Inside) -> None:
        for label, calls in (("Deny", 0), ("This call", 1)):
            whole = Whole(page, host_is_modern=host_is_modern, server_is_modern=server_is_modern)
            whole.calls(1, "tools/call", name="git__delete", arguments={"branch": "main"})
            assert not whole.s.server_heard("git", "tools/call")
            await whole.decides(label)
            assert len(whole.s.server_heard("git", "tools/call")) == calls
            assert (1 in whole.s.answered) == (label == "Deny")
            page.now += 60
            page.page.end_all("the next one")
            page.lines.clear()

    async def sampled(page: Inside) -> None:
        whole = Whole(page, host_is_modern=host_is_modern, server_is_modern=server_is_modern)
        whole.calls(1, "tools/call", name="git__log")
        text = {"type": "text", "text": "Sum up"}
        whole.server_asks("sampling/createMessage", {"messages": [{"role": "user", "content": text}], "maxTokens": 9})
        await whole.decides("This one", edits={"0": "Sum up, without names"})
        [asked] = whole.s.model_asked()
        assert asked["params"]["params"]["messages"][0]["content"]["text"] == "Sum up, without names"
        spoken = {"role": "assistant", "content": {"type": "text", "text": "Milk"}, "model": "m"}
        whole.s.model_answers(spoken)
        assert whole.answer()["content"]["text"] == "Milk"

    for scene in (form, address, approval, sampled):
        inside(scene)
