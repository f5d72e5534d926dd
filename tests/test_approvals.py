"""Calls that wait until the person allows them: by the host, by a page of mcpmux's own, or by a round of a modern host.
Our choice (README, "When a server asks you something")."""

from __future__ import annotations

from typing import Any

import pytest
from script import TOOL, Script

import mcpmux
from mcpmux import MuxOptions, ServerOptions

FORM = {"elicitation": {"form": {}}}
DELETE = {**TOOL, "name": "delete"}
GIT = ServerOptions(command="git", approve=["delete*"])


def script(host: dict[str, Any] | None = None, table: ServerOptions = GIT, **more: Any) -> Script:
    return Script({"git": table}, offers={"git": {"tools/list": [TOOL, DELETE]}}, capabilities=host or {}, **more)


def calls(s: Script) -> int:
    return len(s.server_heard("git", "tools/call"))


def deletes(s: Script, id: Any, **arguments: Any) -> None:
    s.host_asks(id, "tools/call", name="git__delete", arguments=arguments)


def decides(s: Script, decision: Any) -> None:
    s.page_says("accept", content={"decision": decision})


# ── which calls ──


@pytest.mark.parametrize(
    ("approve", "hints", "waits"),
    [
        (True, {"readOnlyHint": True}, True),
        (False, {"destructiveHint": True}, False),
        (["del*", "x"], {}, True),
        (["x"], {}, False),
        ("destructive", {}, True),
        ("destructive", {"destructiveHint": True}, True),
        ("destructive", {"destructiveHint": False}, False),
        ("destructive", {"readOnlyHint": True, "destructiveHint": True}, False),
        ("destructive", {"destructiveHint": "no"}, True),
    ],
)
@pytest.mark.requirement("approvals")
def test_the_table_and_a_tools_hints_say_which_calls_wait(approve: Any, hints: dict[str, Any], waits: bool):
    tool = {**DELETE, "annotations": hints}
    table = ServerOptions(command="git", approve=approve)
    s = Script({"git": table}, offers={"git": {"tools/list": [tool]}}, page=True)
    deletes(s, 1)
    assert bool(s.asked_on_page()) == waits
    assert calls(s) == (not waits)
    assert table.pin == (approve == "destructive")


# ── the page ──


@pytest.mark.requirement("approvals")
def test_a_call_is_shown_and_made_when_it_is_allowed():
    s = script(page=True)
    deletes(s, 1, branch="main")
    [asked] = s.asked_on_page()
    told = asked["params"]
    assert (told["asker"], told["call"], told["mode"], told["opens"]) == ("mcpmux", "git__delete", "form", True)
    assert told["message"] == "May git run delete?"
    shown = {one["title"]: one["text"] for one in told["shown"]}
    assert shown == {"Server": "git", "Tool": "delete", "Arguments": '{\n  "branch": "main"\n}'}
    assert calls(s) == 0
    decides(s, "once")
    s.server_answers("git", "tools/call", {"content": []})
    assert s.host_hears(1)["result"] == {"content": []}
    deletes(s, 2, branch="main")
    assert len(s.asked_on_page()) == 1  # that was one call
    decides(s, "always")
    deletes(s, 3, branch="other")
    assert calls(s) == 3 and not s.asked_on_page()


@pytest.mark.parametrize(
    "said", ["no", "sure", None, {"decision": "once"}, "decline", "cancel", "dies", "accept without content"]
)
@pytest.mark.requirement("approvals", "never-accept")
def test_whatever_is_no_decision_is_a_no_and_the_model_is_told(said: Any):
    s = script(page=True)
    deletes(s, 1)
    if said == "dies":
        s.page_dies()
    elif said in ("decline", "cancel"):
        s.page_says(said, content={"decision": "once"})
    elif said == "accept without content":
        s.page_says("accept")
    else:
        decides(s, said)
    words = {"dies": "the page exited with code 1", "cancel": "the question was dismissed"}
    why = words.get(str(said))
    told = (
        f"has not decided on this call of delete of git: {why}" if why else "did not allow this call of delete of git"
    )
    assert s.host_hears(1).is_error and told in s.host_hears(1).text
    assert calls(s) == 0
    assert len(s.core.in_flight) == 0


