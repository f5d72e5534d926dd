"""Many tools, few tokens: hosts that are shown `find_tools` and `call_tool` in place of all tools. Our choice (README,
"Many tools")."""

from __future__ import annotations

import json
from typing import Any

import pytest
from script import PREFIX, TOOL, Script

import mcpmux
from mcpmux import CALL_TOOL, FIND_TOOLS, HostOptions, MuxOptions, ServerOptions, ToolOverride

FORM = {"elicitation": {"form": {}}}
SEARCH = MuxOptions(expose="search")


def tool(name: str, description: str, **more: Any) -> dict[str, Any]:
    properties = {"path": {"type": "string", "description": "where it is"}}
    schema = {"type": "object", "properties": properties}
    return {"name": name, "description": description, "inputSchema": schema, **more}


READS = {"readOnlyHint": True}
GIT = [
    tool("git_log", "Shows the commit logs", annotations=READS),
    tool("git_diff", "Shows differences between branches", annotations=READS),
    tool("git_commit", "Records changes to the repository"),
]
FILES = [
    tool("read_file", "Reads a file", annotations=READS),
    tool("move_file", "Moves or renames files", annotations={"readOnlyHint": False, "destructiveHint": False}),
    tool("get_file_info", "Retrieves metadata about a file", annotations=READS),
]


def script(options: MuxOptions = SEARCH, git: dict[str, Any] | None = None, **more: Any) -> Script:
    tables = {"git": ServerOptions(command="git", **(git or {})), "files": ServerOptions(command="files")}
    return Script(tables, offers={"git": {"tools/list": GIT}, "files": {"tools/list": FILES}}, options=options, **more)


def finds(s: Script, **arguments: Any) -> list[dict[str, Any]]:
    """What `find_tools` gives back; its text says the same."""
    answer = s.asks(f"find{len(s.answered)}", "tools/call", name=FIND_TOOLS, arguments=arguments)
    tools = answer["result"]["structuredContent"]["tools"]
    assert not tools or json.loads(answer.text) == {"tools": tools}
    return tools


def names(s: Script, **arguments: Any) -> list[str]:
    return [one["name"] for one in finds(s, **arguments)]


def call(s: Script, id: Any, name: Any, *given: Any, **more: Any) -> None:
    arguments = {"name": name, "arguments": given[0]} if given else {"name": name}
    s.host_asks(id, "tools/call", name=CALL_TOOL, arguments=arguments, **more)


# ── what is listed ──


def test_two_tools_stand_for_all_and_say_what_the_servers_are_for():
    s = script()
    assert s.tools() == [FIND_TOOLS, CALL_TOOL]
    find, through = s.asks(1, "tools/list")["result"]["tools"]
    assert "- git (3): use git well\n- files (3): use files well" in find["description"]
    assert find["annotations"] == {"title": "Find tools", "readOnlyHint": True, "openWorldHint": False}
    hints = {key: through["annotations"][key] for key in ("readOnlyHint", "destructiveHint", "openWorldHint")}
    assert hints == {"readOnlyHint": False, "destructiveHint": True, "openWorldHint": True}
    assert not {"outputSchema", "execution"} & (find.keys() | through.keys())


def test_what_is_always_wanted_is_listed_too():
    tables = {"tools": {"git_diff": ToolOverride(always=True)}}
    s = script(MuxOptions(expose="search", always=["files__read*"]), tables)
    assert s.tools() == [FIND_TOOLS, CALL_TOOL, "git__git_diff", "files__read_file"]
    [diff] = [one for one in s.asks(1, "tools/list")["result"]["tools"] if one["name"] == "git__git_diff"]
    assert diff["_meta"] == {"anthropic/alwaysLoad": True}
    assert names(s, query="differences between branches")[0] == "git__git_diff"


def test_the_list_is_as_before_where_all_is_exposed():
    plain, other = script(MuxOptions()), script(hosts={"other": HostOptions(expose="search", servers=[])})
    other.core.host.take_options(MuxOptions(), {"other": HostOptions(expose="search", servers=[])})
    other.core.merged.changed()
    before = plain.asks(1, "tools/list").raw
    assert other.asks(1, "tools/list").raw == before
    assert b"mcpmux" not in before
    assert plain.asks(2, "tools/call", name=FIND_TOOLS)["error"]["code"] == -32602
    assert other.asks(2, "tools/call", name=CALL_TOOL)["error"]["code"] == -32602


