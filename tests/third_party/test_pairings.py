"""Each host before each server, whatever the eras: what a server asks, and what it tells, arrives.

The servers of the tables are written with the official SDK and by hand; `everything` nobody here wrote. A run has the
pairings of a diagonal: each server does each of its features once, before the hosts in turn. All: `--all-pairings`.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import RawHost

from mcpmux import CALL_TOOL

from .harness import NODE, Launcher, Party
from .hosts import (
    LEVEL_KEY,
    MODERN_REVISION,
    RESOURCES_CHANGED,
    ROOT,
    TOOLS_CHANGED,
    Host,
    PythonHost,
    Refused,
    start_host,
)

pytestmark = pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")

HERE = Path(__file__).parent
SAMPLING, ELICITATION, ROOTS = "sampling/createMessage", "elicitation/create", "roots/list"
HOSTS = ["python-legacy", "python-modern", "typescript-modern", "typescript-legacy"]


# ── the tables ──


@dataclass(frozen=True)
class Cell:
    """One request in whose middle the server asks, what it asks, and what it makes of the answers."""

    method: str
    params: dict[str, Any]  # `{server}` is its name
    asks: tuple[str, ...]
    says: str


def tool(name: str, asks: tuple[str, ...], says: str, **arguments: Any) -> Cell:
    return Cell("tools/call", {"name": "{server}__" + name, "arguments": arguments}, asks, says)


OURS = {
    "sampling": tool("sample", (SAMPLING,), "model: 2 + 2 in 7"),
    "sampling-with-tools": tool("sample-with-tools", (SAMPLING,), "model: add 2 and 2, toolUse"),
    "form-accepted": tool("form", (ELICITATION,), "accept: Ada", action="accept"),
    "form-declined": tool("form", (ELICITATION,), "decline", action="decline"),
    "form-cancelled": tool("form", (ELICITATION,), "cancel", action="cancel"),
    "url-accepted": tool("visit", (ELICITATION,), "accept", action="accept"),
    "url-declined": tool("visit", (ELICITATION,), "decline", action="decline"),
    "roots": tool("roots", (ROOTS,), ROOT),
    "two-rounds": tool("two-rounds", (ELICITATION, SAMPLING), "Ada, who is Ada? in 7"),
    "two-at-once": tool("two-at-once", (ELICITATION, SAMPLING), "Ada, 2 + 2 in 7"),
    "prompt": Cell("prompts/get", {"name": "{server}__greet"}, (ELICITATION,), "Hello Ada"),
    "resource": Cell("resources/read", {"uri": "pair://{server}/ask/hat"}, (ELICITATION,), "Ada's hat"),
}
THEIRS = {
    "sampling": tool("trigger-sampling-request", (SAMPLING,), "2 + 2 in 7", prompt="2 + 2", maxTokens=7),
    "form-accepted": tool("trigger-elicitation-request", (ELICITATION,), "- Name: Ada"),
    "url-accepted": tool(
        "trigger-url-elicitation", (ELICITATION,), "accept", url="https://example.org/go", message="please accept"
    ),
    "url-declined": tool(
        "trigger-url-elicitation", (ELICITATION,), "decline", url="https://example.org/go", message="please decline"
    ),
    "roots": tool("get-roots-list", (), ROOT),
}


@dataclass(frozen=True)
class Server:
    command: str
    args: list[str]
    era: str  # in which mcpmux speaks to it; empty: in the host's
    keys: dict[str, Any] = field(default_factory=dict)
    cells: dict[str, Cell] = field(default_factory=lambda: OURS)


def python(script: str, *arguments: str, era: str = "", **keys: Any) -> Server:
    return Server(sys.executable, [str(HERE / script), *arguments], era, keys)


SERVERS = {
    "sdk": python("sdk_server.py", "sdk"),
    "sdk-legacy": python("sdk_server.py", "sdk-legacy", era="legacy", protocol="legacy"),
    "sdk-modern": python("sdk_server.py", "sdk-modern", era="modern", protocol="modern"),
    "raw-legacy": python("raw_server.py", "raw-legacy", "legacy", era="legacy"),
    "raw-modern": python("raw_server.py", "raw-modern", "modern", era="modern"),
    "everything": Server(
        NODE,
        ["{modules}/@modelcontextprotocol/server-everything/dist/index.js"],
        "legacy",
        cells=THEIRS,
    ),
}
UPDATES = {"everything": "demo://resource/static/document/features.md"}  # a resource that can be watched
WRITTEN_HERE = [name for name, server in SERVERS.items() if server.cells is OURS]


def parties(modules: Path) -> list[Party]:
    return [
        Party(
            name,
            server.command,
            [one.replace("{modules}", str(modules)) for one in server.args],
            keys=server.keys | {"approve": False},
        )
        for name, server in SERVERS.items()
    ]


def is_on_the_diagonal(params: dict[str, Any]) -> bool:
    """Whether the test with these parameters belongs to every run."""
    if "server" not in params or not {"host", "unable"} & params.keys():
        return True
    turn = HOSTS.index(params["host"]) if "host" in params else 2 * params["unable"]
    server = params["server"]
    feature = list(SERVERS[server].cells).index(params["name"]) if "name" in params else 0
    return (turn + list(SERVERS).index(server) + feature) % len(HOSTS) == 0


def test_the_diagonal_leaves_out_no_pair_of_a_host_a_server_and_a_feature():
    every = [(host, server, name) for host in HOSTS for server in SERVERS for name in SERVERS[server].cells]
    run = [one for one in every if is_on_the_diagonal(dict(zip(("host", "server", "name"), one, strict=True)))]
    for left, right in ((0, 1), (0, 2), (1, 2)):
        assert {(one[left], one[right]) for one in run} == {(one[left], one[right]) for one in every}
    assert len(run) * len(HOSTS) == len(every)


@pytest.fixture(scope="module", params=HOSTS)
def host(request: pytest.FixtureRequest, modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """One host that can do everything, before one mcpmux, with a home of its own, before all the servers."""
    folder = tmp_path_factory.mktemp(request.param)
    launcher, log = Launcher(folder), folder / "stderr.log"
    host = start_host(request.param, launcher.command(*parties(modules)), launcher.env, modules, log)
    yield host
    host.close()
    assert "a bug in mcpmux" not in log.read_text()


@pytest.fixture(scope="module", params=["python-modern", "typescript-legacy"])
def searching(
    request: pytest.FixtureRequest, modules: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    """One that is shown `find_tools` and `call_tool` in place of all tools, before the servers written here."""
    folder = tmp_path_factory.mktemp(f"searching-{request.param}")
    launcher, log = Launcher(folder), folder / "stderr.log"
    behind = [party for party in parties(modules) if party.name in WRITTEN_HERE]
    command = launcher.command(*behind, sampling='[mux]\nexpose = "search"\n')
    host = start_host(request.param, command, launcher.env, modules, log)
    yield host
    host.close()
    assert "a bug in mcpmux" not in log.read_text()


@pytest.fixture(scope="module", params=[False, True], ids=["legacy", "modern"])
def unable(request: pytest.FixtureRequest, modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host that declares nothing."""
    folder = tmp_path_factory.mktemp("unable")
    launcher, log = Launcher(folder), folder / "stderr.log"
    command = launcher.command(*(party for party in parties(modules) if party.name in WRITTEN_HERE))
    host = PythonHost(command, launcher.env, log, modern=request.param, able=False)
    yield host
    host.close()
    assert "a bug in mcpmux" not in log.read_text()