def test_a_host_that_gives_up_is_told_before_and_the_answer_counts_once_for_the_same_call():
    s = script(page=True)
    deletes(s, 1, branch="main")
    s.advance(56)
    assert "waiting for you on the page" in s.host_hears(1).text
    assert len(s.asked_on_page()) == 1
    deletes(s, 2, branch="main")  # it joins
    assert len(s.asked_on_page()) == 1
    s.advance(56)
    assert 2 in s.answered
    decides(s, "once")
    assert calls(s) == 0  # nobody waits for it now
    deletes(s, 3, branch="other")
    assert len(s.asked_on_page()) == 1
    deletes(s, 4, branch="main")
    assert calls(s) == 1
    s.host_sends(method="notifications/cancelled", params={"requestId": 3})
    deletes(s, 5, branch="main")
    assert calls(s) == 1 and len(s.asked_on_page()) == 2


def test_a_decision_counts_ten_minutes():
    s = script(page=True)
    deletes(s, 1)
    s.advance(56)
    decides(s, "once")
    s.advance(601)
    s.page_dies()  # it was idle, and was stopped
    deletes(s, 2)
    assert calls(s) == 0 and len(s.asked_on_page()) == 1


def test_what_nobody_has_decided_is_asked_again_and_not_remembered_as_a_no():
    s = script(page=True)
    deletes(s, 1)
    s.advance(56)
    s.page_says("cancel", reason="nobody came to the page within 60 s")
    deletes(s, 2)
    assert calls(s) == 0 and len(s.asked_on_page()) == 1


def test_nothing_is_forwarded_after_the_host_has_cancelled():
    s = script(page=True)
    deletes(s, 1)
    s.host_sends(method="notifications/cancelled", params={"requestId": 1})
    decides(s, "once")
    assert calls(s) == 0
    deletes(s, 2)  # the host calls again
    assert calls(s) == 1 and not s.asked_on_page()


@pytest.mark.parametrize("decision", ["once", "no"])
def test_two_calls_that_are_the_same_are_decided_one_by_one_unless_it_is_a_no(decision: str):
    s = script(page=True)
    deletes(s, 1)
    deletes(s, 2)
    assert len(s.asked_on_page()) == 1
    decides(s, decision)
    if decision == "no":
        assert s.host_hears(1).is_error and s.host_hears(2).is_error
    else:
        assert calls(s) == 1 and len(s.asked_on_page()) == 1


@pytest.mark.requirement("approvals")
def test_a_tool_that_changes_while_the_person_decides_is_asked_for_anew():
    s = script(page=True)
    deletes(s, 1)
    s.offers["git"] = {"tools/list": [{**DELETE, "description": "deletes everything"}]}
    s.server_sends("git", method="notifications/tools/list_changed")
    s.advance(1)
    decides(s, "always")
    assert calls(s) == 0 and len(s.asked_on_page()) == 1
    decides(s, "once")
    assert calls(s) == 1


def test_a_table_that_changes_while_the_person_decides_ends_the_call():
    s = script(page=True)
    deletes(s, 1)
    other = {"git": ServerOptions(command="git", args=["x"], approve=True)}
    s.feed(mcpmux.ConfigChanged(MuxOptions(), other, {}, None))
    assert "its table has changed" in s.host_hears(1).text
    assert not s.asked_on_page()
    assert len(s.core.in_flight.owed_by(mcpmux.Peer.PAGE)) == 0


# ── a legacy host ──


