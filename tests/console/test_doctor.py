"""`multicloud doctor`: what it finds in a real HAProxy and in configurations, and what it says to do."""

from __future__ import annotations

import pwd
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from multicloud.console import parser
from multicloud.demo.router import haproxy_binary
from tests.command import Terminal, run
from tests.edge import Edge, edge, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

as_root = pytest.mark.root("run HAProxy as somebody else")

GOOD = """
global
    stats socket "${RUN_DIR-/var/run}/haproxy.sock" mode 600 level admin
    insecure-fork-wanted
    external-check
defaults
    timeout connect 2s
backend upstream
    balance roundrobin
    option external-check
    external-check path "/usr/bin:/bin"
    external-check command true  # stands for multicloud-check
    default-server inter 2s
    server eu 192.0.2.1:443 check
    server us 192.0.2.2:443 check
"""


def doctor(router: Edge, *arguments: str) -> tuple[int, list[str], list[str]]:
    """Exit code, problems and other findings about a running router."""
    done = run("doctor", *arguments, environ=router.router.settings)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    wrong = [line for line in lines if line.startswith("problem ")]
    return done.returncode, wrong, [line for line in lines if line not in wrong]


def one(lines: list[str], part: str) -> str:
    """The only line with this part."""
    found = [line for line in lines if part in line]
    assert len(found) == 1, lines
    return found[0]


# The running HAProxy


def test_all_is_well_with_the_shipped_configuration() -> None:
    with edge({"eu": 0.01, "us": 0.1}) as router:
        wait_until(lambda: router.weights() == {"eu": 256, "us": 1}, 30, "the two are ranked")
        code, wrong, others = doctor(router, "-f", str(router.router.directory / "haproxy.cfg"))
        assert (code, wrong) == (0, [])
        for part in (
            "answers at",
            "level admin",
            "the checks of all 2 servers pass",
            "2 servers are measured",
            "`global` has `external-check`",
            "`global` has `insecure-fork-wanted`",
            "upstream: `balance roundrobin` takes weights",
        ):
            assert one(others, part).startswith("ok ")
        with Terminal("doctor", environ=router.router.settings) as terminal:
            assert terminal.wait() == 0
        assert "\x1b[32mok" in terminal.output


def test_a_socket_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    done = run("doctor", "--socket", str(tmp_path / "none.sock"))
    assert done.returncode == 1
    assert done.stdout.startswith(f"problem {tmp_path}/none.sock: no such file or directory;")
    assert f"Put `stats socket {tmp_path}/none.sock mode 600 level admin` into `global`" in done.stdout


def test_a_socket_that_may_not_set_weights_is_a_problem() -> None:
    with edge({"eu": 0.01}, configure=lambda text: text.replace("level admin", "level operator")) as router:
        code, wrong, _ = doctor(router)
        assert code == 1
        assert "has the level operator, so that HAProxy refuses `set server`" in one(wrong, "level")
        assert "level admin" in one(wrong, "level")


def test_a_static_balance_algorithm_is_a_problem() -> None:
    def static(text: str) -> str:
        return text.replace("balance roundrobin", "balance static-rr", 1)

    with edge({"eu": 0.01, "us": 0.1}, configure=static) as router:
        wait_until(lambda: len(router.times()) >= 2, 30, "both are measured")
        for arguments in ((), ("-f", str(router.router.directory / "haproxy.cfg"))):
            code, wrong, _ = doctor(router, *arguments)
            assert code == 1
            line = one(wrong, "`balance static-rr` is static")
            assert "Backend is using a static LB algorithm and only accepts weights '0%' and '100%'." in line
            assert "write `balance roundrobin`" in line
        refused = router.tell("set server upstream/eu weight 256")
        assert refused in line, "it cites what HAProxy says"


def test_what_the_checks_of_servers_that_are_down_say_is_told() -> None:
    with edge({"eu": 0.01, "us": 0.1}) as router:
        for region in router.regions:
            region.status = 503
        wait_until(lambda: set(router.states().values()) == {"DOWN"}, 30, "both are DOWN")
        code, wrong, _ = doctor(router)
        assert code == 1
        assert "no server of upstream is UP (DOWN)" in one(wrong, "no server")
        for name in ("eu", "us"):
            line = one(wrong, f"the check of upstream/{name} fails with exit code 1: ")
            assert f": https://{name}:{router.region[name].port} (127.0.0.1): status 503, expected 200: " in line
            assert "set `path` or `expect` or `host` in [upstream] of /etc/multicloud.conf" in line
            assert "; asked with path = / (default), expect = 200 (default), ca_file = " in line
        assert "no samples" not in " ".join(wrong)


