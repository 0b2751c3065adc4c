"""What `multicloud doctor` says of the settings, and of what HAProxy's user may do with files and sockets."""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.command import run
from tests.console.test_doctor import as_root, doctor, one
from tests.edge import edge, wait_until
from tests.haproxy import haproxy, tell

if TYPE_CHECKING:
    from collections.abc import Iterator

CONF = """\
path = /all
[upstream]
path = /healthz
[upstream/us]
expect = 204
timeout = 1
"""


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    return tmp_path / "multicloud.conf"


def of_nobody(text: str) -> str:
    """A configuration whose HAProxy runs as nobody."""
    nobody = pwd.getpwnam("nobody")
    return text.replace("global\n", f"global\n    uid {nobody.pw_uid}\n    gid {nobody.pw_gid}\n", 1)


@contextlib.contextmanager
def for_all() -> Iterator[Path]:
    """A directory that every user can read, as pytest's are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_servers_are_probed_with_the_settings_of_their_sections_which_are_shown(conf: Path) -> None:
    conf.write_text(CONF)
    with edge({"eu": 0.01, "us": 0.01}, commands={"MULTICLOUD_CONF": str(conf)}) as router:
        for region in router.regions:
            region.status = 404
        wait_until(lambda: set(router.states().values()) == {"DOWN"}, 30, "both are DOWN")
        _, wrong, others = doctor(router)
        for name, section, used in (
            ("eu", "upstream", f"asked with path = /healthz ({conf}:3), expect = 200 (default), ca_file = "),
            (
                "us",
                "upstream/us",
                f"asked with timeout = 1 ({conf}:6), path = /healthz ({conf}:3), expect = 204 ({conf}:5), ca_file = ",
            ),
        ):
            line = one(wrong, f"the check of upstream/{name} fails")
            assert "status 404, expected 20" in line
            assert f"set `path` or `expect` or `host` in [{section}] of {conf}; {used}" in line
        general = one(others, "settings: ")
        assert f"times = {router.router.settings['MULTICLOUD_TIMES']} (MULTICLOUD_TIMES)" in general
        assert f"path = /all ({conf}:1)" in general
        assert one(others, "settings of upstream: ").endswith(f"path = /healthz ({conf}:3)")
        assert one(others, "settings of upstream/us: ").endswith(f"expect = 204 ({conf}:5), timeout = 1 ({conf}:6)")


def test_a_section_of_nobody_is_a_problem(conf: Path) -> None:
    conf.write_text("[ap]\npath = /\n[upstream]\npath = /\n[upstream/eu]\npath = /\n[upstream/ap]\npath = /\n")
    with edge({"eu": 0.01}, interval="600s") as router:
        router.router.settings["MULTICLOUD_CONF"] = str(conf)
        code, wrong, _ = doctor(router)
        assert code == 1
        assert f"{conf}: [ap] names no backend of HAProxy's" in one(wrong, "names no backend")
        assert f"{conf}: [upstream/ap] names no server of upstream" in one(wrong, "names no server")
        assert one(wrong, "names no server").endswith("its servers: eu")


def test_what_the_environment_says_of_a_setting_is_told_to_win(conf: Path) -> None:
    conf.write_text(CONF)
    done = run("doctor", "--path", "/here", environ={"MULTICLOUD_CONF": str(conf), "MULTICLOUD_SOCKET": "/none"})
    assert "settings: path = /here (MULTICLOUD_PATH), socket = /none (MULTICLOUD_SOCKET)" in done.stdout
    assert f"settings of upstream: path = /healthz ({conf}:3, but MULTICLOUD_PATH wins here)" in done.stdout


@pytest.mark.parametrize("environ", [{}, {"MULTICLOUD_EXPECT": "204"}])
@pytest.mark.parametrize("section", ["[none]", "[none/server]"])
def test_a_value_that_cannot_be_read_is_exit_code_2_in_whatever_section(
    conf: Path, section: str, environ: dict[str, str]
) -> None:
    conf.write_text(f"{section}\nexpect = ok\n")
    done = run("doctor", environ={"MULTICLOUD_CONF": str(conf), **environ})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {conf}:2: expect: cannot read 'ok'; accepted: status codes: 200 or 200,204 or 200-399\n"
    )


def test_where_haproxy_is_away_nothing_else_is_guessed_from_it(conf: Path) -> None:
    conf.write_text(CONF)
    done = run(
        "doctor", "--socket", f"{conf}.sock", environ={"MULTICLOUD_CONF": str(conf), "MULTICLOUD_TIMES": "/none"}
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["problem", "ok", "ok", "ok", "unknown"]


@as_root
def test_a_settings_file_that_haproxys_user_cannot_read_is_the_cause_of_all(conf: Path) -> None:
    conf.write_text(CONF)
    conf.chmod(0o600)
    with edge({"eu": 0.01}, configure=of_nobody) as router:
        router.router.settings["MULTICLOUD_CONF"] = str(conf)
        wait_until(lambda: set(router.states().values()) == {"DOWN"}, 30, "it is DOWN")
        code, wrong, _ = doctor(router)
        assert code == 1
        assert f"HAProxy's user nobody cannot read the settings file {conf}" in one(wrong, "settings file")
        for consequence in ("fails", "no samples", "nobody sets weights"):
            assert consequence not in " ".join(wrong)


@as_root
def test_a_bundle_that_haproxys_user_cannot_read_is_the_cause_of_failing_checks() -> None:
    with for_all() as shared:
        conf, bundle = shared / "multicloud.conf", shared / "authority.pem"
        bundle.touch(mode=0o600)
        conf.write_text(f"[upstream]\nca_file = {bundle}\n")
        with edge({"eu": 0.01}, configure=of_nobody) as router:
            router.router.settings["MULTICLOUD_CONF"] = str(conf)
            del router.router.settings["MULTICLOUD_CA_FILE"]
            wait_until(lambda: set(router.states().values()) == {"DOWN"}, 30, "it is DOWN")
            _, wrong, _ = doctor(router)
            assert f"HAProxy's user nobody cannot read {bundle} ({conf}:2: ca_file)" in one(wrong, "certificate")
            assert "fails" not in " ".join(wrong)


@as_root
def test_a_socket_that_haproxys_user_cannot_open_is_a_problem_of_the_reweigh() -> None:
    with edge({"eu": 0.01, "us": 0.1}, configure=of_nobody) as router:
        wait_until(lambda: router.states("reweigh")["multicloud-reweigh"] == "DOWN", 30, "the reweigh fails")
        address = router.router.settings["MULTICLOUD_SOCKET"]
        code, wrong, _ = doctor(router)
        assert code == 1
        line = one(wrong, f"HAProxy's user nobody cannot connect to the socket {address}")
        group = pwd.getpwnam("nobody").pw_gid
        assert "write `user nobody group " in line
        assert "nobody sets weights" not in " ".join(wrong), "that follows from it"
        router.router.directory.chmod(0o711)
        os.chown(address, pwd.getpwnam("nobody").pw_uid, group)
        _, wrong, others = doctor(router)
        assert "cannot connect" not in " ".join(wrong)
        one(others, "HAProxy's user nobody can connect to it")


@as_root
def test_a_sample_file_that_cannot_be_shortened_or_only_in_place_is_told() -> None:
    with for_all() as shared:
        times = shared / "times.txt"
        times.write_text("upstream eu 0.02 1763870000\n")
        times.chmod(0o666)
        with haproxy("backend upstream\n server eu 127.0.0.1:1\n", extra="user nobody") as address:

            def said() -> str:
                lines = run("doctor", "--times", str(times), "--socket", address).stdout.splitlines()
                return one(lines, f"HAProxy's user nobody can write the sample file {times}")

            assert said().startswith("problem ")
            assert said().endswith(f", but not shorten it, since it is somebody else's: chown nobody {times}")
            os.chown(times, pwd.getpwnam("nobody").pw_uid, -1)
            assert said().startswith("ok ")
            assert said().endswith(f", which is shortened in place, since that user cannot write {shared}")
            shared.chmod(0o777)
            assert said().endswith(str(times))


@as_root
def test_a_sample_file_that_is_a_mount_is_shortened_in_place() -> None:
    with for_all() as shared, haproxy("backend upstream\n server eu 127.0.0.1:1\n") as address:
        times = shared / "times.txt"
        times.touch()
        if subprocess.run(["mount", "--bind", times, times], check=False).returncode:
            pytest.skip("root may not mount here")
        try:
            lines = run("doctor", "--times", str(times), "--socket", address).stdout.splitlines()
        finally:
            subprocess.run(["umount", times], check=True)
        assert one(lines, "can write the sample file").endswith(", since it is a mount of its own")


@as_root
def test_a_sample_file_that_haproxys_user_cannot_write_is_the_cause_of_missing_samples() -> None:
    passing = """
