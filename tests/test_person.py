"""What a server asks the person, where the host cannot ask: on a page of mcpmux's own. Our choice (README, "When a
server asks you something"); the words are those of client/elicitation."""

from __future__ import annotations

from typing import Any

import pytest
from script import PAGE, Script

import mcpmux
from mcpmux import MuxOptions, ServerOptions

FORM = {"message": "Your name?", "requestedSchema": {"type": "object", "properties": {"name": {"type": "string"}}}}
URL = {"mode": "url", "message": "Pay", "url": "https://pay.example/7", "elicitationId": "e1"}
HOST_CAN = {"elicitation": {"form": {}, "url": {}}}


def told_of(s: Script, server: str = "git") -> Any:
    return s.server_hears(server, "initialize")["params"]["capabilities"].get("elicitation")


def asked(s: Script, params: dict[str, Any] = FORM, id: str = "q", server: str = "git") -> None:
    s.server_sends(server, id=id, method="elicitation/create", params=params)


# ── who asks ──


@pytest.mark.parametrize(
    ("elicitation", "page", "host", "has_page", "told", "asker"),
    [
        ("auto", "auto", {}, True, {"form": {}, "url": {}}, "page"),
        ("auto", "auto", {}, False, None, "nobody"),
        ("auto", "off", {}, True, None, "nobody"),
        ("auto", "auto", {"elicitation": {}}, True, {"form": {}, "url": {}}, "host"),
        ("auto", "auto", {"elicitation": {"url": {}}}, True, {"url": {}, "form": {}}, "page"),
        ("auto", "always", HOST_CAN, True, {"form": {}, "url": {}}, "page"),
        ("auto", "always", HOST_CAN, False, {"form": {}, "url": {}}, "host"),
        ("host", "always", {}, True, None, "nobody"),
        ("host", "always", HOST_CAN, True, {"form": {}, "url": {}}, "host"),
        ("local", "auto", HOST_CAN, True, {"form": {}, "url": {}}, "page"),
        ("local", "auto", HOST_CAN, False, None, "nobody"),
        ("off", "always", HOST_CAN, True, None, "nobody"),
    ],
)
@pytest.mark.requirement("asked-by-page")
def test_who_asks_is_as_the_tables_say_and_a_server_is_told_what_can_be_honoured(
    elicitation: Any, page: Any, host: dict[str, Any], has_page: bool, told: Any, asker: str
):
    table = {"git": ServerOptions(command="git", elicitation=elicitation)}
    s = Script(table, capabilities=host, page=has_page, options=MuxOptions(page=page))
    assert told_of(s) == told
    s.host_asks(1, "tools/call", name="git__log")
    asked(s)
    assert bool(s.asked_on_page()) == (asker == "page")
    assert bool(s.host_told("elicitation/create")) == (asker == "host")
    if asker == "nobody":
        assert s.answer_to_server("git", "q")["result"] == {"action": "decline"}


def test_true_and_false_go_on_meaning_what_they_did():
    assert [ServerOptions(elicitation=one).elicitation for one in (True, False)] == ["auto", "off"]


def test_serving_without_a_question_starts_no_page():
    s = Script(["git"], page=True)
    s.host_asks(1, "tools/call", name="git__log")
    s.server_answers("git", "tools/call", {"content": []})
    assert s.page_starts == 0


# ── a question and its answer ──


@pytest.mark.requirement("asked-by-page")
def test_a_legacy_servers_question_is_answered_on_the_page():
    s = Script(["git"], page=True)
    s.host_asks(1, "tools/call", name="git__log")
    asked(s)
    [told] = s.asked_on_page()
    about = {"asker": "git", "call": "git__log", "mode": "form", "waits": 55.0, "opens": True}
    assert told["params"] == about | FORM
    s.page_says("accept", content={"name": "Ada"}, more="x")
    assert s.answer_to_server("git", "q")["result"] == {"action": "accept", "content": {"name": "Ada"}}
    s.server_answers("git", "tools/call", {"content": []})
    assert s.host_hears(1)["result"] == {"content": []}
    asked(s, id="outside")
    assert s.asked_on_page()[0]["params"]["call"] == "" and not s.asked_on_page()[0]["params"]["opens"]


@pytest.mark.parametrize("host_is_modern", [True, False])
@pytest.mark.requirement("asked-by-page")
def test_a_modern_servers_questions_are_answered_on_the_page_and_the_call_is_made_again(host_is_modern: bool):
    s = Script(["git"], modern=("git",), page=True)
    if host_is_modern:
        s.host_asks_modern(1, "tools/call", name="git__log")
    else:
        s.host_asks(1, "tools/call", name="git__log")
    requests = {key: {"method": "elicitation/create", "params": FORM} for key in ("a", "b")}
    asks = {"resultType": "input_required", "inputRequests": requests, "requestState": "theirs"}
    s.server_answers("git", "tools/call", asks)
    assert len(s.asked_on_page()) == 2 and 1 not in s.answered
    s.page_says("accept", 0, content={"name": "Ada"})
    assert len(s.server_heard("git", "tools/call")) == 1
    s.page_says("decline")
    again = s.server_hears("git", "tools/call")["params"]
    accepted = {"action": "accept", "content": {"name": "Ada"}}
    assert again["inputResponses"] == {"a": accepted, "b": {"action": "decline"}}
    assert again["requestState"] == "theirs"
    s.server_answers("git", "tools/call", {"resultType": "complete", "content": []})
    assert s.host_hears(1)["result"]["content"] == []


