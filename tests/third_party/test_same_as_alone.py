"""What each server offers and answers alone, it offers and answers behind mcpmux, to the same requests."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from conftest import RawHost

from .harness import FULL, Launcher, Party, Site, answers_questions, told

LISTS = {
    "tools/list": "tools",
    "prompts/list": "prompts",
    "resources/list": "resources",
    "resources/templates/list": "resourceTemplates",
}
ONCE = ({},)  # called once, without arguments


@dataclass(frozen=True)
class Case:
    """Calls of one tool, one after the other."""

    server: str
    tool: str
    calls: tuple[dict[str, Any], ...] = ONCE

    def __str__(self) -> str:
        return f"{self.server}-{self.tool}"


REPO = {"repo_path": "{repo}"}
CASES = [
    Case("everything", "echo", ({"message": "héllo \U0001f600"}, {})),
    Case(
        "everything",
        "get-annotated-message",
        ({"messageType": "error", "includeImage": True}, {"messageType": "success"}, {"messageType": "none"}),
    ),
    Case("everything", "get-env"),
    Case("everything", "get-resource-links", ({"count": 4}, {"count": 99})),
    Case(
        "everything",
        "get-resource-reference",
        ({"resourceType": "Text", "resourceId": 1}, {"resourceType": "Blob", "resourceId": 2}, {"resourceId": -1}),
    ),
    Case("everything", "get-structured-content", ({"location": "Chicago"}, {"location": "Atlantis"})),
    Case("everything", "get-sum", ({"a": 1.5, "b": 2}, {"a": "x"})),
    Case("everything", "get-tiny-image"),
    Case(
        "everything",
        "gzip-file-as-resource",
        (
            {"name": "a.gz", "data": "data:text/plain,squeeze", "outputType": "resource"},
            {"name": "a.gz", "data": "data:text/plain,squeeze", "outputType": "resourceLink"},
            {"name": "b.gz", "data": "file:///nowhere"},
        ),
    ),
    Case("everything", "toggle-simulated-logging", ({}, {})),  # the second turns it off
    Case("everything", "toggle-subscriber-updates", ({}, {})),
    Case("everything", "trigger-long-running-operation", ({"duration": 0.04, "steps": 4},)),
    Case("everything", "get-roots-list"),
    Case("everything", "trigger-elicitation-request"),
    Case(
        "everything",
        "trigger-url-elicitation",
        (
            {"url": "https://example.org/1", "elicitationId": "e-1"},
            {"url": "https://example.org/2", "elicitationId": "e-2", "errorPath": True},  # -32042 …
            {"url": "https://example.org/2", "elicitationId": "e-2", "errorPath": True},  # … and the retry
        ),
    ),
    Case("everything", "trigger-sampling-request", ({"prompt": "hello", "maxTokens": 5},)),
    Case("everything", "simulate-research-query", ({"topic": "x"},)),  # refused: it can be called as a task only
    Case("everything", "trigger-sampling-request-async", ({"prompt": "hello"},)),  # answered at once, without a task
    Case("everything", "trigger-elicitation-request-async"),
    Case("filesystem", "read_file", ({"path": "{site}/notes.txt"}, {"path": "{site}/../elsewhere"})),
    Case(
        "filesystem",
        "read_text_file",
        (
            {"path": "{site}/notes.txt", "head": 1},
            {"path": "{site}/notes.txt", "tail": 1},
            {"path": "{site}/notes.txt", "head": 1, "tail": 1},
            {"path": "{site}/blob.bin"},
            {},
        ),
    ),
    Case(
        "filesystem",
        "read_media_file",
        ({"path": "{site}/picture.png"}, {"path": "{site}/sound.mp3"}, {"path": "{site}/blob.bin"}),
    ),
    Case("filesystem", "read_multiple_files", ({"paths": ["{site}/notes.txt", "{site}/none"]}, {"paths": []})),
    Case(
        "filesystem", "write_file", ({"path": "{site}/w.txt", "content": "1"}, {"path": "{site}/w.txt", "content": ""})
    ),
    Case(
        "filesystem",
        "edit_file",
        (
            {"path": "{site}/notes.txt", "edits": [{"oldText": "two", "newText": "zwei"}], "dryRun": True},
            {"path": "{site}/notes.txt", "edits": [{"oldText": "two", "newText": "zwei"}]},
            {"path": "{site}/notes.txt", "edits": [{"oldText": "nowhere", "newText": ""}]},
        ),
    ),
    Case("filesystem", "create_directory", ({"path": "{site}/new/deep"}, {"path": "{site}/new/deep"})),
    Case("filesystem", "list_directory", ({"path": "{site}"}, {"path": "{site}/none"})),
    Case("filesystem", "list_directory_with_sizes", ({"path": "{site}", "sortBy": "size"},)),
    Case("filesystem", "directory_tree", ({"path": "{site}/docs"}, {"path": "{site}", "excludePatterns": ["repo"]})),
    Case("filesystem", "move_file", ({"source": "{site}/notes.txt", "destination": "{site}/moved.txt"},) * 2),
    Case("filesystem", "search_files", ({"path": "{site}/docs", "pattern": "**/*.md"},)),
    Case("filesystem", "get_file_info", ({"path": "{site}/notes.txt"}, {"path": "{site}/docs"})),
    Case("filesystem", "list_allowed_directories"),
    Case("git", "git_status", (REPO, {"repo_path": "{site}"})),
    Case("git", "git_diff_unstaged", (REPO, REPO | {"context_lines": 0})),
    Case("git", "git_diff_staged", (REPO,)),
    Case("git", "git_diff", (REPO | {"target": "old"}, REPO | {"target": "nowhere"}, REPO | {"target": "--output=x"})),
    Case("git", "git_commit", (REPO | {"message": "Change code"}, REPO | {"message": "nothing is staged"})),
    Case("git", "git_add", (REPO | {"files": ["new.txt"]}, REPO | {"files": ["../../x"]}, REPO | {"files": []})),
    Case("git", "git_reset", (REPO,)),
    Case("git", "git_log", (REPO, REPO | {"max_count": 1})),
    Case("git", "git_create_branch", (REPO | {"branch_name": "b", "base_branch": "old"}, REPO | {"branch_name": "b"})),
    Case("git", "git_checkout", (REPO | {"branch_name": "side"}, REPO | {"branch_name": "nowhere"})),
    Case("git", "git_show", (REPO | {"revision": "HEAD"}, REPO | {"revision": "HEAD:code.py"})),
    Case("git", "git_branch", (REPO | {"branch_type": "local"}, REPO | {"branch_type": "none"})),
    Case("time", "get_current_time", ({"timezone": "UTC"}, {"timezone": "Asia/Tokyo"}, {"timezone": "Nowhere"}, {})),
    Case(
        "time",
        "convert_time",
        (
            {"source_timezone": "UTC", "time": "12:30", "target_timezone": "Asia/Tokyo"},
            {"source_timezone": "UTC", "time": "25:61", "target_timezone": "Asia/Tokyo"},
        ),
    ),
]

REFUSED = ("simulate-research-query",)  # all others must accept their case's first call


# ── what may differ, and why ──


def without_path(answer: Any) -> Any:
    env = json.loads(answer["result"]["content"][0]["text"])
    path = env.pop("PATH", None) or env.pop("Path")
    return env, [folder for folder in path.split(os.pathsep) if folder in os.environ["PATH"].split(os.pathsep)]


def without_clock(value: Any) -> Any:
    """«created at 12:34:56 PM», in text and in base64, loses the time."""
    match value:
        case str():
            return re.sub(r"created at \d{1,2}:\d\d:\d\d.*", "created at", value)
        case list():
            return [without_clock(one) for one in value]
        case dict():
            decoded = {"blob": base64.b64decode(value["blob"]).decode(errors="replace")} if "blob" in value else {}
            return {key: without_clock(one) for key, one in (value | decoded).items()}
        case _:
            return value


def without_minted_ids(answer: Any) -> Any:
    for one in answer.get("error", {}).get("data", {}).get("elicitations", []):
        assert re.fullmatch(r"[0-9a-f-]{36}", one["elicitationId"])
        one["elicitationId"] = "minted"
    return answer


def without_date(answer: Any) -> Any:
    """Each moment is checked against the clock; its time of day and its offset stay."""
    return _with_moments(answer, timedelta(days=2), "%H:%M:%S %z")


def without_time(answer: Any) -> Any:
    """Each moment is checked against the clock; its offset stays."""
    return _with_moments(answer, timedelta(minutes=2), "%z")


def _with_moments(answer: Any, distance: timedelta, kept: str) -> Any:
    def timeless(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        value = {key: timeless(one) for key, one in value.items()}
        if "datetime" in value:
            moment = datetime.fromisoformat(value["datetime"])
            assert abs(moment - datetime.now(UTC)) < distance
            assert value.pop("day_of_week") == moment.strftime("%A")
            value["datetime"] = moment.strftime(kept)
        return value

    if answer["result"].get("isError"):
        return answer
    [content] = answer["result"].pop("content")
    structured = answer["result"].pop("structuredContent")
    assert json.loads(content.pop("text")) == structured
    return answer, content, timeless(structured)


VARIES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "get-env": (without_path, "mcpmux adds the usual folders to PATH; all else that it was told to pass on is equal"),
    "get-resource-reference": (without_clock, "the resource holds the time of day"),
    "trigger-url-elicitation": (without_minted_ids, "the -32042 error holds a random elicitationId"),
    "get_current_time": (without_time, "it tells the time"),
    "convert_time": (without_date, "it converts a time of today's, and a day may end between two calls"),
}


# ── both ways ──


class Both:
    """The four servers, each alone and all behind one mcpmux, before hosts of equal capabilities."""

    def __init__(self, launcher: Launcher, parties: dict[str, Party], site: Site) -> None:
        env_too = replace(parties["everything"], keys={"env_vars": ["*"]})
        parties = parties | {"everything": env_too}
        self.alone = {name: launcher.alone(party) for name, party in parties.items()}
        self.mcpmux = launcher.through(*parties.values())
        hosts = [*self.alone.values(), self.mcpmux]
        for host in hosts:
            answers_questions(host, site.path)
            host.initialize(FULL)
        self.lists = {name: self._lists(host) for name, host in self.alone.items()}
        self.merged = self._lists(self.mcpmux)

    @staticmethod
    def _lists(host: RawHost) -> dict[str, list[dict[str, Any]]]:
        return {method: host.request(method).get("result", {}).get(key, []) for method, key in LISTS.items()}

    def named(self, method: str) -> list[dict[str, Any]]:
        """What mcpmux's list must be: all entries, in config order, and nothing else of them changed than the name."""
        return [
            entry | {"name": f"{server}__{entry['name']}"}
            for server, lists in self.lists.items()
            for entry in lists[method]
        ]

    def as_they_are(self, method: str) -> list[dict[str, Any]]:
        return [entry for lists in self.lists.values() for entry in lists[method]]

    def ask(self, server: str, method: str, alone: dict[str, Any], through: dict[str, Any]) -> tuple[Any, Any]:
        """The same request both ways."""
        return outcome(self.alone[server], method, alone), outcome(self.mcpmux, method, through)


