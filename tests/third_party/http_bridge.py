"""A stdio server over Streamable HTTP: as small as the official conformance suite needs it, and no part of mcpmux.

A legacy session is a process of its own; all requests of the modern era share one. What a server says that is no answer
goes to the oldest request that is open, else to the session's GET stream.
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PATIENCE = 30.0
OF_ERRORS = {-32022: 400, -32021: 400, -32601: 404}  # statuses of the modern era
VERSION = "io.modelcontextprotocol/protocolVersion"


class Session:
    """One process; by request, a queue of what is for it."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.open: dict[str, queue.Queue[dict[str, Any]]] = {}
        self.loose: queue.Queue[dict[str, Any]] = queue.Queue()
        self.lock = threading.Lock()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            message = json.loads(line)
            with self.lock:
                if "method" not in message and (mine := self.open.pop(json.dumps(message.get("id")), None)):
                    mine.put(message)
                else:
                    next(iter(self.open.values()), self.loose).put(message)

    def send(self, message: dict[str, Any]) -> queue.Queue[dict[str, Any]]:
        assert self.process.stdin
        answers: queue.Queue[dict[str, Any]] = queue.Queue()
        with self.lock:
            if "method" in message and "id" in message:
                self.open[json.dumps(message["id"])] = answers
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        return answers

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(PATIENCE)
        self.reader.join(PATIENCE)
        self.process.stdout.close()


class Bridge:
    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.sessions: dict[str, Session] = {}
        self.lock = threading.Lock()
        bridge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                text = self.rfile.read(int(self.headers["Content-Length"]))
                host = (self.headers.get("Host") or "").partition(":")[0]
                if host not in ("127.0.0.1", "localhost"):
                    self.reply(403, None)
                    return
                try:
                    message = json.loads(text)
                except ValueError:
                    self.reply(400, {"jsonrpc": "2.0", "error": {"code": -32700, "message": "Parse error"}})
                    return
                id, method = self.headers.get("Mcp-Session-Id"), message.get("method")
                if method == "initialize":
                    id = uuid.uuid4().hex
                elif VERSION in (message.get("params") or {}).get("_meta", {}):
                    id = "modern"
                session = bridge.session(id, command, env, begins=method == "initialize" or id == "modern")
                if session is None:
                    self.reply(404 if id else 400, None)
                    return
                answers = session.send(message)
                if method is None or "id" not in message:
                    self.reply(202, None)
                    return
                self.stream(answers, message["id"], {} if id == "modern" else {"Mcp-Session-Id": str(id)})

            def do_GET(self) -> None:
                session = bridge.session(self.headers.get("Mcp-Session-Id"), command, env)
                if session is None:
                    self.reply(405, None)
                else:
                    self.stream(session.loose, None, {})

            def do_DELETE(self) -> None:
                with bridge.lock:
                    session = bridge.sessions.pop(self.headers.get("Mcp-Session-Id") or "", None)
                if session:
                    session.close()
                self.reply(200 if session else 404, None)

            def reply(self, status: int, body: Any) -> None:
                data = b"" if body is None else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def stream(self, answers: queue.Queue[dict[str, Any]], id: Any, headers: dict[str, str]) -> None:
                self.close_connection = True
                try:
                    first = answers.get(timeout=PATIENCE)
                    if "method" not in first and id is not None and id == first.get("id"):
                        code = first.get("error", {}).get("code")
                        data = json.dumps(first).encode()
                        self.send_response(
                            {-32022: 400, -32021: 400, -32601: 404}.get(code, 200) if not headers else 200
                        )
                        for key, value in (headers | {"Content-Type": "application/json"}).items():
                            self.send_header(key, value)
                        self.send_header("Content-Length", str(len(data)))
                        self.end_headers()
                        self.wfile.write(data)
                        return
                    self.send_response(200)
                    for key, value in (headers | {"Content-Type": "text/event-stream"}).items():
                        self.send_header(key, value)
                    self.send_header("Connection", "close")
                    self.end_headers()
                    while True:
                        self.wfile.write(b"event: message\ndata: %b\n\n" % json.dumps(first).encode())
                        self.wfile.flush()
                        if "method" not in first and id is not None and first.get("id") == id:
                            return
                        first = answers.get(timeout=PATIENCE)
                except (queue.Empty, OSError):  # nobody listens any more, or nothing is said
                    pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/mcp"

    def session(
        self, id: str | None, command: list[str], env: dict[str, str], *, begins: bool = False
    ) -> Session | None:
        with self.lock:
            if begins and id and id not in self.sessions:
                self.sessions[id] = Session(command, env)
            return self.sessions.get(id or "")

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(PATIENCE)
        for session in self.sessions.values():
            session.close()