@pytest.mark.parametrize("said", [None, "cancel", "Accept", 7, "dies", "late", "gone"])
@pytest.mark.requirement("never-accept")
def test_whatever_goes_wrong_is_no_answer_and_never_accept(said: Any):
    s = Script(["git"], page=True)
    s.host_asks(1, "tools/call", name="git__log")
    asked(s)
    if said == "dies":
        s.page_dies()
    elif said == "late":
        s.advance(56)
        assert not s.asked_on_page()  # it was withdrawn there
    elif said == "gone":
        s.page_says("cancel", reason="no browser could be opened")
        assert any("git: the person was not reached: no browser could be opened" in line for line in s.logged)
    else:
        s.page_says(said, content={"name": "x"})
    assert s.answer_to_server("git", "q")["result"] == {"action": "cancel"}
    s.server_answers("git", "tools/call", {"content": []})
    assert s.host_hears(1)["result"] == {"content": []}


def test_a_host_that_cancels_its_call_takes_the_question_off_the_page():
    s = Script(["git"], page=True)
    s.host_asks(1, "tools/call", name="git__log")
    asked(s)
    s.host_sends(method="notifications/cancelled", params={"requestId": 1})
    assert not s.asked_on_page()
    assert "cancelled the call" in s.answer_to_server("git", "q")["error"]["message"]


def test_a_server_that_withdraws_its_question_takes_it_off_the_page():
    s = Script(["git"], page=True)
    asked(s)
    s.server_sends("git", method="notifications/cancelled", params={"requestId": "q", "reason": "never mind"})
    assert not s.asked_on_page()
    assert s.to_page[-1]["params"]["reason"] == "never mind"


def test_a_page_that_died_is_started_again_by_the_next_question():
    s = Script(["git"], page=True)
    asked(s)
    s.page_dies()
    s.advance(31)
    asked(s, id="again")
    assert s.page_starts == 2 and len(s.asked_on_page()) == 1


# ── how long a person may take ──


@pytest.mark.parametrize(
    ("host", "token", "waits"),
    [("cline", None, 55), ("cline", 1, 600), ("claude-ai", 1, 55), ("goose", None, 290), ("mcpmux", None, 600)],
)
def test_a_question_waits_as_long_as_its_host_does(host: str, token: Any, waits: float):
    s = Script(["git"], page=True, begin=False)
    s.initialize(clientInfo={"name": host, "version": "1"})
    s.host_asks(1, "tools/call", name="git__log", _meta={"progressToken": token} if token else {})
    asked(s)
    assert s.asked_on_page()[0]["params"]["waits"] == waits
    s.advance(waits - 1)
    assert s.asked_on_page()
    s.advance(1)
    assert not s.asked_on_page()


@pytest.mark.requirement("still-waiting")
def test_a_host_that_gave_a_token_hears_that_the_person_is_asked():
    s = Script(["git"], page=True)
    s.host_asks(1, "tools/call", name="git__log", _meta={"progressToken": "t"})
    s.server_sends("git", method="notifications/progress", params={"progressToken": 1, "progress": 0})
    number = s.server_hears("git", "tools/call")["id"]
    s.server_sends("git", method="notifications/progress", params={"progressToken": number, "progress": 2})
    asked(s)
    s.advance(31)
    told = [message["params"] for message in s.host_told("notifications/progress")]
    assert [one["progress"] for one in told] == pytest.approx([2, 2.000001, 2.000002, 2.000003], rel=1e-9)
    assert told[1]["message"] == "waiting for you on the page of mcpmux" and told[1]["progressToken"] == "t"
    s.page_says("decline")
    s.advance(31)
    assert len(s.host_told("notifications/progress")) == 4
    s.server_sends("git", method="notifications/progress", params={"progressToken": number, "progress": 3})
    assert s.host_told("notifications/progress")[-1]["params"]["progress"] == 3


def test_a_servers_clock_stands_still_while_its_person_is_asked():
    s = Script({"git": ServerOptions(command="git", tool_timeout_sec=20)}, page=True)
    s.host_asks(1, "tools/call", name="git__log")
    asked(s)
    s.advance(50)
    assert 1 not in s.answered
    s.page_says("decline")
    s.advance(19)
    s.server_answers("git", "tools/call", {"content": []})
    assert s.host_hears(1)["result"] == {"content": []}


