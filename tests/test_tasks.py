"""Tasks, of servers and of the host.

https://modelcontextprotocol.io/specification/2025-11-25/basic/utilities/tasks
"""

from __future__ import annotations

from typing import Any

import pytest
from script import HOST_TASKS, TOOL, Script, start_task


@pytest.mark.parametrize("method", ["tasks/get", "tasks/result", "tasks/cancel"])
def test_a_task_is_followed_at_the_server_that_made_it(method: str):
    s = Script(["git", "hub"])
    start_task(s, server="hub")
    s.host_asks(2, method, taskId="t1")
    s.server_answers("hub", method, {"taskId": "t1", "status": "working"})
    assert s.host_hears(2)["result"]["taskId"] == "t1"
    assert s.asks(3, method, taskId="t2")["error"]["code"] == -32602


def test_tasks_of_all_servers_are_listed_together():
    s = Script(["a", "b", "c"])
    s.host_asks(1, "tasks/list")
    s.server_answers("a", "tasks/list", {"tasks": [{"taskId": "1"}], "nextCursor": "n"})
    s.server_answers("a", "tasks/list", {"tasks": [{"taskId": "2"}]})
    s.server_answers("b", "tasks/list", error={"code": -32603, "message": "no"})
    s.server_answers("c", "tasks/list", {"tasks": [{"taskId": "3", "x": 1.0}, 7]})
    assert s.host_hears(1).raw.endswith(
        b'"result":{"tasks":[{"taskId": "1"},{"taskId": "2"},{"taskId": "3", "x": 1.0}]}}'
    )
    s.host_asks(2, "tasks/get", taskId="3")
    assert s.server_hears("c", "tasks/get")


@pytest.mark.requirement("task-progress")
def test_a_tasks_progress_goes_on_after_the_call_is_answered_until_the_task_ends():
    """The token remains valid until the task reaches a terminal status."""
    s = Script(["git"])
    number = start_task(s, _meta={"progressToken": "p"})

    def progress(value: int) -> int:
        s.server_sends("git", method="notifications/progress", params={"progressToken": number, "progress": value})
        return len(s.host_told("notifications/progress"))

    assert progress(1) == 1
    s.server_sends("git", method="notifications/tasks/status", params={"taskId": "t1", "status": "working"})
    assert progress(2) == 2
    s.server_sends("git", method="notifications/tasks/status", params={"taskId": "t1", "status": "completed"})
    assert progress(3) == 2
    assert len(s.host_told("notifications/tasks/status")) == 2


@pytest.mark.requirement("task-progress")
@pytest.mark.parametrize(
    ("method", "result"),
    [("tasks/get", {"status": "failed"}), ("tasks/result", {"content": []}), ("tasks/cancel", {"status": "cancelled"})],
)
def test_a_task_that_is_seen_to_end_ends_its_progress(method: str, result: dict[str, Any]):
    s = Script(["git"])
    number = start_task(s, _meta={"progressToken": "p"})
    s.host_asks(2, method, taskId="t1")
    s.server_answers("git", method, result)
    s.server_sends("git", method="notifications/progress", params={"progressToken": number, "progress": 1})
    assert s.host_told("notifications/progress") == []


@pytest.mark.requirement("server-tasks")
def test_a_server_follows_the_task_that_the_host_made_for_it_and_no_other():
    s = Script(["git", "spy"], capabilities=HOST_TASKS)
    params = {"messages": [], "maxTokens": 1, "task": {}}
    s.server_sends("git", id="q", method="sampling/createMessage", params=params)
    s.host_sends(id=s.host_told("sampling/createMessage")[0]["id"], result={"task": {"taskId": "h1"}})
    s.server_sends("spy", id="g", method="tasks/result", params={"taskId": "h1"})
    assert s.answer_to_server("spy", "g")["error"]["code"] == -32602
    s.server_sends("git", id="g", method="tasks/get", params={"taskId": "h1"})
    s.host_sends(id=s.host_told("tasks/get")[0]["id"], result={"status": "working"})
    assert s.answer_to_server("git", "g")["result"] == {"status": "working"}
    s.host_sends(method="notifications/tasks/status", params={"taskId": "h1", "status": "completed"})
    assert s.server_hears("git", "notifications/tasks/status")
    assert s.server_heard("spy", "notifications/tasks/status") == []
    s.server_sends("spy", id="l", method="tasks/list")
    s.host_sends(id=s.host_told("tasks/list")[0]["id"], result={"tasks": [{"taskId": "h1"}], "x": 1})
    assert s.answer_to_server("spy", "l")["result"] == {"tasks": [], "x": 1}


def test_a_server_may_not_follow_tasks_of_a_host_that_has_none():
    s = Script(["git"])
    s.server_sends("git", id="g", method="tasks/get", params={"taskId": "h1"})
    assert s.answer_to_server("git", "g")["error"]["code"] == -32601


@pytest.mark.parametrize("task", [[], {}, 7, None])
def test_odd_task_ids_are_nobodys(task: Any):
    s = Script(["git"], capabilities=HOST_TASKS)
    s.host_sends(method="notifications/tasks/status", params={"taskId": task, "status": "completed"})
    s.server_sends("git", method="notifications/tasks/status", params={"taskId": task, "status": "completed"})
    s.server_sends("git", id="l", method="tasks/list")
    s.host_sends(id=s.host_told("tasks/list")[0]["id"], result={"tasks": [{"taskId": task}]})
    assert s.answer_to_server("git", "l")["result"] == {"tasks": []}
    assert not any("bug" in line for line in s.logged)


def test_no_server_can_claim_the_task_of_another_by_its_status():
    s = Script(["git", "spy"])
    s.server_sends("spy", method="notifications/tasks/status", params={"taskId": "t1", "status": "working"})
    number = start_task(s, _meta={"progressToken": "p"})
    s.server_sends("spy", method="notifications/tasks/status", params={"taskId": "t1", "status": "completed"})
    s.host_asks(2, "tasks/result", taskId="t1")
    assert s.server_hears("git", "tasks/result")
    s.advance(4000)
    s.server_sends("git", method="notifications/progress", params={"progressToken": number, "progress": 1})
    assert len(s.host_told("notifications/progress")) == 1
    s.server_answers("git", "tasks/result", {"content": []})
    assert s.host_hears(2)["result"] == {"content": []}


def test_structured_results_of_a_wrapped_tool_are_wrapped_when_they_come_from_a_task():
    s = Script(["git"], offers={"git": {"tools/list": [{**TOOL, "outputSchema": {"type": "array"}}]}})
    start_task(s)
    s.host_asks(2, "tasks/result", taskId="t1")
    s.server_answers("git", "tasks/result", {"content": [], "structuredContent": [1]})
    assert s.host_hears(2)["result"]["structuredContent"] == {"result": [1]}


def test_progress_on_a_task_of_the_host_goes_on_until_it_ends():
    s = Script(["git"], capabilities=HOST_TASKS)
    params = {"messages": [], "maxTokens": 1, "task": {}, "_meta": {"progressToken": "mine"}}
    s.server_sends("git", id="q", method="sampling/createMessage", params=params)
    number = s.host_told("sampling/createMessage")[0]["id"]
    s.host_sends(id=number, result={"task": {"taskId": "h1"}})
    for value, status in ((1, "working"), (2, "completed"), (3, "completed")):
        s.host_sends(method="notifications/progress", params={"progressToken": number, "progress": value})
        s.host_sends(method="notifications/tasks/status", params={"taskId": "h1", "status": status})
    assert len(s.server_heard("git", "notifications/progress")) == 2
