"""What servers ask of the host and tell it: questions, roots, tasks, progress, subscriptions, logging, list changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, RawHost, is_running

from .harness import FULL, Launcher, Party, Site, answers_questions, hears, told

RESOURCE = "demo://resource/static/document/features.md"
CHILDREN = Path("/proc/self/task")


@pytest.fixture(scope="module")
def host(module_launcher: Launcher, parties: dict[str, Party], site: Site) -> RawHost:
    """A host that can do everything, before mcpmux, before everything."""
    host = module_launcher.through(parties["everything"])
    answers_questions(host, site.path)
    host.initialize(FULL)
    return host


@pytest.fixture
def fresh(launcher: Launcher, parties: dict[str, Party], site: Site) -> Callable[[dict[str, Any]], RawHost]:
    """As `host`, with capabilities of its own, for what changes the server or is seen once only."""

    def start(capabilities: dict[str, Any]) -> RawHost:
        host = launcher.through(parties["everything"])
        answers_questions(host, site.path)
        host.initialize(capabilities)
        return host

    return start


def texts(result: dict[str, Any]) -> str:
    return "\n".join(block["text"] for block in result["content"])


def echoes(host: RawHost) -> None:
    """When this returns, all that everything said before has come, and all that the host said has been read."""
    assert host.text("everything__echo", message="x") == "Echo: x"


# ── questions ──


def test_sampling_goes_to_the_host_and_back(host: RawHost):
    """Spec: 2025-11-25, client/sampling#creating-messages."""
    since = len(host.seen)
    result = host.call("everything__trigger-sampling-request", prompt="hello", maxTokens=5)
    [asked] = told(host, "sampling/createMessage", since)
    assert asked["maxTokens"] == 5
    assert asked["messages"][0]["content"]["text"] == "Resource trigger-sampling-request context: hello"
    assert '"text": "spoken"' in texts(result)


def test_a_form_goes_to_the_host_with_the_servers_name_and_comes_back(host: RawHost):
    """Spec: 2025-11-25, client/elicitation#form-mode-elicitation-requests; the prefix is our choice."""
    since = len(host.seen)
    result = host.call("everything__trigger-elicitation-request")
    [asked] = told(host, "elicitation/create", since)
    assert asked["message"] == "[everything] Please provide inputs for the following fields:"
    assert asked["requestedSchema"]["required"] == ["name"]
    assert "- Name: Ada" in texts(result)
    assert "- Favorite Integer: 7" in texts(result)


@pytest.mark.parametrize("action", ["decline", "cancel"])
def test_what_a_person_refuses_is_refused(fresh: Callable[[dict[str, Any]], RawHost], action: str):
    """Nothing is accepted on a person's behalf. Spec: 2025-11-25, client/elicitation#response-actions."""
    host = fresh(FULL)
    host.questions["elicitation/create"] = lambda _: {"result": {"action": action}}
    assert f'"action": "{action}"' in texts(host.call("everything__trigger-elicitation-request"))
    assert f'"action": "{action}"' in texts(host.call("everything__trigger-url-elicitation", url="https://example.org"))


def test_a_hosts_error_reaches_the_server_that_asked(fresh: Callable[[dict[str, Any]], RawHost]):
    """Spec: 2025-11-25, client/sampling#error-handling."""
    host = fresh(FULL)
    host.questions["sampling/createMessage"] = lambda _: {"error": {"code": -1, "message": "User rejected"}}
    result = host.call("everything__trigger-sampling-request", prompt="hello")
    assert result["isError"]
    assert "User rejected" in texts(result)


def test_a_url_goes_to_the_host_with_the_servers_name_and_comes_back(host: RawHost):
    """Spec: 2025-11-25, client/elicitation#url-mode-elicitation-requests; the prefix is our choice."""
    since = len(host.seen)
    asks = {"url": "https://example.org/go", "message": "Go there", "elicitationId": "e-1"}
    result = host.call("everything__trigger-url-elicitation", **asks)
    [asked] = told(host, "elicitation/create", since)
    assert asked == {"mode": "url", **asks, "message": "[everything] Go there"}
    assert "Elicitation ID: e-1" in texts(result)


