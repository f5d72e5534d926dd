"""Where the host's messages go, and what is answered here: the core, with a host and servers that the test plays.

https://modelcontextprotocol.io/specification/2025-11-25/basic
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from script import RESOURCES, Script, server, start_task, tools

import mcpmux
from mcpmux import MuxOptions

# ── the handshake with the host ──


def test_initialize_is_answered_before_any_server_is():
    """Our choice: hosts give it 1 to 60 s, and a cold server may take 40."""
    s = Script(["git"], silent=("git",), begin=False)
    s.host_asks(
        0, "initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo={"name": "h", "version": "1"}
    )
    answer = s.host_hears(0)["result"]
    assert answer["protocolVersion"] == "2025-06-18"
    assert answer["serverInfo"] == {"name": "mcpmux", "title": "mcpmux", "version": mcpmux.__version__}
    assert s.started == ["git"]


def test_an_unknown_revision_is_answered_with_the_latest_legacy_one():
    """2025-11-25, basic/lifecycle#version-negotiation."""
    s = Script(begin=False)
    assert s.initialize(protocolVersion="2031-01-01")["result"]["protocolVersion"] == "2025-11-25"


@pytest.mark.requirement("before-initialize")
@pytest.mark.parametrize("method", ["tools/list", "tools/call", "vendor/x", "logging/setLevel"])
def test_nothing_is_served_before_initialize(method: str):
    """Our choice of words; 2025-11-25, basic/lifecycle: initialization MUST be the first interaction."""
    s = Script(begin=False)
    answer = s.asks(1, method)
    assert answer["error"]["code"] == -32602
    assert "initialize" in answer.text


@pytest.mark.requirement("empty-results")
def test_a_ping_is_answered_even_before_initialize():
    """2025-11-25, basic/utilities/ping; the result is exactly {}."""
    s = Script(begin=False)
    assert s.asks(1, "ping").raw == b'{"jsonrpc":"2.0","id":1,"result":{}}'


@pytest.mark.requirement("era-by-request")
def test_a_probe_for_the_modern_era_is_answered_at_once_and_initialize_still_works():
    """VS Code and Claude Code ask server/discover first, then initialize on the same pipe. A probe starts nothing."""
    s = Script(["git"], begin=False)
    assert s.asks_modern(0, "server/discover")["result"]["supportedVersions"] == ["2026-07-28"]
    assert s.started == []
    s.initialize()
    assert s.tools() == ["git__log"]


def test_a_second_initialize_is_answered_and_starts_nothing_twice():
    s = Script(["git"])
    info = {"name": "h", "version": "1"}
    answer = s.asks(9, "initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo=info)
    assert answer["result"]["instructions"] == "# git\n\nuse git well"
    assert s.started == ["git"]


def test_initialize_without_its_params_is_refused():
    s = Script(begin=False)
    assert s.asks(1, "initialize")["error"]["code"] == -32602


def test_a_refused_initialize_leaves_the_host_uninitialized():
    s = Script(["git"], begin=False)
    assert s.asks(1, "initialize", protocolVersion="2025-11-25", capabilities=5)["error"]["code"] == -32602
    assert s.asks(2, "tools/list")["error"]["code"] == -32602
    s.initialize()
    assert s.tools() == ["git__log"]


# ── who owns what ──


@pytest.mark.requirement("repeated-key")
def test_a_second_name_does_not_get_past_the_filters():
    s = Script({"git": server(disabled_tools=["drop"])}, offers={"git": tools("log", "drop")})
    s.host_sends(b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"git__log","na\\u006de":"drop"}}')
    assert s.host_hears(1)["error"]["code"] == -32602
    assert s.server_heard("git", "tools/call") == []
    s.host_sends(b'{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"drop","name":"git__log"}}')
    assert s.server_hears("git", "tools/call").raw.endswith(b'"params":{"name":"log"}}')


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"name": "git__lgo"}, "Unknown tool: git__lgo (did you mean git__log?)"),
        ({"name": "zzz"}, "Unknown tool: zzz"),
        ({"name": "lo"}, "Unknown tool: lo"),
        ({"name": 7}, "params.name must be a string"),
        ({"x": 1}, "params.name must be a string"),
    ],
)
def test_a_call_to_nothing_is_refused_with_the_nearest_name(params: dict[str, Any], words: str):
    """2025-11-25, server/tools#error-handling: unknown tools are -32602."""
    s = Script(["git"])
    answer = s.asks(1, "tools/call", **params)
    assert answer["error"]["code"] == -32602
    assert answer.text.startswith(words)


