"""What `multicloud doctor` and `multicloud status` say of a router that an operator or an agent has a hand in."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from typing import TYPE_CHECKING

import pytest

from tests.command import run
from tests.console.patient import GOOD, examine, one, rewrite, small, well
from tests.console.test_doctor import doctor
from tests.edge import Edge, edge, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


def status(router: Edge) -> str:
    """What status says, in one line."""
    return " ".join(run("status", environ=router.router.settings).stdout.split())


@contextlib.contextmanager
def agent(said: str) -> Iterator[int]:
    """The port of an agent that says this line."""

    class Say(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(said.encode() + b"\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Say) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("said", "weight"), [("up 75%", "75%"), ("weight:20", "weight:20"), ("ready,up", "")])
def test_an_agent_that_says_a_weight_is_a_problem_until_it_is_gone(said: str, weight: str) -> None:
    with agent(said) as port:
        words = f"inter 300 agent-check agent-inter 300 agent-addr 127.0.0.1 agent-port {port}"
        with small(GOOD.replace("inter 300", words)) as router:
            wait_until(lambda: str(examine(router)).count("the agent of upstream/") == 2, 10, "both are checked")
            wrong, others = examine(router)
            if not weight:
                assert len([line for line in others if "says no weight" in line]) == 2
            assert len(wrong) == 2 * bool(weight)
            for line in wrong:
                assert f"says the weight {weight}, so it and the reweigh overwrite" in line
                assert line.endswith("or remove `agent-check`")
            rewrite(router, lambda _: GOOD)
            well(router)


def test_an_agent_that_is_not_heard_is_unknown() -> None:
    with small(GOOD.replace("inter 300", "inter 300 agent-check agent-addr 127.0.0.1 agent-port 1")) as router:
        wait_until(lambda: any("has an `agent-check`" in line for line in examine(router)[1]), 10, "it is asked")
        assert one(examine(router)[1], "upstream/eu has an `agent-check`").startswith("unknown ")


def test_frozen_weights_are_an_operators_and_told_as_such() -> None:
    with edge({"eu": 0.01, "us": 0.1}) as router:
        wait_until(lambda: router.weights() == {"eu": 256, "us": 1}, 30, "the two are ranked")
        router.tell("set server reweigh/multicloud-reweigh state maint")
        code, wrong, _ = doctor(router)
        assert code == 1
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
        assert "no server of upstream" not in " ".join(doctor(router)[1]), "that follows from its check"
        assert router.get() == (500, "eu"), "it is tried"
        router.tell(f"set server {resort}/eu state maint")
        assert "no server of upstream is UP (DOWN), so each request to it is a 503" in status(router)
        assert router.get()[0] == 503
        router.tell("set server upstream/eu state maint")
        assert [line for line in doctor(router)[1] if "has an external check" in line] == []
