"""An HTTP server on loopback that answers as a test says: for what no well-behaved server does."""

from __future__ import annotations

import json
import queue
import ssl
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, NamedTuple

from conftest import PATIENCE, held_port


class Asked(NamedTuple):
    """One request that came."""

    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes
    port: int  # the client's: each connection has another

    @property
    def message(self) -> dict[str, Any]:
        return json.loads(self.body)


class Reply(NamedTuple):
    """What it is answered. `hold` keeps the connection open after the body until the client closes it; `late`, until
    the site has more to say; `said` is all that it says then, up to nothing. `raw` is all that is sent, in the place of
    a response, and again and again if it is `endless`."""

    status: int = 200
    body: bytes = b""
    kind: str = "application/json"
    headers: Mapping[str, str] = MappingProxyType({})
    hold: bool = False
    late: bool = False
    said: queue.Queue[bytes] | None = None
    raw: bytes | None = None
    endless: bool = False


Answer = Callable[[Asked], Reply]


class FakeSite:
    """Each request is answered by `answer`, and kept in `asked`. With `persistent`, a connection serves many."""

    def __init__(self, answer: Answer, *, certificate: str | None = None, persistent: bool = False) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.more: queue.Queue[bytes] = queue.Queue()
        self.closed = threading.Semaphore(0)  # once for each held connection that its client has closed
        site = self

        class Handler(BaseHTTPRequestHandler):
            timeout = PATIENCE
            protocol_version = "HTTP/1.1" if persistent else "HTTP/1.0"
            disable_nagle_algorithm = True

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked = Asked(self.command, self.path, headers, body, self.client_address[1])
                site.asked.append(asked)
                reply = site.answer(asked)
                if reply.raw is not None:
                    self.send_raw(reply)
                    return
                self.send_response(reply.status)
                for name, value in ({"Content-Type": reply.kind} | dict(reply.headers)).items():
                    self.send_header(name, value)
                if reply.hold or reply.late or reply.said:
                    self.send_header("Connection", "close")
                else:
                    self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)
                if reply.late:
                    self.wfile.write(site.more.get(timeout=PATIENCE))
                if reply.said:
                    try:
                        while chunk := reply.said.get(timeout=PATIENCE):
                            self.wfile.write(chunk)
                    except OSError:
                        pass
                if reply.hold:
                    try:
                        assert self.connection.recv(1) == b""
                    except OSError:  # as some systems tell it
                        pass
                    site.closed.release()

            def send_raw(self, reply: Reply) -> None:
                self.close_connection = True
                assert reply.raw is not None
                try:
                    self.wfile.write(reply.raw)
                    while reply.endless:
                        self.wfile.write(reply.raw.rpartition(b"\r\n\r\n")[2])
                    while reply.hold and self.connection.recv(1):
                        pass
                except OSError:  # the client had enough
                    pass

            do_GET = do_POST = do_DELETE = handle_any  # noqa: N815 - so they are called

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            allow_reuse_port = True  # beside what holds it
            request_queue_size = 128  # a host may ask for many things at once

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # of a client that goes in the middle

        self._held = held_port()
        self.port = self._held.getsockname()[1]
        self._server = Server(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self.port}/mcp"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def stop(self) -> None:
        """From now on connections are refused; no other site gets the port."""
        self._server.shutdown()
        self._thread.join(PATIENCE)
        self._server.server_close()

    def close(self) -> None:
        self.stop()
        self._held.close()


def json_reply(asked: Asked, **message: Any) -> Reply:
    return Reply(body=json.dumps({"jsonrpc": "2.0", "id": asked.message["id"], **message}).encode())


def legacy_server(asked: Asked) -> Reply:
    """A small well-behaved server with one tool, without sessions and streams."""
    if asked.method != "POST":
        return Reply(405)
    match asked.message:
        case {"method": "initialize"}:
            told = {
                "protocolVersion": "2025-11-25",
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "x", "version": "1"},
            }
            return json_reply(asked, result=told)
        case {"method": "tools/list"}:
            return json_reply(asked, result={"tools": [{"name": "hello", "inputSchema": {"type": "object"}}]})
        case {"method": "tools/call"}:
            return json_reply(asked, result={"content": [{"type": "text", "text": "Hello"}]})
        case {"id": _}:
            return json_reply(asked, error={"code": -32601, "message": "Method not found"})
        case _:
            return Reply(202)