backend upstream
    option external-check
    external-check path "/usr/bin:/bin"
    external-check command true
    server eu 127.0.0.1:1 check inter 100
"""
    with for_all() as shared, haproxy(passing, extra="external-check\n insecure-fork-wanted\n user nobody") as address:
        times = shared / "times.txt"
        times.touch()
        wait_until(lambda: "PROCOK" in tell(address, "show stat")[0], 30, "the check has passed")
        arguments = "doctor", "--times", str(times), "--socket", address
        assert "cannot write the sample file" in one(run(*arguments).stdout.splitlines(), "sample")
        os.chown(times, pwd.getpwnam("nobody").pw_uid, -1)
        assert "has no samples of a server that HAProxy knows" in run(*arguments).stdout


def test_where_nothing_keeps_what_a_check_says_doctor_says_how_to_see_it() -> None:
    def quiet(text: str) -> str:
        return text.replace("global\n", "global\n    quiet\n", 1)

    for configure, expected in ((str, "HAProxy's standard error (`journalctl"), (quiet, "standard error is /dev/null")):
        with edge({"eu": 0.01}, commands={"MULTICLOUD_PATH": "mistyped"}, configure=configure) as router:
            wait_until(lambda router=router: set(router.states().values()) == {"DOWN"}, 30, "it is DOWN")  # type: ignore[misc]
            del router.router.settings["MULTICLOUD_PATH"]
            _, wrong, _ = doctor(router)
            line = one(wrong, "the check of upstream/eu fails with exit code 2")
            assert expected in line
            assert "HAPROXY_PROXY_NAME=upstream HAPROXY_SERVER_NAME=eu HAPROXY_SERVER_ADDR=127.0.0.1 " in line
            command = line.split("`")[-2].partition("-- ")[2].split()
            assert command[-2:] == ["multicloud", "check"]
            variables = dict(word.split("=", 1) for word in command[1:-2])
            done = run("check", environ={**router.router.settings, "MULTICLOUD_PATH": "mistyped", **variables})
            assert done.stderr.startswith("error: MULTICLOUD_PATH: cannot read 'mistyped'")