def test_roots_go_to_the_server(host: RawHost, site: Site):
    """Spec: 2025-11-25, client/roots#listing-roots."""
    assert f"URI: {site.path.as_uri()}" in host.text("everything__get-roots-list")


def test_sampling_as_a_task_of_the_hosts_is_followed_by_the_server(fresh: Callable[[dict[str, Any]], RawHost]):
    """Spec: 2025-11-25, basic/utilities/tasks#receiver: the host makes the task, the server polls and fetches it."""
    host = fresh(FULL)
    spoken = {"role": "assistant", "content": {"type": "text", "text": "in the end"}, "model": "m-1"}
    task = {"taskId": "t-1", "createdAt": "2026-01-01T00:00:00Z", "lastUpdatedAt": "2026-01-01T00:00:00Z", "ttl": None}
    host.questions |= {
        "sampling/createMessage": lambda _: {"result": {"task": task | {"status": "working"}}},
        "tasks/get": lambda params: {"result": task | params | {"status": "completed"}},
        "tasks/result": lambda params: {"result": spoken | {"model": params["taskId"]}},
    }
    text = texts(host.call("everything__trigger-sampling-request-async", prompt="hello"))
    assert "[COMPLETED]" in text
    assert "Poll 1: completed" in text
    assert "in the end" in text
    assert '"model": "t-1"' in text
    assert told(host, "sampling/createMessage")[0]["task"] == {"ttl": 300000}


@pytest.mark.parametrize(
    ("capabilities", "number"),
    [
        ({}, 13),
        ({"roots": {}}, 14),
        ({"sampling": {}}, 14),
        ({"elicitation": {}}, 14),
        ({"elicitation": {"url": {}}}, 15),
        (FULL, 19),
    ],
    ids=["none", "roots", "sampling", "form", "url", "all"],
)
def test_a_server_sees_the_capabilities_that_the_host_declared_and_no_others(
    launcher: Launcher, parties: dict[str, Party], capabilities: dict[str, Any], number: int
):
    """everything offers tools by what the host can do. Spec: 2025-11-25, basic/lifecycle#capability-negotiation."""
    offered: list[list[str]] = []
    for host in (launcher.alone(parties["everything"]), launcher.through(parties["everything"])):
        host.initialize(capabilities)
        offered.append(host.tools())
    assert offered[1] == [f"everything__{tool}" for tool in offered[0]]
    assert len(offered[1]) == number


# ── roots ──


def allowed(host: RawHost) -> list[str]:
    return host.text("filesystem__list_allowed_directories").splitlines()[1:]


