"""Servers over HTTP: their tables, events and headers, what goes wrong with them, and the files of logins."""

from __future__ import annotations

import argparse
import asyncio
import codecs
import gzip
import json
import os
import queue
import re
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest
from conftest import COMMAND, MCPMUX, PATIENCE, ROOT, RawHost, assert_lines_are_clean, empty_home
from counting import assert_linear
from fake_site import Answer, Asked, FakeSite, Reply, json_reply, legacy_server

import mcpmux

ENVELOPE = {"protocolVersion": "2026-07-28", "clientInfo": {"name": "raw", "version": "1"}, "clientCapabilities": {}}
CERTIFICATE = Path(__file__).parent / "loopback.pem"  # of 127.0.0.1, signed by nobody that anybody knows


# ── headers ──


def schema(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


REGION = {"type": "string", "x-mcp-header": "Region"}


@pytest.mark.requirement("argument-headers")
def test_arguments_are_repeated_in_headers_where_the_schema_says_so():
    """2026-07-28, basic/transports/streamable-http#client-behavior."""
    deep = schema(region=REGION, at=schema(on={"type": "boolean", "x-mcp-header": "On"}), plain={"type": "string"})
    wanted = mcpmux.parameter_headers(deep | {"default": {"x-mcp-header": 1}})
    assert wanted == {("region",): "Region", ("at", "on"): "On"}


@pytest.mark.requirement("argument-headers")
@pytest.mark.parametrize(
    "wrong",
    [
        schema(a=REGION, b=REGION | {"x-mcp-header": "region"}),
        schema(a=REGION | {"type": "number"}),
        schema(a=REGION | {"x-mcp-header": ""}),
        schema(a=REGION | {"x-mcp-header": "a b"}),
        schema(a=REGION | {"x-mcp-header": 5}),
        schema(a={"type": "array", "items": REGION}),
        schema(a={"anyOf": [REGION]}),
        {"$defs": {"a": REGION}},
        {"type": "object", "x-mcp-header": "Region"},
    ],
)
def test_a_tool_with_a_wrong_x_mcp_header_is_left_out_over_http_only(wrong: dict[str, Any]):
    """2026-07-28, basic/transports/streamable-http#schema-extension."""
    assert isinstance(mcpmux.parameter_headers(wrong), str)
    raw = mcpmux.Raw(json.dumps({"name": "t", "inputSchema": {"type": "object", **wrong}}).encode())
    refused = mcpmux.fit_entry("tools/list", raw, mcpmux.ServerOptions(url="http://x"))
    assert isinstance(refused, str)
    assert refused.startswith("tool 't': ")
    assert isinstance(mcpmux.fit_entry("tools/list", raw, mcpmux.ServerOptions(command="x")), mcpmux.Entry)


# ── tables ──


def located(text: str, environment: dict[str, str]) -> mcpmux.Address:
    import tomllib

    config = mcpmux.read_config(tomllib.loads(f"[mcp_servers.x]\n{text}"), Path("/x/mcpmux.toml"))
    assert config.broken == {}
    config = mcpmux.msgspec.structs.replace(config, environment=environment)
    return asyncio.run(mcpmux.locate("x", config.servers["x"], config))


def test_an_address_is_put_together_from_its_table_and_the_environment():
    text = """
        url = "https://${USER}:${PASS}@example.org/mcp?key=${KEY}"
        http_headers = { X-Team = "a-${TEAM:-b}", X-Auth = "plain" }
        env_http_headers = { X-Other = "OTHER" }
        bearer_token_env_var = "TOKEN"
    """
    environment = {"USER": "ada", "PASS": "secret-1", "KEY": "secret-2", "OTHER": "secret-3", "TOKEN": "secret-4"}
    address = located(text, environment)
    assert address.url == "https://ada:secret-1@example.org/mcp?key=secret-2"
    assert address.headers == {
        "X-Team": "a-b",
        "X-Auth": "plain",
        "X-Other": "secret-3",
        "Authorization": "Bearer secret-4",
    }
    assert address.secrets == {"secret-1", "secret-2", "secret-3", "secret-4", "plain"}
    assert address.shown == "https://example.org/mcp"


@pytest.mark.parametrize(
    ("text", "environment", "trouble"),
    [
        (
            'url = "${U}"',
            {},
            (
                "${U} is not set (mcp_servers.x.url)",
                "set U in env_file, or in the host's environment if it hands that on",
            ),
        ),
        (
            'url = "http://a"\nbearer_token_env_var = "T"',
            {"T": ""},
            (
                "T is not set (mcp_servers.x.bearer_token_env_var)",
                "set T in env_file, or in the host's environment if it hands that on",
            ),
        ),
        (
            'url = "http://a"\nenv_http_headers = { A = "T" }',
            {},
            (
                "T is not set (mcp_servers.x.env_http_headers)",
                "set T in env_file, or in the host's environment if it hands that on",
            ),
        ),
        ('url = "${U}"', {"U": "ftp://a"}, ("its url is no http:// or https:// address", "correct mcp_servers.x.url")),
        (
            'url = "http://a"\nenv_http_headers = { A = "T" }',
            {"T": "secret\n"},
            (
                "its header A has a character that no header may have",
                "correct it in mcp_servers.x or its variable",
            ),
        ),
    ],
)
def test_an_address_that_cannot_be_used_is_named(text: str, environment: dict[str, str], trouble: tuple[str, str]):
    with pytest.raises(mcpmux.StartError) as raised:
        located(text, environment)
    assert raised.value.args == trouble


TOKENS = [
    'bearer_token_env_var = "T"',
    'env_http_headers = { X = "T" }',
    'http_headers = { X-Api-Key = "plain" }',
    'http_headers = { AUTHORIZATION = "Basic x" }',
]


@pytest.mark.parametrize(
    "host", ["a.example", "192.168.1.2", "[fe80::1]", "localhost.a.example", "127.0.0.1.a.example"]
)
@pytest.mark.parametrize("token", TOKENS)
def test_a_token_goes_over_plain_http_to_this_machine_only(token: str, host: str):
    with pytest.raises(mcpmux.StartError) as raised:
        located(f'url = "http://{host}/mcp"\n{token}', {"T": "secret"})
    what = f"its token would go to {host.strip('[]')} over plain http://, which others can read"
    assert raised.value.args == (what, "use https://, or set allow_http = true in its table")
    for fine in (f'url = "http://{host}/mcp"\nallow_http = true', f'url = "https://{host}/mcp"'):
        assert located(f"{fine}\n{token}", {"T": "secret"}).headers
    assert located(f'url = "http://{host}/mcp"\nhttp_headers = {{ X-Team = "a" }}', {}).headers == {"X-Team": "a"}


@pytest.mark.parametrize("url", ["http://ada:pass@a.example/", "http://a.example/?api_key=x"])
def test_what_is_secret_in_a_url_is_a_token_too(url: str):
    with pytest.raises(mcpmux.StartError, match="over plain http"):
        located(f'url = "{url}"', {})


@pytest.mark.parametrize(
    "place", ["http://127.0.0.1:2375/x", "https://localhost/x", "https://[::1]:5/x", "https://0.0.0.0/x"]
)
def test_a_server_elsewhere_names_no_place_on_this_machine_for_its_login(place: str):
    """Its metadata says where mcpmux registers, gets tokens, and sends the browser; services here trust who is here."""
    request, said = mcpmux.load_http().http.Request("POST", place), "which is on this machine"

    async def goes(server: str) -> None:
        asked = mcpmux.Browser([], lambda text: None)
        asked.context = argparse.Namespace(server_url=server)
        await asked.go(place)

    with pytest.raises(mcpmux.StartError, match=said):
        asyncio.run(goes("https://a.example/mcp"))
    with pytest.raises(mcpmux.StartError, match=said):
        asyncio.run(mcpmux.fetch(request, True, by="https://a.example/mcp"))
    mcpmux.refuse_open(place, True, by="http://localhost:1/mcp")


@pytest.mark.requirement("login-renewed")
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "127.1.2.3", "[::1]:5", "mcp.localhost"])
@pytest.mark.parametrize("token", TOKENS)
def test_a_token_goes_to_this_machine_in_any_case(token: str, host: str):
    assert located(f'url = "http://{host}/mcp"\n{token}', {"T": "secret"}).headers


def test_a_login_goes_over_plain_http_to_this_machine_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mcpmux, "state_folder", lambda: tmp_path)
    url = "http://a.example/mcp"
    assert located(f'url = "{url}"', {}).url == url
    mcpmux.write_login(mcpmux.login_path(Path("/x/mcpmux.toml"), "x", url), a_login(url=url))
    with pytest.raises(mcpmux.StartError, match="over plain http"):
        located(f'url = "{url}"', {})
    assert located(f'url = "{url}"\nallow_http = true', {}).url == url


# ── what goes wrong ──


@pytest.fixture
def sites() -> Iterator[Callable[..., FakeSite]]:
    there: list[FakeSite] = []

    def starter(answer: Answer = legacy_server, **keys: Any) -> FakeSite:
        there.append(FakeSite(answer, **keys))
        return there[-1]

    yield starter
    for site in there:
        site.close()


@pytest.fixture
def before(serve: Callable[..., RawHost]) -> Callable[..., RawHost]:
    """`before(site, key=value)`: a host that has initialized, before an mcpmux before this site."""

    def starter(
        site: FakeSite | str, more: str = "", env: dict[str, str] | None = None, modern: bool = False
    ) -> RawHost:
        url = site if isinstance(site, str) else site.url
        host = serve(f'[mcp_servers.x]\nurl = "{url}"\n{more}', env={"NO_PROXY": "127.0.0.1"} | (env or {}))
        if not modern:
            host.initialize()
        return host

    return starter


@pytest.fixture
def before_each(
    sites: Callable[..., FakeSite], serve: Callable[..., RawHost]
) -> Callable[..., tuple[RawHost, list[FakeSite]]]:
    """`before_each(replies)`: a host that has initialized, before an mcpmux before a site for each of these replies to
    everything; they are x0, x1, …"""

    def starter(replies: Iterable[Reply], more: str = "") -> tuple[RawHost, list[FakeSite]]:
        there = [sites(lambda _, reply=reply: reply) for reply in replies]
        tables = [f'[mcp_servers.x{n}]\nurl = "{site.url}"\n{more}' for n, site in enumerate(there)]
        host = serve(*tables, env={"NO_PROXY": "127.0.0.1"})
        host.initialize()
        return host, there

    return starter


def says(host: RawHost, name: str = "x") -> str:
    """What a call of its only tool comes to."""
    return host.call(f"{name}__hello")["content"][0]["text"]


def on_call(reply: Callable[[Asked], Reply], server: Answer = legacy_server) -> Answer:
    """A server that does something else with calls of tools."""
    return lambda asked: reply(asked) if asked.body and asked.message.get("method") == "tools/call" else server(asked)


Calling = Callable[[Callable[[Asked], Reply]], RawHost]


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RawHost, FakeSite]]:
    """One mcpmux before one site, for all whose replies to calls are all that matters."""
    folder = tmp_path_factory.mktemp("lasting")
    site = FakeSite(legacy_server)
    config = folder / "mcpmux.toml"
    config.write_text(f'[mux]\nmax_message_mb = 1\n[mcp_servers.x]\nurl = "{site.url}"\n')
    env = empty_home(folder / "home") | {"NO_PROXY": "127.0.0.1"}
    host = RawHost([*COMMAND, "--config", str(config)], env)
    host.initialize()
    assert says(host) == "Hello"
    yield host, site
    host.close()
    site.close()
    assert_lines_are_clean(host)