def test_a_prompt_goes_to_its_owner():
    s = Script(["a", "b"], offers={"b": {"prompts/list": [{"name": "greet"}]}})
    s.host_asks(1, "prompts/get", name="b__greet", arguments={"who": "x"})
    assert s.server_hears("b", "prompts/get")["params"] == {"name": "greet", "arguments": {"who": "x"}}
    assert s.asks(2, "prompts/get", name="b__gret").text == "Unknown prompt: b__gret (did you mean b__greet?)"


@pytest.mark.parametrize(
    ("ref", "owner", "sent"),
    [
        ({"type": "ref/prompt", "name": "b__greet"}, "b", {"type": "ref/prompt", "name": "greet"}),
        ({"type": "ref/resource", "uri": "mem://{x}"}, "a", {"type": "ref/resource", "uri": "mem://{x}"}),
        ({"type": "ref/resource", "uri": "mem://1"}, "a", {"type": "ref/resource", "uri": "mem://1"}),
    ],
)
def test_a_completion_goes_to_the_owner_of_its_prompt_or_template(ref: Any, owner: str, sent: Any):
    template = {"uriTemplate": "mem://{x}", "name": "t"}
    s = Script(
        ["a", "b"],
        offers={"a": {"resources/templates/list": [template]}, "b": {"prompts/list": [{"name": "greet"}]}},
    )
    s.host_asks(1, "completion/complete", ref=ref, argument={"name": "x", "value": "1"})
    assert s.server_hears(owner, "completion/complete")["params"] == {
        "ref": sent,
        "argument": {"name": "x", "value": "1"},
    }


def test_a_completion_at_a_server_without_completions_is_empty():
    s = Script(["a"], server_capabilities={"prompts": {}}, offers={"a": {"prompts/list": [{"name": "p"}]}})
    answer = s.asks(1, "completion/complete", ref={"type": "ref/prompt", "name": "a__p"}, argument={})
    assert answer["result"] == {"completion": {"values": []}}


@pytest.mark.parametrize(
    "ref", [None, 7, {}, {"type": "ref/resource", "uri": "no://x"}, {"type": "ref/prompt", "name": "z"}]
)
def test_a_completion_for_nothing_is_refused(ref: Any):
    s = Script(["a"])
    assert s.asks(1, "completion/complete", ref=ref)["error"]["code"] == -32602


def test_completion_at_a_server_of_the_first_revision_needs_no_capability():
    """2024-11-05, server/utilities/completion names none."""
    s = Script(
        ["git"],
        revision="2024-11-05",
        server_capabilities={"prompts": {}},
        offers={"git": {"prompts/list": [{"name": "p"}]}},
    )
    s.host_asks(1, "completion/complete", ref={"type": "ref/prompt", "name": "git__p"}, argument={})
    assert s.server_heard("git", "completion/complete")


# ── notifications ──


@pytest.mark.parametrize(("logger", "becomes"), [(None, "git"), ("", "git"), ("db", "git/db"), (7, "git")])
def test_log_messages_say_which_server_logs(logger: Any, becomes: str):
    s = Script(["git"])
    s.server_sends("git", method="notifications/message", params={"level": "info", "logger": logger, "data": {"x": 1}})
    assert s.host_told("notifications/message")[0]["params"] == {"level": "info", "logger": becomes, "data": {"x": 1}}


@pytest.mark.requirement("unknown-methods")
def test_other_notifications_pass_to_the_host_as_they_are():
    s, method = Script(["git"]), "notifications/vendor/x"
    s.server_sends("git", b'{"jsonrpc":"2.0","method":"%b","params":{"a":1.0}}' % method.encode())
    assert s.host_told(method)[0].raw == b'{"jsonrpc":"2.0","method":"%b","params":{"a":1.0}}' % method.encode()


