"""The fine print is `requirements.md`; tests say which of it they hold mcpmux to. Neither may be without the other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
LIST = (HERE / "requirements.md").read_text(encoding="utf-8")
LISTED = re.findall(r"^- `([a-z0-9-]+)` \S", LIST, re.MULTILINE)
TREES = {path.relative_to(HERE): ast.parse(path.read_text(encoding="utf-8")) for path in HERE.rglob("test_*.py")}


def is_mark(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.requirement"


def marks_of_tests(tree: ast.Module) -> Iterator[ast.Call]:
    """Those that decorate a test, or are called on what becomes a class of tests."""
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name, decorator_list=marks) if name.startswith("test_"):
                yield from (mark for mark in marks if isinstance(mark, ast.Call) and is_mark(mark))
            case ast.Assign(value=ast.Call(func=ast.Call() as mark)) if is_mark(mark):
                yield mark
            case _:
                pass


def named() -> dict[str, list[str]]:
    """By requirement, where it is named."""
    found: dict[str, list[str]] = {}
    for path, tree in TREES.items():
        for mark in marks_of_tests(tree):
            for name in map(ast.literal_eval, mark.args):
                found.setdefault(name, []).append(f"{path}:{mark.lineno}")
    return found


def test_every_requirement_is_named_by_a_test():
    assert set(LISTED) - named().keys() == set()


def test_no_test_names_a_requirement_that_is_not_listed():
    assert {name: places for name, places in named().items() if name not in LISTED} == {}


def test_every_requirement_is_listed_once():
    assert len(LISTED) == len(set(LISTED)) == LIST.count("\n- ")


def test_no_mark_stands_where_it_marks_nothing():
    for path, tree in TREES.items():
        assert sum(map(is_mark, ast.walk(tree))) == len(list(marks_of_tests(tree))), path


def test_no_test_has_the_name_of_another_in_its_file():
    """The second would hide the first."""
    for path, tree in TREES.items():
        names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
        assert len(names) == len(set(names)), path