def outcome(host: RawHost, method: str, params: dict[str, Any]) -> dict[str, Any]:
    answer = host.request(method, params)
    return {key: answer[key] for key in ("result", "error") if key in answer}


@pytest.fixture(scope="module")
def both(module_launcher: Launcher, parties: dict[str, Party], site: Site) -> Both:
    return Both(module_launcher, parties, site)


# ── lists ──


def test_every_tool_is_offered_in_order_under_its_servers_name(both: Both):
    """Our choice: SERVER__TOOL, config order; nothing else of an entry changes, but that an empty description becomes
    the tool's name. Spec: 2025-11-25, server/tools#listing-tools."""
    described = {
        f"{s}__{tool['name']}": tool["name"] for s, lists in both.lists.items() for tool in lists["tools/list"]
    }
    expected = [
        tool | {"description": tool.get("description") or described[tool["name"]]} for tool in both.named("tools/list")
    ]
    assert both.merged["tools/list"] == expected
    assert len(expected) == 19 + 14 + 12 + 2


def test_every_prompt_is_offered_in_order_under_its_servers_name(both: Both):
    """Our choice, as for tools. Spec: 2025-11-25, server/prompts#listing-prompts."""
    assert both.merged["prompts/list"] == both.named("prompts/list")
    assert len(both.merged["prompts/list"]) == 4


