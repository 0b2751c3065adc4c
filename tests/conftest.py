"""What several files use, what only root can do, and which tests come first."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import hypothesis
import pytest

from multicloud import settings
from tests import servers

if TYPE_CHECKING:
    from pathlib import Path

# On a busy machine any example can take long.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files with slow tests first, so that no worker begins one when the others have nothing left to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_runtest_setup(item: pytest.Item) -> None:
    marker = item.get_closest_marker("root")
    if marker and os.geteuid() != 0:
        pytest.skip(f"only root can {marker.args[0]}")


@pytest.fixture
def times(tmp_path: Path) -> Path:
    """A place for a sample file, which is not there yet."""
    return tmp_path / "times.txt"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str, str]:
    """Where HAProxy's socket is looked for in this test, in this order; nothing is there yet."""
    first, *others = (str(tmp_path / name) for name in ("first", "second", "third"))
    monkeypatch.setattr(settings.SOCKET, "default", first)
    monkeypatch.setattr(settings.SOCKET, "others", tuple(others))
    return first, others[0], others[1]


@pytest.fixture(scope="session")
def ca_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The authority of tests/servers.py."""
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    servers.AUTHORITY.cert_pem.write_to_path(str(path))
    return str(path)