def test_a_thousand_tools_of_seventy_servers_are_listed_in_2000_tokens():
    """Four characters count as a token."""
    servers = [f"server{number}" for number in range(70)]
    many = {name: {"tools/list": [{**TOOL, "name": f"tool{number}"} for number in range(15)]} for name in servers}
    s = Script(servers, offers=many, options=SEARCH)
    s.advance(1)
    listed = s.asks(1, "tools/list")
    assert "- server69 (15): use server69 well" in listed["result"]["tools"][0]["description"]
    assert len(listed.raw) < 4 * 2000


def test_a_server_cannot_have_one_of_the_two_names():
    tables = {"mcpmux": ServerOptions(command="x"), "b": ServerOptions(command="b", prefix="")}
    offers = {
        name: {"tools/list": [{**TOOL, "name": own}]} for name, own in (("mcpmux", "call_tool"), ("b", CALL_TOOL))
    }
    s = Script(tables, offers=offers, options=MuxOptions(expose="search", always=["*"]))
    assert s.tools()[:2] == [FIND_TOOLS, CALL_TOOL] and len(set(s.tools())) == 4


def test_a_change_of_the_tables_is_told_to_the_host():
    s = script(MuxOptions())
    assert len(s.tools()) == 6
    tables = {name: server.options for name, server in s.core.servers.items()}
    s.feed(mcpmux.ConfigChanged(SEARCH, tables, {}, None))
    assert s.host_told("notifications/tools/list_changed")
    assert s.tools() == [FIND_TOOLS, CALL_TOOL]
    s.feed(mcpmux.ConfigChanged(SEARCH, tables, {}, None, {"script": HostOptions(expose="all", servers=["git"])}))
    assert s.tools() == ["git__git_log", "git__git_diff", "git__git_commit"]


# ── what is found ──


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("commit log", "git__git_log"),
        ("rename a file", "files__move_file"),
        ("compare two branches", "git__git_diff"),
        ("committing", "git__git_commit"),
        ("comits", "git__git_commit"),
        ("file details", "files__get_file_info"),
        ("getFileInfo", "files__get_file_info"),
    ],
)
def test_a_tool_is_found_by_the_words_for_what_it_does(query: str, first: str):
    found = finds(script(), query=query)
    assert found[0]["name"] == first
    assert found[0].keys() == {"name", "server", "description", "inputSchema"}
    assert found[0]["server"] == first.partition("__")[0]


def test_the_limit_and_the_server_hold():
    s = script()
    assert len(finds(s, query="file log commit branches", limit=2)) == 2
    assert set(names(s, query="file", server="git", limit=20)) <= {"git__git_log", "git__git_diff", "git__git_commit"}
    assert names(s, query="", server="files") == ["files__read_file", "files__move_file", "files__get_file_info"]
    assert len(finds(s, query="file", limit=-3)) == 1


def test_no_server_crowds_out_another():
    """Of five at most two are of one server, while others have any."""
    loud = [{**TOOL, "name": f"create_issue_{number}", "description": "create issue " * 50} for number in range(50)]
    quiet = [{**TOOL, "name": "issue_write", "description": "Creates or changes an issue"}]
    s = Script(["loud", "quiet"], offers={"loud": {"tools/list": loud}, "quiet": {"tools/list": quiet}}, options=SEARCH)
    found = finds(s, query="create issue")
    assert [one["server"] for one in found] == ["loud", "loud", "quiet", "loud", "loud"]
    assert [one["server"] for one in finds(s, query="create issue", server="loud")] == ["loud"] * 5


def test_only_so_much_of_a_tools_text_counts():
    stuffed = [{**TOOL, "name": "a", "description": "x " * 2000 + "weather"}]
    s = Script(["a"], offers={"a": {"tools/list": stuffed}}, options=SEARCH)
    assert finds(s, query="weather") == []


def test_where_nothing_is_found_the_answer_says_what_to_try():
    s = script(broken={"docs": "its table is wrong"})
    answer = s.asks(1, "tools/call", name=FIND_TOOLS, arguments={"query": "metalog xylophone"})
    assert answer["result"]["structuredContent"] == {"tools": []}
    for words in (
        "No tool fits 'metalog xylophone'",
        "words like these: log",
        "- git (3): use git well",
        "its table is wrong",
    ):
        assert words in answer.text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "find_tools needs a query"),
        ({"query": 5}, "find_tools needs a query"),
        ({"query": "x", "server": "gitt"}, "there is no server 'gitt' (did you mean git?)"),
        ({"query": "x", "server": ["git"]}, "did you mean git?"),
        ({"query": "x", "server": "zzz"}, "there is no server 'zzz'; there are: git, files"),
    ],
)
def test_a_search_that_cannot_be_made_is_refused_in_words(arguments: dict[str, Any], words: str):
    answer = script().asks(1, "tools/call", name=FIND_TOOLS, arguments=arguments)
    assert answer["result"]["isError"] and words in answer.text