# ── what a server may not ──


@pytest.mark.requirement("page-quota")
def test_a_server_asks_the_person_so_many_times_a_minute_and_others_have_their_own():
    s = Script(["evil", "good"], page=True)
    for number in range(mcpmux.PAGE_MOST + 1):
        asked(s, id=f"q{number}", server="evil")
        if number < mcpmux.PAGE_MOST:
            s.page_says("decline")
    assert "has asked the person 10 times" in s.answer_to_server("evil", f"q{mcpmux.PAGE_MOST}")["error"]["message"]
    asked(s, server="good")
    assert len(s.asked_on_page()) == 1
    s.advance(61)
    asked(s, id="later", server="evil")
    assert len(s.asked_on_page()) == 2


def test_what_is_asked_while_a_list_is_read_is_not_put_to_the_person():
    s = Script(["git"], page=True, offers={"git": {"tools/list": ...}})
    asked(s)
    assert not s.asked_on_page()
    assert "nobody can be asked while git is listing" in s.answer_to_server("git", "q")["error"]["message"]


def test_a_host_with_the_tasks_extension_is_asked_itself_by_servers_that_have_it():
    """WIRE 20."""
    extension = {"extensions": {"io.modelcontextprotocol/tasks": {}}}
    s = Script(["git"], capabilities=extension, page=True)
    assert told_of(s) == {"form": {}, "url": {}}  # of the legacy era, it has not
    s = Script(
        ["git"], modern=("git",), capabilities=extension, server_capabilities={"tools": {}, **extension}, page=True
    )
    s.host_asks(1, "tools/call", name="git__log")
    meta = s.server_hears("git", "tools/call")["params"]["_meta"]
    assert "elicitation" not in meta["io.modelcontextprotocol/clientCapabilities"]


# ── pages to visit ──


def refused(s: Script, *ids: str) -> None:
    pages = [{**URL, "elicitationId": id} for id in ids]
    error = {"code": -32042, "message": "pay first", "data": {"elicitations": pages}}
    s.server_answers("git", "tools/call", error=error)


@pytest.mark.parametrize("host_is_modern", [True, False])
@pytest.mark.requirement("pages-by-page")
def test_a_call_that_needs_a_page_visited_is_made_again_when_that_is_done(host_is_modern: bool):
    s = Script(["git"], page=True)
    ask = s.host_asks_modern if host_is_modern else s.host_asks
    ask(1, "tools/call", name="git__log", arguments={"a": 1})
    refused(s, "e1", "e2")
    assert [one["params"]["url"] for one in s.asked_on_page()] == [URL["url"]] * 2
    s.page_says("accept")
    s.page_says("accept")
    assert len(s.server_heard("git", "tools/call")) == 1
    for id in ("e1", "e2"):
        s.server_sends("git", method="notifications/elicitation/complete", params={"elicitationId": id})
    assert s.server_hears("git", "tools/call")["params"]["arguments"] == {"a": 1}
    assert len(s.server_heard("git", "tools/call")) == 2
    assert not s.host_told("notifications/elicitation/complete")
    s.server_answers("git", "tools/call", {"content": []})
    assert s.host_hears(1)["result"]["content"] == []


def test_a_page_that_nobody_says_is_done_is_taken_for_that_after_a_minute_and_a_declined_one_ends_the_call():
    s = Script(["git"], page=True)
    s.host_asks(1, "tools/call", name="git__log")
    refused(s, "e1")
    s.page_says("accept")
    s.advance(61)
    assert len(s.server_heard("git", "tools/call")) == 2
    refused(s, "e1")
    s.page_says("decline")
    assert "that was declined" in s.host_hears(1).text
    assert not len(s.core.rounds) and not len(s.core.in_flight)


def test_a_host_that_can_send_the_person_there_itself_is_left_to_it():
    s = Script(["git"], page=True, capabilities=HOST_CAN)
    s.host_asks(1, "tools/call", name="git__log")
    refused(s, "e1")
    assert s.host_hears(1)["error"]["code"] == -32042
    assert PAGE not in s.runs


def test_a_page_to_be_visited_is_that_calls_affair_and_no_others():
    """Neither the end of the process that named it nor that of another call of its takes it off the page."""
    s = Script(["git"], page=True)
    s.host_asks(1, "tools/call", name="git__log")
    s.host_asks(2, "tools/call", name="git__log")
    first = s.server_heard("git", "tools/call")[0]["id"]
    data = {"elicitations": [URL]}
    s.server_sends("git", id=first, error={"code": -32042, "message": "pay", "data": data})
    s.host_sends(method="notifications/cancelled", params={"requestId": 2})
    s.server_dies("git")
    s.page_says("accept")
    s.advance(62)
    s.server_answers("git", "tools/call", {"content": []})
    assert s.host_hears(1)["result"] == {"content": []}
