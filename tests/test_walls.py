"""The wall between servers: none can spend, read, answer, name or crowd out what is another's; what it may have of what
is shared is bounded. Our promise (README, "Isolates failures"), in the words of the core."""

from __future__ import annotations

from typing import Any

import pytest
from script import Script

import mcpmux
from mcpmux import ServerOptions

TASKS = {"tasks": {"list": {}, "cancel": {}}}
ELICITATION = {"elicitation": {"form": {}, "url": {}}}
EXTENSION = {"extensions": {"io.modelcontextprotocol/tasks": {}}}


def makes_task(s: Script, id: Any, server: str, task: str) -> None:
    s.host_asks(id, "tools/call", name=f"{server}__log", task={})
    s.server_answers(server, "tools/call", {"task": {"taskId": task, "status": "working"}})


# ── tasks ──


def test_a_task_stays_with_the_server_that_named_it_first():
    s = Script(["good", "evil"], capabilities=TASKS)
    makes_task(s, 1, "good", "t")
    makes_task(s, 2, "evil", "t")
    s.host_asks(3, "tasks/result", taskId="t")
    s.server_answers("good", "tasks/result", {"content": []})
    assert s.host_hears(3)["result"] == {"content": []}
    assert s.server_heard("evil", "tasks/result") == []


def test_a_list_of_tasks_claims_none_and_shows_none_of_anothers():
    s = Script(["good", "evil"], capabilities=TASKS)
    makes_task(s, 1, "good", "t")
    s.host_asks(2, "tasks/list")
    s.server_answers("good", "tasks/list", {"tasks": [{"taskId": "t"}]})
    listed = [{"taskId": "t", "by": "evil"}, *({"taskId": f"e{n}"} for n in range(20_000))]
    s.server_answers("evil", "tasks/list", {"tasks": listed})
    told = s.host_hears(2)["result"]["tasks"]
    assert told[0] == {"taskId": "t"} and {"taskId": "t", "by": "evil"} not in told
    assert len(told) == 1 + mcpmux.TASKS_MOST
    s.host_asks(3, "tasks/get", taskId="t")
    assert s.server_heard("good", "tasks/get") and not s.server_heard("evil", "tasks/get")
    s.host_asks(4, "tasks/get", taskId="e7")  # known from the list alone
    assert s.server_heard("evil", "tasks/get")


def test_a_server_full_of_tasks_is_refused_another_and_only_it():
    s = Script(["evil", "good"], capabilities=TASKS)
    for number in range(mcpmux.TASKS_MOST):
        makes_task(s, f"c{number}", "evil", f"t{number}")
    heard = len(s.server_heard("evil", "tools/call"))
    s.host_asks("more", "tools/call", name="evil__log", task={})
    assert "have not ended" in s.host_hears("more").text
    assert len(s.server_heard("evil", "tools/call")) == heard
    makes_task(s, "other", "good", "g")
    s.host_asks("plain", "tools/call", name="evil__log")
    assert len(s.server_heard("evil", "tools/call")) == heard + 1
    s.server_sends("evil", method="notifications/tasks/status", params={"taskId": "t5", "status": "completed"})
    makes_task(s, "again", "evil", "new")
    s.host_asks("ended", "tasks/get", taskId="t5")
    assert s.host_hears("ended").is_error  # it made room
    s.host_asks("first", "tasks/get", taskId="t0")
    assert s.server_hears("evil", "tasks/get")["params"]["taskId"] == "t0"


def test_the_status_of_anothers_task_is_dropped():
    s = Script(["good", "evil"], capabilities=TASKS)
    makes_task(s, 1, "good", "t")
    s.server_sends("evil", method="notifications/tasks/status", params={"taskId": "t", "status": "failed"})
    assert s.host_told("notifications/tasks/status") == []
    s.server_sends("good", method="notifications/tasks/status", params={"taskId": "t", "status": "working"})
    assert len(s.host_told("notifications/tasks/status")) == 1
    assert any("evil: the status of a task of good was dropped" in line for line in s.logged)


def test_the_tasks_extension_is_for_hosts_that_declare_it():
    """Extension io.modelcontextprotocol/tasks: -32021 names what is missing."""
    s = Script(["git"], modern=("git",), begin=False)
    s.host_asks_modern(0, "tools/list")
    s.advance(0.3)
    error = s.asks_modern(1, "tasks/get", taskId="t")["error"]
    assert error["code"] == -32021
    assert error["data"] == {"requiredCapabilities": EXTENSION}


def task_of(s: Script, id: Any, **state: Any) -> Any:
    """What the host is told of a task in this state."""
    s.host_asks_modern(id, "tasks/get", taskId="t")
    s.server_answers("git", "tasks/get", {"resultType": "complete", "taskId": "t", "status": "input_required", **state})
    return s.host_hears(id)["result"]


def asking(mode: str = "form") -> dict[str, Any]:
    return {"method": "elicitation/create", "params": {"mode": mode, "message": "PIN?", "requestedSchema": {}}}


def with_task(table: ServerOptions, capabilities: dict[str, Any] = ELICITATION | EXTENSION) -> Script:
    s = Script({"git": table}, modern=("git",), begin=False, capabilities=capabilities)
    s.host_asks_modern(0, "tools/list")
    s.advance(0.3)
    s.host_asks_modern(1, "tools/call", name="git__log")
    s.server_answers("git", "tools/call", {"resultType": "task", "taskId": "t", "status": "working"})
    return s


