"""What work costs, counted and not timed: the same in every run and on every machine.

Counted are the lines of mcpmux that run, each turn of a loop as one; the bytes that a method of a string goes through;
and the requests that are copied when a part looks at all that are open.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import mcpmux


def cost(work: Callable[[], object]) -> int:
    total, file = 0, mcpmux.__file__

    def line(frame: Any, event: str, argument: Any) -> Any:
        nonlocal total
        total += event == "line"
        return line

    def call(frame: Any, event: str, argument: Any) -> Any:
        return line if frame.f_code.co_filename == file else None

    def method(frame: Any, event: str, argument: Any) -> None:
        nonlocal total
        if event == "c_call" and frame.f_code.co_filename == file:
            own = getattr(argument, "__self__", None)
            total += len(own) if isinstance(own, bytes | bytearray | str) else 0

    def copying(made: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        def copies(*arguments: Any) -> list[Any]:
            nonlocal total
            copied = made(*arguments)
            total += len(copied)
            return copied

        return copies

    doors = {name: copying(getattr(mcpmux.InFlight, name)) for name in ("owed_by", "asked_by")}
    former = sys.gettrace(), sys.getprofile()
    with patch.multiple(mcpmux.InFlight, **doors):
        sys.settrace(call)
        sys.setprofile(method)
        try:
            work()
        finally:
            sys.settrace(former[0])
            sys.setprofile(former[1])
    return total


def assert_linear(prepare: Callable[[int], Callable[[], object]], *sizes: int) -> list[int]:
    """`prepare(size)` makes something of that size ready to be done. From each size to the next what it costs grows no
    more than the size, but for a part of it: something may begin to be done for each only where there are many."""
    costs = [cost(prepare(size)) for size in sizes]
    for at in range(1, len(sizes)):
        assert costs[at] <= 1.4 * costs[at - 1] * sizes[at] / sizes[at - 1] + 20 * sizes[at], costs
    return costs