def test_an_answer_has_at_most_20_kb():
    schema = {
        "type": "object",
        "properties": {f"p{n}": {"type": "string", "description": "x" * 200} for n in range(90)},
    }
    huge = [{**TOOL, "name": f"huge_{number}", "inputSchema": schema} for number in range(9)]
    s = Script(["a"], offers={"a": {"tools/list": huge}}, options=SEARCH)
    found = finds(s, query="huge", limit=20)
    assert found and len(s.to_host[-1].raw) <= 20 * 1024
    assert found[0]["inputSchema"]["properties"]["p89"] == {"type": "string"}


def test_a_schema_that_is_nested_without_end_costs_no_search():
    deep: dict[str, Any] = {"type": "object"}
    for _ in range(240):
        deep = {"type": "object", "properties": {"x": deep}}
    offers = {"a": {"tools/list": [{**TOOL, "name": "log_deep", "inputSchema": deep}, TOOL]}}
    s = Script(["a"], offers=offers, options=SEARCH)
    assert set(names(s, query="log")) == {"a__log", "a__log_deep"}


def test_a_withheld_tool_is_neither_found_nor_named():
    s = script(git={"pin": True})
    assert "git__git_log" in names(s, query="commit logs")
    s.offers["git"] = {"tools/list": [{**GIT[0], "description": "Deletes the commit logs"}, *GIT[1:]]}
    s.server_sends("git", method="notifications/tools/list_changed")
    s.advance(1)
    assert "git__git_log" not in names(s, query="commit logs", limit=20)
    for query, server in (("git_logg", None), ("", "git"), ("deletes", "git")):
        answer = s.asks(f"{query}{server}", "tools/call", name=FIND_TOOLS, arguments={"query": query, "server": server})
        assert "git_log" not in answer.raw.decode().replace("git_logg", "")
    call(s, 1, "git__git_logg", {})
    assert "git__git_log " not in s.host_hears(1).text and "git__git_log?" not in s.host_hears(1).text


def test_what_was_found_joins_the_list_of_hosts_that_hear_of_changes():
    s = script(begin=False)
    s.initialize(clientInfo={"name": "claude-code", "version": "2"})
    assert s.tools() == [FIND_TOOLS, CALL_TOOL]
    names(s, query="commit log", limit=1)
    assert s.host_told("notifications/tools/list_changed")
    assert s.tools() == [FIND_TOOLS, CALL_TOOL, "git__git_log"]
    told = len(s.host_told("notifications/tools/list_changed"))
    names(s, query="commit log", limit=1)
    assert len(s.host_told("notifications/tools/list_changed")) == told
    other = script()
    names(other, query="commit log")
    assert other.tools() == [FIND_TOOLS, CALL_TOOL] and not other.host_told("notifications/tools/list_changed")


def test_what_joins_the_list_is_bounded():
    many = [{**TOOL, "name": f"log_{number}"} for number in range(60)]
    s = Script(["git"], offers={"git": {"tools/list": many}}, options=SEARCH, begin=False)
    s.initialize(clientInfo={"name": "Claude-Code", "version": "2"})
    for number in range(60):
        names(s, query=f"log {number}")
    assert len(s.tools()) == 2 + mcpmux.JOINED_MOST


# ── a call through the other ──


@pytest.mark.requirement("call-through")
@pytest.mark.parametrize("modern", [False, True])
def test_a_call_through_is_a_call_of_the_tool(modern: bool):
    s = script(modern=("git",) if modern else ())
    call(s, 1, "git__git_log", {"path": 1.50}, _meta={"progressToken": "p", "x": 1})
    told = s.server_hears("git", "tools/call")
    assert told["params"]["name"] == "git_log" and told["params"]["arguments"] == {"path": 1.5}
    assert told["params"]["_meta"]["x"] == 1 and b'"arguments":{"path": 1.5}' in told.raw
    s.server_sends("git", method="notifications/progress", params={"progressToken": told["id"], "progress": 1})
    assert s.host_told("notifications/progress")[0]["params"] == {"progressToken": "p", "progress": 1}
    complete = {"resultType": "complete"} if modern else {}
    s.server_answers("git", "tools/call", complete | {"content": [], "vendor": {"b": 1, "a": 2.0}})
    assert s.host_hears(1).raw.endswith(b'"content": [], "vendor": {"b": 1, "a": 2.0}}}')