@pytest.mark.requirement("approvals")
def test_a_legacy_host_that_can_ask_is_asked():
    s = script(FORM, page=True)
    deletes(s, 1, branch="main")
    [asked] = s.host_told("elicitation/create")
    assert asked["params"]["message"].startswith("[mcpmux] May git run delete? With these arguments:\n{")
    assert not s.asked_on_page()
    s.host_sends(id=asked["id"], result={"action": "accept", "content": {"decision": "once"}})
    assert calls(s) == 1
    deletes(s, 2, branch="main")
    [_, asked] = s.host_told("elicitation/create")
    s.host_sends(method="notifications/cancelled", params={"requestId": 2})
    assert s.host_told("notifications/cancelled")[0]["params"]["requestId"] == asked["id"]
    s.host_sends(id=asked["id"], result={"action": "accept", "content": {"decision": "once"}})
    assert calls(s) == 1


@pytest.mark.parametrize(("page", "text"), [(True, None), (False, "its arguments are too long for the host to show")])
def test_arguments_that_a_host_would_not_show_whole_go_to_the_page_or_to_nobody(page: bool, text: str | None):
    s = script(FORM, page=page)
    deletes(s, 1, branch="x" * mcpmux.ARGUMENTS_MOST)
    assert not s.host_told("elicitation/create") and calls(s) == 0
    assert bool(s.asked_on_page()) == page
    if text:
        assert text in s.host_hears(1).text


def test_where_nobody_can_be_asked_the_call_is_refused_in_words():
    s = script()
    deletes(s, 1)
    assert "delete of git waits for the person (approve in its table), and nobody can be asked" in s.host_hears(1).text
    s = script(FORM, page=True, options=MuxOptions(page="always"))
    deletes(s, 1)
    assert s.asked_on_page() and not s.host_told("elicitation/create")


# ── a modern host ──


def modern(*servers: str, **more: Any) -> Script:
    s = script(FORM, begin=False, modern=servers, **more)
    s.host_asks_modern("list", "tools/list")
    s.advance(0.3)
    return s


def answers(s: Script, id: Any, before: Any, decision: Any, **more: Any) -> None:
    result = s.host_hears(before)["result"]
    given = {"action": "accept", "content": {"decision": decision}}
    responses = dict.fromkeys(result["inputRequests"], given) | more.pop("responses", {})
    params = {"name": "git__delete", "arguments": {"branch": "main"}, "requestState": result["requestState"]}
    s.host_asks_modern(id, "tools/call", inputResponses=responses, **(params | more))


@pytest.mark.parametrize("server_is_modern", [True, False])
@pytest.mark.requirement("approvals")
def test_a_modern_host_is_asked_by_a_round_before_any_server_has_the_call(server_is_modern: bool):
    s = modern(*(["git"] if server_is_modern else []))
    s.host_asks_modern(1, "tools/call", name="git__delete", arguments={"branch": "main"})
    [(key, request)] = s.host_hears(1)["result"]["inputRequests"].items()
    assert key == "mcpmux" and request["params"]["message"].startswith("May git run delete?")
    assert calls(s) == 0
    answers(s, 2, 1, "once")
    told = s.server_hears("git", "tools/call")["params"]
    assert told["arguments"] == {"branch": "main"} and "inputResponses" not in told and "requestState" not in told
    s.server_answers("git", "tools/call", {"resultType": "complete", "content": []})
    assert s.host_hears(2)["result"]["content"] == []
    state = s.host_hears(1)["result"]["requestState"]
    s.host_asks_modern(3, "tools/call", name="git__delete", arguments={"branch": "main"}, requestState=state)
    assert s.host_hears(3)["error"]["code"] == -32602  # it was used
    s.host_asks_modern(4, "tools/call", name="git__delete", arguments={"branch": "main"})
    answers(s, 5, 4, "no")
    assert s.host_hears(5).is_error and calls(s) == 1


