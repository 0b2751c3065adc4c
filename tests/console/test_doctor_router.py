"""What `multicloud doctor` and `multicloud status` say of a router that an operator or an agent has a hand in."""

from __future__ import annotations

import pytest

from tests.command import run
from tests.console.patient import one
from tests.console.test_doctor import doctor
from tests.edge import Edge, edge, wait_until


def status(router: Edge) -> str:
    """What status says, in one line."""
    return " ".join(run("status", environ=router.router.settings).stdout.split())


def test_frozen_weights_are_an_operators_and_told_as_such() -> None:
    with edge({"eu": 0.01, "us": 0.1}) as router:
        wait_until(lambda: router.weights() == {"eu": 256, "us": 1}, 30, "the two are ranked")
        router.tell("set server reweigh/multicloud-reweigh state maint")
        wrong, _ = doctor(router)
        line = one(wrong, "an operator has frozen the weights")
        assert "`set server reweigh/multicloud-reweigh state ready`" in line
        assert "an operator has frozen the weights" in status(router)
        router.tell("set server reweigh/multicloud-reweigh state ready")
        assert "frozen" not in status(router)


@pytest.mark.parametrize("resort", ["last-resort", "upstream-last-resort"])
def test_the_last_resort_is_known_before_each_request_is_called_a_503(resort: str) -> None:
    with edge({"eu": 0.01}, configure=lambda text: text.replace("last-resort", resort)) as router:
        router.region["eu"].status = 500
        wait_until(lambda: router.states() == {"eu": "DOWN"}, 30, "it is DOWN")
        expected = (
            f"no server of upstream is UP (DOWN), so {resort} is tried where a frontend has "
            f"`use_backend {resort} if {{ nbsrv(upstream) lt 1 }}`, and else each request is a 503"
        )
        assert expected in status(router)
        assert "no server of upstream" not in " ".join(doctor(router)[0]), "that follows from its check"
        assert router.get() == (500, "eu"), "it is tried"
        router.tell(f"set server {resort}/eu state maint")
        assert "no server of upstream is UP (DOWN), so each request to it is a 503" in status(router)
        assert router.get()[0] == 503
        router.tell("set server upstream/eu state maint")
        assert [line for line in doctor(router)[0] if "has an external check" in line] == []