def test_every_resource_and_template_is_offered_as_it_is(both: Both):
    """URIs are never rewritten. Spec: 2025-11-25, server/resources#listing-resources."""
    for method, number in (("resources/list", 7), ("resources/templates/list", 2)):
        assert both.merged[method] == both.as_they_are(method)
        assert len(both.merged[method]) == number


def test_every_tool_is_among_the_cases(both: Both):
    offered = [(server, tool["name"]) for server, lists in both.lists.items() for tool in lists["tools/list"]]
    assert sorted(offered) == sorted({(case.server, case.tool) for case in CASES})


# ── calls ──


def called(host: RawHost, tool: str, arguments: dict[str, Any], token: str) -> dict[str, Any]:
    """A call's answer, the progress told under its token, and what the host was asked meanwhile.

    When the roots are asked for is left out: everything does so 350 ms after its start, whatever else it does.
    """
    since = len(host.seen)
    params = {"name": tool, "arguments": arguments, "_meta": {"progressToken": token}}
    answer = outcome(host, "tools/call", params)
    progress = [told for told in told(host, "notifications/progress", since) if told["progressToken"] == token]
    questions = [
        (message["method"], message["params"])
        for message in host.seen[since:]
        if "method" in message and "id" in message and message["method"] != "roots/list"
    ]
    return {"answer": answer, "progress": progress, "questions": questions}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_call_ends_as_it_does_alone(both: Both, site: Site, case: Case):
    """Answers pass as they are; an elicitation says which server asks. Spec: 2025-11-25, server/tools#calling-tools."""
    [tool] = [one for one in both.lists[case.server]["tools/list"] if one["name"] == case.tool]
    ends: list[list[dict[str, Any]]] = []
    for host, name in ((both.alone[case.server], case.tool), (both.mcpmux, f"{case.server}__{case.tool}")):
        calls = enumerate(site.filled(list(case.calls)))
        ends.append([called(host, name, arguments, f"{case} {number}") for number, arguments in calls])
        if not tool["annotations"]["readOnlyHint"]:  # else both read the very same files
            site.restore()
    alone, through = ends
    for end in through:
        for method, params in end["questions"]:
            if method == "elicitation/create":
                assert params["message"].startswith("[everything] ")
                params["message"] = params["message"].removeprefix("[everything] ")
        for page in end["answer"].get("error", {}).get("data", {}).get("elicitations", []):
            assert page["message"].startswith("[everything] ")
            page["message"] = page["message"].removeprefix("[everything] ")
    assert ("error" in alone[0]["answer"] or alone[0]["answer"]["result"].get("isError", False)) == (
        case.tool in REFUSED
    )
    normal, _ = VARIES.get(case.tool, (lambda answer: answer, ""))
    for one, other in zip(alone, through, strict=True):
        assert normal(one.pop("answer")) == normal(other.pop("answer"))
        assert one == other


