"""`multicloud doctor`: what it finds in a real HAProxy and in configurations, and that what it says to do helps."""

import os
import pwd
import re
import resource
from pathlib import Path

import pytest

from multicloud.console.doctor import running
from multicloud.demo.router import haproxy_binary
from tests.command import Terminal, run
from tests.console.patient import GOOD, NOBODY, examine, look, look_at, one, rewrite, say, small, told, well
from tests.edge import edge, wait_until

HAS_HAPROXY = any(user.pw_name == "haproxy" for user in pwd.getpwall())

as_root = pytest.mark.root("run HAProxy as somebody else")


def alone(directory: Path, text: str) -> tuple[list[str], list[str]]:
    """Problems and other findings in a configuration whose HAProxy does not run, which is not told among them."""
    path = directory / "haproxy.cfg"
    path.write_text(text)
    wrong, others = look({"MULTICLOUD_SOCKET": f"{directory}/none.sock"}, path)
    return wrong[1:], others


def test_all_is_well_with_the_shipped_configuration() -> None:
    with edge({"eu": 0.01, "us": 0.1}) as router:
        wait_until(lambda: "2 servers are measured" in str(look_at(router)), 30, "the two are ranked")
        wrong, others = look_at(router)
        assert wrong == []
        for part in (
            "answers at",
            "level admin",
            "the checks of all 2 servers pass",
            "2 servers are measured",
            "HAProxy runs the checks",
            "upstream: measured by external checks",
            "upstream-once: measured with upstream, whose servers its own track",
            "last-resort: not measured",
            "reweigh: its check sets the weights",
            "upstream: `balance random(2)` takes weights while HAProxy runs",
            "HAProxy accepts the certificates of ",
        ):
            assert one(others, part).startswith("ok ")
        assert "not looked at" not in " ".join(others)
        with Terminal("doctor", environ=router.router.settings) as terminal:
            assert terminal.wait() == (os.geteuid() == 0)  # which HAProxy should not run as
        assert "\x1b[32mok" in terminal.output


@pytest.mark.parametrize(
    ("text", "owner"),
    [
        (GOOD, "user haproxy group haproxy mode 660" if HAS_HAPROXY else "mode 600"),
        (
            GOOD.replace("global\n", "global\n    user nobody\n    group nogroup\n"),
            "user nobody group nogroup mode 660",
        ),
        (GOOD.replace("global\n", "global\n    user no-such-user\n"), "mode 600"),
        (GOOD.replace("global\n", "global\n    user \u00b2\n"), "mode 600"),
    ],
)
def test_a_socket_that_is_not_there_is_a_problem_beside_what_the_configuration_shows(
    tmp_path: Path, text: str, owner: str
) -> None:
    path, address = tmp_path / "haproxy.cfg", tmp_path / "none.sock"
    without = re.sub(r"    stats socket .*\n", "", text)
    for words, cure in (
        ("", f"Put `stats socket {address} {owner} level admin` into `global`, start HAProxy"),
        (f"    stats socket {address} level admin\n", "HAProxy's configuration has it: start HAProxy"),
    ):
        path.write_text(without.replace("global\n", f"global\n{words}", 1))
        done = run("doctor", "--socket", str(address), "-f", str(path))
        assert done.returncode == 1
        lines = done.stdout.splitlines()
        assert cure in one(lines, f"problem {address}: no such file or directory;")
        assert ("problem no `stats socket" in done.stdout) == (words == "")
        assert lines[-1] == "unknown not looked at until that is mended: the running HAProxy"


def test_the_socket_that_the_configuration_has_is_named_and_then_answers() -> None:
    with small() as router:
        path, conf = router.directory / "haproxy.cfg", router.directory / "multicloud.conf"
        conf.write_text("socket = /none.sock\n")
        elsewhere = {"MULTICLOUD_CONF": str(conf), "MULTICLOUD_TIMES": router.settings["MULTICLOUD_TIMES"]}
        path.write_text(
            path.read_text().replace("${MULTICLOUD_SOCKET-/var/run/haproxy.sock}", router.settings["MULTICLOUD_SOCKET"])
        )
        cure = f"socket = {router.settings['MULTICLOUD_SOCKET']}"
        assert look(elsewhere, path)[0][0].endswith(f"has its socket elsewhere: write `{cure}` into {conf}")
        line = look({**elsewhere, "MULTICLOUD_SOCKET": "/none.sock"}, path)[0][0]
        assert line.endswith(f"elsewhere: set MULTICLOUD_SOCKET={router.settings['MULTICLOUD_SOCKET']}")
        conf.write_text(f"{cure}\n")
        assert "answers at" in str(look(elsewhere, path)[1])