def test_a_server_of_mode_tcp_without_tls_is_probed_as_such(tmp_path: Path) -> None:
    def databases(text: str) -> str:
        return f"""{text}
backend databases from common
    mode tcp
    option external-check
    external-check command {tmp_path}/check
    server db 127.0.0.1:1 check inter 1s
"""

    script = tmp_path / "check"
    script.write_text("#!/bin/sh\nexit 1\n")
    script.chmod(0o755)
    with edge({"eu": 0.01}, configure=databases) as router:
        wait_until(lambda: router.states("databases") == {"db": "DOWN"}, 30, "it is DOWN")
        _, wrong, _ = doctor(router)
        line = one(wrong, "the check of databases/db fails with exit code 1: ")
        assert line.endswith("tcp://db:1 (127.0.0.1): connection refused, connecting; asked with all defaults")


def test_checks_that_are_slower_than_their_interval_are_a_problem() -> None:
    with edge({"eu": 0.01, "us": 5.0}) as router:

        def killed() -> bool:
            return "PROCTOUT" in router.tell("show stat")

        wait_until(killed, 30, "a check is killed at its time limit")
        code, wrong, _ = doctor(router)
        assert code == 1
        assert "a longer `inter`" in one(wrong, "the check of upstream/us is slower than its interval")


def test_checks_that_take_nearly_all_their_time_are_a_problem(tmp_path: Path) -> None:
    with edge({"eu": 0.2}) as router:
        wait_until(lambda: router.times() != [], 30, "it is measured")
        impatient = tmp_path / "haproxy.cfg"
        impatient.write_text(GOOD.replace("inter 2s", "inter 200"))
        code, wrong, _ = doctor(router, "-f", str(impatient))
        assert code == 1
        assert "of the 0.2 s that it may" in one(wrong, "the last check of upstream/eu took")


def test_a_command_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    def lost(text: str) -> str:
        return text.replace('"${MULTICLOUD_CHECK-multicloud-check}"', str(tmp_path / "lost"))

    with edge({"eu": 0.01}, configure=lost) as router:
        wait_until(lambda: set(router.states().values()) == {"DOWN"}, 30, "it is DOWN")
        _, wrong, _ = doctor(router)
        assert "HAProxy could not start the check's command" in one(wrong, "the check of upstream/eu fails")
        code, wrong, _ = doctor(router, "-f", str(router.router.directory / "haproxy.cfg"))
        assert code == 1
        assert one(wrong, "there is no").endswith(f"upstream: there is no {tmp_path}/lost")
        assert "fails" not in " ".join(wrong), "that follows from it"


@as_root
def test_a_user_who_may_not_write_and_not_execute_is_a_problem() -> None:
    nobody = pwd.getpwnam("nobody")

    def unprivileged(text: str) -> str:
        return text.replace("global\n", f"global\n    uid {nobody.pw_uid}\n    gid {nobody.pw_gid}\n", 1)

    with edge({"eu": 0.01}, configure=unprivileged) as router:
        wait_until(lambda: set(router.states().values()) == {"DOWN"}, 30, "it is DOWN")
        directory = router.router.directory
        code, wrong, _ = doctor(router, "-f", str(directory / "haproxy.cfg"))
        assert code == 1
        assert f"HAProxy's user nobody cannot make the sample file {directory}/times.txt" in one(wrong, "sample file")
        assert "chmod a+x" in one(wrong, f"upstream: HAProxy's user nobody cannot execute {directory}/multicloud-check")
        directory.chmod(0o711)
        (directory / "times.txt").write_text("upstream eu 0.020000 1763870000.000\n")
        code, wrong, others = doctor(router, "-f", str(directory / "haproxy.cfg"))
        assert f"is root's: chown nobody {directory}/times.txt" in one(wrong, "cannot write the sample file")
        assert one(others, "upstream: HAProxy's user nobody can execute").startswith("ok ")


@as_root
def test_a_chroot_is_seen_in_the_running_haproxy(tmp_path: Path) -> None:
    def imprisoned(text: str) -> str:
        return text.replace("global\n", f"global\n    chroot {tmp_path}\n", 1)

    with edge({"eu": 0.01}, configure=imprisoned) as router:
        code, wrong, _ = doctor(router)
        assert code == 1
        assert one(wrong, "chroot").endswith(
            f"HAProxy runs in the chroot {tmp_path}, where it finds no checks: remove `chroot` from `global` "
            "(from HAProxy 3.4 on, write `chroot /`, without which it warns)"
        )


# The configuration


def examine(tmp_path: Path, text: str) -> list[str]:
    """What is wrong with a configuration, without a HAProxy that runs."""
    path = tmp_path / "haproxy.cfg"
    path.write_text(text)
    done = run(
        "doctor", "-f", str(path), "--socket", str(tmp_path / "none.sock"), "--times", str(tmp_path / "none.txt")
    )
    assert (done.returncode, done.stderr) == (1, "")
    wrong = [line for line in done.stdout.splitlines() if line.startswith("problem ")]
    assert "none.sock" in wrong[0]
    return wrong[1:]