def send(host: Host, server: str, cell: Cell) -> dict[str, Any]:
    params = json.loads(json.dumps(cell.params).replace("{server}", server))
    return host.call(cell.method, **params)


def call(host: Host, server: str, tool: str, **arguments: Any) -> str:
    return text(host.call("tools/call", name=f"{server}__{tool}", arguments=arguments))


def text(result: dict[str, Any]) -> str:
    match result:
        case {"messages": [message]}:
            return message["content"]["text"]
        case {"contents": [content]}:
            return content["text"]
        case _:
            return "\n".join(block.get("text", "") for block in result["content"])


# ── asking ──

CELLS = [pytest.param(server, name, id=f"{server}-{name}") for server in SERVERS for name in SERVERS[server].cells]


@pytest.mark.parametrize("server", WRITTEN_HERE)
def test_a_server_is_spoken_to_in_its_era_or_in_the_hosts(host: Host, server: str):
    """Our choice: the host's era where a server has both, `protocol` in its table, else what it can.
    Spec: 2026-07-28, basic/versioning#backward-compatibility-with-initialization-based-versions."""
    assert call(host, server, "era") == (SERVERS[server].era or ("modern" if host.modern else "legacy"))


@pytest.mark.parametrize(("server", "name"), CELLS)
def test_what_a_server_asks_in_the_middle_of_a_request_is_answered(host: Host, server: str, name: str):
    """Spec: 2026-07-28, basic/patterns/mrtr; 2025-11-25, client/sampling, client/elicitation, client/roots."""
    cell = SERVERS[server].cells[name]
    host.events.taken("asked")
    result = send(host, server, cell)
    assert cell.says in text(result)
    assert not result.get("isError", False)
    asked = host.events.taken("asked")
    methods = Counter(question["method"] for question in asked)
    methods[ROOTS] = min(methods[ROOTS], [*cell.asks].count(ROOTS))  # some server asks for them whenever it likes
    assert +methods == Counter(cell.asks)
    for question in asked:
        if question["method"] == ELICITATION:
            assert question["params"]["message"].lower().startswith(f"[{server}] please ")
            if question["params"].get("mode") == "url":
                assert ("elicitationId" in question["params"]) is not host.modern


