"""What `multicloud doctor` and `multicloud status` say where HAProxy's own checks are the samples."""

import time
from pathlib import Path

import pytest

from multicloud.console import problems
from tests.console.patient import look, one, shown
from tests.edge import wait_until
from tests.test_run import Site, site


def around(here: Site) -> dict[str, str]:
    """The variables of a command about it."""
    return {"MULTICLOUD_CONF": str(here.conf), "MULTICLOUD_SOCKET": here.address, "MULTICLOUD_TIMES": str(here.times)}


def test_all_is_well_with_the_loop_beside_haproxy(tmp_path: Path) -> None:
    with site(tmp_path) as here, here.beside():
        wait_until(lambda: "2 servers are measured" in str(look(around(here))), 10, "both are measured")
        for files in ((), (tmp_path / "haproxy.cfg",)):
            wrong, others = look(around(here), *files)
            assert wrong == []
            one(others, "HAProxy's own checks of all 2 servers pass")
            assert files == () or one(others, "HAProxy runs; where servers share, `balance random(2)` spreads")
            one(others, "2 servers are measured, and have the weights that they should have")
            assert not any("external" in line or "multicloud-reweigh" in line for line in others)
        assert shown(around(here)) == ""


@pytest.mark.root("start HAProxy in a chroot")
def test_between_two_steps_of_the_install_the_next_one_alone_is_told(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        path = tmp_path / "haproxy.cfg"
        path.write_text(here.text.replace("global\n", f"global\n    chroot {tmp_path}\n    user nobody\n"))
        here.router.restart()
        here.conf.write_text("")
        wait_until(lambda: "checks the servers" in str(look(around(here), path)[0]), 10, "they are checked")
        for files in ((), (path,)):
            (line,) = look(around(here), *files)[0]
            assert "HAProxy checks the servers of app by itself, and nobody takes that as samples" in line
            assert f"write `backends = app` into {here.conf} and start multicloud-run" in line
        here.conf.write_text("backends = app\ninterval = 0.1\n")
        with here.beside():
            wait_until(lambda: here.weights() == {"eu": 256, "us": 1}, 10, "weights")
            assert look(around(here), path)[0] == []


def test_a_loop_that_is_not_at_work_is_a_problem_told_once_until_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site(tmp_path) as here:
        old = time.time() - 100
        here.times.write_text(
            "".join(f"app {name} 0.02 {old + second}\n" for second in range(9) for name in here.region)
        )
        assert "have not been recorded" not in shown(around(here))  # it may be about to begin
        monkeypatch.setattr(problems, "TOLERATED", 2.0)
        wait_until(lambda: look(around(here))[0] != [], 30, "patience")
        (line,) = look(around(here))[0]
        assert "HAProxy's own checks of app have not been recorded" in line
        assert "is `multicloud run` at work, with the same `times`?" in line
        assert " since " in line
        with here.beside():
            wait_until(lambda: look(around(here))[0] == [], 10, "nothing is wrong any more")


@pytest.mark.parametrize(
    ("backends", "extra", "what"),
    [
        ("app,api", "", "api: HAProxy has no backend of that name with servers"),
        ("app,bare", "backend bare\n    server ap 127.0.0.1:1\n", "bare: HAProxy does not check ap: write `check`"),
        ("app,once", "backend once\n    server eu 127.0.0.1:1 track app/eu\n", "once: its servers track those of app"),
    ],
)
def test_a_backend_that_cannot_be_measured_is_a_problem(tmp_path: Path, backends: str, extra: str, what: str) -> None:
    with site(tmp_path, extra) as here, here.beside():
        here.conf.write_text(f"backends = {backends}\n")
        wait_until(lambda: here.weights() == {"eu": 256, "us": 1}, 10, "weights")
        wrong, _ = look(around(here))
        one(wrong, what)
        assert what in shown(around(here))
        here.conf.write_text("backends = app\n")
        assert look(around(here))[0] == []


def test_an_external_check_in_such_a_backend_is_a_problem(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        text = here.text.replace("global\n", "global\n    insecure-fork-wanted\n    external-check\n")
        command = (
            '    option external-check\n    external-check path "/usr/bin:/bin"\n    external-check command true\n'
        )
        here.router.__exit__()
        here.text = text.replace("    option httpchk GET /\n", command).replace("http-check expect", "# ")
        with here.new():
            wait_until(
                lambda: "option external-check` out of the backend" in " ".join(look(around(here))[0]), 10, "its name"
            )


def test_a_word_that_external_checks_do_not_know_is_no_matter_to_haproxys_own(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        path = tmp_path / "haproxy.cfg"
        elsewhere = here.text.replace("server us 127.0.0.1:", "server us 127.0.0.9:").replace(
            "check inter", "check addr 127.0.0.1 inter"
        )
        external = (
            "    option external-check\n    external-check path /usr/bin:/bin\n"
            f"    external-check command {tmp_path}/multicloud-check\n"
        )
        forks = elsewhere.replace("global\n", "global\n    insecure-fork-wanted\n    external-check\n").replace(
            "200ms", "2s"
        )
        path.write_text(forks.replace("    option httpchk GET /\n", external).replace("http-check expect", "# "))
        here.conf.write_text("")
        here.router.restart()
        wait_until(lambda: "app/us fails with exit code 1" in str(look(around(here), path)[0]), 15, "the check fails")
        line = one(look(around(here), path)[0], "app/us fails")
        assert line.endswith(
            "`addr` on its line; HAProxy's own checks go that way: for `multicloud run`, write `backends = app`"
        )
        here.conf.write_text("backends = app\ninterval = 0.1\n")
        assert "take it out of `backends`, or `option external-check` out of" in str(look(around(here), path)[0])
        path.write_text(elsewhere)
        here.router.restart()
        with here.beside() as loop:
            loop.wait_for("app/eu: weight")
            wait_until(lambda: look(around(here), path)[0] == [], 15, "nothing is wrong any more")


@pytest.mark.parametrize(
    ("good", "bad", "status", "what"),
    [
        ("server us 127.0.0.1:", "server us 127.0.0.9:", "L4CON", "is it at the address and port of its line?"),
        ("weight 1\n\n", "weight 1 ssl verify none\n\n", "L6", "does it speak TLS there, with a certificate"),
        ("expect status 200", "expect status 404", "L7STS 200", "and the status of `http-check expect`?"),
        (
            "    option httpchk",
            "    timeout check 60ms\n    option httpchk",
            "L7TOUT",
            "in time (`inter`, `timeout check`)",
        ),
    ],
)
def test_a_check_of_haproxys_own_that_fails_is_named_with_what_to_look_at(
    tmp_path: Path, good: str, bad: str, status: str, what: str
) -> None:
    with site(tmp_path) as here, here.beside():
        wait_until(lambda: here.weights() == {"eu": 256, "us": 1}, 10, "weights")
        here.region["us"].delay = 0.12
        path = tmp_path / "haproxy.cfg"
        path.write_text(here.text.replace(good, bad))
        here.router.restart()
        seen = [look(around(here))]

        def fails() -> bool:
            seen.append(look(around(here)))
            return f"app/us fails ({status}" in str(seen[-1][0])

        wait_until(fails, 15, "the check fails")
        wrong, others = seen[-1]
        assert what in one(wrong, "HAProxy's check of app/us fails")
        assert not any("own checks of all" in line for line in others)
        path.write_text(here.text)
        here.router.restart()
        wait_until(lambda: look(around(here))[0] == [], 15, "nothing is wrong any more")