@pytest.fixture
def calling(lasting: tuple[RawHost, FakeSite]) -> Iterator[Calling]:
    """`calling(reply)`: a host whose calls are answered so; after the test they are answered as ever."""
    host, site = lasting

    def starter(reply: Callable[[Asked], Reply]) -> RawHost:
        site.asked.clear()
        site.answer = on_call(reply)
        return host

    yield starter
    site.answer = legacy_server
    assert says(host) == "Hello"
    assert "initialize" not in [asked.message["method"] for asked in site.asked if asked.body]


REFUSALS: list[tuple[Reply, str]] = [
    (Reply(401), "x needs a login (run `mcpmux login x`)"),
    (
        Reply(403, b"No seat"),
        'x forbids this (HTTP 403): "No seat" (check what you may do there, or `mcpmux login x`)',
    ),
    (
        Reply(404, b"<html>"),
        "x speaks neither Streamable HTTP (has no MCP at {url} (HTTP 404)) "
        "nor SSE (has no MCP at {url} (HTTP 404)) (correct its url)",
    ),
    (Reply(500, b"Oops\n"), 'x failed (HTTP 500): "Oops" (try again later, or tell those who run it)'),
    (Reply(503, headers={"Retry-After": "9"}), "x is busy (HTTP 503) (try again in 9 s)"),
    (
        Reply(301, headers={"Location": "https://example.org/mcp?token=1"}),
        "x redirects {url} to https://example.org/mcp (put that address into its url, if you trust it)",
    ),
    (Reply(200, b"<html>", "text/html"), "x answered with a web page ({url}) (correct its url)"),
    (
        Reply(204),
        "x answered with something that is no answer (HTTP @ application/json) "
        "(correct its url, or tell those who run it)",
    ),
    (
        Reply(200, b"{}"),
        "x answered with something that is no answer (HTTP @ application/json) "
        "(correct its url, or tell those who run it)",
    ),
]


def test_a_server_that_cannot_be_spoken_to_says_why(before_each: Callable[..., tuple[RawHost, list[FakeSite]]]):
    """One line: which server, what, and what to do."""
    host, there = before_each(reply for reply, _ in REFUSALS)
    for n, (site, (reply, text)) in enumerate(zip(there, REFUSALS, strict=True)):
        named = text.replace("x ", f"x{n} ", 1).replace("login x", f"login x{n}")
        expected = named.replace("{url}", site.url).replace("@", str(reply.status))
        assert says(host, f"x{n}") == f"mcpmux: {expected}"


def test_a_server_that_is_not_there_says_so(sites: Callable[..., FakeSite], before: Callable[..., RawHost]):
    site = sites()
    site.stop()
    text = f"mcpmux: x cannot be reached: connection refused ({site.url}) (is it running, and is its url right?)"
    assert says(before(site)) == text


def test_a_host_that_nobody_knows_is_named(before: Callable[..., RawHost]):
    env = {"NO_PROXY": "*"}
    text = says(before("http://nobody.invalid/mcp", env=env))
    assert text == (
        "mcpmux: x cannot be found: no such host (http://nobody.invalid/mcp) (correct its url, or look at the network)"
    )


def test_a_certificate_that_is_not_trusted_is_told_plainly(
    sites: Callable[..., FakeSite], before: Callable[..., RawHost]
):
    site = sites(certificate=str(CERTIFICATE))
    assert says(before(site)) == (
        f"mcpmux: x has a TLS certificate that is not trusted: self-signed certificate ({site.url}) "
        "(correct the host in its url, or name your company's CA file in SSL_CERT_FILE)"
    )


def test_a_certificate_that_the_environment_names_is_trusted(
    sites: Callable[..., FakeSite], before: Callable[..., RawHost]
):
    site = sites(certificate=str(CERTIFICATE))
    assert says(before(site, env={"SSL_CERT_FILE": str(CERTIFICATE)})) == "Hello"


@pytest.mark.parametrize(
    ("env", "text"),
    [
        ({"SSL_CERT_FILE": "/nowhere"}, "x: HTTP cannot be spoken here: "),
        (
            dict.fromkeys(("HTTP_PROXY", "http_proxy"), "nonsense://x"),
            "x: the proxy of the environment cannot be used: ",
        ),
        (dict.fromkeys(("ALL_PROXY", "all_proxy"), "socks://x"), "x: a SOCKS proxy needs one more package, socksio ("),
    ],
)
def test_an_environment_that_http_cannot_be_spoken_in_is_told(
    sites: Callable[..., FakeSite], before: Callable[..., RawHost], env: dict[str, str], text: str
):
    env |= dict.fromkeys(("NO_PROXY", "no_proxy"), "elsewhere.example")
    assert says(before(sites(), env=env)).startswith(f"mcpmux: {text}")


@pytest.mark.parametrize(
    "proxy", ["socks5://127.0.0.1:9", "socks://127.0.0.1:9/", "nonsense://x", "http://127.0.0.1:9"]
)
def test_a_proxy_that_an_address_does_not_use_is_in_nobodys_way(
    sites: Callable[..., FakeSite], before: Callable[..., RawHost], proxy: str
):
    env = dict.fromkeys(("ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy"), proxy)
    assert says(before(sites(), env=env)) == "Hello"


PROXIED = {"http": "http://p"}
WITHOUT = ("*", "x, *", "a.example", ".a.example", "*.a.example", "x,B.A.Example ", "b.a.example:80", "all://a.example")
WITH = ("", ",", "b", "example.org", "xb.a.example", "b.a.example:81", "10.0.0.0/8", "a.example/8", "[")


@pytest.mark.parametrize(
    ("url", "proxies", "proxy"),
    [
        ("https://a.example/mcp", {"https": "http://p:1", "all": "http://q:2"}, "http://p:1"),
        ("http://a.example/mcp", {"https": "http://p:1", "all": "q:2"}, "http://q:2"),
        ("http://a.example/mcp", {"https": "http://p:1"}, None),
        ("http://a.example/mcp", {"all": "socks://q:2"}, "socks5://q:2"),
        ("http://a.example/mcp", {"all": "socks5h://q:2"}, "socks5h://q:2"),
        *(("http://b.a.example:80/mcp", PROXIED | {"no": no}, None) for no in WITHOUT),
        *(("http://b.a.example/mcp", PROXIED | {"no": no}, "http://p") for no in WITH),
        *(("http://10.1.2.3/", PROXIED | {"no": no}, None) for no in ("10.0.0.0/8", "10.1.2.3", "x,10.1.2.3:80")),
        ("http://10.1.2.3/mcp", PROXIED | {"no": "11.0.0.0/8,10.1.2.3:81"}, "http://p"),
        *(("http://[::1]:5/mcp", PROXIED | {"no": no}, None) for no in ("::1", "[::1]", "[::1]:5", "::/64")),
        ("http://[::1]:5/mcp", PROXIED | {"no": "fe80::/10,[::1]:6"}, "http://p"),
    ],
)
def test_the_proxy_of_an_address_is_found_as_other_programs_find_it(
    monkeypatch: pytest.MonkeyPatch, url: str, proxies: dict[str, str], proxy: str | None
):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in proxies.items():
        monkeypatch.setenv(f"{name}_proxy", value)
    assert mcpmux.proxy_for(url) == proxy


def test_the_proxy_of_the_environment_is_used(sites: Callable[..., FakeSite], before: Callable[..., RawHost]):
    site = sites()
    proxy = site.url.removesuffix("/mcp")
    env = {"HTTP_PROXY": proxy, "http_proxy": proxy, "NO_PROXY": "", "no_proxy": ""}
    assert says(before("http://nobody.invalid/mcp", env=env)) == "Hello"
    assert {asked.path for asked in site.asked} == {"http://nobody.invalid/mcp"}


def test_https_where_the_server_speaks_plainly_is_told(sites: Callable[..., FakeSite], before: Callable[..., RawHost]):
    text = says(before(sites().url.replace("http:", "https:")))
    assert "x cannot be spoken to over TLS: " in text
    assert "(does its url begin with https:// where the server speaks plain http://?)" in text


def test_credentials_of_the_table_that_are_refused_are_not_taken_for_a_login(
    sites: Callable[..., FakeSite], before: Callable[..., RawHost]
):
    site = sites(lambda asked: Reply(401, b'{"error":"bad token"}'))
    host = before(site, 'bearer_token_env_var = "TOKEN"', {"TOKEN": "hush-hush"})
    assert says(host) == (
        'mcpmux: x refuses the credentials of its table (HTTP 401): "{"error":"bad token"}" '
        "(correct bearer_token_env_var, http_headers or the variable)"
    )
    assert {asked.headers["authorization"] for asked in site.asked} == {"Bearer hush-hush"}
    host.close()
    assert "hush-hush" not in host.log()


def test_a_failure_in_the_middle_ends_that_call_only(sites: Callable[..., FakeSite], before: Callable[..., RawHost]):
    replies = iter(
        [Reply(500, b"Oops"), Reply(200, b"<html>", "text/html"), Reply(200, b": \n\n", "text/event-stream"), None]
    )
    site = sites(on_call(lambda asked: next(replies) or legacy_server(asked)))
    host = before(site)
    assert says(host) == 'mcpmux: x failed (HTTP 500): "Oops" (try again later, or tell those who run it)'
    assert says(host) == f"mcpmux: x answered with a web page ({site.url}) (correct its url)"
    assert says(host) == (
        "mcpmux: x closed the connection before it answered "
        "(it may have done what was asked; look before you ask again)"
    )
    assert says(host) == "Hello"
    assert [asked.message["method"] for asked in site.asked if asked.body].count("initialize") == 1


def test_a_redirect_within_the_same_place_is_followed(sites: Callable[..., FakeSite], before: Callable[..., RawHost]):
    def answer(asked: Asked) -> Reply:
        return legacy_server(asked) if asked.path == "/mcp/" else Reply(307, headers={"Location": "/mcp/"})

    assert says(before(sites(answer))) == "Hello"


@pytest.mark.requirement("body-over-status")
def test_the_protocols_own_error_counts_more_than_the_status(calling: Calling):
    """2026-07-28, basic/transports/streamable-http#protocol-version-header: a 404 may be an unknown method."""
    error = {"code": -32602, "message": "Unknown tool"}
    body = json.dumps({"jsonrpc": "2.0", "id": None, "error": error}).encode()
    host = calling(lambda asked: Reply(404, body))
    assert host.request("tools/call", {"name": "x__hello"})["error"] == error


@pytest.mark.parametrize(
    ("code", "message"), [(-32602, "Failed to parse arguments"), (-32700, "Failed to parse it"), (-32000, "SSE stream")]
)
def test_an_error_of_the_server_that_is_like_one_of_the_sdk_passes(calling: Calling, code: int, message: str):
    error = {"code": code, "message": message}
    host = calling(lambda asked: json_reply(asked, error=error))
    assert host.request("tools/call", {"name": "x__hello"})["error"] == error


