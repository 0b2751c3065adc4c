"""What `multicloud doctor` and `multicloud status` say of a router that an operator or an agent has a hand in."""

from pathlib import Path

import pytest

from tests.console.patient import GOOD, examine, look, look_at, one, rewrite, shown, small, told, well
from tests.edge import edge, wait_until


def test_frozen_weights_are_an_operators_and_told_as_such() -> None:
    with edge({"eu": 0.01, "us": 0.1}) as router:
        wait_until(lambda: router.weights() == {"eu": 256, "us": 1}, 30, "the two are ranked")
        router.tell("set server reweigh/multicloud-reweigh state maint")
        wrong, _ = look_at(router)
        line = one(wrong, "an operator has frozen the weights")
        assert "`set server reweigh/multicloud-reweigh state ready`" in line
        assert "an operator has frozen the weights" in shown(router.router.settings)
        router.tell("set server reweigh/multicloud-reweigh state ready")
        assert "frozen" not in shown(router.router.settings)


@pytest.mark.parametrize("resort", ["last-resort", "upstream-last-resort"])
def test_the_last_resort_is_known_before_each_request_is_called_a_503(resort: str) -> None:
    with edge({"eu": 0.01}, configure=lambda text: text.replace("last-resort", resort)) as router:
        router.region["eu"].status = 500
        wait_until(lambda: router.states() == {"eu": "DOWN"}, 30, "it is DOWN")
        expected = (
            f"no server of upstream is UP (DOWN), so {resort} is tried where a frontend has "
            f"`use_backend {resort} if {{ nbsrv(upstream) lt 1 }}`, and else each request is a 503"
        )
        assert expected in shown(router.router.settings)
        assert "no server of upstream" not in " ".join(look_at(router)[0]), "that follows from its check"
        assert router.get() == (500, "eu"), "it is tried"
        router.tell(f"set server {resort}/eu state maint")
        assert "no server of upstream is UP (DOWN), so each request to it is a 503" in shown(router.router.settings)
        assert router.get()[0] == 503
        router.tell("set server upstream/eu state maint")
        assert [line for line in look_at(router)[0] if "has an external check" in line] == []


OTHERS = """
backend upstream-once
    server eu 127.0.0.1:1 track upstream/eu
    server us 127.0.0.1:2 track upstream/us
"""


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        (GOOD.replace("default_backend upstream\n", "http-request return status 404\n"), "upstream"),
        (GOOD + OTHERS, "upstream-once"),
    ],
)
def test_a_backend_to_which_no_frontend_leads_is_told_until_one_does(text: str, missing: str) -> None:
    said = f"unknown no frontend of these files leads to {missing}: yours needs the `use_backend` lines"
    with small(text) as router:
        assert one(examine(router)[1], "no frontend").startswith(said)
        lines = "    use_backend upstream-once if METH_POST\n" * ("once" in missing) + "    default_backend upstream\n"
        rewrite(
            router,
            lambda text: text.replace("    default_backend upstream\n", "").replace(
                "frontend web\n", f"frontend web\n{lines}"
            ),
        )
        assert "no frontend" not in str(examine(router))
        rewrite(router, lambda text: text.replace(lines, "    use_backend %[req.hdr(host),lower]\n"))
        assert "no frontend" not in str(examine(router))


def test_servers_of_the_settings_that_nobody_measures_are_a_problem(tmp_path: Path) -> None:
    conf = tmp_path / "multicloud.conf"
    conf.write_text("[other]\nservers = eu us\n")
    other = "\nbackend other\n    server eu 127.0.0.1:1\n    server us 127.0.0.1:2\n"
    with small(GOOD + other, MULTICLOUD_CONF=str(conf)) as router:
        line = told(router, "other: not measured, since HAProxy does not check it, although")
        assert line.endswith(f"{conf} has its servers: write it into `backends`, or run `multicloud config`")
        conf.write_text("")
        well(router)
        one(look(router.settings)[1], "ok other: not measured")
