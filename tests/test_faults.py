"""What servers do wrong, over real pipes: whoever is at fault is named, and nobody else notices."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from conftest import COMMAND, PATIENCE, RawHost, assert_lines_are_clean, is_running, server_table
from soak import VICTIMS, soak

from mcpmux import descendants

Serve = Callable[..., RawHost]

posix = pytest.mark.skipif(sys.platform == "win32", reason="select takes sockets only there")
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc: Linux only")

LIAR = server_table("liar", "--also", "write")
GOOD = server_table("good")


def write(host: RawHost, text: str, server: str = "liar", **arguments: Any) -> int:
    """Asks a server to write just these bytes. `$ID` is the id of that very request."""
    return host.ask("tools/call", {"name": f"{server}__write", "arguments": {"text": text, **arguments}})


def answer(result: str = '{"content":[{"type":"text","text":"real"}]}', id: str = "$ID") -> str:
    return f'{{"jsonrpc":"2.0","id":{id},"result":{result}}}\n'


def text_of(message: dict[str, Any]) -> str:
    assert "result" in message, message
    return message["result"]["content"][0]["text"]


def failure(message: dict[str, Any]) -> str:
    """The text of a tool call that failed, in the form that a model can read."""
    assert message["result"]["isError"] is True, message
    return text_of(message)


@pytest.fixture
def liar(serve: Serve) -> RawHost:
    """A host of a server that writes what it is told to, and of a good one."""
    host = serve(LIAR, GOOD)
    host.initialize()
    host.tools()
    return host


class Traffic:
    """Calls of good servers, as fast as they are answered and so many in flight all the time, while `host` is waited
    with for anything else. Each answer is compared with what was asked."""

    def __init__(self, host: RawHost, servers: list[str], width: int = 16) -> None:
        self.host, self.servers = host, servers
        self.asked = self.answered = 0
        self.running = True
        for _ in range(width):
            self._ask()

    def _ask(self) -> None:
        self.asked += 1
        number = self.asked

        def heard(message: dict[str, Any]) -> None:
            assert json.loads(text_of(message)) == {"n": number}
            self.answered += 1
            if self.running:
                self._ask()

        self.host.routine[f"t{number}"] = heard
        call = {"name": f"{self.servers[number % len(self.servers)]}__echo", "arguments": {"n": number}}
        self.host.send(id=f"t{number}", method="tools/call", params=call)

    def stop(self) -> None:
        """Waits for the last of them. An answer that comes twice stays in what the host has seen, or is yet to see."""
        self.running = False
        while self.host.routine:
            self.host.request("ping")
        self.host.request("ping")
        assert not [one for one in self.host.seen if str(one.get("id")).startswith("t")]
        assert self.answered == self.asked


def memory_of(host: RawHost) -> int:
    """Bytes resident; what is not to be known counts as none."""
    if sys.platform != "linux":
        return 0
    for line in Path(f"/proc/{host.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("it has ended")


def assert_memory_comes_back(host: RawHost, before: int) -> None:
    end = time.monotonic() + PATIENCE
    while memory_of(host) > before + 24_000_000:  # each round trip lets mcpmux's loop turn
        assert time.monotonic() < end, f"{memory_of(host)} bytes, and {before} before"
        host.request("ping")


# ── all at once ──


def told_to(text: str, **arguments: Any) -> dict[str, Any]:
    return {"name": "write", "arguments": {"text": text, **arguments}}


ECHO: dict[str, Any] = {"name": "echo"}
CRASH: dict[str, Any] = {"name": "crash"}

# What one server does: its vices, what it is called for, and what its caller is told beside its name.
FAULTS: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "exits before initialize": (["--exit", "3"], ECHO, "exited with code 3"),
    "never answers the handshake": (["--silent"], ECHO, "has not answered `initialize` within 2 s"),
    "refuses the handshake": (["--refuse"], ECHO, "refused `initialize`: not today"),
    "speaks no known revision": (["--revision", "1999-01-01"], ECHO, "speaks protocol revision '1999-01-01'"),
    "exits in a call": ([], CRASH, 'exited with code 3; its last words: "about to crash"'),
    "exits in a line": ([], told_to(answer()[:-20], exit=4), ""),
    "closes its output": ([], told_to("", close=[1]), ""),
    "closes its input": ([], told_to("", close=[0]), ""),
    "stops writing": ([], {"name": "hold"}, "did not answer tools/call within 2 s (tool_timeout_sec)"),
    "stops reading": ([], told_to("", deaf=True), "did not answer tools/call within 2 s (tool_timeout_sec)"),
    "floods stderr and crashes": (["--flood-stderr"], CRASH, "exited with code 3"),
    "prints garbage and crashes": (["--garbage"], CRASH, "exited with code 3"),
    "answers with NUL bytes": ([], told_to(answer('{"x":"\0"}')), "cannot be read"),
    "answers with nonsense": ([], told_to(answer('{"x":' + "[" * 100_000 + "}")), "cannot be read"),
    "answers with 11 MB": (
        [],
        told_to(answer('{"content":[{"type":"text","text":"$PAD"}]}'), pad=11_000_000),
        "over max_message_mb = 8",
    ),
    "answers with more than hosts take": ([], {"name": "big", "arguments": {"bytes": 3_000_000}}, "host_message_mb"),
    "answers with an error": ([], told_to('{"id":$ID,"error":{"code":1,"message":"no"}}\n'), "no"),
    "answers with both": ([], told_to('{"id":$ID,"result":{},"error":{"code":1,"message":"x"}}\n'), "both a result"),
    "answers with a list": ([], told_to(answer("[]")), "a result that is no object"),
    "cancels it": ([], told_to('{"method":"notifications/cancelled","params":{"requestId":$ID}}\n'), ""),
}

# What costs no call: a server's vices, what it is called for, and what its caller is told.
ODDITIES: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "lists with a cursor that stands still": (["--stuck-cursor"], ECHO, "{}"),
    "lists a thing of the wrong type": (["--list", '{"tools":7}'], ECHO, "nknown tool"),
    "lists a tool without a name": (["--list", '{"tools":[{"inputSchema":{}},{"name":"echo"}]}'], ECHO, "{}"),
    "asks the host for what there is not": ([], {"name": "ask", "arguments": {"method": "x/y"}}, "-32601"),
    "answers what nobody asked": ([], told_to('{"jsonrpc":"2.0","id":77,"result":{}}\n' + answer()), "real"),
    "answers twice": ([], told_to(answer() * 2), "real"),
    "stays when it is told to end": (["--ignore-eof", "--ignore-term"], ECHO, "{}"),
    "has a child that holds its pipes": (["--grandchild", os.devnull, "--ignore-eof"], ECHO, "{}"),
    "has a child that leads a session": (["--grandchild", os.devnull, "--grandchild-session"], ECHO, "{}"),
}


def test_the_others_calls_are_answered_at_full_rate_whatever_one_server_does(serve: Serve) -> None:
    """Our choice: the callers of the bad ones are told who and why, and nobody else notices. Nothing stays of them."""
    bad = {
        f"bad{n}": server_table(f"bad{n}", "--also", "write", *vices, startup_timeout_sec=2, tool_timeout_sec=2)
        for n, (vices, _, _) in enumerate(FAULTS.values())
    }
    odd = {f"odd{n}": server_table(f"odd{n}", "--also", "write", *v) for n, (v, _, _) in enumerate(ODDITIES.values())}
    limits = "[mux]\nmax_message_mb = 8\nhost_message_mb = 2\n"
    host = serve(limits, *bad.values(), *odd.values(), server_table("killed"), server_table("good1", "--also", "write"))
    host.initialize()
    host.tools()
    before = memory_of(host)
    traffic = Traffic(host, ["good1"])
    asked = {
        what: host.ask("tools/call", {**call, "name": f"{name}__{call['name']}"})
        for (what, (_, call, _)), name in zip(FAULTS.items(), bad, strict=True)
    }
    for (what, (_, _, words)), name in zip(FAULTS.items(), bad, strict=True):
        said = host.answer(asked[what])
        text = failure(said) if "result" in said else said["error"]["message"]
        assert words in text, what
        assert name in text or what == "answers with an error", what
    for (what, (_, call, words)), name in zip(ODDITIES.items(), odd, strict=True):
        said = host.request("tools/call", {**call, "name": f"{name}__{call['name']}"})
        assert words in (text_of(said) if "result" in said else said["error"]["message"]), what
    held = host.hold("killed")
    os.kill(int(host.text("killed__pid")), getattr(signal, "SIGKILL", signal.SIGTERM))
    assert "killed" in failure(host.answer(held))
    assert host.text("killed__echo") == "{}"
    traffic.stop()
    assert traffic.answered > 100
    assert_memory_comes_back(host, before)
    started = descendants(host.process.pid)
    assert host.close() == 0
    assert [pid for pid in started if is_running(pid)] == []


@pytest.mark.requirement("call-through")
def test_the_caller_of_a_bad_server_is_told_the_same_in_a_call_through(serve: Serve) -> None:
    """Our choice (README, "Many tools"): the whole table of faults once more."""
    bad = {
        f"bad{n}": server_table(
            f"bad{n}", "--also", "write", *vices, startup_timeout_sec=2, tool_timeout_sec=2, approve=False
        )
        for n, (vices, _, _) in enumerate(FAULTS.values())
    }
    good, limits = server_table("good", approve=False), "[mux]\nmax_message_mb = 8\nhost_message_mb = 2\n"
    host = serve(limits + 'expose = "search"\n', *bad.values(), good)
    host.initialize()
    assert host.tools() == ["mcpmux__find_tools", "mcpmux__call_tool"]

    def through(name: str, call: dict[str, Any]) -> int:
        inner = {**call, "name": f"{name}__{call['name']}"}
        return host.ask("tools/call", {"name": "mcpmux__call_tool", "arguments": inner})

    asked = [through(name, call) for name, (_, call, _) in zip(bad, FAULTS.values(), strict=True)]
    for number, name, (what, (_, _, words)) in zip(asked, bad, FAULTS.items(), strict=True):
        said = host.answer(number)
        text = failure(said) if "result" in said else said["error"]["message"]
        assert words in text, what
        assert name in text or what == "answers with an error", what
    assert text_of(host.answer(through("good", ECHO))) == "{}"


@posix
def test_a_server_that_answers_its_handshake_late_is_announced_then(serve: Serve, tmp_path: Path) -> None:
    """Our choice: lists wait for startup_timeout_sec; many cold servers take longer."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    host = serve(server_table("slow", "--gate", str(gate), startup_timeout_sec=1.5), GOOD)
    host.initialize()
    assert {name.partition("__")[0] for name in host.tools()} == {"good"}
    traffic = Traffic(host, ["good"])
    assert "slow has not answered `initialize` within 1.5 s" in host.text("slow__echo")
    gate.write_text("x")
    host.until(lambda message: message.get("method") == "notifications/tools/list_changed")
    assert {name.partition("__")[0] for name in host.tools()} == {"slow", "good"}
    assert host.text("slow__echo") == "{}"
    traffic.stop()