class Sessions:
    """A legacy server that gives out sessions, and forgets them when it is told to: what is asked in one of those is
    answered by `forgotten(key)`, and `GET` by `stream`."""

    def __init__(self, forgotten: Callable[[Any], Reply] = lambda _: Reply(404)) -> None:
        self.forgotten = forgotten
        self.given = 0
        self.alive: set[str] = set()
        self.stream: Answer = lambda _: Reply(405)

    def __call__(self, asked: Asked) -> Reply:
        if asked.body and asked.message.get("method") == "initialize":
            self.given += 1
            self.alive.add(f"s-{self.given}")
            return legacy_server(asked)._replace(headers={"Mcp-Session-Id": f"s-{self.given}"})
        if asked.headers.get("mcp-session-id") not in self.alive:
            return self.forgotten(asked.message.get("id") if asked.body else None)
        return self.stream(asked) if asked.method == "GET" else legacy_server(asked)


@pytest.mark.requirement("http-headers", "sessions")
def test_a_forgotten_session_is_begun_anew_and_the_call_is_answered(
    sites: Callable[..., FakeSite], before: Callable[..., RawHost]
):
    """2025-11-25, basic/transports#session-management: the fresh handshake has no session id."""
    server = Sessions()
    site = sites(server)
    host = before(site)
    assert says(host) == "Hello"
    server.alive.clear()
    numbers = [host.ask("tools/call", {"name": "x__hello"}) for _ in range(5)]
    assert [host.answer(number)["result"]["content"][0]["text"] for number in numbers] == ["Hello"] * 5
    assert server.given == 2
    hellos = [asked.headers for asked in site.asked if asked.body and asked.message.get("method") == "initialize"]
    assert not any("mcp-session-id" in headers for headers in hellos)
    others = [asked.headers for asked in site.asked if not asked.body or asked.message.get("method") != "initialize"]
    assert {headers["mcp-protocol-version"] for headers in others} == {"2025-11-25"}
    host.close()
    assert site.asked[-1].method == "DELETE"
    assert site.asked[-1].headers["mcp-session-id"] == "s-2"


def error_body(id: Any, code: int = -32000, message: str = "Bad Request") -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}}).encode()


# How servers that have lost a session say so: none of their words count.
FORGETTING: list[Callable[[Any], Reply]] = [
    lambda _: Reply(404, b"<!DOCTYPE html>", "text/html"),
    lambda _: Reply(404, error_body(None, -32001, "Session not found")),
    lambda _: Reply(404, error_body("server-error")),
    lambda _: Reply(400, b"No", "text/plain"),
    lambda _: Reply(400, error_body(None, message="Bad Request: Server not initialized")),
    lambda _: Reply(400, json.dumps({"error": {"code": -32000, "message": "No"}}).encode()),
    lambda _: Reply(410),
    lambda _: Reply(200, error_body(None, -32600)),
    lambda _: Reply(200, error_body("server-error", -32600)),
    lambda _: Reply(200, b"data: %b\n\n" % error_body(None, -32600), "text/event-stream"),
]


@pytest.mark.requirement("lost-sessions")
@pytest.mark.parametrize("reply", FORGETTING)
def test_whatever_a_server_says_that_has_lost_a_session_one_new_handshake_and_the_call_is_answered(
    sites: Callable[..., FakeSite], before: Callable[..., RawHost], reply: Callable[[Any], Reply]
):
    server = Sessions(reply)
    site = sites(server)
    host = before(site)
    assert says(host) == "Hello"
    for given in (2, 3):
        server.alive.clear()
        numbers = [host.ask("tools/call", {"name": "x__hello"}) for _ in range(3)]
        assert [host.answer(number)["result"]["content"][0]["text"] for number in numbers] == ["Hello"] * 3
        assert server.given == given


@pytest.mark.requirement("body-over-status")
@pytest.mark.parametrize(
    ("status", "code"), [(404, -32001), (404, -32601), (400, -32602), (410, -32000), (200, -32600)]
)
def test_an_error_with_the_id_of_a_request_is_its_answer_in_a_session_too(
    sites: Callable[..., FakeSite], before: Callable[..., RawHost], status: int, code: int
):
    """2026-07-28 and 2025-11-25 alike; the session lives, and no word says otherwise."""
    server = Sessions()

    def call(asked: Asked) -> Reply:
        return Reply(status, error_body(asked.message["id"], code, "Session not found"))

    host = before(sites(on_call(call, server)))
    host.tools()
    for _ in range(2):
        error = host.request("tools/call", {"name": "x__hello"})["error"]
        assert error == {"code": code, "message": "Session not found"}
    assert server.given == 1


@pytest.mark.parametrize(("status", "code"), [(404, -32001), (400, -32000), (200, -32600)])
def test_a_lost_session_that_is_told_as_the_answer_of_a_call_costs_that_call_only(
    sites: Callable[..., FakeSite], before: Callable[..., RawHost], status: int, code: int
):
    server = Sessions(lambda key: Reply(status, error_body(key, code)))
    host = before(sites(server))
    assert says(host) == "Hello"
    server.alive.clear()
    assert host.request("tools/call", {"name": "x__hello"})["error"]["code"] == code
    assert says(host) == "Hello"
    assert server.given == 2


@pytest.mark.requirement("lost-sessions")
@pytest.mark.parametrize("reply", [Reply(400, b"Bad arguments"), Reply(404), Reply(410), Reply(400, error_body(None))])
def test_a_server_that_refuses_a_call_in_a_new_session_too_is_believed(
    sites: Callable[..., FakeSite], before: Callable[..., RawHost], reply: Reply
):
    """One new handshake, and for later calls not even that: its session answers."""
    server = Sessions()
    refusing = on_call(lambda asked: reply, server)
    site = sites(server)
    host = before(site)
    assert says(host) == "Hello"
    site.answer = refusing
    for _ in range(3):
        answer = host.request("tools/call", {"name": "x__hello"})
        assert f"HTTP {reply.status}" in answer["raw"].decode() or answer["error"]["message"] == "Bad Request"
        assert server.given == 2
    site.answer = server
    assert says(host) == "Hello"
    server.alive.clear()
    assert says(host) == "Hello"
    assert server.given == 3


@pytest.mark.requirement("lost-sessions")
@pytest.mark.parametrize(
    "reply", [Reply(404, b"Not Found"), Reply(400, b"Invalid session"), Reply(410), Reply(401), Reply(200, b"<html>")]
)
def test_a_server_without_a_stream_of_its_own_has_a_session_all_the_same(
    sites: Callable[..., FakeSite], before: Callable[..., RawHost], reply: Reply
):
    server = Sessions()
    server.stream = lambda _: reply
    site = sites(server)
    host = before(site)
    assert [says(host) for _ in range(3)] == ["Hello"] * 3
    assert server.given == 1
    assert [asked.method for asked in site.asked].count("GET") == 1


@pytest.mark.requirement("lost-sessions")
def test_a_notification_that_is_not_found_says_nothing_of_the_session(
    sites: Callable[..., FakeSite], before: Callable[..., RawHost]
):
    server = Sessions()

    def answer(asked: Asked) -> Reply:
        is_notification = asked.body and "id" not in asked.message
        return Reply(404) if is_notification else server(asked)

    host = before(sites(answer))
    assert [says(host) for _ in range(3)] == ["Hello"] * 3
    assert server.given == 1


@pytest.mark.requirement("resumed-streams")
def test_a_stream_that_breaks_is_gone_on_with_where_it_stopped(
    sites: Callable[..., FakeSite], before: Callable[..., RawHost]
):
    """2025-11-25, basic/transports#resumability-and-redelivery; `retry` is respected."""
    server = Sessions()
    called: list[Asked] = []

    def stream(asked: Asked) -> Reply:
        if "last-event-id" not in asked.headers:
            return Reply(405)
        assert asked.headers["last-event-id"] == "e-1"
        answer = json_reply(called[0], result={"content": [{"type": "text", "text": "at last"}]})
        return Reply(200, b"id: e-2\ndata: %b\n\n" % answer.body, "text/event-stream")

    def call(asked: Asked) -> Reply:
        called.append(asked)
        return Reply(200, b"id: e-1\nretry: 1\ndata:\n\n", "text/event-stream")

    server.stream = stream
    assert says(before(sites(on_call(call, server)))) == "at last"
    assert len(called) == 1


@pytest.mark.requirement("own-stream")
def test_what_a_server_says_unasked_is_heard_on_its_own_stream(
    sites: Callable[..., FakeSite], before: Callable[..., RawHost]
):
    """2025-11-25, basic/transports#listening-for-messages-from-the-server."""
    server = Sessions()
    said = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "unasked"}}
    server.stream = lambda _: Reply(200, b"data: %b\n\n" % json.dumps(said).encode(), "text/event-stream", hold=True)
    host = before(sites(server))
    assert says(host) == "Hello"
    heard = host.until(lambda message: message.get("method") == "notifications/message")
    assert heard["params"]["data"] == "unasked"


def test_a_stream_of_its_own_that_breaks_or_cannot_be_read_is_opened_again(
    sites: Callable[..., FakeSite], serve: Callable[..., RawHost]
):
    """2025-11-25, basic/transports#resumability-and-redelivery. What cannot be read is not asked for a second time."""
    server = Sessions()

    def said(number: int) -> bytes:
        params = {"level": "info", "data": number}
        return json.dumps({"jsonrpc": "2.0", "method": "notifications/message", "params": params}).encode()

    long = b"x" * 2_000_000
    streams = iter(
        [
            (None, b"retry: 1\nid: a\ndata: %b\n\n" % said(1)),
            ("a", b"id: b\ndata: %b\n\n" % said(2)),
            ("b", b"id: c\ndata: %b\n\nid: d\ndata: %b\n\n" % (said(3), long)),
            (None, b"retry: 1\ndata: %b\n\n" % said(4)),
        ]
    )

    def stream(asked: Asked) -> Reply:
        expected = next(streams, None)
        if expected is None:
            return Reply(200, b"data: %b\n\n" % said(5), "text/event-stream", hold=True)
        assert asked.headers.get("last-event-id") == expected[0]
        return Reply(200, expected[1], "text/event-stream")

    server.stream = stream
    site = sites(server)
    host = serve("[mux]\nmax_message_mb = 1", f'[mcp_servers.x]\nurl = "{site.url}"', env={"NO_PROXY": "127.0.0.1"})
    host.initialize()
    assert says(host) == "Hello"
    for number in range(1, 6):
        host.until(lambda message, number=number: message.get("params", {}).get("data") == number)
    assert "x said something unasked that cannot be read, and is passed over" in host.log()


class OldServer:
    """A server that knows SSE only. What it answers comes on the stream; `reply` is what a POST is answered."""

    def __init__(self) -> None:
        self.said: queue.Queue[bytes] = queue.Queue()
        self.reply = Reply(202, b"Accepted", "text/plain")

    def __call__(self, asked: Asked) -> Reply:
        if asked.method == "GET":
            self.said = queue.Queue()
            return Reply(200, b"event: endpoint\ndata: /mcp?session=1\n\n", "text/event-stream", said=self.said)
        if "session" not in asked.path:
            return Reply(405)
        if self.reply.status == 202 and "id" in asked.message:
            self.said.put(b"data: %b\n\n" % legacy_server(asked).body)
        return self.reply