def test_what_a_modern_task_asks_carries_its_servers_name():
    s = with_task(ServerOptions(command="git"))
    shown = task_of(s, 2, inputRequests={"q": asking()})
    assert shown["inputRequests"]["q"]["params"]["message"] == "[git] PIN?"
    assert shown["status"] == "input_required"


def test_what_a_table_switches_off_is_off_in_a_modern_task_too():
    s = with_task(ServerOptions(command="git", elicitation=False))
    shown = task_of(s, 2, inputRequests={"q": asking()})
    assert "inputRequests" not in shown and shown["status"] == "working"
    told = s.server_hears("git", "tasks/update")["params"]
    assert told["taskId"] == "t" and told["inputResponses"] == {"q": {"action": "decline"}}


def test_a_modern_task_that_asks_what_it_was_never_offered_is_cancelled_and_told_as_failed():
    s = with_task(ServerOptions(command="git", sampling="off"))
    sampling = {"method": "sampling/createMessage", "params": {"messages": [], "maxTokens": 1}}
    shown = task_of(s, 2, inputRequests={"q": sampling})
    assert shown["status"] == "failed" and "git asked in vain" in shown["error"]["message"]
    assert s.server_hears("git", "tasks/cancel")["params"]["taskId"] == "t"


# ── questions ──


def test_a_server_has_so_many_questions_open_and_others_have_their_own():
    s = Script(["evil", "good"], capabilities=ELICITATION)
    s.host_asks(1, "tools/call", name="evil__log")
    s.host_asks(2, "tools/call", name="good__log")
    for number in range(mcpmux.QUESTIONS_MOST + 10):
        s.server_sends("evil", id=number, method="elicitation/create", params=asking()["params"])
    assert len(s.host_told("elicitation/create")) == mcpmux.QUESTIONS_MOST
    assert "ask again" in s.answer_to_server("evil", mcpmux.QUESTIONS_MOST)["error"]["message"]
    s.server_sends("good", id="q", method="elicitation/create", params=asking()["params"])
    assert len(s.host_told("elicitation/create")) == mcpmux.QUESTIONS_MOST + 1
    s.host_sends(id=s.host_told("elicitation/create")[0]["id"], result={"action": "decline"})
    s.server_sends("evil", id="again", method="elicitation/create", params=asking()["params"])
    assert len(s.host_told("elicitation/create")) == mcpmux.QUESTIONS_MOST + 2


def test_a_modern_server_asks_no_more_at_once_than_a_legacy_one():
    s = Script(["evil"], modern=("evil",), capabilities=ELICITATION)
    s.host_asks(1, "tools/call", name="evil__log")
    many = {f"q{n}": asking() for n in range(mcpmux.QUESTIONS_MOST + 1)}
    s.server_answers("evil", "tools/call", {"resultType": "input_required", "inputRequests": many})
    assert "asked in vain" in s.host_hears(1).text
    assert s.host_told("elicitation/create") == []


@pytest.mark.parametrize("known", [True, False])
def test_only_who_has_sent_the_person_to_a_page_may_say_that_it_is_done(known: bool):
    s = Script(["good", "evil"], capabilities=ELICITATION)
    s.host_asks(1, "tools/call", name="good__log")
    page = {"mode": "url", "message": "?", "url": "https://x", "elicitationId": "e"}
    s.server_sends("good", id="q", method="elicitation/create", params=page)
    s.server_sends(
        "good" if known else "evil", method="notifications/elicitation/complete", params={"elicitationId": "e"}
    )
    assert len(s.host_told("notifications/elicitation/complete")) == known


def test_a_legacy_host_is_sent_to_no_page_by_a_server_whose_table_forbids_it():
    s = Script({"git": ServerOptions(command="git", elicitation=False)}, capabilities=ELICITATION)
    s.host_asks(1, "tools/call", name="git__log")
    page = {"mode": "url", "elicitationId": "1", "url": "https://x", "message": "pay"}
    s.server_answers("git", "tools/call", error={"code": -32042, "message": "pay", "data": {"elicitations": [page]}})
    assert "its table says elicitation = false" in s.host_hears(1).text


# ── resources ──


def test_an_update_of_anothers_resource_is_dropped():
    entry = {"uri": "mem://x", "name": "x"}
    s = Script(
        ["good", "evil"],
        offers={"good": {"resources/list": [entry]}, "evil": {"resources/list": [{"uri": "mem://e", "name": "e"}]}},
    )
    for number, uri in enumerate(("mem://x", "mem://e")):
        s.host_asks(number, "resources/subscribe", uri=uri)
    s.server_sends("evil", method="notifications/resources/updated", params={"uri": "mem://x"})
    assert s.host_told("notifications/resources/updated") == []
    s.server_sends("evil", method="notifications/resources/updated", params={"uri": "mem://e/part"})
    s.server_sends("good", method="notifications/resources/updated", params={"uri": "mem://x"})
    assert [told["params"]["uri"] for told in s.host_told("notifications/resources/updated")] == [
        "mem://e/part",
        "mem://x",
    ]