@pytest.mark.requirement("notifications-unanswered")
def test_notifications_are_never_answered():
    """2025-11-25, basic/index#notifications."""
    s = Script(["git"])
    before = len(s.to_host), len(s.to_server["git"])
    s.host_sends(method="notifications/unknown", params={"x": 1})
    s.host_sends(method="tools/call", params={"name": "git__log"})
    s.server_sends("git", method="sampling/createMessage", params={})
    assert (len(s.to_host), len(s.to_server["git"])) == (before[0] + 1, before[1])  # the server's is passed on


@pytest.mark.requirement("empty-results")
def test_the_log_level_is_told_to_every_server_with_logging_also_to_later_ones():
    """2025-11-25, server/utilities/logging."""
    s = Script(["git"])
    assert s.asks(1, "logging/setLevel", level="warning").raw.endswith(b'"result":{}}')
    assert s.server_hears("git", "logging/setLevel")["params"] == {"level": "warning"}
    s.server_dies("git")
    s.host_asks(2, "tools/call", name="git__log")
    s.advance(1)
    assert len(s.server_heard("git", "logging/setLevel")) == 2
    assert s.asks(3, "logging/setLevel", level="loud")["error"]["code"] == -32602


# ── methods of the future ──


@pytest.mark.parametrize(
    ("params", "owner", "sent"),
    [
        ({"name": "git__log", "x": 1}, "git", {"name": "log", "x": 1}),
        ({"uri": "mem://a"}, "a", {"uri": "mem://a"}),
        ({"taskId": "t1"}, "git", {"taskId": "t1"}),
    ],
)
def test_an_unknown_method_goes_to_the_owner_of_what_its_params_name(params: Any, owner: str, sent: Any):
    """Our promise: new protocol features pass through an old mcpmux."""
    s = Script(["a", "git"], offers={"a": RESOURCES["a"]})
    start_task(s)
    s.host_asks(5, "vendor/new", **params)
    assert s.server_hears(owner, "vendor/new")["params"] == sent
    s.server_answers(owner, "vendor/new", {"x": 1})
    assert s.host_hears(5)["result"] == {"x": 1}


@pytest.mark.parametrize("params", [{}, {"name": "nobody"}, {"uri": []}, {"taskId": {}}, {"name": 7}])
def test_an_unknown_method_that_names_nothing_is_refused(params: Any):
    s = Script(["git"])
    assert s.asks(5, "vendor/new", **params)["error"] == {"code": -32601, "message": "Method not found: vendor/new"}


# ── bad lines ──


@pytest.mark.requirement("request-id")
@pytest.mark.parametrize("id", [b"null", b"true", b"{}", b"[1]"])
def test_a_request_with_an_id_of_another_type_is_refused_without_one(id: bytes):
    """2025-11-25, basic/index#requests: the id MUST NOT be null."""
    s = Script()
    s.host_sends(b'{"jsonrpc":"2.0","id":%b,"method":"ping"}' % id)
    assert s.to_host[-1]["error"]["code"] == -32600
    assert "id" not in s.to_host[-1]


@pytest.mark.requirement("request-id")
def test_an_id_that_is_still_open_is_refused():
    """2025-11-25, basic/index#requests: an id MUST NOT have been used before."""
    s = Script(["git"])
    s.host_asks(1, "tools/call", name="git__log")
    s.host_asks(1, "ping")
    assert s.host_hears(1)["error"]["code"] == -32600
    s.server_answers("git", "tools/call")
    assert s.answered.count(1) == 2


def test_params_of_null_are_none():
    s = Script(["git"])
    s.host_sends(b'{"jsonrpc":"2.0","id":1,"method":"tools/list","params":null}')
    assert s.host_hears(1)["result"]


