"""The server that all are measured with: one tool `echo`, answered from bytes that are made once.

    python echo.py [--tools N]

Its argument `size` is that of the result in bytes, `shape` is "text" (one long string) or "deep" (structured content:
small objects nested twenty deep), and `progress` the number of notifications before it.
"""

import json
import os
import re
import sys

ID = re.compile(rb'"id":\s*("[^"]*"|\d+)')
METHOD = re.compile(rb'"method":\s*"([^"]+)"')
SIZE = re.compile(rb'"size":\s*(\d+)')
TOKEN = re.compile(rb'"progressToken":\s*("[^"]*"|\d+)')
PROGRESS = re.compile(rb'"progress":\s*(\d+)')

TOOLS = int(sys.argv[2]) if sys.argv[1:2] == ["--tools"] else 1
SCHEMA = {
    "type": "object",
    "properties": {"size": {"type": "integer"}, "shape": {"type": "string"}, "progress": {"type": "integer"}},
}
RESULTS: dict[tuple[int, bool], bytes] = {}
ANSWERS = {
    b"ping": {},
    b"initialize": {
        "protocolVersion": "2025-11-25",
        "capabilities": {"tools": {}},
        "serverInfo": {"name": "echo", "version": "1"},
    },
    b"tools/list": {
        "tools": [
            {"name": "echo" if n == 0 else f"echo{n}", "description": "Says what it is told to.", "inputSchema": SCHEMA}
            for n in range(TOOLS)
        ]
    },
}
BYTES = {method: json.dumps(answer).encode() for method, answer in ANSWERS.items()}


def result(size: int, deep: bool) -> bytes:
    if (size, deep) not in RESULTS:
        if deep:
            tree: dict = {"id": 1234567, "tags": ["red", "green"], "at": {"x": 1.5, "y": [2, 3, None, True]}}
            for _ in range(8):
                tree = {"name": "a branch", "weight": 0.25, "below": [tree]}
            trees = [tree] * (size // len(json.dumps(tree)) or 1)
            value = {"content": [], "structuredContent": {"trees": trees}}
        else:
            value = {"content": [{"type": "text", "text": "x" * size}]}
        RESULTS[size, deep] = json.dumps(value).encode()
    return RESULTS[size, deep]


def answer(line: bytes) -> bytes:
    method, id = METHOD.search(line), ID.search(line)
    if not method or not id:
        return b""
    if method[1] == b"tools/call":
        size, progress, token = SIZE.search(line), PROGRESS.search(line), TOKEN.search(line)
        before = b""
        if progress and token:
            before = b"".join(
                b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%s,"progress":%d}}\n'
                % (token[1], n)
                for n in range(1, int(progress[1]) + 1)
            )
        body = result(int(size[1]) if size else 2, b'"deep"' in line)
        return before + b'{"jsonrpc":"2.0","id":' + id[1] + b',"result":' + body + b"}\n"
    if body := BYTES.get(method[1]):
        return b'{"jsonrpc":"2.0","id":' + id[1] + b',"result":' + body + b"}\n"
    error = b'{"code":-32601,"message":"there is no such method"}'
    return b'{"jsonrpc":"2.0","id":' + id[1] + b',"error":' + error + b"}\n"


waiting = b""
while data := os.read(0, 1 << 16):
    *lines, waiting = (waiting + data).split(b"\n")
    out = b"".join(map(answer, lines))
    while out:
        out = out[os.write(1, out) :]