@pytest.mark.parametrize("table", ["", 'transport = "sse"'])
def test_a_server_that_knows_sse_only_is_spoken_to_and_its_failures_are_told(
    sites: Callable[..., FakeSite], serve: Callable[..., RawHost], table: str
):
    """2024-11-05, basic/transports#http-with-sse."""
    server = OldServer()
    tables = ["[mux]\nmax_message_mb = 1", f'[mcp_servers.x]\nurl = "{sites(server).url}"\n{table}']
    host = serve(*tables, env={"NO_PROXY": "127.0.0.1"})
    host.initialize()
    assert says(host) == "Hello"
    server.reply = Reply(500, b"Oops")
    assert says(host) == 'mcpmux: x failed (HTTP 500): "Oops" (try again later, or tell those who run it)'
    server.reply = Reply(202)
    assert says(host) == "Hello"
    for last in (b"", b"data: %b\n\n" % (b"x" * 1_100_000)):  # its stream ends, or cannot be read
        server.said.put(last)
        says(host)  # it may have been sent before that is noticed: then nobody answers it
        assert says(host) == "Hello"
    host.close()
    assert "x said more at once than it may (raise max_message_mb in [mux]" in host.log()


@pytest.mark.parametrize("status", [400, 404, 410])
def test_a_server_that_knows_sse_only_may_lose_a_session_too(
    sites: Callable[..., FakeSite], before: Callable[..., RawHost], status: int
):
    """Its session is its stream: another one is opened, and the call goes out again."""
    server = OldServer()
    refused = iter([Reply(status)])

    def answer(asked: Asked) -> Reply:
        is_call = asked.method == "POST" and asked.message.get("method") == "tools/call"
        return (next(refused, None) if is_call and called else None) or server(asked)

    called: list[str] = []
    site = sites(answer)
    host = before(site)
    called.append(says(host))
    assert says(host) == "Hello"
    assert [asked.method for asked in site.asked].count("GET") == 2


@pytest.mark.parametrize(
    "place", ["http://127.0.0.1:9/mcp", "https://127.0.0.1/", "//evil.example/x", "http://[", "\xff"]
)
def test_messages_go_to_no_other_place_than_their_server(
    sites: Callable[..., FakeSite], before: Callable[..., RawHost], place: str
):
    """They carry its tokens."""
    event = b"event: endpoint\ndata: %b\n\n" % place.encode("latin-1")
    site = sites(lambda asked: Reply(200, event, "text/event-stream", hold=True))
    text = says(before(site, 'transport = "sse"'))
    elsewhere = "wants its messages sent elsewhere, to " in text
    assert elsewhere or text == "mcpmux: x: answered with something that is no message (tell those who run it)"
    assert {asked.method for asked in site.asked} == {"GET"}


UNSPOKEN = "opened an event stream and does not say where messages go (correct its url)"
NO_SSE: list[tuple[Reply, str]] = [
    (Reply(404), "has no MCP at {url} (HTTP 404) (correct its url)"),
    (Reply(200, b"{}"), "answered a request for events with application/json (correct its url)"),
    (Reply(200, b"", "text/event-stream"), UNSPOKEN),
    (Reply(200, b": nothing\n\n", "text/event-stream"), UNSPOKEN),
    (Reply(200, b"data: %b\n\n" % (b"x" * 1_100_000), "text/event-stream"), UNSPOKEN),
]


def test_an_address_where_no_sse_is_spoken_says_so(before_each: Callable[..., tuple[RawHost, list[FakeSite]]]):
    host, there = before_each((reply for reply, _ in NO_SSE), 'transport = "sse"')
    for n, (site, (_, text)) in enumerate(zip(there, NO_SSE, strict=True)):
        assert says(host, f"x{n}") == f"mcpmux: x{n}: {text}".replace("{url}", site.url)
    host.close()
    assert "bug" not in host.log()


def test_messages_over_sse_go_out_on_one_connection(sites: Callable[..., FakeSite], before: Callable[..., RawHost]):
    """Each of them is answered with words that nobody needs: they are read, so that the next one can follow."""
    site = sites(OldServer(), persistent=True)
    host = before(site, 'transport = "sse"')
    assert [says(host) for _ in range(5)] == ["Hello"] * 5
    assert len({asked.port for asked in site.asked if asked.method == "POST"}) == 1


@pytest.mark.parametrize("streamed", [False, True])
def test_a_long_answer_is_read_whole_and_one_over_the_limit_ends_its_call(calling: Calling, streamed: bool):
    sizes = iter([900_000, 3_000_000, 5])

    def long(asked: Asked) -> Reply:
        text = "x" * next(sizes)
        reply = json_reply(asked, result={"content": [{"type": "text", "text": text}]})
        return Reply(200, b"data: %b\n\n" % reply.body, "text/event-stream") if streamed else reply

    host = calling(long)
    assert len(says(host)) == 900_000
    assert says(host) == (
        "mcpmux: x said more at once than it may (raise max_message_mb in [mux], or tell those who run it)"
    )
    assert len(says(host)) == 5


# What JSON's grammar allows, and a reader that makes values of it would spell anew, or refuse.
ODD = (
    rb'{"z":1.0,"a":[1e2,-7,-0.0,1.50,1E+2,123456789012345678901234567890,1e400],"n":{"u":"\u00e9\/\u000A","n":null},'
    rb'"b":true,  "a" :2,"\ud83d\ude00":"\uD83D\uDE00 '
    + "é 😀 \u2028\x85\x7f".encode()
    + b'","deep":'
    + b"[" * 400
    + b"]" * 400
    + b"}"
)
RESULT = b'{"content":[],"x":%b,"_meta":{"b":1,"a":2},"unknown":true,"resultType":"complete"}' % ODD
PROGRESS = b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%d,"progress":1.0,"x":%b}}'


@pytest.mark.requirement("json-and-streams")
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("modern", [False, True])
def test_payloads_pass_byte_for_byte_both_ways(
    sites: Callable[..., FakeSite], before: Callable[..., RawHost], modern: bool, streamed: bool, newline: bytes
):
    """Our promise: what mcpmux need not change it does not. A message may stand on several lines of a body or an event,
    and white space round its members is the envelope's."""
    if newline != b"\n" and not streamed:
        newline += b"\n"

    def odd(asked: Asked) -> Reply:
        body = b'{@"result":%b,@ "id":"%d", "jsonrpc":"2.0"@}@' % (RESULT, asked.message["id"])
        if not streamed:
            return Reply(200, body.replace(b"@", newline), "application/json; charset=utf-8")
        first = PROGRESS % (asked.message["params"]["_meta"]["progressToken"], ODD)
        events = [b"data: %b" % first, *(b"data:%b" % line for line in body.split(b"@"))]
        events.insert(1, b"")
        return Reply(200, newline.join([b": hi", b"event: message", *events, b"", b""]), "Text/Event-Stream;charset=x")

    server = modern_server if modern else legacy_server
    site = sites(on_call(odd, server))
    host = before(site, modern=modern)
    meta = {"progressToken": 1}
    if modern:
        meta |= {f"io.modelcontextprotocol/{key}": value for key, value in ENVELOPE.items()}
    line = b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"x__hello","arguments":%b,"unknown":%b,%b}}'
    host.send(line % (ODD, ODD, b'"_meta":%b' % json.dumps(meta).encode()))
    answer = host.answer(7)["raw"]
    assert RESULT[1:-1] in answer
    if streamed:
        [told] = [one["raw"] for one in host.seen if one.get("method") == "notifications/progress"]
        assert b'"x":%b' % ODD in told
        assert b'"progress":1.0' in told
    [call] = [asked.body for asked in site.asked if asked.body and asked.message["method"] == "tools/call"]
    assert b'"arguments":%b' % ODD in call
    assert b'"unknown":%b' % ODD in call
    assert b"\n" not in call


@pytest.mark.requirement("json-and-streams")
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.requirement("json-and-streams")
def test_a_batch_is_taken_apart_where_the_revision_has_them(
    sites: Callable[..., FakeSite], before: Callable[..., RawHost], streamed: bool
):
    """2025-03-26, basic/transports#sending-messages-to-the-server."""

    def answer(asked: Asked) -> Reply:
        reply = legacy_server(asked)
        if not asked.body or "id" not in asked.message:
            return reply
        if asked.message["method"] == "initialize":
            return reply._replace(body=reply.body.replace(b"2025-11-25", b"2025-03-26"))
        said = b'{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":1.0}}'
        batch = b" [%b ,\n%b]" % (said, reply.body)
        return (
            Reply(200, b"data:%b\n\n" % batch.replace(b"\n", b"\ndata:"), "text/event-stream")
            if streamed
            else Reply(200, batch)
        )

    host = before(sites(answer))
    assert says(host) == "Hello"
    assert b'"data":1.0' in host.until(lambda message: message.get("method") == "notifications/message")["raw"]


def test_an_error_passes_byte_for_byte_whatever_its_status(calling: Calling):
    error = b'{"data":%b,"code":-32602,"message":"\\u0041"}' % ODD
    host = calling(lambda asked: Reply(400, b'{"error":%b,\n"id":%d,"jsonrpc":"2.0"}' % (error, asked.message["id"])))
    assert b'"error":%b}' % error in host.request("tools/call", {"name": "x__hello"})["raw"]


MENDING = r"""
import mcpmux
parts = [b"\\", b"\\\\x", b"\\ud83d", b"\\ud83d\\ude00", b"\\\\\\ud83d", b"\\u", b"\\ud8"]
for part in parts:
    for end in (b"", b"\\u", b"\\ud83d", b"u0041", b"x"):
        mcpmux.mended(part * (300_000 // len(part)) + end + b"\\u")
"""


def test_mending_costs_no_more_than_a_look_at_each_byte():
    """A search that goes back would take minutes for each of these."""
    subprocess.run([sys.executable, "-c", MENDING], cwd=ROOT, timeout=PATIENCE, check=True)


