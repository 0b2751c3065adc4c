"""`multicloud doctor -f`: certificates by what the server lines say, and by what the checks use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trustme

from tests.console.test_doctor import doctor, one
from tests.edge import Edge, edge, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LINE = 'ca-file "${UPSTREAM_CA-/etc/ssl/certs/ca-certificates.crt}" sni srv_name'


def with_configuration(router: Edge) -> tuple[int, list[str], list[str]]:
    """Exit code, problems and other findings, the configuration looked at."""
    return doctor(router, "-f", str(router.router.directory / "haproxy.cfg"))


def test_a_certificate_that_haproxy_alone_does_not_accept_is_a_problem(tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))

    def mistaken(text: str) -> str:
        return text.replace(LINE, f"ca-file {other} sni srv_name")

    with edge({"eu": 0.01, "us": 0.1}, configure=mistaken) as router:
        wait_until(lambda: len(router.times()) >= 2, 30, "the checks accept both")
        code, wrong, _ = with_configuration(router)
        assert code == 1
        line = one(wrong, "HAProxy does not accept the certificate of upstream/eu, upstream/us, ")
        assert (
            "unable to get local issuer certificate), so each request to it is a 503, although its check passes" in line
        )
        own = router.router.settings["MULTICLOUD_CA_FILE"]
        assert f"write `ca-file {own}` in place of `ca-file {other}` on its `server` line" in line


def test_a_name_that_the_certificate_is_not_for_is_a_problem_of_its_line() -> None:
    def mistaken(text: str) -> str:
        return text.replace("sni srv_name", "sni str(www.example.com)")

    with edge({"eu": 0.01}, configure=mistaken) as router:
        wait_until(lambda: router.times() != [], 30, "the check accepts it")
        code, wrong, _ = with_configuration(router)
        assert code == 1
        assert "write `sni str(eu)` on its `server` line" in one(wrong, "HAProxy does not accept the certificate of")


@pytest.mark.parametrize(
    ("commands", "configure", "setting"),
    [
        ({"MULTICLOUD_CA_FILE": ""}, str, "ca_file = {directory}/authority.pem"),
        (
            {"MULTICLOUD_CA_FILE": ""},
            lambda text: text.replace(f"verify required {LINE}", "verify none sni srv_name"),
            "insecure = 1",
        ),
        (
            {"MULTICLOUD_HOST": "www.example.com"},
            str,
            "host = eu",
        ),
    ],
)
def test_a_certificate_that_the_check_alone_does_not_accept_is_what_its_failure_comes_from(
    commands: dict[str, str], configure: Callable[[str], str], setting: str
) -> None:
    with edge({"eu": 0.01}, commands=commands, configure=configure) as router:
        wait_until(lambda: router.states() == {"eu": "DOWN"}, 30, "the check refuses it")
        code, wrong, _ = with_configuration(router)
        assert code == 1
        line = one(wrong, "the check does not accept the certificate of upstream/eu")
        said = setting.format(directory=router.router.directory)
        assert line.endswith(
            f"a check does not use the `server` line; set `{said}` in [upstream] of /etc/multicloud.conf"
        )
        assert "fails with exit code" not in " ".join(wrong), "that follows from it"
        assert "no samples" not in " ".join(wrong)


def test_certificates_that_both_accept_are_all_well() -> None:
    with edge({"eu": 0.01, "us": 0.1}) as router:
        wait_until(lambda: router.weights() == {"eu": 256, "us": 1}, 30, "the two are ranked")
        code, wrong, others = with_configuration(router)
        assert (code, wrong) == (0, [])
        one(others, "HAProxy accepts the certificates of ")


def test_a_check_that_passes_by_settings_that_are_not_seen_here_is_no_problem() -> None:
    with edge({"eu": 0.01, "us": 0.1}) as router:
        wait_until(lambda: router.weights() == {"eu": 256, "us": 1}, 30, "the two are ranked")
        del router.router.settings["MULTICLOUD_CA_FILE"]
        code, wrong, _ = with_configuration(router)
        assert (code, wrong) == (0, [])


def test_a_server_whose_certificate_is_not_had_is_told() -> None:
    with edge({"eu": 0.01}, interval="600s") as router:
        router.regions.freeze(router.region["eu"])
        _, wrong, others = with_configuration(router)
        assert "certificate of" not in " ".join(wrong)
        assert "upstream/eu" in one(others, "certificates that could not be had in time from here")