@pytest.mark.parametrize("server", WRITTEN_HERE)
@pytest.mark.requirement("call-through")
def test_what_a_server_asks_in_a_call_through_is_answered_as_in_its_own(searching: Host, server: str):
    """Our choice (README, "Many tools"): every feature of the table that a tool has."""
    cells = [cell for cell in SERVERS[server].cells.values() if cell.method == "tools/call"]
    searching.events.taken("asked")
    for cell in cells:
        inner = json.loads(json.dumps(cell.params).replace("{server}", server))
        result = searching.call("tools/call", name=CALL_TOOL, arguments=inner)
        assert cell.says in text(result)
        assert sorted(question["method"] for question in searching.events.taken("asked")) == sorted(cell.asks)


@pytest.mark.parametrize("server", WRITTEN_HERE)
def test_of_many_calls_at_once_each_gets_the_answers_to_its_own_questions(host: Host, server: str):
    """Our choice: of a legacy server nobody knows which of its calls asks, yet each answer goes to its question.
    Spec: 2026-07-28, basic/patterns/mrtr#client-requirements-basic-workflow."""
    says = {"accept": "accept: Ada", "decline": "decline", "cancel": "cancel"}
    actions = [*says] * 3
    calls = [{"name": f"{server}__form", "arguments": {"action": action}} for action in actions]
    rounds = {"name": f"{server}__two-rounds", "arguments": {}}
    *forms, two_rounds = host.call_together(*calls, rounds)
    assert [text(result) for result in forms] == [says[action] for action in actions]
    assert text(two_rounds) == "Ada, who is Ada? in 7"


def test_a_call_that_needs_a_page_visited_first_is_refused_or_asked_about(host: Host):
    """A legacy host is told so, and calls again; a modern one is asked, and its retry is the second call.
    Spec: 2025-11-25, client/elicitation#url-elicitation-required-errors; that the eras are bridged is our choice."""
    host.events.taken("asked")
    if not host.modern:
        with pytest.raises(Refused) as refused:
            call(host, "raw-legacy", "pages")
        assert refused.value.code == -32042
    assert call(host, "raw-legacy", "pages") == "visited"
    asked = [question["params"] for question in host.events.taken("asked")]
    page = {"mode": "url", "url": "https://example.org/in", "message": "[raw-legacy] please accept"}
    assert asked == ([page] if host.modern else [])


# What becomes of it before a host that declares nothing: an error's code, `failed` for a tool's failure, or what the
# server says. The SDK's servers refuse by themselves; those written by hand ask all the same.
BY_ITSELF = dict.fromkeys(("sampling", "sampling-with-tools", "form-accepted", "url-accepted", "roots"), "-32021")
DECLINED = {"form-accepted": "decline", "url-accepted": "decline", "prompt": "Hello nobody", "resource": "nobody's hat"}
REFUSED = {
    "sdk": BY_ITSELF,
    "sdk-legacy": BY_ITSELF,
    "sdk-modern": BY_ITSELF,
    "raw-legacy": DECLINED | dict.fromkeys(("sampling", "sampling-with-tools", "roots", "two-at-once"), "-32601"),
    "raw-modern": DECLINED | dict.fromkeys(("sampling", "sampling-with-tools", "roots", "two-at-once"), "failed"),
}