def test_a_call_through_is_cancelled_as_any():
    s = script()
    call(s, 1, "git__git_log")
    number = s.server_hears("git", "tools/call")["id"]
    s.host_sends(method="notifications/cancelled", params={"requestId": 1})
    assert s.server_hears("git", "notifications/cancelled")["params"] == {"requestId": number}


def test_the_error_of_a_call_through_is_the_servers_own():
    s = script()
    call(s, 1, "git__git_log")
    s.server_answers("git", "tools/call", error={"code": -32050, "message": "no", "data": [1]})
    assert s.host_hears(1)["error"] == {"code": -32050, "message": "no", "data": [1]}
    call(s, 2, "git__git_log")
    s.server_dies("git")
    assert "git exited with code 1" in s.host_hears(2).text


def test_a_server_may_ask_during_a_call_through():
    s = script(capabilities=FORM)
    call(s, 1, "git__git_log")
    s.server_sends("git", id=7, method="elicitation/create", params={"message": "which?", "requestedSchema": {}})
    [asked] = s.host_told("elicitation/create")
    s.host_sends(id=asked["id"], result={"action": "decline"})
    assert s.answer_to_server("git", 7)["result"] == {"action": "decline"}


@pytest.mark.requirement("call-through")
def test_a_modern_hosts_call_through_goes_over_rounds():
    s = script(capabilities=FORM, begin=False, modern=("git",))
    s.host_asks_modern("list", "tools/list")
    s.advance(0.3)
    given = {"name": CALL_TOOL, "arguments": {"name": "git__git_log", "arguments": {"path": "a"}}}
    s.host_asks_modern(1, "tools/call", **given)
    requests = {"q": {"method": "elicitation/create", "params": {"message": "which?", "requestedSchema": {}}}}
    asks = {"resultType": "input_required", "inputRequests": requests, "requestState": "theirs"}
    s.server_answers("git", "tools/call", asks)
    result = s.host_hears(1)["result"]
    more = {"inputResponses": {"q": {"action": "decline"}}, "requestState": result["requestState"]}
    s.host_asks_modern(2, "tools/call", **given, **more)
    told = s.server_hears("git", "tools/call")["params"]
    assert told["inputResponses"] == {"q": {"action": "decline"}} and told["requestState"] == "theirs"
    assert told["name"] == "git_log" and told["arguments"] == {"path": "a"}
    s.server_answers("git", "tools/call", {"resultType": "complete", "content": []})
    assert s.host_hears(2)["result"]["content"] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "needs the name of a tool"),
        ({"name": 5}, "needs the name of a tool"),
        ([], "needs the name of a tool"),
        (
            {"name": "git__git_log", "arguments": "path"},
            "arguments must be an object, with all that git__git_log is given",
        ),
        ({"name": "git__git_log", "arguments": [1]}, "an object"),
        (
            {"name": "git__git_log", "path": "/"},
            "arguments must be an object, with all that git__git_log is given: path",
        ),
        ({"name": CALL_TOOL, "arguments": {"name": "git__git_log"}}, f"{CALL_TOOL} is called directly"),
        ({"name": FIND_TOOLS, "arguments": {"query": "x"}}, f"{FIND_TOOLS} is called directly"),
        ({"name": "git__git_lag"}, "Unknown tool: git__git_lag (did you mean git__git_log?)"),
    ],
)
def test_a_call_through_that_cannot_be_made_is_refused_in_words(arguments: Any, words: str):
    s = script()
    s.host_asks(1, "tools/call", name=CALL_TOOL, arguments=arguments)
    assert s.host_hears(1).is_error and words in s.host_hears(1).text
    assert not s.server_heard("git", "tools/call")


def test_a_tool_that_is_disabled_or_has_vanished_is_unknown():
    s = script(git={"disabled_tools": ["git_log"]})
    assert "git__git_log" not in names(s, query="commit log", limit=20)
    call(s, 1, "git__git_log")
    assert "Unknown tool: git__git_log" in s.host_hears(1).text
    s.offers["git"] = {"tools/list": GIT[:2]}
    s.server_sends("git", method="notifications/tools/list_changed")
    s.advance(1)
    call(s, 2, "git__git_commit")
    assert "Unknown tool: git__git_commit" in s.host_hears(2).text
    assert "git__git_commit" not in names(s, query="record changes commit")