def test_a_good_configuration_has_no_problem(tmp_path: Path) -> None:
    assert examine(tmp_path, GOOD) == []
    assert examine(tmp_path, GOOD.replace("global\n", "global\n    chroot /\n")) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda text: text.replace("    external-check\n", ""), "`external-check` is missing in `global`"),
        (lambda text: text.replace("    insecure-fork-wanted\n", ""), "`insecure-fork-wanted` is missing in `global`"),
        (lambda text: text.replace("global\n", "global\n chroot /var/lib/haproxy\n"), "`chroot` hides the checks"),
        (lambda text: text.replace("level admin", ""), "no `stats socket … level admin`"),
        (lambda text: text.replace("level admin", "level user"), "no `stats socket … level admin`"),
        (lambda text: text.replace("option external-check", "#"), "no backend has `option external-check`"),
        (lambda text: text.replace("command true", "command no-such-check"), "there is no no-such-check in the"),
        (lambda text: text.replace('path "/usr/bin:/bin"', 'path ""'), "there is no true in the"),
        (lambda text: text.replace("command true", "command /etc/passwd"), "cannot execute /etc/passwd"),
        (
            lambda text: text.replace("inter 2s", "inter 2s fastinter 1s").replace(
                "443 check\n", "443 check observe layer4\n", 1
            ),
            "upstream/eu: `fastinter` beside `observe`",
        ),
        (lambda text: text.replace("roundrobin", "static-rr"), "`balance static-rr` is static"),
        (lambda text: text.replace("roundrobin", "uri depth 2"), "or `hash-type consistent` beside it"),
        (lambda text: text.replace("roundrobin", "first"), "`balance first` heeds no weights"),
        (
            lambda text: text.replace("defaults\n", "defaults\n    balance source\n").replace(
                "    balance roundrobin\n", ""
            ),
            "`balance source` is static",
        ),
    ],
)
def test_what_is_wrong_with_a_configuration_is_told(
    tmp_path: Path, change: Callable[[str], str], expected: str
) -> None:
    assert expected in one(examine(tmp_path, change(GOOD)), "")


def test_a_script_whose_interpreter_cannot_be_executed_is_a_problem(tmp_path: Path) -> None:
    script = tmp_path / "check"
    script.write_text(f"#!{tmp_path}/python\n")
    script.chmod(0o755)
    wrong = examine(tmp_path, GOOD.replace("command true", f"command {script}"))
    assert f"cannot execute {tmp_path}/python" in one(wrong, "")


@pytest.mark.parametrize("words", ["fastinter 1s", "observe layer4"])
def test_one_of_fastinter_and_observe_is_no_problem(tmp_path: Path, words: str) -> None:
    assert examine(tmp_path, GOOD.replace("inter 2s", f"inter 2s {words}")) == []
    both = GOOD.replace(".1:443 check", ".1:443 check fastinter 1s").replace(
        ".2:443 check", ".2:443 check observe layer4"
    )
    assert examine(tmp_path, both) == []


def test_consistent_hashing_takes_weights(tmp_path: Path) -> None:
    assert examine(tmp_path, GOOD.replace("roundrobin", "source\n    hash-type consistent")) == []


