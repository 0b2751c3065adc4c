"""The files of the Debian package that are made from the settings and the commands' help, and its version."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version

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
        setting.name: setting.default for setting in settings.ALL_SETTINGS
    }
    assert len(found.sections) == 3
    for section in found.sections:
        found.read(settings.ALL_SETTINGS, section)


def test_the_man_pages_have_every_command_and_every_setting(package: Path) -> None:
    commands = (package / "usr/share/man/man1/multicloud.1").read_text()
    assert re.findall(r"^\.SH multicloud ([a-z]+)", commands, re.MULTILINE) == list(cli.commands)
    shown = re.findall(r"^\\fB(\w+)\\fR$", (package / "usr/share/man/man5/multicloud.conf.5").read_text(), re.MULTILINE)
    assert sorted(shown) == sorted(setting.name for setting in settings.ALL_SETTINGS)
    for program in os.listdir(ROOT / "multicloud/bin"):
        assert (package / f"usr/share/man/man1/{program}.1").exists()


def version(root: Path, **environ: str) -> str:
    """What the program says of the checkout at `root`."""
    program: list[str | Path] = [sys.executable, root / "deploy/version.py"]
    said = subprocess.run(program, env={**BARE, **environ}, stdout=subprocess.PIPE, text=True, check=True)
    return said.stdout.strip()


def test_the_version_grows_with_every_commit_so_that_an_upgrade_is_one(tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    shutil.copy(ROOT / "deploy/version.py", tmp_path / "deploy")
    versions = [version(tmp_path)]
    git = ["git", "-C", str(tmp_path), "-c", "user.name=somebody", "-c", "user.email=somebody@example.com"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    for _ in range(11):
        subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message=more"], check=True)
        versions.append(version(tmp_path))
    assert versions[0] == version(tmp_path, PATH="/none") == "0.2.0~dev0"
    assert re.fullmatch(r"0\.2\.0~dev11\+g[0-9a-f]{7}", versions[-1])
    assert version(tmp_path, PATH="/none", BUILD_VERSION=versions[-1]) == versions[-1]
    for before, after in itertools.pairwise([*versions, "0.2.0"]):
        subprocess.run(["dpkg", "--compare-versions", before, "lt", after], check=True)
        assert Version(before.replace("~", ".")) < Version(after.replace("~", "."))


def test_without_git_all_say_the_same_version(tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    shutil.copy(ROOT / "deploy/version.py", tmp_path / "deploy")
    assert (DEBIAN / "changelog").read_text().startswith(f"multicloud ({version(tmp_path)}) ")
    release = version(tmp_path).partition("~")[0]
    assert re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE) == [release, "0.1.0"]


def test_the_package_has_the_manual() -> None:
    assert (DEBIAN / "docs").read_text().split() == ["CHANGELOG.md", "README.md", "docs", "deploy", "haproxy.cfg"]