def test_calls_at_once_to_all_servers_each_get_their_own_answer(both: Both, site: Site):
    """Spec: 2025-11-25, basic#responses: a response bears its request's id."""
    host = both.mcpmux
    asked: dict[int, tuple[str, str]] = {}
    for number in range(20):
        for tool, arguments, expected in (
            ("everything__echo", {"message": f"m{number}"}, f"Echo: m{number}"),
            ("filesystem__read_text_file", {"path": str(site.path / "notes.txt"), "head": 1 + number % 2}, "one"),
            ("git__git_show", {"repo_path": str(site.repo), "revision": "old:README.md"}, "# A repository"),
            (
                "time__convert_time",
                {"source_timezone": "UTC", "time": f"{number:02}:00", "target_timezone": "UTC"},
                f"T{number:02}:00:00",
            ),
        ):
            asked[host.ask("tools/call", {"name": tool, "arguments": arguments})] = (tool, expected)
    for id, (tool, expected) in asked.items():
        assert expected in host.answer(id)["result"]["content"][0]["text"], tool


# ── prompts, resources, completion ──


@pytest.mark.parametrize(
    ("prompt", "arguments"),
    [
        ("simple-prompt", {}),
        ("args-prompt", {"city": "Köln"}),
        ("args-prompt", {"city": "Austin", "state": "Texas"}),
        ("args-prompt", {}),
        ("completable-prompt", {"department": "Sales", "name": "Eve"}),
        ("resource-prompt", {"resourceType": "Text", "resourceId": "3"}),
        ("resource-prompt", {"resourceType": "Blob", "resourceId": "4"}),
        ("resource-prompt", {"resourceType": "None", "resourceId": "4"}),
    ],
)
def test_a_prompt_reads_as_it_does_alone(both: Both, prompt: str, arguments: dict[str, str]):
    """Spec: 2025-11-25, server/prompts#getting-a-prompt. Resources in a prompt hold the time of day."""
    alone, through = both.ask(
        "everything",
        "prompts/get",
        {"name": prompt, "arguments": arguments},
        {"name": f"everything__{prompt}", "arguments": arguments},
    )
    assert without_clock(through) == without_clock(alone)


