"""Servers that are killed all the time, under a config file that changes all the time. Linux only.

    uv run python tests/soak.py --seconds 300

A real mcpmux serves four servers, each killed with SIGKILL twice a second at random moments, and one that is left
alone. Eight calls of the four and two of the fifth are in flight all the time, questions, cancellations and progress
among them; every two seconds the file is written anew: as it was, with a changed server, with one more and without it.
What must hold: each call is answered with its own content or refused with a cause that names its server, none twice;
the fifth server never errs and keeps its process; and in the end mcpmux is as it was at the start: no process, no file
descriptor, no entry in any table, no memory more.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import queue
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from conftest import PATIENCE, empty_home, server_table

import mcpmux

VICTIMS = ["north", "east", "south", "west"]
STEADY = "steady"  # never touched
KILLS = 2.0  # a second and server
REWRITE = 2.0  # seconds
LANES = [*VICTIMS, *VICTIMS, STEADY, STEADY]  # whose call is in flight in each
MEMORY_MOST = 32 * mcpmux.MB  # what an allocator may keep
NAMES = "|".join([*VICTIMS, STEADY, r"guest\d*"])

Message = dict[str, Any]


# ── mcpmux with a window in it ──


def sizes(mux: mcpmux.Mux) -> dict[str, int]:
    """How much each table of it holds."""
    owners = {"mux": mux, "core": mux.core, "host": mux._host, "log": mux._journal}
    owners |= {name: part for name, part in vars(mux.core).items() if type(part).__module__ == mcpmux.__name__}
    owners |= {f"server {name}": server for name, server in mux.core.servers.items()}
    owners |= {f"process {name}": process for name, process in mux._processes.items()}
    found = {}
    for owner, value in owners.items():
        for name, table in vars(value).items():
            if isinstance(table, Sized) and not isinstance(table, (str, bytes)):
                found[f"{owner}.{name}"] = len(table)
    return found


def serve(arguments: list[str]) -> int:
    """The real program, that on SIGUSR1 says on its stderr what its tables hold."""

    class Seen(mcpmux.Mux):
        async def run(self) -> None:
            import asyncio

            def show() -> None:
                print("WINDOW", json.dumps(sizes(self)), file=sys.stderr, flush=True)

            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, show)
            await super().run()

    mcpmux.Mux = Seen
    return mcpmux.main(arguments)


# ── the host ──


class Call:
    """One call in flight: what it may be answered with."""

    def __init__(self, lane: int, server: str, kind: str, text: str | None) -> None:
        self.lane, self.server, self.kind = lane, server, kind
        self.text = text  # None: whatever comes, it must be a refusal
        self.cancelled = False


class Soak:
    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.config = folder / "mcpmux.toml"
        self.wrong: list[str] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self.causes: collections.Counter[str] = collections.Counter()
        self.flying: dict[int, Call] = {}
        self.gone: dict[int, Call] = {}  # cancelled: an answer may have crossed it
        self.questions: list[int] = []
        self.listing: int | None = None
        self.listed: set[str] = set()
        self.lanes: list[str] = []
        self.number = 0
        self.rewrites = 0
        self.events: queue.Queue[bytes] = queue.Queue()
        self.windows: queue.Queue[dict[str, int]] = queue.Queue()
        self.log: list[str] = []
        self.write(STEADY)
        command = [sys.executable, __file__, "--serve", "--config", str(self.config)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, env=empty_home(folder / "home"), bufsize=0
        )
        self.threads = [threading.Thread(target=self._read), threading.Thread(target=self._read_log)]
        for thread in self.threads:
            thread.start()

    # ── its pipes ──

    def _read(self) -> None:
        assert self.process.stdout
        with open(self.process.stdout.fileno(), "rb", closefd=False) as lines:
            for line in lines:
                self.events.put(line)
        self.events.put(b"")

    def _read_log(self) -> None:
        assert self.process.stderr
        with open(self.process.stderr.fileno(), encoding="utf-8", errors="replace", closefd=False) as lines:
            for line in lines:
                if line.startswith("WINDOW "):
                    self.windows.put(json.loads(line[7:]))
                else:
                    self.log.append(line)

    def send(self, **message: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    def ask(self, method: str, **params: Any) -> int:
        self.number += 1
        self.send(id=self.number, method=method, params=params)
        return self.number

    def hear(self, until: float) -> bool:
        """Deals with one message, if one comes before then."""
        try:
            line = self.events.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return False
        assert line, "mcpmux has ended: " + "".join(self.log[-20:])
        message = json.loads(line)
        if "method" not in message:
            self._answer(message)
        elif message["method"] == "elicitation/create":
            self.counts["questions"] += 1
            self.questions.append(message["id"])
            if not self.lanes or self.random.random() < 0.8:  # the others are answered in the end only
                self.decline(self.questions.pop())
        elif message["method"] == "notifications/cancelled":
            with contextlib.suppress(ValueError):  # its answer crossed the cancellation
                self.questions.remove(message["params"]["requestId"])
        elif message["method"] == "notifications/tools/list_changed":
            self.counts["changes told"] += 1
            self.list_tools()
        elif message["method"] == "notifications/progress":
            token = message["params"]["progressToken"]
            if token not in self.flying and token not in self.gone:
                self.wrong.append(f"progress for {token}, which has ended")
        return True

    def decline(self, question: int) -> None:
        self.send(id=question, result={"action": "decline"})

    def wait(self, done: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not done():
            if not self.hear(min(end, time.monotonic() + 0.1)) and time.monotonic() > end:
                raise AssertionError(f"{what}: not within {PATIENCE:g} s; in flight: {self.in_words()}")

    def in_words(self) -> list[str]:
        return [f"{number} {call.kind} {call.server}" for number, call in self.flying.items()]

    # ── calls ──

    def call(self, lane: int) -> None:
        server = self.lanes[lane]
        if server != STEADY and self.random.random() < 0.1:
            server = f"guest{self.rewrites // 4}"
        kinds = ["echo"] * 6 + ["large", "progress", "ask", "cancel"]
        kind = self.random.choice(kinds if server == STEADY else [*kinds, "hold", "crash"])
        number = self.number + 1
        arguments: Message = {"n": number}
        tool, text, more = "echo", json.dumps(arguments), {}
        if kind == "large":
            arguments = {"x": "x" * self.random.randrange(300_000)}
            text = json.dumps(arguments)
        elif kind == "progress":
            tool, text, more = "progress", "done", {"_meta": {"progressToken": number}}
        elif kind == "ask":
            asked = {"message": "?", "requestedSchema": {"type": "object", "properties": {}}}
            tool, text = "ask", json.dumps({"result": {"action": "decline"}})
            arguments = {"method": "elicitation/create", "params": asked}
        elif kind in ("hold", "cancel", "crash"):
            tool, text = "hold" if kind == "cancel" else kind, None
        self.ask("tools/call", name=f"{server}__{tool}", arguments=arguments, **more)
        self.flying[number] = Call(lane, server, kind, text)
        self.counts["calls"] += 1
        if kind in ("cancel", "ask") and (kind == "cancel" or self.random.random() < 0.3 or server == STEADY):
            self.send(method="notifications/cancelled", params={"requestId": number})
            self.counts["cancelled"] += 1
            self.gone[number] = self.flying.pop(number)
            self.call(lane)

    def _answer(self, message: Message) -> None:
        number = message.get("id")
        if number == self.listing:
            self.listing = None
            self.listed = {tool["name"].partition("__")[0] for tool in message["result"]["tools"]}
            return
        call = self.flying.pop(number, None) or self.gone.pop(number, None)
        if call is None:
            self.wrong.append(f"an answer to {number}, which is not open: {str(message)[:300]}")
            return
        result = message.get("result", {})
        text = result["content"][0]["text"] if result else message["error"]["message"]
        if result.get("isError") or not result:
            self.counts["refused"] += 1
            self.causes[re.sub(r'"[^"]*"|\d[\d.]*|/\S*', "…", re.sub(rf"\b({NAMES})\b", "SERVER", text))[:110]] += 1
            if call.server not in text or call.server == STEADY:
                self.wrong.append(f"{call.kind} of {call.server} was refused with {text}")
        elif call.kind == "ask" and (cause := re.search("while .* is listing|questions open", text)):
            self.counts["refused"] += 1
            self.causes[f"the answer to a question: {re.sub(NAMES, 'SERVER', cause[0])}"] += 1
        elif text != call.text:
            self.wrong.append(f"{call.kind} of {call.server} was answered with {text[:200]}")
        else:
            self.counts["answered"] += 1
        if self.lanes and number not in self.gone and call.kind != "cancel":
            self.call(call.lane)

    def list_tools(self) -> None:
        if self.listing is None:
            self.listing = self.ask("tools/list")

    # ── what is done to it ──

    def write(self, *names: str, changed: str = "") -> None:
        tables = [server_table(name, "--stderr", f"this is {name}") for name in names if name != changed]
        if changed:
            tables.append(server_table(changed, "--also", "where", tool_timeout_sec=self.random.randrange(100, 200)))
        self.config.write_text("\n".join(tables))

    def rewrite(self) -> None:
        self.rewrites += 1
        guest = f"guest{self.rewrites // 4}"
        match self.rewrites % 4:
            case 0:
                self.write(STEADY, *VICTIMS)
            case 1:
                self.write(STEADY, *VICTIMS, changed=self.random.choice(VICTIMS))
            case 2:
                self.write(STEADY, *VICTIMS, guest)
            case _:
                self.write(STEADY, *VICTIMS)

    def pids(self) -> dict[int, str]:
        """The servers that run."""
        found = {}
        for pid in mcpmux.descendants(self.process.pid):
            with contextlib.suppress(OSError, ValueError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                found[pid] = words[words.index(b"--name") + 1].decode()
        return found

    def kill(self, name: str) -> None:
        for pid, server in self.pids().items():
            if server == name:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self.counts["killed"] += 1

    # ── what is left ──

    def files(self) -> list[str]:
        folder = Path(f"/proc/{self.process.pid}/fd")
        found = []
        for file in folder.iterdir():
            with contextlib.suppress(OSError):
                found.append(re.sub(r"\[\d+\]", "", os.readlink(file)))
        return sorted(found)

    def memory(self) -> int:
        [line] = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(line) * 1024

    def window(self) -> dict[str, int]:
        self.process.send_signal(signal.SIGUSR1)
        return self.windows.get(timeout=PATIENCE)

    # ── all of it ──

    def run(self, seconds: float) -> None:
        capabilities = {"elicitation": {}}
        client = {"name": "soak", "version": "1"}
        self.listing = self.ask(
            "initialize", protocolVersion="2025-11-25", capabilities=capabilities, clientInfo=client
        )
        assert json.loads(self.events.get(timeout=PATIENCE))["id"] == self.listing
        self.listing = None
        self.send(method="notifications/initialized")
        self.list_tools()
        self.wait(lambda: STEADY in self.listed, "the first list")
        self.settle()
        [steady] = self.pids()
        before = (self.files(), self.window(), self.memory())

        self.write(STEADY, *VICTIMS)
        self.wait(lambda: self.listed >= {STEADY, *VICTIMS}, "the four servers are listed")
        self.lanes = LANES
        for lane in range(len(LANES)):
            self.call(lane)
        start = time.monotonic()
        next_kill = {name: start + self.random.expovariate(KILLS) for name in VICTIMS}
        next_write = start + REWRITE
        while (now := time.monotonic()) < start + seconds:
            for name, at in next_kill.items():
                if at <= now:
                    self.kill(name)
                    next_kill[name] = now + self.random.expovariate(KILLS)
            if next_write <= now:
                self.rewrite()
                next_write += REWRITE
            self.hear(min(next_write, *next_kill.values()))
        self.counts["seconds"] = int(seconds)

        self.lanes = []
        while self.questions:
            self.decline(self.questions.pop())
        self.write(STEADY)
        self.wait(lambda: self.listed == {STEADY}, "the four servers are gone from the list")
        self.wait(lambda: not self.flying and self.listing is None, "all calls have ended")
        self.settle()
        end = time.monotonic() + PATIENCE / 4
        while (left := self.left_over(before)) and time.monotonic() < end:
            self.hear(time.monotonic() + 0.1)  # the last of them are still being seen off
        self.wrong += left
        if [*self.pids()] != [steady]:
            self.wrong.append(f"{STEADY} was restarted: {self.pids()}")

    def settle(self) -> None:
        """Until only the steady server's process is there and mcpmux has nothing more to say."""
        self.wait(lambda: [*self.pids().values()] == [STEADY] and self.events.empty(), "the processes are gone")
        number = self.ask("tools/call", name=f"{STEADY}__echo", arguments={})
        self.flying[number] = Call(0, STEADY, "echo", "{}")
        self.wait(lambda: number not in self.flying, "the last call")

    def left_over(self, before: tuple[list[str], dict[str, int], int]) -> list[str]:
        """What mcpmux has more of than it had then."""
        files, tables, memory = self.files(), self.window(), self.memory()
        self.counts["descriptors before"], self.counts["descriptors after"] = len(before[0]), len(files)
        self.counts["KB before"], self.counts["KB after"] = before[2] // 1024, memory // 1024
        more = collections.Counter(files) - collections.Counter(before[0])
        found = [f"a file descriptor is left over: {name} ({count})" for name, count in more.items()]
        found += [
            f"{name} holds {count} at the end and held {before[1].get(name, 0)} at the start"
            for name, count in tables.items()
            if count > before[1].get(name, 0)
        ]
        if memory > before[2] + MEMORY_MOST:
            found.append(f"memory has grown from {before[2]} to {memory} bytes")
        return found

    def close(self) -> None:
        children = mcpmux.descendants(self.process.pid)
        assert self.process.stdin
        self.process.stdin.close()
        try:
            if self.process.wait(PATIENCE):
                self.wrong.append(f"mcpmux exited with {self.process.returncode}")
        except subprocess.TimeoutExpired:
            self.wrong.append("mcpmux did not end with its host")
            self.process.kill()
        for thread in self.threads:
            thread.join(PATIENCE)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe:
                pipe.close()
        self.wrong += [line for line in self.log if "a bug in mcpmux" in line or not line.startswith("mcpmux ")]
        self.wrong += [f"{pid} runs on" for pid in children if Path(f"/proc/{pid}").exists()]


def soak(folder: Path, seconds: float, seed: int) -> Soak:
    done = Soak(folder, seed)
    try:
        done.run(seconds)
    finally:
        done.close()
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments = parser.parse_args()
    print(f"{arguments.seconds:g} s, --seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        done = soak(Path(folder), arguments.seconds, arguments.seed)
        if done.wrong:
            print("".join(done.log[-200:]))
    for what, count in done.counts.items():
        print(f"{count:10,} {what}")
    print("refused with:")
    for cause, count in done.causes.most_common(25):
        print(f"{count:10,} {cause}")
    for line in done.wrong[:50]:
        print("WRONG:", line.rstrip())
    print(f"{len(done.wrong)} wrong")
    return 1 if done.wrong else 0


if __name__ == "__main__":
    sys.exit(serve(sys.argv[2:]) if sys.argv[1:2] == ["--serve"] else main())