STREAMS: dict[str, Callable[[int], bytes]] = {
    "backslashes": lambda size: b"data: " + b"\\" * size,
    "a comment": lambda size: b":" + b"x" * size,
    "comments": lambda size: b":\n" * (size // 2),
    "carriage returns": lambda size: b"\r" * size,
    "lines of one event": lambda size: b"data\n" * (size // 5),
    "events": lambda size: b"data:x\n\n" * (size // 8),
    "events with a long id": lambda size: b"id: " + b"i" * size + b"\n" + b"data:x\n\n" * (size // 8),
    "events with a sendable id": lambda size: b"id: " + b"i" * 4000 + b"\n" + b"data:x\n\n" * (size // 8),
    "retries": lambda size: b"retry: 1\n" * (size // 9),
    "an open field": lambda size: b"d" * size,
}


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("chunk", [7, 4096, 10**9])
def test_no_stream_costs_more_than_its_length(name: str, chunk: int):
    """Whatever a server says, and in whatever pieces, the others wait no longer than it takes to read it."""
    http = mcpmux.load_http().http

    async def read(body: bytes) -> None:
        async def chunks():
            for at in range(0, len(body), chunk):
                yield body[at : at + chunk]

        response = http.Response(200, content=chunks(), request=http.Request("GET", "http://a"))
        async for _ in mcpmux.Stream(10**8).events(response):
            pass

    def work(size: int) -> Callable[[], object]:
        body = STREAMS[name](size) + b"\n\n"
        return lambda: asyncio.run(read(body))

    assert_linear(work, *((2_000, 8_000) if chunk == 7 else (20_000, 80_000)))


def test_many_headers_of_a_tool_cost_no_more_than_their_number():
    def work(size: int) -> Callable[[], object]:
        properties = {f"p{n}": REGION | {"x-mcp-header": f"H{n}"} for n in range(size)}
        tools = {"tools": [{"name": "t", "inputSchema": schema(a=schema(**properties))}]}
        result = mcpmux.Raw(json.dumps(tools).encode())
        arguments = {"a": {f"p{n}": "x" for n in range(size)}}
        params = {"name": "t", "arguments": arguments, "_meta": {mcpmux.VERSION_KEY: "2026-07-28"}}
        fields = mcpmux.object_of(json.dumps(params).encode())

        def headers() -> None:
            book = mcpmux.HeaderBook()
            book.learn(result)
            never = None  # of its way over HTTP nothing is looked at
            call = mcpmux.Sent(b"", "tools/call", fields, 1, False, never, never, never)
            assert len(book.of(call)) == 3 + size

        return headers

    assert_linear(work, 200, 800)


SURROGATES = rb'"\ud83d cut \\ud83d \ud83d\ude00 \\\ude00 \ud83d"'


@pytest.mark.parametrize("streamed", [False, True])
def test_an_emoji_that_is_cut_in_two_passes_with_its_mark(
    calling: Calling, lasting: tuple[RawHost, FakeSite], streamed: bool
):
    """JavaScript cuts them: a lone surrogate is no JSON to most readers, and here not worth a call."""

    def cut(asked: Asked) -> Reply:
        body = json_reply(asked, result={"content": [{"type": "text", "text": "@"}]}).body.replace(b'"@"', SURROGATES)
        return Reply(200, b"data: %b\n\n" % body, "text/event-stream") if streamed else Reply(200, body)

    host, site = calling(cut), lasting[1]
    text = "\ufffd cut \\ud83d \U0001f600 \\\ufffd \ufffd"
    assert says(host) == text
    line = b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"x__hello","arguments":{"a":%b}}}\n'
    number = host.ask("ping") + 10**6
    host.send(line % (number, SURROGATES))
    assert host.answer(number)["result"]["content"][0]["text"] == text
    assert site.asked[-1].message["params"]["arguments"] == {"a": text}


STREAM = (
    codecs.BOM_UTF8 + b'data: {"a":\r\ndata:"\xff\xc3\xa9"}\r\n\r\n: no event\rid: \xc3\xa9\rretry: 0\rdata: two\r\r'
    b"event: endpoint\nid: b\x00\nid\n\ndata\n\nid: 3\nretry: 99999999999999999999\ndata: 3\xe2\x80\xa8\n\ndata: open"
)


@pytest.mark.requirement("json-and-streams")
@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 11, 1000])
def test_a_stream_says_the_same_whatever_its_chunks(step: int):
    """https://html.spec.whatwg.org/multipage/server-sent-events.html. What is open at its end is no event."""
    http = mcpmux.load_http().http
    stream = mcpmux.Stream(1000)

    async def chunks():
        for at in range(0, len(STREAM), step):
            yield STREAM[at : at + step]
        raise http.ReadError("broken")

    async def read() -> list[tuple[str, bytes, dict[str, bytes], float]]:
        request = http.Request("GET", "http://a")
        response = http.Response(200, content=chunks(), request=request)
        return [(*event, stream.headers, stream.pause) async for event in stream.events(response)]

    e, three = {"Last-Event-ID": "é".encode()}, {"Last-Event-ID": b"3"}
    assert asyncio.run(read()) == [
        ("message", b'{"a":\n"\xff\xc3\xa9"}', {}, 1.0),
        ("message", b"two", e, 0.2),
        ("endpoint", b"", e, 0.2),
        ("message", b"", e, 0.2),
        ("message", b"3\xe2\x80\xa8", three, 3600.0),
    ]
    assert str(stream.broke) == "broken"


@pytest.mark.parametrize("size", [999, 1000, 1001])
@pytest.mark.parametrize("letter", [b"x", b"\xff"])
def test_the_data_of_an_event_may_be_as_long_as_the_limit(size: int, letter: bytes):
    """All of its lines together, in bytes."""
    stream = mcpmux.Stream(1000)
    half = letter * (size // 2)

    async def read() -> list[int]:
        http = mcpmux.load_http().http
        body = b"data:%b\ndata:%b\n\n" % (half, letter * (size - 1 - len(half)))
        response = http.Response(200, content=body, request=http.Request("GET", "http://a"))
        return [len(data) async for _, data in stream.events(response)]

    if size > 1000:
        with pytest.raises(mcpmux.Unreadable, match="more at once"):
            asyncio.run(read())
    else:
        assert asyncio.run(read()) == [size]


def test_bytes_that_are_no_text_are_replaced(calling: Calling):
    """As those of a server of this machine are: a Python host would end at them."""

    def bad(asked: Asked) -> Reply:
        reply = json_reply(asked, result={"content": [{"type": "text", "text": "@"}]})
        return reply._replace(body=reply.body.replace(b"@", b"a\xff"))

    assert says(calling(bad)) == "a\ufffd"


def test_a_session_that_no_header_can_hold_is_told(sites: Callable[..., FakeSite], before: Callable[..., RawHost]):
    site = sites(lambda asked: legacy_server(asked)._replace(headers={"Mcp-Session-Id": "\xe9"}))
    text = says(before(site))
    assert text == "mcpmux: x gives out a session that no header can hold (tell those who run it)"


def test_a_stream_that_ends_again_and_again_is_gone_on_with(
    sites: Callable[..., FakeSite], before: Callable[..., RawHost]
):
    """2025-11-25, basic/transports#sending-messages-to-the-server: a server may close it to be polled."""
    server, resumed = Sessions(), 0

    def stream(asked: Asked) -> Reply:
        nonlocal resumed
        resumed += "last-event-id" in asked.headers
        answer = b"data: %b\n" % json_reply(called[0], result={"content": [{"type": "text", "text": "at last"}]}).body
        return Reply(200, b"id: e\nretry: 0\n%b\n" % (answer if resumed == 4 else b"data:\n"), "text/event-stream")

    def call(asked: Asked) -> Reply:
        called.append(asked)
        return Reply(200, b"id: e\nretry: 0\ndata:\n\n", "text/event-stream")

    called: list[Asked] = []
    server.stream = lambda asked: stream(asked) if called else Reply(405)
    assert says(before(sites(on_call(call, server)))) == "at last"
    assert len(called) == 1


@pytest.mark.parametrize(
    "text", [b'{"id":1}', b"nonsense", b'{"jsonrpc":"2.0","id":1,"result":' + b"[" * 400 + b"]" * 400]
)
def test_an_event_that_is_no_message_ends_its_call_only(calling: Calling, text: bytes):
    replies = iter([Reply(200, b"data: %b\n\n" % text, "text/event-stream"), None])
    host = calling(lambda asked: next(replies) or legacy_server(asked))
    assert says(host) == "mcpmux: x answered with something that is no message (tell those who run it)"
    assert says(host) == "Hello"


def raw(head: str, body: bytes = b"", **keys: Any) -> Reply:
    return Reply(raw="\r\n".join([*head.split("|"), "", ""]).encode() + body, **keys)


OK_JSON = "HTTP/1.1 200 OK|Content-Type: application/json"
OK_EVENTS = "HTTP/1.1 200 OK|Content-Type: text/event-stream"
CHUNKED = "|Transfer-Encoding: chunked"
EVIL: dict[str, Reply] = {
    "closes at once": Reply(raw=b""),
    "no http": Reply(raw=b"\x00\xff" * 50_000),
    "ends in its head": Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Ty"),
    "huge headers": raw(OK_JSON + "|X: " + "x" * 1_000_000),
    "many headers": raw(OK_JSON + "|X: y" * 100_000),
    "endless headers": raw("HTTP/1.1 200 OK", b"X: y\r\n", endless=True),
    "continues without end": Reply(raw=b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, hold=True),
    "ends in its body": raw(OK_JSON + "|Content-Length: 1000", b'{"jsonrpc"'),
    "a body with no end": raw(OK_JSON, b"[" * 1000, endless=True),
    "no chunks": raw(OK_JSON + CHUNKED, b"xyz\r\n{}"),
    "a chunk that is huge": raw(OK_JSON + CHUNKED, b"fffffffffffffff\r\nx", hold=True),
    "white space without end": raw(OK_JSON, b" \n" * 1000, endless=True),
    "half an event": raw(OK_EVENTS, b'data: {"jsonrpc":"2.0",'),
    "half an event, held": raw(OK_EVENTS, b'data: {"jsonrpc":"2.0",', hold=True),
    "an event with no end": raw(OK_EVENTS + "|", b"data: " + b"x" * 1000, endless=True),
    "comments without end": raw(OK_EVENTS, b": x\n\n" * 1000, endless=True),
    "empty events without end": raw(OK_EVENTS, b"data:\n\n" * 1000, endless=True),
    "messages without end": raw(
        OK_EVENTS, b'data: {"jsonrpc":"2.0","method":"notifications/x"}\n\n' * 99, endless=True
    ),
    "answers to nobody": raw(OK_EVENTS, b'data: {"jsonrpc":"2.0","id":[7],"result":{}}\n\n' * 9),
    "an answer with another id": raw(OK_JSON, b'{"jsonrpc":"2.0","id":123456,"result":{}}'),
    "an id that is no id": raw(OK_JSON, b'{"jsonrpc":"2.0","id":{"a":[1]},"result":{}}'),
    "a long number for an id": raw(OK_JSON, b'{"jsonrpc":"2.0","id":%b,"result":{}}' % (b"9" * 100_000)),
    "neither result nor error": raw(OK_JSON, b'{"jsonrpc":"2.0","id":null}'),
    "accepted": Reply(202),
    "no content": Reply(204),
    "accepted with no end": raw("HTTP/1.1 202 Accepted", b" " * 1000, endless=True),
    "an error with no end": raw("HTTP/1.1 500 Oops", b"x" * 1000, endless=True),
    "an error with no body": raw("HTTP/1.1 500 Oops|Content-Length: 10", hold=True),
    "to itself": Reply(307, headers={"Location": "/mcp"}),
    "to nowhere": Reply(307, headers={"Location": "http://["}),
    "to elsewhere": Reply(308, headers={"Location": "http://127.0.0.1:9/mcp"}),
    "to a file": Reply(307, headers={"Location": "file:///etc/passwd"}),
    "a status that is none": Reply(raw=b"HTTP/1.1 999 What\r\n\r\n"),
    "a login of its own": Reply(401, headers={"WWW-Authenticate": 'Bearer scope="' + "x" * 10_000}),
    "resumed without end": raw(OK_EVENTS, b"id: 1\nretry: 0\n\n"),
    "never resumed": raw(OK_EVENTS, b"id: 1\nretry: 99999999999999999999999\n\n"),
    "a bomb": raw(OK_JSON + "|Content-Encoding: gzip", gzip.compress(b" " * 50_000_000)),
    "slow": Reply(hold=True, raw=b"H"),
}
# Of these nothing comes to an end but by their host's patience.
HELD = {
    *("continues without end", "a chunk that is huge", "half an event, held", "comments without end", "never resumed"),
    *("empty events without end", "messages without end", "an error with no body", "slow"),
}


@pytest.fixture(scope="module")
def evil_and_good(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RawHost, FakeSite]]:
    """An mcpmux before one server that does its worst when a tool is called, and one that does not."""
    folder = tmp_path_factory.mktemp("evil")
    evil, good = FakeSite(Sessions()), FakeSite(legacy_server)
    config = folder / "mcpmux.toml"
    tables = f'[mcp_servers.evil]\nurl = "{evil.url}"\n[mcp_servers.good]\nurl = "{good.url}"\n'
    config.write_text(f"[mux]\nmax_message_mb = 1\n{tables}")
    host = RawHost([*COMMAND, "--config", str(config)], empty_home(folder / "home") | {"NO_PROXY": "127.0.0.1"})
    host.initialize()
    assert says(host, "evil") == says(host, "good") == "Hello"
    yield host, evil
    host.close()
    for site in (evil, good):
        site.close()
    assert "bug" not in host.log()
    assert_lines_are_clean(host)


@pytest.mark.parametrize("kind", EVIL)
def test_whatever_a_server_does_its_call_ends_once_and_the_others_do_not_wait(
    evil_and_good: tuple[RawHost, FakeSite], kind: str
):
    host, evil = evil_and_good
    server, arrived = evil.answer, threading.Semaphore(0)

    def call(asked: Asked) -> Reply:
        arrived.release()
        return EVIL[kind]

    evil.answer = on_call(call, server)
    numbers = [host.ask("tools/call", {"name": "evil__hello"}) for _ in range(3)]
    assert all(arrived.acquire(timeout=PATIENCE) for _ in numbers)
    assert [says(host, "good") for _ in range(3)] == ["Hello"] * 3
    if kind in HELD:
        assert not [message for message in host.seen if message.get("id") in numbers]
        for number in numbers:
            host.cancel(number)
    else:
        answers = [host.answer(number) for number in numbers]
        assert all("error" in answer or answer["result"]["isError"] for answer in answers)
    evil.answer = server
    assert says(host, "evil") == "Hello"


def test_a_stream_that_cannot_be_decoded_ends_its_call_only(calling: Calling):
    garbage = Reply(200, b"garbage", "text/event-stream", {"Content-Encoding": "gzip"})
    replies = iter([garbage, None])
    host = calling(lambda asked: next(replies) or legacy_server(asked))
    assert says(host) == "mcpmux: x answered with something that is no message (tell those who run it)"
    assert says(host) == "Hello"


def test_an_error_about_no_request_of_ours_is_logged(sites: Callable[..., FakeSite], before: Callable[..., RawHost]):
    server = Sessions()
    said = b'data: {"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"What?"}}\n\n'
    more = b'data: {"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"after it"}}\n\n'
    server.stream = lambda _: Reply(200, said + more, "text/event-stream", hold=True)
    host = before(sites(server))
    assert says(host) == "Hello"
    host.until(lambda message: message.get("method") == "notifications/message")
    host.close()
    assert "x: an answer to nothing that is open was dropped" in host.log()


def test_a_cancelled_call_keeps_no_connection_to_a_legacy_server(
    sites: Callable[..., FakeSite], before: Callable[..., RawHost]
):
    """2025-11-25, basic/utilities/cancellation: nothing answers it, and many servers leave its stream open. One stream
    has begun, and of the other call nothing has come back."""
    arrived, told_of, gate = threading.Semaphore(0), threading.Semaphore(0), threading.Event()
    replies = iter([Reply(200, b": \n\n", "text/event-stream", hold=True), Reply(200, hold=True)])

    def hold(asked: Asked) -> Reply:
        reply = next(replies)
        arrived.release()
        if reply.kind == "application/json":
            assert gate.wait(PATIENCE)
        return reply

    def server(asked: Asked) -> Reply:
        if asked.body and asked.message["method"] == "notifications/cancelled":
            told_of.release()
        return legacy_server(asked)

    site = sites(on_call(hold, server))
    host = before(site)
    for _ in range(2):
        number = host.ask("tools/call", {"name": "x__hello"})
        assert arrived.acquire(timeout=PATIENCE)
        host.cancel(number)
        gate.set()  # of use to the second: its stream is held from here on
        assert site.closed.acquire(timeout=PATIENCE)
        assert told_of.acquire(timeout=PATIENCE)
    host.close()
    told = [asked.message for asked in site.asked if asked.body]
    assert [one["method"] for one in told].count("tools/call") == 2
    assert [one["method"] for one in told].count("notifications/cancelled") == 2
    assert "ping" not in [one["method"] for one in told]


def test_a_server_that_takes_no_cancellation_takes_calls(
    sites: Callable[..., FakeSite], before: Callable[..., RawHost]
):
    """Nothing hangs on the order of a cancellation, and many of them wait for nobody."""
    many = 15  # one after the other they would take longer than this test waits
    arrived, gate = threading.Semaphore(0), threading.Event()
    replies = iter([Reply(200, b": \n\n", "text/event-stream", hold=True)] * many + [None])

    def call(asked: Asked) -> Reply:
        arrived.release()
        return next(replies) or legacy_server(asked)

    def answer(asked: Asked) -> Reply:
        if asked.body and asked.message["method"] == "notifications/cancelled":
            assert gate.wait(PATIENCE)
        return legacy_server(asked)

    host = before(sites(on_call(call, answer)))
    numbers = [host.ask("tools/call", {"name": "x__hello"}) for _ in range(many)]
    for _ in numbers:
        assert arrived.acquire(timeout=PATIENCE)
    for number in numbers:
        host.cancel(number)
    assert says(host) == "Hello"
    gate.set()


def test_a_call_that_has_not_gone_out_when_its_server_is_lost_is_made_again(
    sites: Callable[..., FakeSite], before: Callable[..., RawHost]
):
    """It waited behind an answer that the server does not take: it has certainly not seen it."""
    server = Sessions()
    stream: queue.Queue[bytes] = queue.Queue()
    server.stream = lambda _: Reply(200, b"retry: 1\n\n", "text/event-stream", said=stream)
    called, asked_back, gate, end = threading.Event(), threading.Event(), threading.Event(), threading.Event()

    def answer(asked: Asked) -> Reply:
        if asked.body and asked.message.get("id") == "ours":
            asked_back.set()
            assert end.wait(PATIENCE)
            return Reply(202)
        if asked.body and asked.message.get("method") == "tools/call" and warm and not called.is_set():
            called.set()
            assert gate.wait(PATIENCE)
        return server(asked)

    warm: list[str] = []
    site = sites(answer)
    host = before(site)
    warm.append(says(host))
    numbers = [host.ask("tools/call", {"name": "x__hello"})]
    assert called.wait(PATIENCE)
    stream.put(b'data: {"jsonrpc":"2.0","id":"ours","method":"ping"}\n\n')
    assert asked_back.wait(PATIENCE)
    numbers += [host.ask("tools/call", {"name": "x__hello"}) for _ in range(2)]
    assert host.request("ping")["result"] == {}
    server.alive.clear()
    gate.set()
    assert [host.answer(number)["result"]["content"][0]["text"] for number in numbers] == ["Hello"] * 3
    methods = [asked.message.get("method") for asked in site.asked if asked.body]
    assert methods.count("tools/call") == 5  # one before, the one that was refused, and these three
    end.set()
    stream.put(b"")


# ── the modern era ──


def modern_server(asked: Asked) -> Reply:
    complete = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
    match asked.message:
        case {"method": "server/discover"}:
            told = {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}
            return json_reply(asked, result=complete | told)
        case {"method": "tools/list"}:
            tool = {"name": "hello", "inputSchema": schema(region=REGION)}
            return json_reply(asked, result=complete | {"tools": [tool]})
        case {"method": "tools/call"}:
            wanted = {"eu": "eu", "us": "us", " é": "=?base64?IMOp?="}[asked.message["params"]["arguments"]["region"]]
            if asked.headers.get("mcp-param-region") != wanted:
                error = {"code": -32020, "message": "Header mismatch"}
                return json_reply(asked, error=error)._replace(status=400)
            return json_reply(asked, result=complete | {"content": [{"type": "text", "text": "Hello"}]})
        case {"method": method}:
            return json_reply(asked, error={"code": -32601, "message": method})._replace(status=404)
        case _:
            raise AssertionError(asked)


@pytest.mark.requirement("http-headers", "encoded-headers", "argument-headers")
def test_every_request_of_the_modern_era_has_its_headers(
    sites: Callable[..., FakeSite], before: Callable[..., RawHost]
):
    """2026-07-28, basic/transports/streamable-http#request-metadata. The tool's list is read before the call goes out a
    second time: mcpmux knew it from its last run only, without what its headers are to be."""
    site = sites(modern_server)
    host = before(site)
    assert host.tools() == ["x__hello"]
    assert host.call("x__hello", region="eu")["content"][0]["text"] == "Hello"
    assert host.call("x__hello", region=" é")["content"][0]["text"] == "Hello"
    host.close()
    site.asked.clear()
    host = before(site)
    assert host.call("x__hello", region="us")["content"][0]["text"] == "Hello"
    host.close()
    for asked in site.asked:
        if asked.message["method"] != "initialize":
            assert asked.headers["mcp-protocol-version"] == "2026-07-28"
            assert asked.headers["mcp-method"] == asked.message["method"]
            assert asked.headers.get("mcp-name") == asked.message.get("params", {}).get("name")
            assert "mcp-session-id" not in asked.headers
    assert "notifications/cancelled" not in [asked.message["method"] for asked in site.asked]


@pytest.mark.requirement("http-cancellation")
def test_a_cancelled_call_is_the_end_of_its_stream_and_of_nothing_else(
    sites: Callable[..., FakeSite], before: Callable[..., RawHost]
):
    """2026-07-28, basic/transports/streamable-http#cancellation: there is no notification for it."""
    progress = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progress": 1}}

    def hold(asked: Asked) -> Reply:
        progress["params"]["progressToken"] = asked.message["params"]["_meta"]["progressToken"]
        return Reply(200, b"data: %b\n\n" % json.dumps(progress).encode(), "text/event-stream", hold=True)

    site = sites(on_call(hold, modern_server))
    host = before(site)
    assert host.tools() == ["x__hello"]
    number = host.ask("tools/call", {"name": "x__hello", "_meta": {"progressToken": 1}})
    host.until(lambda message: message.get("method") == "notifications/progress")
    host.cancel(number)
    assert site.closed.acquire(timeout=PATIENCE)
    assert host.request("ping")["result"] == {}
    host.close()
    assert "notifications/cancelled" not in [asked.message["method"] for asked in site.asked]


# ── lives ──


def test_a_server_that_takes_nothing_is_given_no_more_than_the_limit(
    sites: Callable[..., FakeSite], serve: Callable[..., RawHost]
):
    arrived, gate = threading.Semaphore(0), threading.Event()

    def slow(asked: Asked) -> Reply:
        arrived.release()
        assert gate.wait(PATIENCE)
        return legacy_server(asked)

    site = sites(on_call(slow))
    host = serve("[mux]\noutbox_mb = 1", f'[mcp_servers.x]\nurl = "{site.url}"', env={"NO_PROXY": "127.0.0.1"})
    host.initialize()
    long = host.ask("tools/call", {"name": "x__hello", "arguments": {"a": "a" * 2_000_000}})
    assert arrived.acquire(timeout=PATIENCE)
    assert says(host) == "x does not read its input: 1 MB wait for it already"
    gate.set()
    assert host.answer(long)["result"]["content"][0]["text"] == "Hello"
    assert says(host) == "Hello"


def test_a_call_that_is_being_answered_outlives_another_that_cannot_be_sent(
    sites: Callable[..., FakeSite], before: Callable[..., RawHost]
):
    """Our choice: what cannot be reached for a moment may still speak."""
    progress: dict[str, Any] = {"jsonrpc": "2.0", "method": "notifications/progress"}
    called: list[Asked] = []

    def late(asked: Asked) -> Reply:
        called.append(asked)
        token = asked.message["params"]["_meta"]["progressToken"]
        line = json.dumps(progress | {"params": {"progress": 1, "progressToken": token}}).encode()
        return Reply(200, b"data: %b\n\n" % line, "text/event-stream", late=True)

    site = sites(on_call(late))
    host = before(site)
    number = host.ask("tools/call", {"name": "x__hello", "_meta": {"progressToken": 1}})
    host.until(lambda message: message.get("method") == "notifications/progress")
    site.stop()
    assert says(host).startswith("mcpmux: x cannot be reached: connection refused")
    answer = json_reply(called[0], result={"content": [{"type": "text", "text": "at last"}]}).body
    site.more.put(b"data: %b\n\n" % answer)
    assert host.answer(number)["result"]["content"][0]["text"] == "at last"


def test_the_http_client_is_loaded_with_the_first_server_over_http_and_no_more_of_the_sdk(
    sites: Callable[..., FakeSite], home: dict[str, str], tmp_path: Path
):
    """Nobody waits for it before such a server is used. All of the SDK would take 0.3 s, and 36 MB."""
    config = tmp_path / "mcpmux.toml"
    config.write_text(f'[mcp_servers.x]\nurl = "{sites().url}"\n')
    command = [sys.executable, "-X", "importtime", str(MCPMUX), "--config", str(config)]

    def loaded(use: bool) -> set[str]:
        host = RawHost(command, home | {"NO_PROXY": "127.0.0.1"})
        try:
            host.initialize()
            assert host.tools() == ["x__hello"]
            if use:
                assert says(host) == "Hello"
        finally:
            code = host.close()
        assert code == 0, host.log()
        return set(re.findall(r"^import time: +\d+ \| +\d+ \| +(\w+)", host.log(), re.MULTILINE))

    heavy = {"anyio", "httpx2", "litellm", "mcp", "mcp_types", "pydantic"}
    assert loaded(use=True) & heavy == {"anyio", "httpx2"}
    assert not loaded(use=False) & heavy


def test_a_known_server_is_not_spoken_to_before_it_is_used(
    sites: Callable[..., FakeSite], before: Callable[..., RawHost]
):
    site = sites()
    host = before(site)
    assert host.tools() == ["x__hello"]
    host.close()
    site.asked.clear()
    host = before(site)
    assert host.tools() == ["x__hello"]
    assert site.asked == []
    assert says(host) == "Hello"


def test_an_address_that_changes_in_the_file_is_another_server(
    sites: Callable[..., FakeSite], before: Callable[..., RawHost], tmp_path: Path
):
    def other(asked: Asked) -> Reply:
        reply = legacy_server(asked)
        return reply._replace(body=reply.body.replace(b"hello", b"goodbye"))

    host = before(sites())
    assert host.tools() == ["x__hello"]
    (tmp_path / "mcpmux.toml").write_text(f'[mcp_servers.x]\nurl = "{sites(other).url}"\n')
    host.until(lambda message: message.get("method") == "notifications/tools/list_changed")
    assert host.tools() == ["x__goodbye"]


# ── logins ──


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Where a login is kept."""
    return tmp_path / "state" / "logins" / "x.json"


def a_login(**keys: Any) -> mcpmux.Login:
    return mcpmux.Login(
        **{"url": "http://a", "access_token": "t-1", "token_endpoint": "http://a/t", "client_id": "c"} | keys
    )


@pytest.mark.requirement("login-renewed")
def test_a_login_is_kept_for_its_owner_only_and_read_back(kept: Path):
    mcpmux.write_login(kept, a_login(refresh_token="r-1"))
    mcpmux.write_login(kept, a_login(refresh_token="r-2"))
    mcpmux.write_login(kept.with_name("y.json"), a_login(url="http://b"))
    assert mcpmux.read_login(kept) == a_login(refresh_token="r-2")
    assert mcpmux.read_login(kept.with_name("z.json")) is None
    files = list(kept.parent.iterdir())
    assert len(files) == 2  # nothing of the writing is left
    if os.name != "nt":
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    kept.write_bytes(b"{")
    assert mcpmux.read_login(kept) is None


def test_a_login_that_cannot_be_written_leaves_the_former_one(kept: Path, monkeypatch: pytest.MonkeyPatch):
    mcpmux.write_login(kept, a_login())

    def full(*_: Any) -> int:
        raise OSError("full")

    monkeypatch.setattr(mcpmux.os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        mcpmux.write_login(kept, a_login(access_token="t-2"))
    assert mcpmux.read_login(kept) == a_login()
    assert len(list(kept.parent.iterdir())) == 1


@pytest.mark.requirement("login-renewed")
def test_a_login_belongs_to_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two accounts at one url are two tables."""
    monkeypatch.setattr(mcpmux, "state_folder", lambda: tmp_path)
    url = "https://example.org/mcp"
    config = mcpmux.read_config({"mcp_servers": {name: {"url": url} for name in ("home", "work")}}, tmp_path / "m.toml")
    other = mcpmux.msgspec.structs.replace(config, path=tmp_path / "other.toml")

    def login(name: str, config: mcpmux.Config) -> Path:
        return asyncio.run(mcpmux.locate(name, config.servers[name], config)).login

    places = [login("work", config), login("home", config), login("work", other)]
    assert len({*places}) == 3
    mcpmux.write_login(places[0], a_login(url=url))
    assert [mcpmux.read_login(place) for place in places] == [a_login(url=url), None, None]


@pytest.mark.requirement("login-renewed")
def test_one_refresh_token_is_used_once_however_many_want_it(sites: Callable[..., FakeSite], kept: Path):
    """Two keepers stand for two processes: the lock is that of a file."""
    site = sites(lambda asked: Reply(200, b'{"access_token":"t-2","refresh_token":"r-2","expires_in":3600}'))
    login = a_login(url=site.url, token_endpoint=site.url, refresh_token="r-1", expires_at=time.time() - 1, scope="a b")
    mcpmux.write_login(kept, login)
    journal = mcpmux.Journal("error", None)

    async def play() -> list[str | None]:
        keepers = [mcpmux.LoginKeeper(kept, False, journal) for _ in range(2)]
        return await asyncio.gather(*(keeper.token() for keeper in keepers * 5))

    assert set(asyncio.run(play())) == {"t-2"}
    assert len(site.asked) == 1
    assert site.asked[0].body == b"grant_type=refresh_token&refresh_token=r-1&client_id=c"
    found = mcpmux.read_login(kept)
    assert found
    assert (found.access_token, found.refresh_token, found.scope) == ("t-2", "r-2", "a b")
    assert journal.redact("t-2 r-2 r-1") == "t-2 r-2 r-1"  # too short to be hidden; real ones are not
    journal.close()


LONG = b'{"access_token":"t-2","x":"' + b"x" * 2**20 + b'"}'


GARBLED = Reply(200, b"no gzip", "application/json", {"Content-Encoding": "gzip"})


@pytest.mark.parametrize(
    ("reply", "raises"),
    [
        (Reply(400, b'{"error":"invalid_grant"}'), ""),
        (Reply(500), "answered HTTP 500"),
        (Reply(200, LONG), "answered HTTP 200"),
        (GARBLED, "cannot be logged in to: its authorization server"),
    ],
)
def test_a_refresh_that_fails_leaves_the_login_as_it_was(
    sites: Callable[..., FakeSite], kept: Path, reply: Reply, raises: str
):
    site = sites(lambda asked: reply)
    login = a_login(url=site.url, token_endpoint=site.url, refresh_token="r-1")
    mcpmux.write_login(kept, login)
    journal = mcpmux.Journal("error", None)

    async def play() -> None:
        keeper = mcpmux.LoginKeeper(kept, False, journal)
        for _ in range(2):
            if raises:
                with pytest.raises(mcpmux.RemoteError, match=raises):
                    await keeper.renew("t-1")
            else:
                assert not await keeper.renew("t-1")

    asyncio.run(play())
    assert mcpmux.read_login(kept) == login
    assert len(site.asked) == (2 if raises else 1)  # what is refused once is not tried again
    journal.close()


def test_a_refresh_that_is_redirected_is_followed(sites: Callable[..., FakeSite], kept: Path):
    def answer(asked: Asked) -> Reply:
        moved = Reply(307, headers={"Location": "/new"})
        return Reply(200, b'{"access_token":"t-2"}') if asked.path == "/new" else moved

    site = sites(answer)
    mcpmux.write_login(kept, a_login(url=site.url, token_endpoint=site.url, refresh_token="r-1"))
    journal = mcpmux.Journal("error", None)

    async def play() -> bool:
        return await mcpmux.LoginKeeper(kept, False, journal).renew("t-1")

    assert asyncio.run(play())
    found = mcpmux.read_login(kept)
    assert found
    assert (found.access_token, found.refresh_token) == ("t-2", "r-1")
    assert [asked.path for asked in site.asked] == ["/mcp", "/new"]
    journal.close()


def test_a_renewal_that_fails_leaves_no_connection_open(
    sites: Callable[..., FakeSite],
    before: Callable[..., RawHost],
    home: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    gone = sites()
    gone.stop()
    site = sites(on_call(lambda _: Reply(401, hold=True)))
    for key, value in home.items():
        monkeypatch.setenv(key, value)  # the same logins
    login = mcpmux.login_path(tmp_path / "mcpmux.toml", "x", site.url)
    mcpmux.write_login(login, a_login(url=site.url, token_endpoint=gone.url, refresh_token="r-1"))
    host = before(site)
    assert "cannot be logged in to: its authorization server cannot be reached" in says(host)
    assert site.closed.acquire(timeout=PATIENCE)
    assert host.request("ping")["result"] == {}


def protected(asked: Asked) -> Reply:
    """A server behind an authorization server that lets nobody register by himself."""
    here = f"http://{asked.headers['host']}"
    path, _, query = asked.path.partition("?")
    match path:
        case "/.well-known/oauth-protected-resource/mcp":
            return Reply(200, json.dumps({"resource": f"{here}/mcp", "authorization_servers": [here]}).encode())
        case "/.well-known/oauth-authorization-server":
            places = {"authorization_endpoint": f"{here}/authorize", "token_endpoint": f"{here}/token"}
            more = {"response_types_supported": ["code"], "code_challenge_methods_supported": ["S256"]}
            more["client_id_metadata_document_supported"] = True
            return Reply(200, json.dumps({"issuer": here} | places | more).encode())
        case "/authorize":
            asks = dict(parse_qsl(query))
            answer = urlencode({"code": "c-1", "state": asks["state"]})
            return Reply(302, headers={"Location": f"{asks['redirect_uri']}?{answer}"})
        case "/token":
            return Reply(200, b'{"access_token":"token-1","token_type":"Bearer","expires_in":3600,"scope":"read"}')
        case "/mcp" if asked.headers.get("authorization") == "Bearer token-1":
            return legacy_server(asked)
        case "/mcp":
            where = f'Bearer resource_metadata="{here}/.well-known/oauth-protected-resource/mcp"'
            return Reply(401, headers={"WWW-Authenticate": where})
        case _:
            return Reply(404)


@pytest.mark.requirement("login")
@pytest.mark.parametrize(
    ("table", "client", "secret"),
    [
        ('client_id = "abc"\nclient_secret = "${SECRET}"', "abc", "hush"),
        ('client_id = "https://example.org/mcpmux.json"', "https://example.org/mcpmux.json", None),
    ],
)
def test_a_login_as_a_client_of_ones_own(
    sites: Callable[..., FakeSite],
    serve: Callable[..., RawHost],
    home: dict[str, str],
    tmp_path: Path,
    table: str,
    client: str,
    secret: str | None,
):
    """2026-07-28, basic/authorization/client-registration: one that is known there, or a client metadata document."""
    site = sites(protected)
    browser = Path(__file__).parent / "third_party" / "browser.py"
    env = {"NO_PROXY": "127.0.0.1", "SECRET": "hush", "BROWSER": f"{sys.executable} {browser} %s"}
    config = tmp_path / "mcpmux.toml"
    text = f'[mcp_servers.x]\nurl = "{site.url}"\nscopes = ["read", "more"]\n[mcp_servers.x.oauth]\n{table}\n'
    config.write_text(text)
    command = [*COMMAND, "login", "x", "--config", str(config)]
    done = subprocess.run(command, env=home | env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert "Logged in to x." in done.stdout
    assert not [asked for asked in site.asked if asked.path == "/register"]
    [asked] = [dict(parse_qsl(one.path.partition("?")[2])) for one in site.asked if one.path.startswith("/authorize")]
    assert (asked["client_id"], asked["scope"], asked["resource"]) == (client, "read more", site.url)
    [token] = [dict(parse_qsl(one.body.decode())) for one in site.asked if one.path == "/token"]
    assert (token["client_id"], token.get("client_secret"), token["code"]) == (client, secret, "c-1")
    host = serve(text, env=env)
    host.initialize()
    assert says(host) == "Hello"


def test_a_login_where_none_is_wanted_or_possible_says_so(
    sites: Callable[..., FakeSite], home: dict[str, str], tmp_path: Path
):
    """The browser is never opened for that."""
    closed = sites(lambda asked: Reply(401 if asked.path == "/mcp" else 404))
    config = tmp_path / "login.toml"
    tables = [f'[mcp_servers.{name}]\nurl = "{site.url}"\n' for name, site in {"open": sites(), "shut": closed}.items()]
    own = '[mcp_servers.own]\nurl = "http://127.0.0.1/"\nhttp_headers = { authorization = "Bearer x" }\n'
    config.write_text("\n".join([*tables, own, '[mcp_servers.local]\ncommand = "x"']))

    def login(name: str) -> tuple[int, str]:
        command = [*COMMAND, "login", name, "--config", str(config)]
        env = home | {"NO_PROXY": "127.0.0.1", "BROWSER": "false"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    assert login("open") == (0, "open asks for no login.\n")
    code, text = login("shut")
    assert code == 1
    assert text.startswith("mcpmux: shut cannot be logged in to: ")
    text = "mcpmux: own has credentials in its table already (take them out of it to log in instead)\n"
    assert login("own") == (1, text)
    hint = "of servers with a url there are: open, shut, own"
    assert login("local") == (2, f"mcpmux: {config}: local runs on this machine and has no login; {hint}\n")
    assert login("opn") == (2, f"mcpmux: {config}: opn is not in it; of servers with a url did you mean open?\n")


def logs_in(site: FakeSite, home: dict[str, str], tmp_path: Path, more: str = "", browser: str = "") -> tuple[int, str]:
    """What `mcpmux login x` comes to: its code and what it says."""
    config = tmp_path / "mcpmux.toml"
    config.write_text(f'[mcp_servers.x]\nurl = "{site.url}"\n{more}')
    agrees = f"{sys.executable} {Path(__file__).parent / 'third_party' / 'browser.py'} %s"
    env = home | {"NO_PROXY": "127.0.0.1", "BROWSER": browser or agrees}
    command = [*COMMAND, "login", "x", "--config", str(config)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


OWN_CLIENT = '[mcp_servers.x.oauth]\nclient_id = "abc"\n'


@pytest.mark.requirement("login")
@pytest.mark.parametrize("iss", [None, "", "/"])
@pytest.mark.parametrize(("resource", "issuer"), [("", ""), ("/", ""), ("", "/"), ("/", "/")])
def test_an_issuer_is_the_same_with_a_slash_after_an_empty_path_and_without(
    sites: Callable[..., FakeSite], home: dict[str, str], tmp_path: Path, resource: str, issuer: str, iss: str | None
):
    """As Google's servers spell it, and others the other way round."""

    def answer(asked: Asked) -> Reply:
        reply, here = protected(asked), f"http://{asked.headers['host']}"
        if "oauth-protected-resource" in asked.path:
            return reply._replace(body=reply.body.replace(f'["{here}"]'.encode(), f'["{here}{resource}"]'.encode()))
        if "oauth-authorization-server" in asked.path:
            return reply._replace(
                body=reply.body.replace(f'"issuer": "{here}"'.encode(), f'"issuer":"{here}{issuer}"'.encode())
            )
        if asked.path.startswith("/authorize") and iss is not None:
            return Reply(302, headers={"Location": reply.headers["Location"] + "&" + urlencode({"iss": here + iss})})
        return reply

    code, text = logs_in(sites(answer), home, tmp_path, OWN_CLIENT)
    assert "Logged in to x." in text
    assert code == 0


@pytest.mark.parametrize("issuer", ["/a", "/a/", "?a", "//"])
def test_another_issuer_is_another(sites: Callable[..., FakeSite], home: dict[str, str], tmp_path: Path, issuer: str):
    def answer(asked: Asked) -> Reply:
        reply, here = protected(asked), f"http://{asked.headers['host']}"
        return reply._replace(
            body=reply.body.replace(f'"issuer": "{here}"'.encode(), f'"issuer":"{here}{issuer}"'.encode())
        )

    site = sites(answer)
    code, text = logs_in(site, home, tmp_path, OWN_CLIENT)
    assert code == 1
    assert "issuer mismatch" in text
    assert "/token" not in [asked.path for asked in site.asked]


@pytest.mark.requirement("login")
@pytest.mark.parametrize("published", [True, False])
def test_a_login_that_only_a_tool_call_asks_for_is_made(
    sites: Callable[..., FakeSite], serve: Callable[..., RawHost], home: dict[str, str], tmp_path: Path, published: bool
):
    """2026-07-28, basic/authorization: the server publishes how, whether or not it has refused anything so far."""

    def answer(asked: Asked) -> Reply:
        if asked.path.startswith("/.well-known/oauth-protected-resource") and not published:
            return Reply(404)
        is_call = asked.path == "/mcp" and asked.body and asked.message.get("method") == "tools/call"
        return protected(asked) if is_call or asked.path != "/mcp" else legacy_server(asked)

    site = sites(answer)
    code, text = logs_in(site, home, tmp_path, OWN_CLIENT)
    assert code == 0
    if not published:
        assert text == "x asks for no login.\n"
        return
    assert "Logged in to x." in text
    host = serve(f'[mcp_servers.x]\nurl = "{site.url}"\n{OWN_CLIENT}', env={"NO_PROXY": "127.0.0.1"})
    host.initialize()
    assert says(host) == "Hello"


def test_a_login_is_made_where_the_address_is_redirected_within_its_place(
    sites: Callable[..., FakeSite], home: dict[str, str], tmp_path: Path
):
    def answer(asked: Asked) -> Reply:
        if asked.path == "/mcp":
            return Reply(307, headers={"Location": "/mcp/"})
        return protected(asked._replace(path="/mcp") if asked.path == "/mcp/" else asked)

    code, text = logs_in(sites(answer), home, tmp_path, OWN_CLIENT)
    assert "Logged in to x." in text
    assert code == 0


class Knocker:
    """A browser's page that knows the port and tries its luck there."""

    def __init__(self, port: int) -> None:
        self.port = port

    def __call__(self, query: str, host: str | None = None, path: str = "/callback", more: str = "") -> int:
        """The status, or 0 where nobody listens."""
        lines = [f"GET {path}?{query} HTTP/1.1", *([f"Host: {host}"] if host is not None else []), more]
        try:
            with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as connection:
                connection.sendall("\r\n".join([*filter(None, lines), "", ""]).encode())
                return int(connection.makefile("rb").readline().split()[1])
        except ConnectionRefusedError:
            return 0


@pytest.mark.requirement("login")
def test_only_the_browser_that_was_sent_brings_an_answer():
    """RFC 8252, 8.10, and what a page elsewhere could try: before anybody is asked, with a state of its own, or under a
    name that leads here."""

    async def play() -> None:
        said: list[str] = []
        browser = mcpmux.Browser([], said.append)
        callback = await browser.open(0)
        port = int(callback.rpartition(":")[2].partition("/")[0])
        knock, here = Knocker(port), f"127.0.0.1:{port}"

        async def knocks(*arguments: str, **keys: str) -> int:
            return await asyncio.to_thread(knock, *arguments, **keys)

        for query in ("code=x", "code=x&state=", "error=x", "code=x&state=None"):
            assert await knocks(query, here) == 404
        browser._state = "s-1"  # as the SDK asks for it
        for query in (
            "code=x",
            "code=x&state=",
            "code=x&state=s-2",
            "code=x&state=s-",
            "state=s-1",
            "error=x&state=%C3%A9",
        ):
            assert await knocks(query, here) == 404
        for host in (
            None,
            "evil.example",
            f"evil.example:{port}",
            "127.0.0.1",
            f"127.0.0.1:{port + 1}",
            f"localhost:{port}",
        ):
            assert await knocks("code=x&state=s-1", host) == 404
        assert await knocks("code=x&state=s-1", "evil.example", more=f"Host: {here}") == 404
        assert await knocks("code=x&state=s-1", here, path="/other") == 404
        assert not browser._answer.done()
        assert await knocks("code=x&state=s-1", here) == 200
        assert await browser._answer == {"code": "x", "state": "s-1"}
        assert await knocks("code=y&state=s-1", here) == 200
        assert await browser._answer == {"code": "x", "state": "s-1"}
        browser.close()

    asyncio.run(play())


def test_words_of_an_authorization_server_cannot_move_the_terminal(
    sites: Callable[..., FakeSite], home: dict[str, str], tmp_path: Path
):
    def answer(asked: Asked) -> Reply:
        reply = protected(asked)
        if asked.path.startswith("/authorize"):
            query = dict(parse_qsl(asked.path.partition("?")[2]))
            said = {"error": "x", "error_description": "\x1b]0;pwn\x07 go\nto \u202eevil", "state": query["state"]}
            return Reply(302, headers={"Location": f"{query['redirect_uri']}?{urlencode(said)}"})
        return reply

    code, text = logs_in(sites(answer), home, tmp_path, OWN_CLIENT)
    assert code == 1
    assert "the login was refused: ]0;pwn go to evil (" in text