def test_the_hosts_roots_are_what_filesystem_allows_and_their_change_too(
    launcher: Launcher, parties: dict[str, Party], tmp_path: Path
):
    """It has no folder of its own and refuses every path until its first roots/list is answered (WIRE 11).
    Spec: 2025-11-25, client/roots#root-list-changes."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / "name.txt").write_text(folder.name)
    filesystem = parties["filesystem"]
    host = launcher.through(replace(filesystem, args=filesystem.args[:1]))
    answers_questions(host, first)
    host.initialize({"roots": {"listChanged": True}})
    assert host.text("filesystem__read_text_file", path=str(first / "name.txt")) == "first"
    assert host.call("filesystem__read_text_file", path=str(second / "name.txt"))["isError"]
    assert len(told(host, "roots/list")) == 1

    answers_questions(host, second)
    host.send(method="notifications/roots/list_changed")
    end = time.monotonic() + PATIENCE
    while (now := allowed(host)) != [str(second.resolve())]:  # it takes them over some time after it was answered
        assert now == [str(first.resolve())]
        assert time.monotonic() < end
    assert len(told(host, "roots/list")) == 2
    assert host.text("filesystem__read_text_file", path=str(second / "name.txt")) == "second"
    assert host.call("filesystem__read_text_file", path=str(first / "name.txt"))["isError"]


def test_a_hosts_roots_take_the_place_of_the_folders_that_filesystem_was_started_with(
    launcher: Launcher, parties: dict[str, Party], tmp_path: Path
):
    """What the server does with roots is its own matter: nothing is hidden from it."""
    host = launcher.through(parties["filesystem"])
    answers_questions(host, tmp_path)
    host.initialize({"roots": {}})
    assert allowed(host) == [str(tmp_path.resolve())]


def test_the_tables_roots_are_told_where_the_host_has_none(
    launcher: Launcher, parties: dict[str, Party], tmp_path: Path
):
    """Our choice: `roots` in a server's table."""
    filesystem = parties["filesystem"]
    host = launcher.through(replace(filesystem, args=filesystem.args[:1], keys={"roots": [str(tmp_path)]}))
    host.initialize({})
    assert allowed(host) == [str(tmp_path.resolve())]


# ── tasks ──


def make_task(host: RawHost, **arguments: Any) -> str:
    params = {"name": "everything__simulate-research-query", "arguments": arguments, "task": {"ttl": 60000}}
    task = host.request("tools/call", params)["result"]["task"]
    assert task["status"] == "working"
    return task["taskId"]


def test_a_task_is_followed_listed_asked_about_and_fetched(host: RawHost):
    """Spec: 2025-11-25, basic/utilities/tasks. The question comes while the host waits in tasks/result."""
    since = len(host.seen)
    task = make_task(host, topic="mux", ambiguous=True)
    about = {"taskId": task}
    assert host.request("tasks/get", about)["result"]["status"] == "working"
    assert task in [one["taskId"] for one in host.request("tasks/list")["result"]["tasks"]]
    result = host.request("tasks/result", about)["result"]
    assert "# Research Report: mux (technical)" in texts(result)
    assert result["_meta"]["io.modelcontextprotocol/related-task"] == about
    [asked] = told(host, "elicitation/create", since)
    assert asked["message"].startswith('[everything] The research query "mux" could have multiple interpretations.')
    assert asked["_meta"]["io.modelcontextprotocol/related-task"] == about
    stages = [one["status"] for one in told(host, "notifications/tasks/status", since) if one["taskId"] == task]
    assert "input_required" in stages
    assert stages[-1] == "completed"
    assert host.request("tasks/get", about)["result"]["status"] == "completed"


def test_a_cancelled_task_is_cancelled_at_its_server(host: RawHost):
    """Spec: 2025-11-25, basic/utilities/tasks#task-cancellation."""
    about = {"taskId": make_task(host, topic="nothing")}
    assert host.request("tasks/cancel", about)["result"]["status"] == "cancelled"
    assert host.request("tasks/get", about)["result"]["status"] == "cancelled"
    assert host.request("tasks/cancel", about)["error"]["code"] == -32602  # its status is terminal


# ── progress and cancellation ──

OPERATION = "everything__trigger-long-running-operation"


def operate(host: RawHost, seconds: float, steps: int, token: Any) -> int:
    params = {"name": OPERATION, "arguments": {"duration": seconds, "steps": steps}, "_meta": {"progressToken": token}}
    return host.ask("tools/call", params)


def of_token(host: RawHost, token: Any) -> list[dict[str, Any]]:
    return [progress for progress in told(host, "notifications/progress") if progress["progressToken"] == token]


@pytest.mark.parametrize("token", ["mine", 0])
def test_progress_comes_with_the_hosts_own_token(host: RawHost, token: Any):
    """Spec: 2025-11-25, basic/utilities/progress."""
    result = host.answer(operate(host, 0.05, 5, token))["result"]
    assert texts(result) == "Long running operation completed. Duration: 0.05 seconds, Steps: 5."
    expected = [{"progress": step, "total": 5, "progressToken": token} for step in range(1, 6)]
    assert of_token(host, token) == expected
    assert [type(progress["progressToken"]) for progress in of_token(host, token)] == [type(token)] * 5


