"""Plays `claude`, `codex` and `code` as far as mcpmux uses them: each writes its host's file anew, in its own looks.

python own_commands.py PROGRAM FILE ARGUMENT ...
"""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any


def main(program: str, file: Path, words: list[str]) -> int:
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    print(" ".join(["ran", program, *words]))
    if program == "codex":
        import tomli_w

        document: dict[str, Any] = tomllib.loads(text)
        servers = document.setdefault("mcp_servers", {})
    else:
        if program == "code":  # has comments in its file
            sys.path.insert(0, str(Path(__file__).parent.parent))
            from mcpmux import bare_json as text_of
        else:
            text_of = str
        document = json.loads(text_of(text) or "{}")
        servers = document.setdefault("servers" if program == "code" else "mcpServers", {})
    match [one for one in words if one not in ("--scope", "user")]:
        case ["mcp", "remove", name]:
            if name not in servers:
                print(f"there is no {name}", file=sys.stderr)
                return 1
            del servers[name]
        case ["mcp", "add-json", name, table] if name not in servers:
            servers[name] = json.loads(table)
        case ["mcp", "add", name, "--", command, *args]:
            servers[name] = {"command": command, "args": args}
        case ["--add-mcp", table]:
            added = json.loads(table)
            servers[added.pop("name")] = added
        case _:
            print(f"not understood: {words}", file=sys.stderr)
            return 2
    file.parent.mkdir(parents=True, exist_ok=True)
    new = tomli_w.dumps(document) if program == "codex" else json.dumps(document, indent=2, ensure_ascii=False)
    file.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
