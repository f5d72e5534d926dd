"""Real servers over HTTP on loopback, in both eras and over SSE, behind mcpmux: what works over stdio works here."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import COMMAND, PATIENCE

from .harness import FULL, NODE, HttpServer, Launcher, Remote, answers_questions
from .hosts import RESOURCES_CHANGED, TOOLS_CHANGED, Host, start_host
from .test_pairings import OURS, ROOTS, THEIRS, UPDATES, Cell, call, hears_change, send
from .test_pairings import text as texts

pytestmark = pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")

HERE = Path(__file__).parent
UPDATES = UPDATES | dict.fromkeys(("everything-sse",), UPDATES["everything"])
ERAS = {"sdk": "", "sdk-legacy": "legacy", "sdk-modern": "modern"}
SOME = (
    "sampling",
    "sampling-with-tools",
    "form-accepted",
    "url-declined",
    "roots",
    "two-rounds",
    "two-at-once",
    "prompt",
)
CELLS: dict[str, dict[str, Cell]] = {name: {cell: OURS[cell] for cell in SOME} for name in ERAS} | dict.fromkeys(
    ("everything", "everything-sse"), THEIRS
)


def sdk_server(name: str) -> HttpServer:
    return HttpServer([sys.executable, str(HERE / "sdk_server.py"), name, "{port}"], "{port}")


def everything(modules: Path, mode: str) -> HttpServer:
    script = modules / "@modelcontextprotocol/server-everything/dist/index.js"
    return HttpServer([NODE, str(script), mode], "port {port}")


@pytest.fixture(scope="module")
def remotes(modules: Path) -> Iterator[list[Remote]]:
    servers = {name: sdk_server(name) for name in ERAS}
    servers |= {"everything": everything(modules, "streamableHttp"), "everything-sse": everything(modules, "sse")}
    yield [
        Remote(
            name,
            f"http://127.0.0.1:{server.port}/{'sse' if name == 'everything-sse' else 'mcp'}",
            {"protocol": ERAS[name]} if ERAS.get(name) else {},
        )
        for name, server in servers.items()
    ]
    for server in servers.values():
        server.kill()


@pytest.fixture(scope="module", params=["python-legacy", "python-modern"])
def host(
    request: pytest.FixtureRequest, modules: Path, remotes: list[Remote], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp(request.param)
    launcher, log = Launcher(folder), folder / "stderr.log"
    host = start_host(request.param, launcher.command(*remotes), launcher.env, modules, log)
    yield host
    host.close()
    assert "a bug in mcpmux" not in log.read_text()


@pytest.mark.parametrize("server", ERAS)
def test_a_server_is_spoken_to_in_its_era_or_in_the_hosts(host: Host, server: str):
    assert call(host, server, "era") == (ERAS[server] or ("modern" if host.modern else "legacy"))


@pytest.mark.requirement("sse-fallback")
@pytest.mark.parametrize(
    ("server", "name"),
    [pytest.param(server, name, id=f"{server}-{name}") for server in CELLS for name in CELLS[server]],
)
def test_what_a_server_asks_in_the_middle_of_a_request_is_answered(host: Host, server: str, name: str):
    """Spec: 2026-07-28, basic/patterns/mrtr; 2025-11-25, basic/transports#sending-messages-to-the-server."""
    cell = CELLS[server][name]
    host.events.taken("asked")
    result = send(host, server, cell)
    assert cell.says in texts(result)
    asked = [one["method"] for one in host.events.taken("asked")]  # `everything` asks for roots at any time
    assert sorted(one for one in asked if one != ROOTS) == sorted(one for one in cell.asks if one != ROOTS)


@pytest.mark.requirement("http-cancellation")
@pytest.mark.parametrize("server", CELLS)
def test_progress_arrives_step_by_step_and_a_call_that_its_host_cancels_is_cancelled(host: Host, server: str):
    """A modern server hears of it by the end of its stream, a legacy one by a notification.
    Spec: 2026-07-28, basic/transports/streamable-http#cancellation."""
    host.events.taken("progress")
    if server not in ERAS:
        host.abandon(f"{server}__trigger-long-running-operation", duration=5, steps=50)
    else:
        host.abandon(f"{server}__hold")
        assert call(host, server, "cancelled") == "it was"
    steps = sorted(host.events.next("progress")[0] for _ in range(3))
    assert steps == [1, 2, 3]


@pytest.mark.parametrize("server", CELLS)
def test_a_list_that_changed_is_told_and_new(host: Host, server: str):
    """Spec: 2026-07-28, basic/patterns/subscriptions; 2025-11-25, basic/transports#listening-for-messages."""
    new = f"new-{'modern' if host.modern else 'legacy'}-{server}"
    assert not [name for name in host.listed() if new in name]
    with host.watching(UPDATES.get(server, f"pair://{server}/clock")):
        if server not in ERAS:
            call(host, server, "gzip-file-as-resource", name=new, data="data:text/plain,squeeze")
            hears_change(host, RESOURCES_CHANGED)
            assert new in host.listed()
        else:
            assert call(host, server, "grow", name=new) == "grown"
            hears_change(host, TOOLS_CHANGED)
            assert f"{server}__{new}" in host.listed()


@pytest.mark.parametrize("server", [*ERAS, "everything"])
def test_an_update_of_a_resource_that_the_host_watches_is_told(host: Host, server: str):
    uri = UPDATES.get(server, f"pair://{server}/clock")
    if server in ERAS:
        with host.watching(uri):
            call(host, server, "era", message="")  # it has subscribed now
            call(host, server, "touch")
            hears_change(host, uri)
        return
    both = ("everything", "everything-sse")  # both list the resource, and whoever did so first has it
    with host.watching(uri):
        for one in both:
            call(host, one, "echo", message="")
            call(host, one, "toggle-subscriber-updates")
        hears_change(host, uri)
        for one in both:
            call(host, one, "toggle-subscriber-updates")  # off