def test_every_prompt_is_read_in_a_test(both: Both):
    names = {"simple-prompt", "args-prompt", "completable-prompt", "resource-prompt"}
    assert {prompt["name"] for prompt in both.as_they_are("prompts/list")} == names


def test_every_listed_resource_reads_as_it_does_alone(both: Both):
    """Spec: 2025-11-25, server/resources#reading-resources."""
    for resource in both.as_they_are("resources/list"):
        alone, through = both.ask("everything", "resources/read", *({"uri": resource["uri"]},) * 2)
        assert through == alone
        assert through["result"]["contents"][0]["text"]


@pytest.mark.parametrize("path", ["text/1", "blob/23", "text/zero", "blob/-1"])
def test_a_resource_of_a_template_reads_as_it_does_alone(both: Both, path: str):
    """Spec: 2025-11-25, server/resources#resource-templates. These resources hold the time of day."""
    alone, through = both.ask("everything", "resources/read", *({"uri": f"demo://resource/dynamic/{path}"},) * 2)
    assert without_clock(through) == without_clock(alone)


TEXT_TEMPLATE = "demo://resource/dynamic/text/{resourceId}"
BLOB_TEMPLATE = "demo://resource/dynamic/blob/{resourceId}"


@pytest.mark.parametrize(
    ("ref", "argument", "value", "context"),
    [
        ("completable-prompt", "department", "", None),
        ("completable-prompt", "department", "S", None),
        ("completable-prompt", "name", "", {"department": "Sales"}),
        ("completable-prompt", "name", "E", {"department": "Sales"}),
        ("completable-prompt", "name", "E", None),
        ("completable-prompt", "nothing", "E", None),
        ("resource-prompt", "resourceType", "B", None),
        ("resource-prompt", "resourceId", "7", None),
        ("args-prompt", "city", "A", None),
        (TEXT_TEMPLATE, "resourceId", "7", None),
        (TEXT_TEMPLATE, "resourceId", "x", None),
        (BLOB_TEMPLATE, "resourceId", "8", None),
    ],
)
def test_a_completion_is_as_it_is_alone(
    both: Both, ref: str, argument: str, value: str, context: dict[str, str] | None
):
    """Spec: 2025-11-25, server/utilities/completion."""

    def params(prefix: str) -> dict[str, Any]:
        is_uri = "://" in ref
        about = {"type": "ref/resource", "uri": ref} if is_uri else {"type": "ref/prompt", "name": prefix + ref}
        asked: dict[str, Any] = {"ref": about, "argument": {"name": argument, "value": value}}
        return asked | ({"context": {"arguments": context}} if context else {})

    alone, through = both.ask("everything", "completion/complete", params(""), params("everything__"))
    assert through == alone