def test_a_cancelled_call_is_never_answered_and_its_progress_ends(host: RawHost):
    """Spec: 2025-11-25, basic/utilities/cancellation. A second, longer operation that is started after the first
    was cancelled ends after it: by then an answer to the first would have come."""
    cancelled = operate(host, 1.5, 15, "cancelled")
    hears(host, "notifications/progress", lambda progress: progress["progressToken"] == "cancelled")
    host.send(method="notifications/cancelled", params={"requestId": cancelled, "reason": "enough"})
    later = operate(host, 2, 2, "later")
    echoes(host)
    until_then = len(of_token(host, "cancelled"))
    assert until_then < 15
    host.answer(later)
    assert len(of_token(host, "later")) == 2
    assert len(of_token(host, "cancelled")) == until_then
    assert not [message for message in host.seen if message.get("id") == cancelled and "method" not in message]


def test_a_call_that_is_cancelled_while_its_server_asks_is_never_answered(fresh: Callable[[dict[str, Any]], RawHost]):
    """Spec: 2025-11-25, basic/utilities/cancellation."""
    host = fresh(FULL)
    answer = host.questions.pop("sampling/createMessage")
    params = {"name": "everything__trigger-sampling-request", "arguments": {"prompt": "hello"}}
    cancelled = host.ask("tools/call", params)
    question = host.until(lambda message: message.get("method") == "sampling/createMessage")
    host.send(method="notifications/cancelled", params={"requestId": cancelled})
    host.send(id=question["id"], **answer(question["params"]))
    echoes(host)
    assert not [message for message in host.seen if message.get("id") == cancelled and "method" not in message]


# ── subscriptions and logging ──


def test_an_update_reaches_a_host_that_subscribed_until_it_unsubscribes(fresh: Callable[[dict[str, Any]], RawHost]):
    """Spec: 2025-11-25, server/resources#subscriptions."""
    host = fresh({})
    updates = "everything__toggle-subscriber-updates"  # on: the first at once, the next in 5 s
    assert host.request("resources/subscribe", {"uri": RESOURCE})["result"] == {}
    assert "Started" in host.text(updates)
    assert hears(host, "notifications/resources/updated") == {"uri": RESOURCE}
    assert "Stopped" in host.text(updates)
    assert host.request("resources/unsubscribe", {"uri": RESOURCE})["result"] == {}
    so_far = len(told(host, "notifications/resources/updated"))
    assert "Started" in host.text(updates)
    echoes(host)
    assert len(told(host, "notifications/resources/updated")) == so_far


def test_a_log_message_bears_its_servers_name(fresh: Callable[[dict[str, Any]], RawHost]):
    """Spec: 2025-11-25, server/utilities/logging; the logger's name is our choice: SERVER, or SERVER/LOGGER."""
    host = fresh({"roots": {}})
    assert host.request("logging/setLevel", {"level": "debug"})["result"] == {}
    assert "Started" in host.text("everything__toggle-simulated-logging")
    simulated = hears(host, "notifications/message", lambda message: message["logger"] == "everything")
    assert "message" in simulated["data"]
    host.call("everything__get-roots-list")
    assert "Roots updated" in hears(host, "notifications/message", lambda m: m["logger"] != "everything")["data"]
    assert {message["logger"] for message in told(host, "notifications/message")} == {
        "everything",
        "everything/everything-server",
    }