@pytest.mark.requirement("approvals")
def test_an_approved_call_of_a_modern_server_over_three_rounds_is_asked_for_once():
    s = modern("git")
    s.host_asks_modern(1, "tools/call", name="git__delete", arguments={"branch": "main"})
    answers(s, 2, 1, "once")
    for number in (2, 3):
        requests = {"q": {"method": "elicitation/create", "params": {"message": "sure?", "requestedSchema": {}}}}
        asks = {"resultType": "input_required", "inputRequests": requests, "requestState": f"theirs-{number}"}
        s.server_answers("git", "tools/call", asks)
        state = s.host_hears(number)["result"]["requestState"]
        assert state.startswith("mcpmux:")  # else a retry would not show that it was approved
        answers(s, number + 1, number, "once", responses={"q": {"action": "decline"}})
        told = s.server_hears("git", "tools/call")["params"]
        assert told["requestState"] == f"theirs-{number}" and told["inputResponses"] == {"q": {"action": "decline"}}
    s.server_answers("git", "tools/call", {"resultType": "complete", "content": []})
    assert s.host_hears(4)["result"]["content"] == []
    assert calls(s) == 3


def test_a_state_alone_of_an_approved_calls_server_is_ours_too():
    s = modern("git")
    s.host_asks_modern(1, "tools/call", name="git__delete", arguments={"branch": "main"})
    answers(s, 2, 1, "once")
    s.server_answers("git", "tools/call", {"resultType": "input_required", "requestState": "theirs"})
    state = s.host_hears(2)["result"]["requestState"]
    s.host_asks_modern(3, "tools/call", name="git__delete", arguments={"branch": "main"}, requestState=state)
    assert s.server_hears("git", "tools/call")["params"]["requestState"] == "theirs"
    assert calls(s) == 2


def test_a_retry_without_our_state_is_a_new_call_and_one_with_other_arguments_is_refused():
    s = modern("git")
    s.host_asks_modern(1, "tools/call", name="git__delete", arguments={"branch": "main"})
    answers(s, 2, 1, "once", arguments={"branch": "other"})
    assert s.host_hears(2)["error"]["code"] == -32602 and calls(s) == 0
    answers(s, 3, 1, "once", requestState="theirs")
    assert "mcpmux" in s.host_hears(3)["result"]["inputRequests"] and calls(s) == 0


def test_a_tool_that_changed_between_two_rounds_ends_an_approved_call():
    s = modern("git")
    s.host_asks_modern(1, "tools/call", name="git__delete", arguments={"branch": "main"})
    answers(s, 2, 1, "always")
    requests = {"q": {"method": "elicitation/create", "params": {"message": "sure?", "requestedSchema": {}}}}
    s.server_answers("git", "tools/call", {"resultType": "input_required", "inputRequests": requests})
    s.offers["git"] = {"tools/list": [{**DELETE, "description": "deletes everything"}]}
    s.server_sends("git", method="notifications/tools/list_changed")
    s.advance(1)
    answers(s, 3, 2, "once", responses={"q": {"action": "decline"}})
    assert "has changed since it was allowed" in s.host_hears(3).text
    assert calls(s) == 1


def test_a_round_that_nobody_comes_back_to_leaves_nothing():
    s = modern("git", page=True)
    s.host_asks_modern(1, "tools/call", name="git__delete", arguments={"branch": "main"})
    s.advance(601)
    assert len(s.core.rounds) == 0 and len(s.core.in_flight.owed_by("git")) <= 1


@pytest.mark.parametrize("how", ["page", "host", "round"])
def test_the_call_of_an_app_by_its_bare_name_waits_too(how: str):
    s = modern(page=how == "page") if how == "round" else script(FORM if how == "host" else None, page=how == "page")
    (s.host_asks_modern if how == "round" else s.host_asks)(1, "tools/call", name="delete")
    assert calls(s) == 0
    where = {
        "page": s.asked_on_page(),
        "host": s.host_told("elicitation/create"),
        "round": [1] if 1 in s.answered else [],
    }
    assert len(where[how]) == 1


def test_arguments_that_no_program_can_read_are_decided_on_all_the_same():
    s = script(page=True)
    s.host_sends(
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"git__delete","arguments":{"n":1e999}}}'
    )
    decides(s, "once")
    assert calls(s) == 1