@pytest.mark.parametrize("text", [None, "", "nothing of HAProxy's\n"])
def test_a_file_that_is_no_configuration_is_exit_code_2(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "haproxy.cfg"
    if text is not None:
        path.write_text(text)
    done = run("doctor", "-f", str(path), "--socket", str(tmp_path / "none.sock"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {path}: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        ("# comment", []),
        ("  server eu 192.0.2.1:443  # comment", ["server", "eu", "192.0.2.1:443"]),
        ("path \"${WAY}\" '${WAY}' ${WAY}", ["path", "/opt", "${WAY}", "${WAY}"]),
        ('inter "${INTER-2s}"', ["inter", "2s"]),
        ('inter "${WAY-2s}"', ["inter", "/opt"]),
        ('socket "${WAY}/a"b\\ c', ["socket", "/opt/ab c"]),
        ('a\\#b \'#\' "\\"#"', ["a#b", "#", '"#']),
        ('empty ""', ["empty", ""]),
        ('unfinished "quote', ["unfinished", "quote"]),
    ],
)
def test_a_line_is_split_as_haproxy_splits_it(line: str, words: list[str]) -> None:
    assert parser.split(line, {"WAY": "/opt"}) == words


@pytest.mark.parametrize(
    ("lines", "limits"),
    [
        ("server a b check", {"a": 2.0}),
        ("server a b\n server inter c", {}),
        ("server a b check inter 1s", {"a": 1.0}),
        ("default-server inter 5s\n server a b check", {"a": 5.0}),
        ("default-server inter 5s\n server a b check\n server c d check inter 1500", {"a": 5.0, "c": 1.5}),
        ("default-server check inter 3s\n server a b inter 10s\n server c d\n server e f no-check", {"a": 10, "c": 3}),
        ("timeout connect 1s\n server a b check inter 3s", {"a": 3.0}),
        (
            "timeout connect 1s\n timeout check 9s\n server a b check inter 3s\n server c d check inter 500",
            {"a": 1, "c": 0.5},
        ),
    ],
)
def test_the_time_limit_of_each_check_is_haproxys(tmp_path: Path, lines: str, limits: dict[str, float]) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text(f"backend upstream\n {lines}\n")
    (section,) = parser.read([str(path)], {}).sections
    assert parser.check_limits(section) == limits


BLOCKS = """
global
.if {}
 one
.elif version_atleast(2.8)
 two
.if !defined(HERE)
 inner
.endif
.else
 three
.endif
 always
"""


@pytest.mark.parametrize(
    ("condition", "version", "lines", "undecided"),
    [
        ("version_atleast(2.6)", "2.6.12-1+deb12u4", ["one", "always"], []),
        ("version_atleast(2.8.26)", "2.8.25-5cf5d0683", ["two", "always"], []),
        ("version_before(2.6.12)", "2.6.12", ["three", "always"], []),
        ("version_atleast(3.5)", "3.5-dev5-abc", ["two", "always"], []),
        ("version_atleast(3.5-dev5)", "3.5-dev5-abc", ["one", "always"], []),
        ("!version_before( 3.5-dev6 )", "3.5-dev5-abc", ["two", "always"], []),
        ("defined(HERE)", "2.8.0", ["one", "always"], []),
        ("! defined(THERE)", "2.8.0", ["one", "always"], []),
        ("", "2.6.0", ["three", "always"], []),
        ("0", "2.8.0", ["two", "always"], []),
        ("1", "2.8.0", ["one", "always"], []),
        ("feature(OPENSSL)", "2.8.0", ["one", "two", "always"], [".if feature(OPENSSL)"]),
        ("feature(OPENSSL)", "2.6.0", ["one", "three", "always"], [".if feature(OPENSSL)"]),
        ("defined(HERE) && defined(A)", "2.6.0", ["one", "three", "always"], [".if defined(HERE) && defined(A)"]),
        (
            "defined(HERE)",
            None,
            ["one", "two", "inner", "three", "always"],
            [".if defined(HERE)", ".elif version_atleast(2.8)", ".if !defined(HERE)"],
        ),
    ],
)
def test_blocks_are_decided_as_far_as_the_version_and_the_environment_tell(
    tmp_path: Path, condition: str, version: str | None, lines: list[str], undecided: list[str]
) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text(BLOCKS.format(condition))
    found = parser.read([str(path)], {"HERE": ""}, version)
    assert [word for (word,) in found.global_section().lines] == lines
    assert found.undecided == undecided


@pytest.mark.parametrize(
    "condition",
    [
        *("", "0", "1", "!0", "defined(HERE)", "!defined(HERE)", "defined(THERE)"),
        *("version_atleast(2.6)", "version_atleast(3)", "version_before(2.8.1-dev3)", "!version_before(2.6.12)"),
        *("version_atleast(2.8.25)", "version_before(2.8.25)", "version_atleast(3.5-dev1)", "version_before(3.5)"),
    ],
)
def test_a_condition_is_decided_as_haproxy_decides_it(tmp_path: Path, condition: str) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text(f".if {condition}\n.alert this-one\n.endif\n")
    environ = {"HERE": "1"}
    said = subprocess.run(
        [haproxy_binary(), "-c", "-f", str(path)], env=environ, capture_output=True, text=True, check=False
    ).stderr
    shown = subprocess.run([haproxy_binary(), "-v"], capture_output=True, text=True, check=True).stdout
    assert parser.holds(condition, environ, shown.split()[2]) == ("this-one" in said)


def test_a_proxy_inherits_from_its_defaults(tmp_path: Path) -> None:
    first, second = tmp_path / "1.cfg", tmp_path / "2.cfg"
    first.write_text("defaults one\n balance source\ndefaults two from one\n balance first\n")
    second.write_text("backend a\nbackend b from one\nbackend c\n balance roundrobin\n no balance\n")
    sections = {section.name: section for section in parser.read([str(first), str(second)], {}).sections}
    assert [sections[name].last("balance") for name in "abc"] == [["first"], ["source"], None]