# ── much at once ──


def test_an_answer_of_60_mb_is_refused_with_its_size_and_its_memory_comes_back(liar: RawHost) -> None:
    """Our choice: TypeScript hosts close the connection above 10 MiB a message."""
    before = memory_of(liar)
    traffic = Traffic(liar, ["good"])
    said = liar.call("liar__big", bytes=60_000_000)
    assert said["isError"] is True
    assert "liar answered with 600000" in said["content"][0]["text"]
    assert "host_message_mb" in said["content"][0]["text"]
    assert liar.text("liar__echo") == "{}"
    traffic.stop()
    assert_memory_comes_back(liar, before)


def test_100_000_notifications_all_arrive_in_their_time_and_their_memory_comes_back(liar: RawHost) -> None:
    """Our choice: nothing is dropped on the way to a host that reads, and nobody else waits for it."""
    before = memory_of(liar)
    traffic = Traffic(liar, ["good"])
    logged = '{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"x"}}\n'
    flood = liar.ask(
        "tools/call",
        {"name": "liar__write", "arguments": {**told_to(answer())["arguments"], "before": logged, "times": 100_000}},
    )
    count = 0
    while (message := liar.receive()).get("id") != flood:
        count += message.get("method") == "notifications/message"
    assert count == 100_000
    assert text_of(message) == "real"
    traffic.stop()
    assert_memory_comes_back(liar, before)


