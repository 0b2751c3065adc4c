"""What `multicloud doctor` and `multicloud status` say where users go another way than weights and checks."""

import os
import re
import urllib.request
from pathlib import Path

import pytest

from multicloud import settings
from multicloud.console import doctor
from tests.console.patient import AS_ROOT, GOOD, NOBODY, examine, look, one, rewrite, say, shown, small, well
from tests.edge import Router, wait_until
from tests.ports import free_port
from tests.test_run import site

ALONE = "    option external-check\n    external-check path /usr/bin:/bin\n    external-check command "


def test_a_backup_of_haproxys_own_gets_no_request_and_that_is_said() -> None:
    with small(GOOD.replace("us 127.0.0.1:2 weight 1", "us 127.0.0.1:2 weight 1 backup")) as router:
        said = "us of upstream: HAProxy sends no request there while another server can serve, since `backup` is on"
        wait_until(lambda: said in str(examine(router)[1]), 10, "doctor says it")
        assert said in shown(router.settings)


def test_users_who_wait_much_longer_than_samples_say_are_told(tmp_path: Path) -> None:
    port = free_port()
    frontend = f"frontend web\n    bind 127.0.0.1:{port}\n    default_backend app\n"
    with site(tmp_path, frontend, inter="60s") as here, here.beside():
        here.router.settings["MULTICLOUD_CONF"] = str(here.conf)
        wait_until(lambda: here.weights() == {"eu": 256, "us": 1}, 10, "each has had a check, which was fast")
        assert shown(here.router.settings) == ""
        here.region["eu"].delay = 0.5
        for _ in range(3):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/").close()
        said = r"users of app/eu wait \d+ ms for an answer .* its samples say \d\d ms: is what"
        assert re.match(said, shown(here.router.settings))
        line = one(look(here.router.settings)[1], "users of app/eu wait")
        assert line.startswith("unknown ")


def test_somebody_elses_checks_are_left_alone_beside_ours() -> None:
    own = f"\nbackend pg\n    balance first\n{ALONE}/bin/true\n    server db1 127.0.0.1:3 check inter 300\n"
    with small(GOOD + own + "    server db2 127.0.0.1:4 check inter 300\n") as router:
        wait_until(lambda: say(router, "show stat").count("PROCOK") == 4, 10, "the checks pass")
        wrong, others = examine(router)
        assert wrong == []
        assert one(others, "pg: its external checks have never left a sample").startswith("unknown ")
        assert not any("`balance first`" in line for line in others)
        assert "db1" not in shown(router.settings)


@pytest.mark.root("run HAProxy as somebody else")
def test_a_haproxy_that_is_roots_is_told_until_it_has_a_user_of_its_own() -> None:
    def raw(router: Router) -> list[str]:
        sources = settings.Sources(router.settings)
        findings = doctor.examine(sources, [str(router.directory / "haproxy.cfg")])
        return [text for kind, text in findings if kind == "problem"]

    with small() as router:
        wait_until(
            lambda: examine(router)[0] == [] and "PROCOK" in say(router, "show stat"), 10, "nothing else is wrong"
        )
        (line,) = raw(router)
        assert line.startswith(
            f"{AS_ROOT}, and each check with it: write `user haproxy` and `group haproxy` into `global`"
        )
        os.chown(router.settings["MULTICLOUD_TIMES"], NOBODY.pw_uid, -1)
        router.directory.chmod(0o711)
        rewrite(
            router,
            lambda text: text.replace("global\n", "global\n    user nobody\n").replace("level", "user nobody level"),
        )
        wait_until(lambda: raw(router) == [], 10, "nothing is wrong any more")


@pytest.mark.root("run programs without leave")
def test_what_haproxy_does_as_root_without_leave_is_no_problem() -> None:
    with small(GOOD.replace("    insecure-fork-wanted\n", "")) as router:
        wait_until(lambda: "PROCOK" in say(router, "show stat"), 10, "the checks pass")
        wrong, others = examine(router)
        assert wrong == []
        one(others, "ok HAProxy runs the checks")


def test_a_check_that_a_signal_ends_is_told_as_such_until_none_does() -> None:
    with small(GOOD.replace('"/usr/bin:/bin"', '"${MULTICLOUD_TIMES}.d:/usr/bin:/bin"')) as router:
        (router.directory / "times.txt.d").mkdir()
        program = router.directory / "times.txt.d" / "true"
        program.write_text("#!/bin/sh\nkill -KILL $$\n")
        program.chmod(0o755)
        wait_until(lambda: "PROCERR" in say(router, "show stat"), 10, "a check fails")
        wait_until(lambda: "fails with exit code 4294967295: a signal ended it" in str(examine(router)[0]), 10, "told")
        assert "add server" not in str(examine(router)[0])
        path = router.directory / "haproxy.cfg"
        path.write_text(re.sub(r"    server us .*\n", "", text := path.read_text()))
        added = "fails with exit code 4294967295: it is not in these files: was it added while HAProxy runs"
        assert added in one(examine(router)[0], "upstream/us")
        path.write_text(text)
        program.unlink()
        well(router)


@pytest.mark.parametrize("word", ["port 3", "source 127.0.0.1", "send-proxy", "addr 127.0.0.1"])
def test_a_word_of_a_line_that_a_check_does_not_know_is_named_where_it_fails(word: str) -> None:
    with small(GOOD.replace("command true", "command false").replace("weight", f"{word} weight")) as router:
        wait_until(lambda: say(router, "show stat").count("PROCERR") == 2, 10, "the checks fail")
        wait_until(lambda: "fails with exit code 1" in str(examine(router)[0]), 10, "that is told")
        for line in examine(router)[0]:
            assert f"a check knows nothing of `{word.split()[0]}` on its line; HAProxy's own checks go that way" in line
        rewrite(router, lambda text: text.replace("command false", "command true"))
        wait_until(lambda: say(router, "show stat").count("PROCOK") == 2, 10, "the checks pass")
        well(router)


def test_a_server_at_a_unix_socket_is_not_probed_at_an_address_that_haproxy_does_not_tell() -> None:
    with small(GOOD.replace("command true", "command false").replace("127.0.0.1:1", "/none.sock")) as router:
        wait_until(lambda: say(router, "show stat").count("PROCERR") == 2, 10, "the checks fail")
        line = one(examine(router)[0], "the check of upstream/eu fails with exit code 1")
        assert "HAProxy does not tell the path of its socket, so it was not asked; its reason is" in line
        assert "HAPROXY_SERVER_ADDR=PATH" in line


@pytest.mark.parametrize(
    ("line", "word", "what"),
    [
        ("    cookie SRV insert indirect\n", " cookie one", "`cookie`"),
        ("    stick-table type ip size 1k\n    stick on src\n", "", "`stick`"),
    ],
)
def test_what_keeps_users_with_a_server_is_told_until_it_is_gone(line: str, word: str, what: str) -> None:
    text = GOOD.replace("    balance", f"{line}    balance").replace("weight 256", f"weight 256{word}")
    with small(text) as router:
        told_of = one(examine(router)[1], f"upstream: {what} keeps users with their server, also one of weight 0")
        assert told_of.startswith("unknown ")
        assert "to have them follow, remove it, or let it end: " in told_of
        rewrite(router, lambda _: GOOD)
        assert "keeps users" not in str(examine(router)[1])