@pytest.mark.requirement("sse-fallback")
def test_sse_can_be_asked_for(launcher: Launcher, remotes: list[Remote]):
    [remote] = [one for one in remotes if one.name == "everything-sse"]
    host = launcher.through(Remote("old", remote.url, {"transport": "sse"}))
    answers_questions(host)
    host.initialize(FULL)
    assert host.text("old__echo", message="x") == "Echo: x"
    assert '"text": "spoken"' in texts(host.call("old__trigger-sampling-request", prompt="hello"))


# ── connections that end ──


@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_a_server_that_is_restarted_is_connected_again_and_answers(launcher: Launcher, era: str):
    """Its session is forgotten: a fresh handshake, and the call that met with that is answered.
    Spec: 2025-11-25, basic/transports#session-management."""
    server = sdk_server("sdk")
    try:
        host = launcher.through(Remote("sdk", f"http://127.0.0.1:{server.port}/mcp", {"protocol": era}))
        host.initialize()
        assert host.text("sdk__era") == era
        server.restart()
        assert host.text("sdk__era") == era
        server.kill()
        result = host.call("sdk__era")
        assert result["isError"]
        address = f"http://127.0.0.1:{server.port}/mcp"
        assert f"mcpmux: sdk cannot be reached: connection refused ({address})" in texts(result)
    finally:
        server.kill()


def test_a_server_of_npm_that_is_restarted_is_connected_again_and_answers(launcher: Launcher, modules: Path):
    server = everything(modules, "streamableHttp")
    try:
        host = launcher.through(Remote("everything", f"http://127.0.0.1:{server.port}/mcp"))
        answers_questions(host)
        host.initialize(FULL)
        assert host.text("everything__echo", message="x") == "Echo: x"
        server.restart()
        assert host.text("everything__echo", message="y") == "Echo: y"
        assert '"text": "spoken"' in texts(host.call("everything__trigger-sampling-request", prompt="hello"))
    finally:
        server.kill()


# ── logins ──


@pytest.fixture
def safe() -> Iterator[HttpServer]:
    server = HttpServer([sys.executable, str(HERE / "oauth_server.py"), "{port}"], "ready")
    yield server
    server.kill()


def command(launcher: Launcher, config: list[str], *words: str) -> subprocess.CompletedProcess[str]:
    """Runs mcpmux in the place of `config`'s one, with a browser that agrees to everything."""
    browser = f"{sys.executable} {HERE / 'browser.py'} %s"
    line = [*COMMAND, *words, *config[len(COMMAND) :]]
    return subprocess.run(
        line, env=launcher.env | {"BROWSER": browser}, capture_output=True, text=True, timeout=PATIENCE
    )


@pytest.mark.requirement("login")
def test_a_login_is_made_used_renewed_revoked_and_forgotten(launcher: Launcher, safe: HttpServer):
    """Spec: 2026-07-28, basic/authorization. What is kept, and that nothing is opened while serving, is our choice."""
    remote = Remote("safe", f"http://127.0.0.1:{safe.port}/mcp")
    config = launcher.command(remote)
    host = launcher.through(remote)
    host.initialize()
    assert host.tools() == []
    refused = host.request("tools/call", {"name": "safe__token"})
    assert "mcpmux: safe needs a login (run `mcpmux login safe`)" in refused["raw"].decode()

    checked = command(launcher, config, "check")
    assert checked.returncode == 1
    assert re.search(r"safe: safe needs a login\n  next: run `\S.* login safe`", checked.stdout)

    done = command(launcher, config, "login", "safe")
    assert done.returncode == 0, done.stderr
    [kept] = Path(launcher.env["HOME"]).rglob("logins/*.json")
    if os.name != "nt":
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    host.until(lambda message: message.get("method") == "notifications/tools/list_changed")  # without a restart
    assert "safe__token" in host.tools()
    first = host.text("safe__token")
    assert json.loads(kept.read_text())["access_token"] == first

    other = launcher.through(remote)  # two of them renew it at once, by a token that is good for one use
    other.initialize()
    for _ in range(3):
        assert host.text("safe__expire") == "expired"
        numbers = [one.ask("tools/call", {"name": "safe__token"}) for one in (host, other)]
        tokens = {texts(one.answer(number)["result"]) for one, number in zip((host, other), numbers, strict=True)}
        assert tokens == {json.loads(kept.read_text())["access_token"]}
        assert first not in tokens

    assert host.text("safe__forget") == "forgotten"
    lost = host.request("tools/call", {"name": "safe__token"})
    what = "safe no longer takes your login, which has expired or was revoked"
    assert f"mcpmux: {what} (run `mcpmux login safe`)" in lost["raw"].decode()
    done = command(launcher, config, "login", "safe")
    assert done.returncode == 0, done.stderr
    latest = host.text("safe__token")

    done = command(launcher, config, "logout", "safe")
    assert (done.returncode, done.stdout) == (0, "The login at safe is forgotten.\n")
    assert not kept.exists()
    lost = host.request("tools/call", {"name": "safe__token"})  # revoked
    assert "run `mcpmux login safe`" in lost["raw"].decode()
    for one in (host, other):
        one.close()
        assert not {first, latest} & set(one.log().split())
        assert latest not in one.log()
