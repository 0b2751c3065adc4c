"""The wheel, installed by pip into an environment of its own: what is in it works without the checkout."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.command import BARE
from tests.ports import demo_ports

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow


ENVIRON = {**BARE, "MULTICLOUD_CONF": "/dev/null", "MULTICLOUD_SOCKET": "/none"}


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command in another directory than the checkout's."""
    return subprocess.run(command, env=ENVIRON, cwd="/", capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the environment's commands."""
    directory = tmp_path_factory.mktemp("wheel")
    programs = directory / "opt/multicloud/bin"
    pip(Path(sys.executable).parent, "wheel", "--no-deps", f"--wheel-dir={directory}", str(without_git(directory)))
    venv.create(programs.parent)
    pip(programs, "install", "--no-compile", str(next(directory.glob("*.whl"))))
    return programs


def without_git(directory: Path) -> Path:
    """A copy of the checkout that has what an image is built of and no more."""
    copy = directory / "copy"
    for name in re.findall(r"^!(.*)", (ROOT / ".dockerignore").read_text(), re.MULTILINE):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, copy / name)
    return copy


def pip(programs: Path, *arguments: str) -> str:
    """What pip says about that environment; it must not fail."""
    done = run(sys.executable, "-m", "pip", f"--python={programs / 'python'}", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_command_starts(programs: Path) -> None:
    assert run(programs / "multicloud", "--version").stdout.startswith("multicloud, version 0.2.0.dev0")
    for program in (ROOT / "multicloud/bin").iterdir():
        started = run(programs / program.name)
        assert started.returncode in (1, 2), "there is no HAProxy, and no server"
        assert re.fullmatch(r"error: .*\n", started.stderr)


def test_what_runs_from_a_checkout_says_where_pip_looks_when_it_finds_nothing(tmp_path: Path) -> None:
    script = f"cd {without_git(tmp_path)}; . {ROOT}/deploy/venv.sh; make_venv demo"
    nowhere = {**ENVIRON, "PIP_INDEX_URL": "http://127.0.0.1:1/", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": "/dev/null"}
    started = subprocess.run(["sh", "-eu", "-c", script], env=nowhere, capture_output=True, text=True, check=False)
    assert started.returncode == 1
    assert started.stderr.splitlines()[-1].startswith("error: pip could not install what it needs; above is why.")


@pytest.mark.parametrize(("extra", "package"), [("plot", "matplotlib"), ("demo", "trustme")])
def test_what_an_error_says_to_install_is_what_is_missing(programs: Path, extra: str, package: str) -> None:
    said = run(programs / "multicloud", extra)
    assert said.returncode == 2
    requirement = re.findall(r"in the project's directory: pip install '\.(.*?)'", said.stderr)[0]
    assert (
        f" {package}-"
        in pip(programs, "install", "--dry-run", f"multicloud{requirement}").partition("Would install")[2]
    )


def test_the_demo_finds_its_configuration_in_the_wheel(programs: Path) -> None:
    pip(programs, "install", "--no-compile", "multicloud[demo]")
    port, stats_port = map(str, demo_ports())
    shown = run(programs / "multicloud", "demo", "--duration=3", f"--port={port}", f"--stats-port={stats_port}")
    assert (shown.returncode, shown.stderr) == (0, "")
