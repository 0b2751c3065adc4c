"""What `multicloud doctor` says of the settings, and of what HAProxy's user may do with files and sockets."""

import contextlib
import grp
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from multicloud.console import status
from multicloud.runtime import RuntimeAPIError
from multicloud.settings import Sources
from tests.command import run
from tests.console import patient
from tests.console.patient import GOOD, NOBODY, look, look_at, of_nobody, one, rewrite, small, told, well
from tests.console.test_doctor import as_root
from tests.edge import edge, wait_until

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
        wrong, others = look_at(router)
        for name, section, expected in (("eu", "upstream", 200), ("us", "upstream/us", 204)):
            line = one(wrong, f"the check of upstream/{name} fails")
            assert f"status 404, expected {expected}" in line
            assert line.endswith(f"set `path` or `expect` or `host` in [{section}] of {conf}")
        conf.write_text(
            CONF.replace("expect = 204", "expect = 404").replace("path = /healthz", "path = /healthz\nexpect = 404")
        )
        wait_until(lambda: look_at(router)[0] == [], 15, "nothing is wrong any more")
        general = one(others, "settings: ")
        assert f"times = {router.router.settings['MULTICLOUD_TIMES']} (MULTICLOUD_TIMES)" in general
        assert f"path = /all ({conf}:1)" in general
        assert one(others, "settings of upstream: ").endswith(f"path = /healthz ({conf}:3)")
        assert one(others, "settings of upstream/us: ").endswith(f"expect = 204 ({conf}:5), timeout = 1 ({conf}:6)")


def test_a_section_of_nobody_is_a_problem(conf: Path) -> None:
    conf.write_text("[ap]\npath = /\n[upstream]\npath = /\n[upstream/eu]\npath = /\n[upstream/ap]\npath = /\n")
    with edge({"eu": 0.01}, interval="600s") as router:
        router.router.settings["MULTICLOUD_CONF"] = str(conf)
        wrong, _ = look_at(router)
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
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["ok", "ok", "ok", "problem", "unknown", "unknown"]


@as_root
@pytest.mark.parametrize("path", ["settings", "bundle"])
def test_a_file_that_haproxys_user_cannot_read_is_the_only_cause_told_until_it_can(path: str) -> None:
    with for_all() as shared:
        conf, bundle = shared / "multicloud.conf", shared / "authority.pem"
        bundle.touch()
        conf.write_text(f"[upstream]\nca_file = {bundle}\n")
        unreadable = conf if path == "settings" else bundle
        unreadable.chmod(0o600)
        with of_nobody(GOOD.replace("mode 600", "mode 660 user nobody"), MULTICLOUD_CONF=str(conf)) as router:
            line = told(
                router, f"HAProxy's user nobody cannot read {'the settings file ' * (path == 'settings')}{unreadable}"
            )
            assert ("`chmod a+r" if path == "settings" else f"({conf}:2: ca_file)") in line
            unreadable.chmod(0o644)
            well(router)


@as_root
def test_a_socket_that_haproxys_user_cannot_open_is_told_until_its_line_says_whose_it_is() -> None:
    reweigh = """backend reweigh
    option external-check
    external-check path /usr/bin:/bin
    external-check command "${MULTICLOUD_REWEIGH}"
    server multicloud-reweigh 127.0.0.1:1 check inter 300
"""
    with of_nobody(GOOD + reweigh) as router:
        address = router.settings["MULTICLOUD_SOCKET"]
        line = told(
            router, f"HAProxy's user nobody cannot connect to the socket {address}, so no reweigh can set weights"
        )
        words = line.partition("write `")[2].partition("`")[0]
        assert words == f"user nobody group {grp.getgrgid(NOBODY.pw_gid).gr_name} mode 660"
        rewrite(router, lambda text: text.replace("mode 600", words))
        well(router)
        one(look(router.settings)[1], "HAProxy's user nobody can connect to the socket")


@as_root
def test_a_sample_file_that_haproxys_user_cannot_write_or_shorten_is_told_until_it_is_its_own() -> None:
    with for_all() as shared:
        times = shared / "times.txt"
        times.touch()
        with of_nobody(GOOD.replace("mode 600", "mode 660 user nobody"), MULTICLOUD_TIMES=str(times)) as router:
            told(router, f"HAProxy's user nobody cannot write the sample file {times}, which is root's: chown nobody")
            times.chmod(0o666)
            told(router, f"sample file {times}, but not shorten it, since it is somebody else's: chown nobody {times}")
            os.chown(times, NOBODY.pw_uid, -1)
            well(router)


@as_root
@pytest.mark.parametrize(
    ("words", "directory", "who"),
    [
        ("mode 600", 0o711, "un this as root (sudo)"),
        ("mode 600", 0o700, "un this as root (sudo)"),
        ("mode 660 group nogroup", 0o711, "or join the socket's group: `sudo usermod -aG GROUP $USER`"),
    ],
)
def test_who_may_not_open_the_socket_is_told_as_whom_to_ask(words: str, directory: int, who: str) -> None:
    def ask() -> list[str]:
        found = str(look(router.settings)[0])
        with pytest.raises(RuntimeAPIError) as refused:
            status.collect(Sources(router.settings))
        return [found, str(refused.value)]

    with small(GOOD.replace("mode 600", words)) as router:
        router.directory.chmod(directory)
        for line in patient.asked_by_somebody(ask):
            assert "permission denied" in line
            assert who in line


def test_where_only_haproxy_knows_what_a_check_says_doctor_says_how_to_see_it() -> None:
    with edge({"eu": 0.01}, commands={"MULTICLOUD_PATH": "mistyped"}) as router:
        wait_until(lambda: set(router.states().values()) == {"DOWN"}, 30, "it is DOWN")
        del router.router.settings["MULTICLOUD_PATH"]
        wrong, _ = look_at(router)
        line = one(wrong, "the check of upstream/eu fails with exit code 2")
        assert "HAProxy's standard error (`journalctl -u haproxy`), unless that is /dev/null (`haproxy -D`" in line
        assert "HAPROXY_PROXY_NAME=upstream HAPROXY_SERVER_NAME=eu HAPROXY_SERVER_ADDR=127.0.0.1 " in line
        command = line.split("`")[-2].partition("-- ")[2].split()
        assert command[-2:] == ["multicloud", "check"]
        variables = dict(word.split("=", 1) for word in command[1:-2])
        done = run("check", environ={**router.router.settings, "MULTICLOUD_PATH": "mistyped", **variables})
        assert done.stderr.startswith("error: MULTICLOUD_PATH: cannot read 'mistyped'")
        wrapper = router.router.directory / "multicloud-check"
        wrapper.write_text(wrapper.read_text().replace("MULTICLOUD_PATH=mistyped", "MULTICLOUD_PATH=/"))
        wait_until(lambda: look_at(router)[0] == [], 15, "nothing is wrong any more")