def test_a_written_file_is_told_where_the_settings_say_something_else_by_now_until_it_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf, path = tmp_path / "multicloud.conf", tmp_path / "haproxy.cfg"
    monkeypatch.setenv("HAPROXY_BINARY", haproxy_binary())
    environ = {"MULTICLOUD_CONF": str(conf), "MULTICLOUD_SOCKET": "/none.sock", "HAPROXY_BINARY": haproxy_binary()}
    conf.write_text("bind = 127.0.0.1:1\nservers = eu=127.0.0.1:1\n")
    words = ["config", "--output", str(path)]
    assert run(*words, environ=environ).stderr == ""
    assert "not what would be written" not in str(look(environ, tmp_path)[0])
    conf.write_text("bind = 127.0.0.1:1\nservers = eu=127.0.0.1:1 us=127.0.0.1:2\n")
    said = one(look(environ, tmp_path)[0], f"{path} is not what would be written for these settings now: run `")
    assert said.endswith(f"multicloud {' '.join(words)}`, and reload HAProxy")
    assert run(*words, environ=environ).stderr == ""
    assert "not what would be written" not in str(look(environ, tmp_path)[0])


def test_numpy_that_cannot_be_loaded_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise RuntimeError('NumPy was built for (X86_V2).')")
    done = run("doctor", environ={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: numpy cannot be loaded: NumPy was built for (X86_V2).; with pip, install another"
    )


CONFIGURATIONS = [
    # what it should be; what is wrong there; what doctor says, and to do
    ("    external-check\n", "", "`external-check` is missing in `global`", "write it there"),
    ("    insecure-fork-wanted\n", "", "`insecure-fork-wanted` is missing in `global`", "write it there"),
    ("global\n", "global\n    chroot /var/empty\n", "`chroot` hides the checks", "remove `chroot` from `global`"),
    (" level admin", "", "no `stats socket … level admin`", ""),
    (" level admin", " level user", "no `stats socket … level admin`", ""),
    ("option external-check", "#", "no backend has `option external-check`", ""),
    ("external-check command", "#", "upstream: `external-check command` is missing", ""),
    ("command true", "command no-such-check", "there is no no-such-check in the", "write its whole path"),
    ('path "/usr/bin:/bin"', 'path ""', "there is no true in the `external-check path` ''", "or set that"),
    ("command true", "command /etc/passwd", "cannot execute /etc/passwd", "`chmod a+x` it"),
]
RUNNING = [
    ("roundrobin", "static-rr", "`balance static-rr` is static", "write `balance random(2)`"),
    ("roundrobin", "uri depth 2", "`balance uri` is static", "write `balance random(2)`"),
    ("roundrobin", "first", "`balance first` heeds no weights", "write `balance random(2)`"),
    ("    balance roundrobin\n", "    balance source\n", "`balance source` is static", "`balance random(2)`"),
]


@pytest.mark.parametrize(("good", "bad", "what", "cure"), [*CONFIGURATIONS, *RUNNING])
def test_what_is_wrong_with_a_configuration_is_told_and_mended(
    tmp_path: Path, good: str, bad: str, what: str, cure: str
) -> None:
    (line,), _ = alone(tmp_path, GOOD.replace(good, bad, 1))
    assert what in line
    assert cure in line
    assert alone(tmp_path, GOOD)[0] == []


@pytest.mark.parametrize(
    ("good", "bad", "what", "cure"),
    [
        *RUNNING,
        (" level admin", " level operator", "has the level operator", "write `level admin` at the end of its `stats"),
        ("command true", "command no-such-check", "there is no no-such-check in the", "write its whole path"),
        (
            "default-server check",
            "default-server",
            "upstream has `option external-check`, but no server",
            "`check`: write that on its line",
        ),
    ],
)
def test_what_is_wrong_with_a_running_haproxy_is_told_and_mended(good: str, bad: str, what: str, cure: str) -> None:
    with small(GOOD.replace(good, bad, 1)) as router:
        told(router, what, cure)
        rewrite(router, lambda _: GOOD)
        well(router)


def test_what_is_asked_later_is_not_told_beside_a_cause() -> None:
    text = GOOD.replace("level admin", "level operator").replace("roundrobin", "static-rr").replace("true", "false")
    with small(text) as router:
        wait_until(lambda: "PROCERR" in say(router, "show stat"), 10, "the checks fail")
        told(router, "has the level operator")
        assert examine(router)[1][-1].startswith(
            "unknown not looked at until that is mended: what HAProxy and its user"
        )
        rewrite(router, lambda text: text.replace("level operator", "level admin"))
        told(router, "`balance static-rr` is static")
        rewrite(router, lambda text: text.replace("static-rr", "roundrobin"))
        wait_until(lambda: "upstream/eu fails with exit code 1" in " ".join(examine(router)[0]), 10, "the checks fail")
        assert examine(router)[1][-1].endswith("mended: certificates, samples, weights, whom HAProxy runs as")


def test_without_the_configuration_haproxy_tells_its_algorithm() -> None:
    with small(GOOD.replace("roundrobin", "static-rr")) as router:
        wait_until(lambda: "PROCOK" in say(router, "show stat"), 10, "the checks pass")
        wrong, others = look(router.settings)
        line = one(wrong, "`balance static-rr` is static")
        assert say(router, "set server upstream/eu weight 256") in line, "it cites what HAProxy says"
        one(others, "the configuration was not looked at")


@pytest.mark.parametrize(
    ("bad", "what", "cure"),
    [
        (
            "frontend web\n    bind *:1\nfrontend two\n    bind 127.0.0.1:2,0.0.0.0:1\n",
            "frontend web and frontend two listen at port 1, and each gets a part of its connections",
            "give one of them another port",
        ),
        ("resolvers r\nresolvers r\nfrontend web\n", "`resolvers r` stands 2 times", "leave out all but one"),
    ],
)
def test_what_may_stand_once_is_told_where_it_stands_twice(tmp_path: Path, bad: str, what: str, cure: str) -> None:
    text = GOOD.replace("frontend web\n", bad).replace(".if version_before(3.3)\n", "").replace(".endif\n", "")
    line = alone(tmp_path, text)[0][-1]
    assert what in line
    assert cure in line
    in_blocks = alone(tmp_path, text + ".if feature(OPENSSL)\n.endif\n")[1]
    assert what in one(in_blocks, cure), "it may be in one of two branches"


@pytest.mark.parametrize(
    "change",
    [
        ("global\n", "global\n    chroot /\n"),
        (
            "    default_backend",
            "    use_backend upstream if { nbsrv(x) lt 1 } mine\n    use_backend x\n    default_backend",
        ),
        ("frontend web\n", "backend old\n    disabled\n    option external-check\nfrontend web\n"),
        ("frontend web\n", "# pasted\u2028backend old\f    option external-check\nfrontend web\n"),
        ("command true", 'command "/usr/bin/tr\\x75e"'),
        ("command true", 'command "${CHECK-}"'),
        ("roundrobin", "source\n    hash-type consistent"),
    ],
)
def test_what_only_looks_like_it_is_no_problem(tmp_path: Path, change: tuple[str, str]) -> None:
    text = GOOD.replace(*change).replace("global\n", "global\n    presetenv CHECK true\n")
    assert alone(tmp_path, text)[0] == []


def test_a_script_whose_interpreter_cannot_be_executed_is_a_problem(tmp_path: Path) -> None:
    script = tmp_path / "check"
    script.write_text(f"#!{tmp_path}/python\n")
    script.chmod(0o755)
    one(alone(tmp_path, GOOD.replace("command true", f"command {script}"))[0], f"cannot execute {tmp_path}/python")


def test_what_the_checks_of_servers_that_are_down_say_is_told() -> None:
    with edge({"eu": 0.01, "us": 0.1}) as router:
        for region in router.regions:
            region.status = 503
        wait_until(lambda: set(router.states().values()) == {"DOWN"}, 30, "both are DOWN")
        wrong, _ = look_at(router)
        assert len(wrong) == 2
        for name in ("eu", "us"):
            line = one(wrong, f"the check of upstream/{name} fails with exit code 1: ")
            assert f": https://{name}:{router.region[name].port} (127.0.0.1): status 503, expected 200: " in line
            assert "set `path` or `expect` or `host` in [upstream] of /etc/multicloud.conf" in line


def test_a_server_of_mode_tcp_without_tls_is_probed_as_such() -> None:
    databases = GOOD.replace("command true", "command false").replace("mode http", "mode tcp")
    lines = [line for line in databases.splitlines(keepends=True) if "http-" not in line and "us 127" not in line]
    with small("".join(lines)) as router:
        line = told(router, "the check of upstream/eu fails with exit code 1: ")
        assert line.endswith("tcp://eu:1 (127.0.0.1): connection refused, connecting")


def test_checks_that_are_too_slow_are_a_problem_until_they_have_more_time() -> None:
    with small(GOOD.replace('"/usr/bin:/bin"', '"${MULTICLOUD_TIMES}.d:/usr/bin:/bin"')) as router:
        directory = router.directory / "times.txt.d"
        directory.mkdir()
        slow = directory / "true"
        slow.write_text("#!/bin/sh\nsleep 0.6\n")
        slow.chmod(0o755)
        wait_until(
            lambda: "of upstream/us is slower than its interval, and was killed: a longer" in str(examine(router)[0]),
            15,
            "a check is killed at its time limit",
        )
        rewrite(router, lambda text: text.replace("inter 300", "inter 3s"))
        well(router)


@as_root
def test_a_user_who_may_not_write_and_not_execute_may_both_after_the_cures() -> None:
    line = f"global\n    uid {NOBODY.pw_uid}\n    gid {NOBODY.pw_gid}\n"
    with edge({"eu": 0.01}, configure=lambda text: text.replace("global\n", line, 1)) as router:
        wait_until(lambda: set(router.states().values()) == {"DOWN"}, 30, "it is DOWN")
        directory = router.router.directory
        wrong, _ = look_at(router)
        assert f"HAProxy's user nobody cannot make the sample file {directory}/times.txt" in one(wrong, "sample file")
        assert "chmod a+x" in one(wrong, f"upstream: HAProxy's user nobody cannot execute {directory}/multicloud-check")
        directory.chmod(0o711)
        (directory / "times.txt").write_text("upstream eu 0.020000 1763870000.000\n")
        wrong, others = look_at(router)
        assert f"is root's: chown nobody {directory}/times.txt" in one(wrong, "cannot write the sample file")
        one(others, "ok upstream: HAProxy's user nobody can execute")
        os.chown(directory / "times.txt", NOBODY.pw_uid, -1)
        assert "sample file" not in " ".join(look_at(router)[0])


@as_root
def test_a_chroot_is_seen_in_the_running_haproxy(tmp_path: Path) -> None:
    with small(GOOD.replace("global\n", f"global\n    chroot {tmp_path}\n", 1)) as router:
        line = one(look(router.settings)[0], "chroot")
        assert line.endswith(
            f"HAProxy runs in the chroot {tmp_path}, where it finds no checks: remove `chroot` from `global` "
            "(from HAProxy 3.4 on, write `chroot /`, without which it warns)"
        )
        rewrite(router, lambda _: GOOD)
        well(router)


def test_a_limit_of_open_files_that_checks_pay_for_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(running, "MANY_FILES", 10_000)  # since not every kernel lets a million be set
    try:
        with small() as router:  # without a `maxconn`, it takes all that it may
            line = told(
                router, f"may have {before[1]:,} files open, and before a check it closes each of these numbers"
            )
            assert "Write `maxconn 8000` into `global`, and start HAProxy with a soft limit of 1024" in line
            resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
            rewrite(router, lambda text: text.replace("global\n", "global\n    maxconn 2000\n"))
            well(router)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("name", ["", "empty.cfg", "other.cfg"])
def test_a_file_or_a_directory_without_a_configuration_is_exit_code_2(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty.cfg").touch()
    (tmp_path / "other.cfg").write_text("nothing of HAProxy's\n")
    done = run("doctor", "-f", str(tmp_path / name), "--socket", str(tmp_path / "none.sock"))
    said = f"error: {tmp_path / name}: no section of a HAProxy configuration\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


def test_conditional_blocks_are_told_of_only_where_one_was_not_decided() -> None:
    with small() as router:
        assert ".if" not in " ".join(examine(router)[1])
        rewrite(router, lambda text: text + "\n.if feature(OPENSSL)\n.endif\n")
        assert one(examine(router)[1], ".if").endswith("so all do here: `.if feature(OPENSSL)`")


def test_where_the_reweigh_alone_is_checked_nobody_measures_the_servers() -> None:
    external = "    option external-check\n    external-check path /usr/bin:/bin\n    external-check command true\n"
    own = f"backend reweigh\n{external}    server multicloud-reweigh 127.0.0.1:1 check inter 300\n"
    with small(
        GOOD.replace("    default-server check inter 300\n", "").replace("    option external", "#") + own
    ) as router:
        assert "write `option external-check` and" in told(router, "no server has an external check")