@pytest.mark.parametrize(
    ("server", "name"),
    [pytest.param(server, name, id=f"{server}-{name}") for server in REFUSED for name in REFUSED[server]],
)
def test_what_the_host_cannot_answer_is_refused(unable: Host, server: str, name: str):
    """Nothing is accepted on its behalf, and a legacy server's code of the modern era does not go to a modern host.
    Spec: 2026-07-28, basic/index#error-codes, basic/patterns/mrtr; 2025-11-25, client/elicitation."""
    expected = REFUSED[server][name]
    if expected == "-32021" and unable.modern and server == "sdk-legacy":
        expected = "-32603"
    try:
        result = send(unable, server, OURS[name])
    except Refused as refused:
        assert str(refused.code) == expected
    else:
        assert ("failed" if result.get("isError") else text(result)) == expected
    assert unable.events.taken("asked") == []


# ── telling ──


def hears_change(host: Host, what: str) -> None:
    """A list may be told twice: a host that watches may ask for it before it has changed wholly."""
    while host.events.next("changed") != what:
        pass


@pytest.mark.parametrize("server", SERVERS)
def test_progress_arrives_step_by_step_and_a_call_that_its_host_cancels_is_cancelled(host: Host, server: str):
    """Not with the result: the TypeScript client may lose a progress that comes together with it.
    Spec: 2026-07-28, basic/patterns/progress, basic/patterns/cancellation; 2025-11-25, basic/utilities."""
    host.events.taken("progress")
    if server == "everything":
        host.abandon("everything__trigger-long-running-operation", duration=5, steps=50)
        total, messages = 50, [None] * 3
    else:
        host.abandon(f"{server}__hold")
        assert call(host, server, "cancelled") == "it was"
        total, messages = 3, ["step 1", "step 2", "step 3"]
    # Python's client hands each to a task of its own: they need not end in order.
    steps = sorted(tuple(host.events.next("progress")) for _ in range(3))
    assert steps == [(step, total, message) for step, message in enumerate(messages, 1)]


@pytest.mark.parametrize("server", WRITTEN_HERE)
def test_log_messages_arrive_at_the_level_that_the_host_wants(host: Host, server: str):
    """Spec: 2026-07-28, server/utilities/logging; 2025-11-25, server/utilities/logging. The SDK's server knows no
    level in the legacy era, and says everything; a modern host gets what it asked for all the same."""
    host.events.taken("log")
    if host.modern:
        assert call(host, server, "log") == "logged"  # without a level there is none
        host.call("tools/call", name=f"{server}__log", arguments={}, _meta={LEVEL_KEY: "info"})
    else:
        host.set_level("info")
        assert call(host, server, "log") == "logged"
    heard = [host.events.next("log")]
    if heard[0]["data"] == "too low":
        assert not host.modern
        assert server in ("sdk", "sdk-legacy")
        heard = [host.events.next("log")]
    assert call(host, server, "era")
    heard += host.events.taken("log")
    assert heard == [{"level": "warning", "logger": f"{server}/sky", "data": "clouds"}]


@pytest.mark.parametrize("server", SERVERS)
def test_a_list_that_changed_is_told_and_new(host: Host, server: str):
    """Spec: 2026-07-28, basic/patterns/subscriptions; 2025-11-25, server/tools#list-changed-notification."""
    new = f"new-in-{server}"
    assert not [name for name in host.listed() if new in name]  # what it never asked for it is not told of
    with host.watching(UPDATES.get(server, f"pair://{server}/clock")):
        if server == "everything":
            call(host, server, "gzip-file-as-resource", name=new, data="data:text/plain,squeeze")
            hears_change(host, RESOURCES_CHANGED)
            assert new in host.listed()
        else:
            assert call(host, server, "grow", name=new) == "grown"
            hears_change(host, TOOLS_CHANGED)
            assert f"{server}__{new}" in host.listed()


@pytest.mark.parametrize("server", SERVERS)
def test_an_update_of_a_resource_that_the_host_watches_is_told(host: Host, server: str):
    """Spec: 2026-07-28, basic/patterns/subscriptions; 2025-11-25, server/resources#subscriptions."""
    uri = UPDATES.get(server, f"pair://{server}/clock")
    touch = "toggle-subscriber-updates" if server == "everything" else "touch"
    with host.watching(uri):
        call(host, server, "echo" if server == "everything" else "era", message="")  # it has subscribed now
        call(host, server, touch)
        hears_change(host, uri)
        if server == "everything":
            call(host, server, touch)  # off