def test_a_tool_that_is_not_listed_can_be_called_by_its_name():
    s = script()
    s.host_asks(1, "tools/call", name="git__git_commit", arguments={})
    assert s.server_hears("git", "tools/call")["params"]["name"] == "git_commit"


# ── which wait for the person ──


@pytest.mark.parametrize(
    ("name", "approve", "waits"),
    [
        ("git__git_commit", None, True),
        ("git__git_log", None, False),
        ("git__git_commit", False, False),
        ("git__git_commit", ["git_log"], True),
        ("git__git_log", ["git_log"], True),
        ("git__git_log", True, True),
        ("files__move_file", None, True),
    ],
)
@pytest.mark.requirement("approvals")
def test_a_call_through_waits_for_the_person_unless_it_only_reads(name: str, approve: Any, waits: bool):
    """Who has always allowed `call_tool` has not allowed every tool."""
    s = script(git={"approve": approve}, page=True)
    call(s, 1, name, {"path": "a"})
    assert bool(s.asked_on_page()) == waits
    server, own = name.split("__")
    assert len(s.server_heard(server, "tools/call")) == (not waits)
    if waits:
        s.page_says("accept", content={"decision": "once"})
        assert s.server_hears(server, "tools/call")["params"]["name"] == own


def test_a_direct_call_waits_as_its_table_says_and_no_more():
    s = script(page=True)
    s.host_asks(1, "tools/call", name="git__git_commit", arguments={})
    assert s.server_heard("git", "tools/call") and not s.asked_on_page()


def test_a_modern_host_is_asked_about_a_call_through_by_a_round():
    s = script(capabilities=FORM, begin=False)
    s.host_asks_modern("list", "tools/list")
    s.advance(0.3)
    given = {"name": CALL_TOOL, "arguments": {"name": "git__git_commit", "arguments": {"path": "a"}}}
    s.host_asks_modern(1, "tools/call", **given)
    result = s.host_hears(1)["result"]
    assert result["inputRequests"]["mcpmux"]["params"]["message"].startswith("May git run git_commit?")
    once = {"mcpmux": {"action": "accept", "content": {"decision": "once"}}}
    s.host_asks_modern(2, "tools/call", **given, inputResponses=once, requestState=result["requestState"])
    assert s.server_hears("git", "tools/call")["params"]["arguments"] == {"path": "a"}
    s.server_answers("git", "tools/call", {"content": []})
    assert s.host_hears(2)["result"]["content"] == []


# ── what one host is shown ──


def test_a_hosts_table_is_found_by_what_the_host_calls_itself():
    tables = {"script": HostOptions(expose="search"), "oth*": HostOptions(servers=["g*"]), "*": HostOptions(servers=[])}
    for name, shown in (("Script", [FIND_TOOLS, CALL_TOOL]), ("other", 3), ("third", 0)):
        s = script(MuxOptions(), hosts=tables, begin=False)
        s.initialize(clientInfo={"name": name, "version": "1"})
        assert s.tools() == shown or len(s.tools()) == shown


def test_a_host_sees_the_servers_of_its_table_only_and_no_other_is_started():
    s = script(MuxOptions(), hosts={"script": HostOptions(servers=["git"])})
    assert s.started == ["git"]
    assert s.tools() == ["git__git_log", "git__git_diff", "git__git_commit"]
    assert "files" not in s.host_hears("init").raw.decode()
    s.host_asks(1, "tools/call", name="files__read_file")
    assert s.host_hears(1)["error"]["code"] == -32602
    assert s.started == ["git"]


def test_two_modern_hosts_behind_one_pipe_see_each_its_own():
    s = script(MuxOptions(), hosts={"script": HostOptions(servers=["git"], expose="search")}, begin=False)
    s.host_asks_modern("list", "tools/list")
    s.advance(0.3)
    assert s.started == ["git"]
    other = {PREFIX + "clientInfo": {"name": "other", "version": "1"}}
    s.host_asks_modern(1, "tools/list", meta=other)
    s.advance(0.3)
    assert len(s.host_hears(1)["result"]["tools"]) == 6
    assert len(s.asks_modern(2, "tools/list")["result"]["tools"]) == 2
    found = s.asks_modern(3, "tools/call", name=FIND_TOOLS, arguments={"query": "file"})
    assert all(one["server"] == "git" for one in found["result"]["structuredContent"]["tools"])


def test_editors_know_the_tables_of_hosts():
    hosts = mcpmux.schema_of_config()["properties"]["hosts"]["additionalProperties"]["$ref"]
    assert hosts == "#/definitions/HostOptions"
