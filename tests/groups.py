"""Groups of tests that run in one process because they use one running federation, and its end when they are over."""

from __future__ import annotations

from collections.abc import Callable

import pytest

__all__ = ["TOGETHER", "at_the_end", "end_all", "group_of"]

TOGETHER = {
    "tests/attacks/": ("",),
    "tests/federation/": (
        *("test_deployed_parity.py", "test_deployed_validation.py", "test_fleet.py", "test_flower_run.py"),
        "test_line_faults.py",
    ),
}
_ENDS = pytest.StashKey[list[Callable[[], None]]]()


def group_of(nodeid: str) -> str:
    """The group of a test: its file, or the federation that it uses."""
    path = nodeid.partition("::")[0]
    for folder, names in TOGETHER.items():
        if path.startswith(tuple(folder + name for name in names)):
            return folder
    return path


def at_the_end(config: pytest.Config, end: Callable[[], None]) -> None:
    """Call something when the tests of this group are over: servers that go on to the session's end slow others."""
    if _ENDS not in config.stash:
        config.stash[_ENDS] = []
        config.add_cleanup(lambda: end_all(config))
    config.stash[_ENDS].append(end)


def end_all(config: pytest.Config) -> None:
    """Call what was registered, the last first; each once."""
    ends = config.stash.get(_ENDS, [])
    while ends:
        ends.pop()()
