"""Real servers over HTTP on loopback, in both eras and over SSE, behind mcpmux: what works over stdio works here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import NODE, HttpServer, Launcher, Remote
from .hosts import RESOURCES_CHANGED, TOOLS_CHANGED, Host, start_host
from .test_pairings import OURS, ROOTS, THEIRS, UPDATES, Cell, call, hears_change, send, text

pytestmark = pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")

SDK_SERVER = Path(__file__).parent / "sdk_server.py"
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
    return HttpServer([sys.executable, str(SDK_SERVER), name, "{port}"], "{port}")


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


@pytest.mark.parametrize(
    ("server", "name"),
    [pytest.param(server, name, id=f"{server}-{name}") for server in CELLS for name in CELLS[server]],
)
def test_what_a_server_asks_in_the_middle_of_a_request_is_answered(host: Host, server: str, name: str):
    """Spec: 2026-07-28, basic/patterns/mrtr; 2025-11-25, basic/transports#sending-messages-to-the-server."""
    cell = CELLS[server][name]
    host.events.taken("asked")
    result = send(host, server, cell)
    assert cell.says in text(result)
    asked = [one["method"] for one in host.events.taken("asked")]  # `everything` asks for roots at any time
    assert sorted(one for one in asked if one != ROOTS) == sorted(one for one in cell.asks if one != ROOTS)


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
    touch = "toggle-subscriber-updates" if server not in ERAS else "touch"
    with host.watching(uri):
        call(host, server, "echo" if server not in ERAS else "era", message="")  # it has subscribed now
        call(host, server, touch)
        hears_change(host, uri)
        if server not in ERAS:
            call(host, server, touch)  # off