def test_100_000_announcements_of_a_list_that_is_as_it_was_reach_nobody(liar: RawHost) -> None:
    """Our choice: the server is asked for it again, seldom; the host hears of a change only if there is one."""
    traffic = Traffic(liar, ["good"])
    changed = '{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}\n'
    assert text_of(liar.answer(write(liar, answer(), before=changed, times=100_000))) == "real"
    traffic.stop()
    assert not [one for one in liar.seen if one.get("method") == "notifications/tools/list_changed"]


def test_10_000_pipelined_calls_are_each_answered_with_their_own_content(serve: Serve) -> None:
    """2025-11-25 basic: ids match answers to requests; requests need not wait for one another."""
    host = serve(*(server_table(name) for name in ("a", "b", "c")))
    host.initialize()
    host.tools()
    traffic = Traffic(host, ["a", "b", "c"], width=10_000)
    traffic.stop()
    assert traffic.answered == 10_000


def test_bad_servers_are_named_and_good_ones_serve_as_if_alone(serve: Serve) -> None:
    """Our choice: one bad server never hurts the others, nor the host."""
    host = serve(
        server_table("dead", "--exit", "3", "--stderr", "no such database"),
        server_table("good1"),
        server_table("silent", "--silent", startup_timeout_sec=2),
        server_table("garbage", "--garbage"),
        server_table("flood", "--flood-stderr"),
        server_table("absent", command="no-such-program-anywhere"),
        server_table("unset", env={"TOKEN": "${NO_SUCH_VARIABLE_ANYWHERE}"}),
        server_table("misspelt").replace("command =", "comand ="),
        server_table("good2"),
    )
    host.initialize()
    working = ["good1", "garbage", "flood", "good2"]
    early = {host.ask("tools/call", {"name": f"{name}__echo", "arguments": {"n": name}}): name for name in working}
    listing = host.ask("tools/list")
    names = [tool["name"] for tool in host.answer(listing)["result"]["tools"]]
    assert list(dict.fromkeys(name.partition("__")[0] for name in names)) == working
    assert early.keys() <= {message.get("id") for message in host.seen}  # before the silent one's time was up

    def serves_on(count: int) -> None:
        numbers = {
            host.ask("tools/call", {"name": f"{working[n % 4]}__echo", "arguments": {"n": n}}): n for n in range(count)
        }
        for number, n in numbers.items():
            assert json.loads(text_of(host.answer(number))) == {"n": n}

    blame = {
        "dead": ["dead exited with code 3", "no such database", "dead.log"],
        "silent": ["silent has not answered `initialize` within 2 s", "startup_timeout_sec"],
        "absent": ["absent: 'no-such-program-anywhere' was not found", "install it"],
        "unset": [
            "unset: ${NO_SUCH_VARIABLE_ANYWHERE} is not set (mcp_servers.unset.env.TOKEN)",
            "set NO_SUCH_VARIABLE_ANYWHERE",
        ],
        "misspelt": ["mcpmux.toml: mcp_servers.misspelt.comand", 'did you mean "command"?', "correct its table"],
    }
    serves_on(20)
    asked = {name: host.ask("tools/call", {"name": f"{name}__echo"}) for name in blame}
    serves_on(20)
    for name, number in asked.items():
        said = failure(host.answer(number))
        assert [words for words in blame[name] if words not in said] == [], said
    serves_on(20)
    assert host.process.poll() is None


def test_200_pipelined_calls_are_each_answered_with_their_own_content(serve: Serve) -> None:
    """2025-11-25 basic: ids match answers to requests; requests need not wait for one another."""
    host = serve(server_table("a"), server_table("b"), server_table("c"))
    host.initialize()
    numbers = {host.ask("tools/call", {"name": f"{'abc'[n % 3]}__echo", "arguments": {"n": n}}): n for n in range(200)}
    for number, n in numbers.items():
        assert json.loads(text_of(host.answer(number))) == {"n": n}


def test_a_held_call_delays_nobody(liar: RawHost) -> None:
    """Our choice: neither on its own server nor on another."""
    held = [liar.hold("good"), liar.hold("liar"), liar.hold("good")]
    for n in range(10):
        assert json.loads(liar.text("good__echo", n=n)) == {"n": n}
        assert json.loads(liar.text("liar__echo", n=n)) == {"n": n}
    assert not {message.get("id") for message in liar.seen} & set(held)
    liar.call("good__release")
    liar.call("liar__release")
    assert [text_of(liar.answer(number)) for number in held] == ["released"] * 3


