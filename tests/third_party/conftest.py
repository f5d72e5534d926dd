"""Fixtures for tests with real servers. What they hold is explained in `harness`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import ChatApi, Launcher, Party, Site, all_parties, npm_modules


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A module with `is_on_the_diagonal` runs that much, unless all is asked for, or a test by its name; one with a
    `FLAG` only with that."""
    behind = [item for item in items if not config.getoption(getattr(getattr(item, "module", None), "FLAG", ""), True)]
    if behind:
        config.hook.pytest_deselected(items=behind)
        items[:] = [item for item in items if item not in behind]
    if config.getoption("--all-pairings") or any("::" in argument for argument in config.args):
        return
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        counts = getattr(getattr(item, "module", None), "is_on_the_diagonal", None)
        runs = counts is None or not hasattr(item, "callspec") or counts(item.callspec.params)
        (kept if runs else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


@pytest.fixture(scope="session")
def modules() -> Path:
    return npm_modules()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site").resolve())


@pytest.fixture(scope="session")
def parties(modules: Path, site: Site) -> dict[str, Party]:
    return all_parties(modules, site)


@pytest.fixture
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path_factory.mktemp("launcher"))
    yield launcher
    launcher.close()


@pytest.fixture(scope="module")
def module_launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """For processes that a whole module shares."""
    launcher = Launcher(tmp_path_factory.mktemp("launcher"))
    yield launcher
    launcher.close()


@pytest.fixture(scope="session")
def provider() -> Iterator[ChatApi]:
    api = ChatApi()
    yield api
    api.close()


@pytest.fixture
def api(provider: ChatApi) -> ChatApi:
    """The provider as if nobody had asked it yet."""
    provider.forget()
    return provider