# ── the same era on both sides ──

ODD = r'{"z":1.0,"a":[1e2,-0,{"u":"\u00e9\/","n":null}],  "deep":{"b":1,"a":2}}'  # no encoder would write it so
ABLE = {"sampling": {}}


@pytest.fixture(scope="module", params=["legacy", "modern"])
def raw(request: pytest.FixtureRequest, modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RawPair]:
    """A host that writes its own bytes, before a server that does."""
    launcher = Launcher(tmp_path_factory.mktemp(request.param))
    [party] = [party for party in parties(modules) if party.name == f"raw-{request.param}"]
    yield RawPair(launcher.through(party), request.param)
    launcher.close()


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


class RawPair:
    def __init__(self, host: RawHost, era: str) -> None:
        self.host = host
        self.server = f"raw-{era}"
        self.is_modern = era == "modern"
        self.meta = '"_meta":{"x/y":1.50,"a/b":{"k":1e0}}'
        if self.is_modern:
            values = {"protocolVersion": MODERN_REVISION, "clientInfo": {"name": "raw"}, "clientCapabilities": ABLE}
            own = ",".join(f'"io.modelcontextprotocol/{key}":{compact(value)}' for key, value in values.items())
            self.meta = f'"_meta":{{{own},"x/y":1.50,"a/b":{{"k":1e0}}}}'
        else:
            host.initialize(ABLE)

    def call(self, id: str, tool: str, rest: str) -> dict[str, Any]:
        """The first message for this id: its answer."""
        params = f'{{"name":"{self.server}__{tool}",{rest},{self.meta}}}'
        self.host.send(f'{{"jsonrpc":"2.0","id":"{id}","method":"tools/call","params":{params}}}'.encode())
        return self.host.answer(id)

    def result(self, members: str) -> str:
        return f'{{"resultType":"complete",{members}}}' if self.is_modern else f"{{{members}}}"


def test_a_requests_params_pass_byte_for_byte(raw: RawPair):
    """Our choice: only the tool's name is changed. Keys, their order, spellings and unknown members stay."""
    rest = f'"arguments":{ODD},"x-unknown":[{ODD}]'
    line = raw.call("params", "line", rest)["result"]["content"][0]["text"]
    assert f'"params":{{"name":"line",{rest},{raw.meta}}}' in line


def test_a_result_passes_byte_for_byte(raw: RawPair):
    """Our choice, as above."""
    result = raw.result(f'"x-unknown":{ODD},"content":[],"structuredContent":{ODD},"_meta":{ODD}')
    answer = raw.call("result", "raw", f'"arguments":{json.dumps({"result": result})}')
    assert answer["raw"] == f'{{"jsonrpc":"2.0","id":"result","result":{result}}}\n'.encode()


def test_a_question_and_its_answer_pass_byte_for_byte(raw: RawPair):
    """Our choice, as above; legacy: a request of the server's; modern: the call's result, and what its retry brings."""
    question = f'{{"messages":[],"maxTokens":7,"x-unknown":{ODD}}}'
    reply = f'{{"role":"assistant","content":{{"type":"text","text":"4"}},"model":"m-1","x-unknown":{ODD}}}'
    rest = f'"arguments":{json.dumps({"params": question})}'
    if raw.is_modern:
        asked = raw.call("asked", "ask", rest)["raw"].decode()
        request = f'{{"method":"{SAMPLING}","params":{question}}}'
        assert asked.endswith(
            f'{{"resultType":"input_required","inputRequests":{{"q":{request}}},"requestState":"s"}}}}\n'
        )
        brought = f'"inputResponses":{{"q":{reply}}},"requestState":"s"'
        line = raw.call("retry", "ask", f"{rest},{brought}")["result"]["content"][0]["text"]
    else:
        number = raw.host.ask("tools/call", {"name": f"{raw.server}__ask", "arguments": {"params": question}})
        asked = raw.host.until(lambda message: message.get("method") == SAMPLING)
        assert f'"params":{question}}}' in asked["raw"].decode()
        raw.host.send(f'{{"jsonrpc":"2.0","id":{json.dumps(asked["id"])},"result":{reply}}}'.encode())
        brought = f'"result":{reply}'
        line = raw.host.answer(number)["result"]["content"][0]["text"]
    assert brought in line
