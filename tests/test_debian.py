"""The files of the Debian package that are made from the settings and the commands' help: deploy/debian/generate.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from multicloud import settings
from multicloud.console.cli import cli
from tests.command import BARE

ROOT = Path(__file__).parent.parent
DEBIAN = ROOT / "deploy/debian"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root below which they are."""
    root = tmp_path_factory.mktemp("package")
    environ = {**BARE, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, DEBIAN / "generate.py", root], cwd=ROOT, env=environ, check=True)
    return root


def test_the_settings_file_changes_nothing_as_it_is(package: Path) -> None:
    assert settings.Sources({"MULTICLOUD_CONF": str(package / "etc/multicloud.conf")}).sections == {"": {}}


def test_the_settings_file_has_every_setting_with_its_default(package: Path, tmp_path: Path) -> None:
    uncommented = tmp_path / "multicloud.conf"
    uncommented.write_text(re.sub(r"^#(?=\S)", "", (package / "etc/multicloud.conf").read_text(), flags=re.MULTILINE))
    found = settings.Sources({"MULTICLOUD_CONF": str(uncommented)})
    assert {name: text for name, (text, _) in found.sections[""].items()} == {
        setting.name: setting.default for setting in settings.ALL
    }
    assert len(found.sections) == 3
    for section in found.sections:
        found.read(settings.ALL, section)


def test_the_man_pages_have_every_command_and_every_setting(package: Path) -> None:
    commands = (package / "usr/share/man/man1/multicloud.1").read_text()
    assert re.findall(r"^\.SH multicloud ([a-z]+)", commands, re.MULTILINE) == list(cli.commands)
    shown = re.findall(r"^\\fB(\w+)\\fR$", (package / "usr/share/man/man5/multicloud.conf.5").read_text(), re.MULTILINE)
    assert sorted(shown) == sorted(setting.name for setting in settings.ALL)
    for program in os.listdir(ROOT / "multicloud/bin"):
        assert (package / f"usr/share/man/man1/{program}.1").exists()


def test_the_package_has_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (DEBIAN / "changelog").read_text().startswith(f"multicloud ({version}) ")