def test_others_are_served_while_a_server_floods(serve: Serve) -> None:
    """Our choice: a flood without end must not end the rest."""
    host = serve(server_table("flood", "--also", "flood,calm"), GOOD)
    host.initialize()
    assert host.text("flood__flood") == "flooding"
    traffic = Traffic(host, ["good"])
    while traffic.answered < 500:
        host.receive()
    traffic.stop()
    while host.receive().get("method") != "notifications/message":
        pass  # it floods still
    assert host.text("flood__calm") == "calm"


@posix
def test_an_answer_does_not_wait_behind_all_of_anothers_flood(home: dict[str, str], tmp_path: Path) -> None:
    """Our choice: on the way to a host that reads slowly servers take turns, and one that is far ahead is not read."""
    config = tmp_path / "mcpmux.toml"
    config.write_text('[mux]\nlog_level = "trace"\n' + server_table("flood", "--also", "flood") + GOOD)
    command = [*COMMAND, "--config", str(config)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=home, bufsize=0)
    assert process.stdin
    assert process.stdout
    assert process.stderr

    def lines(stream: IO[bytes]) -> Iterator[bytes]:
        rest = b""
        while True:
            assert select.select([stream], [], [], PATIENCE)[0], "nothing comes"
            *whole, rest = (rest + stream.read(65536)).split(b"\n")
            yield from whole

    def logged(words: bytes) -> None:
        for line in log:
            flooded.append(b"< flood notifications/message" in line)
            if words in line:
                return

    def ask(number: int, method: str, **params: Any) -> None:
        line = json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
        process.stdin.write(line.encode() + b"\n")

    try:
        log, answers = lines(process.stderr), lines(process.stdout)
        flooded: list[bool] = []
        ask(1, "initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo={"name": "t", "version": "1"})
        ask(2, "tools/list")
        assert [json.loads(next(answers))["id"] for _ in range(2)] == [1, 2]
        ask(3, "tools/call", name="flood__flood")
        while sum(flooded) < 100:  # 250 KB: the pipe is full, and more waits
            logged(b"< flood notifications/message")
        ask(4, "tools/call", name="good__echo")
        logged(b"< good answer")
        for number in range(5, 105):
            ask(number, "ping")
            logged(b'> host "id":%d' % number)  # so what came before is on its way too
        assert sum(flooded) < 200  # for all that time it is not read any further
        flood = 0
        for line in answers:
            if line.startswith(b'{"jsonrpc":"2.0","id":4'):
                break
            flood += len(line)
        assert 30_000 < flood < 150_000  # what a pipe holds and two turns; without turns it would be 300 KB
    finally:
        process.stdin.close()
        process.stdout.close()
        assert process.wait(PATIENCE) == 0
        process.stderr.close()


def test_a_server_that_does_not_read_has_its_calls_refused_once_its_outbox_is_full(serve: Serve) -> None:
    """Our choice: what waits for one server must not eat the machine."""
    host = serve("[mux]\noutbox_mb = 0.5", LIAR, GOOD)
    host.initialize()
    assert text_of(host.answer(write(host, answer(), deaf=True))) == "real"
    waiting = [host.ask("tools/call", {"name": "liar__echo", "arguments": {"x": "x" * 300_000}}) for _ in range(2)]
    host.call("good__echo")  # so these are on their way
    assert "liar does not read its input: 0.5 MB wait for it already" in host.text("liar__echo")
    assert host.text("good__echo") == "{}"
    assert not {message.get("id") for message in host.seen} & set(waiting)  # ended when mcpmux ends


# ── disks ──


def no_space(host_of: Callable[[list[str], dict[str, str]], RawHost], config: Path, home: dict[str, str]) -> RawHost:
    """No file may grow by a byte: what a full disk does."""
    limited = 'ulimit -f 0; exec "$@"'
    return host_of(["sh", "-c", limited, "sh", *COMMAND, "--config", str(config)], home)


def no_folder(host_of: Callable[[list[str], dict[str, str]], RawHost], config: Path, home: dict[str, str]) -> RawHost:
    """A place where nothing can be made, not even by root."""
    file = config.parent / "file"
    file.touch()
    places = dict.fromkeys(("XDG_CACHE_HOME", "XDG_STATE_HOME"), str(file / "below"))
    return host_of([*COMMAND, "--config", str(config)], home | places)


@linux  # others have other folders, and some no such limits
@pytest.mark.parametrize("place", [no_space, no_folder])
def test_a_disk_that_takes_nothing_costs_the_cache_and_the_logs_alone(
    place: Callable[..., RawHost], tmp_path: Path, home: dict[str, str]
) -> None:
    """Our choice: each is told once in mcpmux's own log; a server's last words are known all the same."""
    config = tmp_path / "mcpmux.toml"
    config.write_text(server_table("one", "--stderr", "one speaks") + server_table("two", "--flood-stderr") + GOOD)
    host = place(RawHost, config, home)
    try:
        host.initialize()
        names = host.tools()
        traffic = Traffic(host, ["good", "two"])
        assert {name.partition("__")[0] for name in names} == {"one", "two", "good"}
        assert 'one exited with code 3; its last words: "one speaks | about to crash"' in host.text("one__crash")
        assert host.text("one__echo") == "{}"
        assert host.tools() == names
        traffic.stop()
    finally:
        assert host.close() == 0
    assert_lines_are_clean(host)
    log = host.log().splitlines()
    assert 3 <= len([line for line in log if "the cache cannot be written" in line]) <= 5
    assert len([line for line in log if "two.log cannot be written" in line]) == 1
    assert (
        1 <= len([line for line in log if "one.log cannot be written" in line]) <= 2
    )  # its second process tries again


def test_a_config_file_that_is_removed_changes_nothing_and_one_that_comes_back_is_read(
    serve: Serve, tmp_path: Path
) -> None:
    """Our choice: editors and sync tools remove a file to write it."""
    host = serve(server_table("one"), GOOD)
    host.initialize()
    names = host.tools()
    pid = host.text("one__pid")
    traffic = Traffic(host, ["good"])
    (tmp_path / "mcpmux.toml").unlink()
    end = time.monotonic() + PATIENCE
    while "is gone (the previous configuration stays in effect)" not in host.log():
        assert host.text("one__pid") == pid
        assert time.monotonic() < end
    assert host.tools() == names
    (tmp_path / "mcpmux.toml").write_text(server_table("one") + GOOD + server_table("two"))
    host.until(lambda message: message.get("method") == "notifications/tools/list_changed")
    assert "two__echo" in host.tools()
    assert host.text("one__pid") == pid
    traffic.stop()


# ── at the start ──


def test_a_server_that_refuses_the_handshake_is_quoted(serve: Serve) -> None:
    """2025-11-25 basic/lifecycle: initialize may fail; our choice to say why to whoever calls a tool of it."""
    host = serve(server_table("shy", "--refuse"), GOOD)
    host.initialize()
    assert {name.partition("__")[0] for name in host.tools()} == {"good"}
    said = host.call("shy__echo")
    assert said["isError"] is True
    assert "shy refused `initialize`: not today" in said["content"][0]["text"]


def test_a_server_of_an_unknown_revision_is_not_used(serve: Serve) -> None:
    """2025-11-25 basic/lifecycle: a client that does not support the server's version should disconnect."""
    revisions = {"older": "1999-01-01", "newer": "2099-01-01"}
    host = serve(*(server_table(name, "--revision", revision) for name, revision in revisions.items()), GOOD)
    host.initialize()
    assert {name.partition("__")[0] for name in host.tools()} == {"good"}
    for name, revision in revisions.items():
        said = host.call(f"{name}__echo")
        assert said["isError"] is True
        assert f"{name} speaks protocol revision '{revision}'" in said["content"][0]["text"]


def test_a_handshake_with_wrong_types_hurts_nobody_else(serve: Serve) -> None:
    """Our choice: what cannot be read of it counts as not said."""
    hellos = {
        "null": '{"capabilities": null}',
        "array": '{"capabilities": []}',
        "true": '{"capabilities": {"tools": true}}',
        "other": '{"instructions": 7, "serverInfo": null}',
    }
    host = serve(*(server_table(name, "--hello", hello) for name, hello in hellos.items()), GOOD)
    host.initialize()
    assert list(dict.fromkeys(name.partition("__")[0] for name in host.tools())) == ["true", "other", "good"]
    assert [host.text(f"{name}__echo") for name in ("true", "other", "good")] == ["{}"] * 3


def test_a_server_that_never_lists_is_not_waited_for(serve: Serve) -> None:
    """Our choice: at most startup_timeout_sec, as for its handshake."""
    host = serve(server_table("odd", "--mute", "tools/list", startup_timeout_sec=0.5), GOOD)
    host.initialize()
    assert {name.partition("__")[0] for name in host.tools()} == {"good"}


def test_a_list_of_the_wrong_type_is_an_empty_one(serve: Serve) -> None:
    """Our choice: one server's nonsense must not cost the host all lists."""
    results = ['{"tools": {}}', '{"tools": null}', "{}", '{"tools": "echo"}', "[]", "null", "7"]
    host = serve(*(server_table(f"odd{n}", "--list", result) for n, result in enumerate(results)), GOOD)
    host.initialize()
    assert {name.partition("__")[0] for name in host.tools()} == {"good"}
    found = {resource["uri"] for resource in host.request("resources/list")["result"]["resources"]}
    assert found == {f"mem://odd{n}/1" for n in range(len(results))} | {"mem://good/1"}  # these lists are well


def test_entries_that_strict_hosts_refuse_are_left_out_and_the_rest_is_listed(serve: Serve) -> None:
    """2025-11-25 server/tools: name is a string, inputSchema an object schema. Hosts refuse a whole list for one."""
    tools: list[Any] = [
        {"name": "first", "inputSchema": {"type": "object"}},
        {"inputSchema": {"type": "object"}},
        {"name": 7, "inputSchema": {"type": "object"}},
        {"name": "", "inputSchema": {"type": "object"}},
        {"name": "array", "inputSchema": {"type": "array"}},
        {"name": "text", "inputSchema": "object"},
        "tool",
        None,
        {"name": "last", "inputSchema": {}},
    ]
    host = serve(server_table("odd", "--list", json.dumps({"tools": tools})), GOOD)
    host.initialize()
    found = host.request("tools/list")["result"]["tools"]
    mine = [tool for tool in found if tool["name"].startswith("odd")]
    assert [(tool["name"], tool["inputSchema"]) for tool in mine] == [
        ("odd__first", {"type": "object"}),
        ("odd__last", {"type": "object"}),
    ]
    assert len(found) > len(mine)


def test_a_list_whose_cursor_stands_still_ends_and_names_each_tool_once(serve: Serve) -> None:
    """2025-11-25 server/utilities/pagination: cursors are opaque; our choice to stop at one that comes again."""
    host = serve(server_table("stuck", "--stuck-cursor"), GOOD)
    host.initialize()
    names = host.tools()
    assert [name for name in names if name.startswith("stuck__echo")] == ["stuck__echo"]
    assert host.text("stuck__echo") == "{}"


# ── in the middle of a call ──


def test_a_crash_ends_every_call_of_that_server_and_no_other(liar: RawHost) -> None:
    """Our choice: each of them is told server, exit code and last words."""
    kept = [liar.hold("good") for _ in range(2)]
    lost = [liar.hold("liar") for _ in range(5)]
    prompt = liar.ask("prompts/get", {"name": "liar__greet"})
    liar.answer(prompt)
    lost.append(liar.ask("tools/call", {"name": "liar__crash", "arguments": {"code": 9}}))
    for number in lost:
        said = failure(liar.answer(number))
        assert 'liar exited with code 9; its last words: "about to crash"' in said
    assert not {message.get("id") for message in liar.seen} & set(kept)
    assert json.loads(liar.text("good__release")) == {"released": 2, "cancelled": 0}
    assert [text_of(liar.answer(number)) for number in kept] == ["released"] * 2


def test_a_crash_is_a_json_rpc_error_for_what_is_no_tool_call(serve: Serve) -> None:
    """Our choice: only a tool's result has a place for a text that the model reads."""
    host = serve(server_table("mute", "--mute", "prompts/get"))
    host.initialize()
    host.tools()
    prompt = host.ask("prompts/get", {"name": "mute__greet"})
    host.call("mute__crash")
    error = host.answer(prompt)["error"]
    assert error["code"] == -32603
    assert "mute exited with code 3" in error["message"]


def test_half_an_answer_and_an_exit_is_no_answer(liar: RawHost) -> None:
    """2025-11-25 basic/transports: messages are delimited by newlines."""
    held = liar.hold("liar")
    half = write(liar, answer().rstrip()[:-20], exit=4)
    assert "liar" in failure(liar.answer(half))
    assert "liar exited with code 4" in failure(liar.answer(held))
    assert liar.text("good__echo") == "{}"


def test_a_whole_answer_without_its_newline_counts_if_the_server_then_exits(liar: RawHost) -> None:
    """Our choice: the end of output ends a line too."""
    assert text_of(liar.answer(write(liar, answer().rstrip(), exit=0))) == "real"


CANNOT_BE_READ = "liar sent an answer that cannot be read"

WRONG_LINES = {
    "no JSON at all": "this is no JSON\n",
    "half an object": '{"half": \n',
    "an array": "[1,2,3]\n",
    "a string": '"text"\n',
    "a number": "7\n",
    "null": "null\n",
    "an empty object": "{}\n",
    "empty lines": "\n\n \n\r\n",
    "bytes that are no UTF-8": "\xff\xfe\x80\n",
    "NUL bytes": "\0\0\0\n",
    "NUL bytes round JSON": '\0{"jsonrpc":"2.0","method":"notifications/message"}\0\n',
    "a byte order mark": "\xef\xbb\xbf{}\n",
    "deep nesting": "[" * 200_000 + "\n",
    "deep nesting in params": '{"jsonrpc":"2.0","method":"notifications/message","params":' + '{"a":' * 100_000 + "\n",
    "an answer to nothing": answer(id="999999"),
    "an answer to a negative id": answer(id="-1"),
    "an answer to a fraction": answer(id="1.5"),
    "an answer to null": answer(id="null"),
    "an answer to an object": answer(id="{}"),
    "an answer to an enormous number": answer(id="1e400"),
    "an error without an id": '{"jsonrpc":"2.0","error":{"code":1,"message":"x"}}\n',
    "a method that is no string": '{"jsonrpc":"2.0","method":7}\n',
    "progress for nothing": '{"method":"notifications/progress","params":{"progressToken":9,"progress":1}}\n',
    "progress of the wrong type": '{"jsonrpc":"2.0","method":"notifications/progress","params":[]}\n',
    "a log message of the wrong type": '{"jsonrpc":"2.0","method":"notifications/cancelled","params":"x"}\n',
    "a change of lists with wrong params": '{"jsonrpc":"2.0","method":"notifications/tools/list_changed","params":7}\n',
    "a question nobody knows": '{"jsonrpc":"2.0","id":"q","method":"no/such","params":[]}\n',
    "a question with a wrong id": '{"jsonrpc":"2.0","id":{},"method":"ping"}\n',
    "more than a line may have": "$PAD\n",
}


def test_a_bad_line_costs_that_line_only(serve: Serve) -> None:
    """Our choice: the call that is open is answered by the line that answers it."""
    host = serve("[mux]\nmax_message_mb = 1", LIAR, GOOD)
    host.initialize()
    host.tools()
    traffic = Traffic(host, ["good"], width=4)
    for what, line in WRONG_LINES.items():
        assert text_of(host.answer(write(host, line + answer(), pad=1_100_000))) == "real", what
    traffic.stop()
    assert not [one for one in host.seen if one.get("method", "notifications/message") != "notifications/message"]


def test_an_answer_that_comes_twice_is_passed_on_once(liar: RawHost) -> None:
    """JSON-RPC 2.0: one response to a request. The fixture sees to it that the host gets one only."""
    again = answer('{"content":[{"type":"text","text":"again"}]}')
    assert text_of(liar.answer(write(liar, answer() + again + answer() + again))) == "real"
    assert liar.text("good__echo") == "{}"


def test_an_id_that_comes_back_spelt_differently_is_still_the_id(liar: RawHost) -> None:
    """Our choice: languages without integers send 7.0, and some servers make every id a string."""
    for spelt in ("$ID.0", '"$ID"', " $ID "):
        assert text_of(liar.answer(write(liar, answer(id=spelt)))) == "real", spelt


def test_a_server_cannot_answer_for_another(liar: RawHost) -> None:
    """Our choice: an answer counts only if it comes from the server that owes it, and so does a bad line."""
    kept = liar.hold("good")
    stolen = '{"content":[{"type":"text","text":"stolen"}]}'
    forged = "".join(answer(stolen, id=str(n)) + f'{{"jsonrpc":"2.0","id":{n},"result":\n' for n in range(100))
    forged += "".join(
        f'{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{n}}}}}\n' for n in range(100)
    )
    assert text_of(liar.answer(write(liar, forged))) == "stolen"
    assert not [one for one in liar.seen if one.get("id") == kept]
    assert json.loads(liar.text("good__release")) == {"released": 1, "cancelled": 0}
    assert text_of(liar.answer(kept)) == "released"


WRONG_RESPONSES = {
    '"result":{"content":[]},"error":{"code":1,"message":"x"}': "both a result and an error",
    '"neither":1': "",
    '"result":[]': "a result that is no object",
    '"result":"done"': "a result that is no object",
    '"result":null': "a result that is no object",
    '"result":7': "a result that is no object",
    '"error":"oops"': "an error without a code and a message",
    '"error":{}': "an error without a code and a message",
    '"error":null': "an error without a code and a message",
    '"error":{"code":"7","message":"x"}': "an error without a code and a message",
    '"error":{"code":1.5,"message":"x"}': "an error without a code and a message",
    '"error":{"code":true,"message":"x"}': "an error without a code and a message",
    '"error":{"code":1,"message":null}': "an error without a code and a message",
}


def test_a_response_that_is_none_ends_its_call_with_an_error(liar: RawHost) -> None:
    """JSON-RPC 2.0, 5: either a result or an error with an integer code and a message; MCP's results are objects."""
    traffic = Traffic(liar, ["good"], width=4)
    for members, wrong in WRONG_RESPONSES.items():
        error = liar.answer(write(liar, f'{{"jsonrpc":"2.0","id":$ID,{members}}}\n'))["error"]
        assert error["code"] == -32603, members
        assert error["message"].startswith("liar sent "), members
        assert wrong in error["message"], members
    traffic.stop()


def test_an_error_is_passed_on_as_it_is(liar: RawHost) -> None:
    """Our choice: its own code, message and data, whatever they are."""
    error = '{"message":"it is \\u0061 test","code":-1,"data":{"z":1,"a":[1.50]},"more":true}'
    got = liar.answer(write(liar, f'{{"jsonrpc":"2.0","id":$ID,"error":{error}}}\n'))
    assert got["raw"].endswith(b'"error":' + error.encode() + b"}\n")


@pytest.mark.requirement("one-line")
def test_unknown_members_of_a_message_do_not_reach_the_host(liar: RawHost) -> None:
    """Our choice: the TypeScript SDK 1.x refuses a message that has any. Those inside the result do."""
    line = '{"x":1,"id":$ID,"result":{"content":[{"type":"text","text":"real"}],"y":2},"jsonrpc":"2.0","error_":{}}\n'
    got = liar.answer(write(liar, line))
    assert got["result"] == {"content": [{"type": "text", "text": "real"}], "y": 2}


TEXTS = {
    "bytes that are no UTF-8": ("a\xff\xfeb", "a\ufffd\ufffdb"),
    "a character cut in two": ("a\xe2\x82b", "a\ufffdb"),
    "a surrogate as bytes": ("\xed\xa0\x80", "\ufffd\ufffd\ufffd"),
    "half a pair of escapes": ("a\\ud83db", "a\ufffdb"),
    "the other half": ("\\uDE00", "\ufffd"),
    "a half before a pair": ("\\ud83d\\ud83d\\ude00", "\ufffd\U0001f600"),
    "an escaped backslash before a u": ("\\\\ud83d", "\\ud83d"),
    "a half after an escaped backslash": ("\\\\\\ud83d", "\\\ufffd"),
    "a NUL, escaped": ("a\\u0000b", "a\0b"),
    "UTF-8": ("gr\xc3\xbcn \xe2\x82\xac \xf0\x9f\x98\x80", "grün € \U0001f600"),
    "a line separator": ("a\xe2\x80\xa8b", "a\u2028b"),
}


def test_text_reaches_the_host_as_valid_utf8(liar: RawHost) -> None:
    """2025-11-25 basic/transports: messages MUST be UTF-8. Our choice: what is not is replaced, not refused."""
    traffic = Traffic(liar, ["good"], width=4)
    for what, (sent, got) in TEXTS.items():
        message = liar.answer(write(liar, answer(f'{{"content":[{{"type":"text","text":"{sent}"}}]}}')))
        assert text_of(message) == got, what
    traffic.stop()


UNREADABLE = {
    "NUL bytes": answer('{"x":"\0"}'),
    "a tab in a string": answer('{"x":"\t"}'),
    "deep nesting": answer('{"x":' + "[" * 2_000_000 + "]" * 2_000_000 + "}"),
    "a single quote": answer("{'x':1}"),
    "NaN": answer('{"x":NaN}'),
    "id last": '{"result":{"x":NaN},"jsonrpc":"2.0","id":$ID}\n',
    "id at the very end": '{"jsonrpc":"2.0","result":{"x":NaN},"id":$ID}\n',
}


def test_an_answer_that_cannot_be_read_ends_the_call_that_it_names(liar: RawHost) -> None:
    """Our choice: the call would wait for its timeout otherwise."""
    held = liar.hold("liar")
    traffic = Traffic(liar, ["good"], width=4)
    for what, line in UNREADABLE.items():
        assert CANNOT_BE_READ in failure(liar.answer(write(liar, line))), what
    traffic.stop()
    liar.call("liar__release")
    assert text_of(liar.answer(held)) == "released"


def test_lines_may_end_as_they_do_on_windows(liar: RawHost) -> None:
    """Our choice: JSON takes a carriage return for white space, and so do we; none is passed on."""
    for end in ("\r\n", " \t\r\n", "\r\r\n"):
        message = liar.answer(write(liar, answer().rstrip() + end))
        assert text_of(message) == "real"
        assert b"\r" not in message["raw"]


OVER_LONG = {
    "id first": '{"jsonrpc":"2.0","id":$ID,"result":{"content":[{"type":"text","text":"$PAD"}]}}\n',
    "id last": '{"result":{"content":[{"type":"text","text":"$PAD"}]},"jsonrpc":"2.0","id":$ID}\n',
}


def test_an_answer_over_the_limit_ends_its_call_with_its_size(serve: Serve) -> None:
    """Our choice: max_message_mb, so that no server fills the memory."""
    host = serve("[mux]\nmax_message_mb = 1", LIAR, GOOD)
    host.initialize()
    held = host.hold("liar")
    for what, line in OVER_LONG.items():
        said = failure(host.answer(write(host, line, pad=1_200_000)))
        assert CANNOT_BE_READ in said, what
        assert "over max_message_mb = 1" in said, what
        assert len(text_of(host.answer(write(host, line, pad=900_000)))) == 900_000, what
    host.call("liar__release")
    assert text_of(host.answer(held)) == "released"


def test_a_question_over_the_limit_ends_no_call_that_has_the_same_number(serve: Serve) -> None:
    """Our choice: servers count their questions from 0 as we count our requests; the two have nothing in common."""
    host = serve("[mux]\nmax_message_mb = 1", LIAR)
    host.initialize()
    question = '{"jsonrpc":"2.0","id":$ID,"method":"elicitation/create","params":{"message":"$PAD"}}\n'
    question += '{"method":"elicitation/create","params":{"message":"$PAD"},"jsonrpc":"2.0","id":$ID}\n'
    assert text_of(host.answer(write(host, question + answer(), pad=1_200_000))) == "real"


def test_a_result_that_hosts_do_not_take_becomes_an_error_with_its_size(serve: Serve) -> None:
    """Our choice: TypeScript hosts close the connection above 10 MiB a message."""
    host = serve("[mux]\nhost_message_mb = 1", LIAR, GOOD)
    host.initialize()
    said = host.call("liar__big", bytes=1_100_000)
    assert said["isError"] is True
    assert "liar answered with 1100" in said["content"][0]["text"]
    assert "host_message_mb" in said["content"][0]["text"]
    assert len(host.text("liar__big", bytes=1_000_000)) == 1_000_000


# ── timeouts and cancelling ──


def test_a_call_that_takes_too_long_is_ended_and_its_server_told(serve: Serve) -> None:
    """2025-11-25 basic/lifecycle: on a timeout the sender should cancel and stop waiting."""
    host = serve(server_table("liar", "--also", "write", tool_timeout_sec=1), GOOD)
    host.initialize()
    host.tools()
    slow = host.hold("liar")
    kept = host.hold("good")
    said = failure(host.answer(slow))
    assert "liar did not answer tools/call within 1" in said
    assert "tool_timeout_sec" in said
    assert json.loads(host.text("liar__release")) == {"released": 0, "cancelled": 1}
    assert text_of(host.answer(write(host, answer(id="$OLD") + answer()))) == "real"  # too late: dropped
    assert json.loads(host.text("good__release")) == {"released": 1, "cancelled": 0}
    assert text_of(host.answer(kept)) == "released"


def test_a_cancelled_call_is_withdrawn_from_its_server_and_never_answered(liar: RawHost) -> None:
    """2025-11-25 basic/utilities/cancellation: no answer for it, even if its server sends one."""
    held, kept = liar.hold("liar"), liar.hold("liar")
    liar.cancel(held)
    assert text_of(liar.answer(write(liar, answer(id="$OLD") + answer()))) == "real"
    assert json.loads(liar.text("liar__release")) == {"released": 1, "cancelled": 1}
    assert text_of(liar.answer(kept)) == "released"
    liar.request("ping")  # and at its end the fixture finds no answer to the cancelled one


def test_a_cancelled_call_stays_so_when_its_server_crashes(liar: RawHost) -> None:
    """2025-11-25 basic/utilities/cancellation."""
    held, kept = liar.hold("liar"), liar.hold("liar")
    liar.cancel(held)
    assert "exited with code 3" in liar.text("liar__crash")
    assert "exited with code 3" in failure(liar.answer(kept))


def test_a_call_that_is_cancelled_while_its_server_rests_is_never_sent(liar: RawHost) -> None:
    """Our choice: what nobody waits for is not done."""
    liar.text("liar__crash")
    waiting = liar.ask("tools/call", {"name": "liar__hold"})
    kept = liar.ask("tools/call", {"name": "liar__echo"})
    liar.cancel(waiting)
    assert text_of(liar.answer(kept)) == "{}"
    assert json.loads(liar.text("liar__release")) == {"released": 0, "cancelled": 0}


# ── for a while ──


@linux
def test_servers_killed_all_the_time_under_a_changing_config_leave_nothing_behind(tmp_path: Path) -> None:
    """Our choice: each call is answered or refused with its server's name, none twice. `tests/soak.py` runs longer."""
    done = soak(tmp_path, seconds=5, seed=7)
    assert done.wrong == []
    assert done.counts["killed"] >= len(VICTIMS)
    assert done.counts["answered"] > 100