@pytest.mark.parametrize("params", [b"7", b"[]", b'"x"'])
def test_params_that_are_no_object_are_refused(params: bytes):
    s = Script(["git"])
    s.host_sends(b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":%b}' % params)
    assert s.host_hears(1)["error"]["code"] == -32602


@pytest.mark.requirement("parse-error-id")
@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"nonsense", -32700),
        (b'{"id":7', -32700),
        (b"\xff\xfe", -32700),
        (b"[1]", -32600),
        (b"7", -32600),
        (b"{}", -32600),
        (b'{"jsonrpc":"2.0"}', -32600),
        (b'{"id":7,"method":7}', -32600),
        (b'{"id":7}', -32600),
        (b'{"id":1,"result":' + b"[" * 100000, -32700),
    ],
)
def test_a_bad_line_of_the_host_is_answered_and_costs_only_itself(line: bytes, code: int):
    """2025-11-25, basic/index#error-responses: a parse error has no id."""
    s = Script(["git"])
    s.host_sends(line)
    assert s.to_host[-1]["error"]["code"] == code
    assert code != -32700 or "id" not in s.to_host[-1]
    assert s.asks(1, "ping")["result"] == {}


def test_an_over_long_line_of_the_host_is_refused():
    s = Script(["git"])
    s.feed(mcpmux.HostLines([mcpmux.TooLong(10**9, b'{"jsonrpc":"2.0","id":7,"method":"x', b"")]))
    assert s.host_hears(7)["error"]["code"] == -32600
    assert "max_message_mb" in s.host_hears(7).text


@pytest.mark.requirement("batches")
def test_a_batch_is_unpacked_where_its_revision_was_negotiated():
    """2025-03-26, basic/index#batching; each member is answered singly."""
    s = Script(["git"], revision="2025-03-26")
    s.host_sends(b'[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","id":2,"method":"ping"}]')
    assert s.host_hears(1)["result"] == s.host_hears(2)["result"] == {}
    s.host_asks(3, "tools/call", name="git__log")
    number = s.server_hears("git", "tools/call")["id"]
    s.server_sends("git", b'[{"jsonrpc":"2.0","id":%d,"result":{"x":1.0}}]' % number)
    assert s.host_hears(3).raw.endswith(b'{"x":1.0}}')


@pytest.mark.requirement("batches")
@pytest.mark.parametrize("revision", ["2024-11-05", "2025-06-18", "2025-11-25"])
def test_a_batch_is_a_bad_line_in_every_other_revision(revision: str):
    s = Script(["git"], revision=revision)
    s.host_sends(b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]')
    assert s.to_host[-1]["error"]["code"] == -32600
    assert 1 not in s.answered


def test_one_bad_member_of_a_batch_costs_only_itself():
    s = Script(["git"], revision="2025-03-26")
    s.host_sends(
        b'[{"jsonrpc":"2.0","id":1,"method":"ping"},5,{"jsonrpc":"2.0","id":2,"method":"ping","params":{"a":"\\ud83d"}}]'
    )
    assert s.host_hears(1)["result"] == s.host_hears(2)["result"] == {}
    s.host_sends(b"[]")
    assert [message["error"]["code"] for message in s.to_host if "error" in message] == [-32600, -32600]


def test_a_bug_of_ours_costs_only_the_request_that_shows_it(monkeypatch: pytest.MonkeyPatch):
    s = Script(["git"])
    s.bugs_allowed = True

    def broken(ask: mcpmux.Ask) -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(s.core.router.of_host, "vendor/broken", broken)
    lines = [
        b'{"jsonrpc":"2.0","id":%d,"method":"%b"}' % (n, m) for n, m in enumerate((b"ping", b"vendor/broken", b"ping"))
    ]
    s.feed(mcpmux.HostLines(lines))
    assert s.host_hears(0)["result"] == s.host_hears(2)["result"] == {}
    assert s.host_hears(1)["error"]["code"] == -32603
    assert any("a bug in mcpmux" in line and "broken:" in line for line in s.logged)


# ── the trace ──


def test_the_trace_tells_the_way_of_each_message_and_nothing_of_its_payload():
    s = Script(["git"], options=MuxOptions(log_level="trace"))
    s.host_asks(1, "tools/call", name="git__log", arguments={"key": "s3cret"})
    s.server_answers("git", "tools/call", {"x": "s3cret"})
    lines = [line for line in s.logged if line[:2] in ("< ", "> ")]
    assert any(line.startswith("< host tools/call id=1") for line in lines)
    assert any(line.startswith('> git "id":') for line in lines)
    assert any(line.startswith("< git answer id=") for line in lines)
    assert any(line.startswith('> host "id":1 ') for line in lines)
    assert "s3cret" not in json.dumps(s.logged)