def test_a_server_is_told_the_level_that_the_host_wants(fresh: Callable[[dict[str, Any]], RawHost]):
    """everything logs each subscription at level info. Spec: 2025-11-25, server/utilities/logging#setting-log-level."""
    host = fresh({})
    for level, number in (("emergency", 0), ("info", 1)):
        since = len(host.seen)
        assert host.request("logging/setLevel", {"level": level})["result"] == {}
        assert host.request("resources/subscribe", {"uri": RESOURCE})["result"] == {}
        echoes(host)
        assert len(told(host, "notifications/message", since)) == number


def test_a_level_that_is_set_while_a_server_starts_is_told_when_it_has(fresh: Callable[[dict[str, Any]], RawHost]):
    """Our choice: the host is not made to wait for its servers."""
    host = fresh({})
    host.ask("logging/setLevel", {"level": "emergency"})
    host.tools()
    assert host.request("resources/subscribe", {"uri": RESOURCE})["result"] == {}
    echoes(host)
    assert told(host, "notifications/message") == []


# ── list changes ──

CHANGES = [f"notifications/{kind}/list_changed" for kind in ("tools", "prompts", "resources")]


def test_the_changes_that_everything_announces_at_its_start_reach_the_host_at_most_once(
    launcher: Launcher, parties: dict[str, Party], site: Site
):
    """It registers seven tools once it is initialized and announces each. The host's first list has them all, and it
    is not told of what it has. Spec: 2025-11-25, server/tools#list-changed-notification; to gather is our choice."""
    heard: list[int] = []
    for host in (launcher.alone(parties["everything"]), launcher.through(parties["everything"])):
        answers_questions(host, site.path)
        host.initialize(FULL)
        tools = host.tools()
        assert len(tools) == 19
        [operation] = [tool for tool in tools if tool.endswith("trigger-long-running-operation")]
        host.call(operation, duration=0.2, steps=1)  # longer than a burst is gathered
        heard.append(sum(len(told(host, change)) for change in CHANGES))
    assert heard[0] == 7
    assert heard[1] <= 1


def test_a_changed_list_is_told_once_and_a_list_that_stays_equal_never(fresh: Callable[[dict[str, Any]], RawHost]):
    """Each call of gzip-file-as-resource adds a resource and announces that; for a name that is there already, it
    removes and adds it, and announces both. Spec: 2025-11-25, server/resources#list-changed-notification; that bursts
    become one, and that nothing is told of a list that is as it was, is our choice."""
    host = fresh({})

    def squeeze(name: str) -> None:
        data = "data:text/plain,squeeze"
        assert "isError" not in host.call("everything__gzip-file-as-resource", name=name, data=data)

    def session() -> list[str]:
        resources = host.request("resources/list")["result"]["resources"]
        return [one["name"] for one in resources if one["uri"].startswith("demo://resource/session/")]

    def changes(number: int) -> None:
        while len(told(host, "notifications/resources/list_changed")) < number:
            host.receive()

    assert session() == []
    squeeze("a")
    changes(1)
    assert session() == ["a"]
    squeeze("a")  # the list stays as it was
    squeeze("b")
    changes(2)
    assert session() == ["a", "b"]
    squeeze("a")  # removed and added at the end: a burst of two
    changes(3)
    assert session() == ["b", "a"]
    host.answer(operate(host, 0.2, 1, "quiet"))  # longer than a burst is gathered
    assert [len(told(host, change)) for change in CHANGES] == [0, 0, 3]


# ── the end ──


@pytest.mark.skipif(not CHILDREN.exists(), reason="asks /proc for mcpmux's children")
def test_a_server_that_outlives_its_stdin_does_not_outlive_mcpmux(fresh: Callable[[dict[str, Any]], RawHost]):
    """With a timer running, everything goes on when its stdin is closed. Spec: 2025-11-25, basic/lifecycle#shutdown."""
    host = fresh({})
    assert "Started" in host.text("everything__toggle-simulated-logging")
    children = Path(f"/proc/{host.process.pid}/task/{host.process.pid}/children").read_text().split()
    assert children
    assert host.close() == 0
    assert not [pid for pid in children if is_running(int(pid))]
