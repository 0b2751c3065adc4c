"""`multicloud doctor`: certificates by what the server lines say, and by what the checks use; and the cures."""

import datetime
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from tests.console.patient import VERSION, look, look_at, one
from tests.edge import Edge, edge, wait_until

CA_FILE = 'ca-file "${UPSTREAM_CA-/etc/ssl/certs/ca-certificates.crt}"'


def mend(router: Edge, change: Callable[[str], str], conf: Path | None = None, settings: str = "") -> None:
    """Change the configuration, write the settings, and start HAProxy again; then nothing may be wrong any more."""
    path = router.router.directory / "haproxy.cfg"
    path.write_text(change(path.read_text()))
    if conf:
        conf.write_text(settings)
    router.router.restart()
    wait_until(lambda: look_at(router)[0] == [], 15, "nothing is wrong any more")
    assert set(router.states().values()) == {"UP"}
    assert router.get()[0] == 200


def test_an_authority_that_haproxy_alone_does_not_know_is_a_problem_of_its_line(tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    with edge({"eu": 0.01, "us": 0.1}, configure=lambda text: text.replace(CA_FILE, f"ca-file {other}")) as router:
        wait_until(lambda: router.weights() == {"eu": 256, "us": 1}, 30, "the checks accept both")
        line = one(look_at(router)[0], "HAProxy does not accept the certificate of upstream/eu, upstream-once/eu, ")
        assert "local issuer certificate), so each request to it is a 503, although its check passes: write " in line
        own = router.router.settings["MULTICLOUD_CA_FILE"]
        assert line.endswith(f"write `ca-file {own}` in place of `ca-file {other}` on its `server` line")
        mend(router, lambda text: text.replace(f"ca-file {other}", f"ca-file {own}"))


def test_a_name_that_the_certificate_is_not_for_is_a_problem_of_its_line() -> None:
    def mistaken(text: str) -> str:
        return text.replace("sni srv_name", "sni str(www.example.com)")

    with edge({"eu": 0.01}, configure=mistaken) as router:
        wait_until(lambda: router.times() != [], 30, "the check accepts it")
        line = one(look_at(router)[0], "HAProxy does not accept the certificate of")
        assert line.endswith("write `sni str(eu)` on its `server` line")
        mend(router, lambda text: text.replace("sni str(www.example.com)", "sni str(eu)"))


@pytest.mark.parametrize(("wrong", "section"), [("us", "upstream/us.wrong"), ("eu|us", "upstream")])
def test_the_wrong_name_of_a_server_is_mended_for_it_alone_unless_all_are_wrong(
    tmp_path: Path, wrong: str, section: str
) -> None:
    conf = tmp_path / "multicloud.conf"
    conf.touch()

    def mistaken(text: str) -> str:
        return re.sub(rf"(server |upstream/)({wrong})\b", r"\1\2.wrong", text)

    def mended(text: str) -> str:
        return re.sub(r"(server \S+\.wrong .*)", r"\1 sni str(eu)", text)

    environ = {"MULTICLOUD_CONF": str(conf)}
    with edge({"eu": 0.01, "us": 0.1}, configure=mistaken, commands=environ) as router:
        down = {f"{name}.wrong" for name in wrong.split("|")}
        wait_until(lambda: {n for n, s in router.states().items() if s == "DOWN"} == down, 30, "the check refuses it")
        for lines in (look(router.router.settings)[0], look_at(router)[0]):
            assert f"set `host = eu` in [{section}] of {conf}" in " ".join(lines)
            assert "write `sni str(eu)` on its" in " ".join(lines)
        mend(router, mended, conf, f"[{section}]\nhost = eu\n")


@pytest.mark.parametrize(
    ("ca_file", "before", "configure", "value"),
    [
        ({"MULTICLOUD_CA_FILE": ""}, "", str, "ca_file = {directory}/authority.pem"),
        (
            {"MULTICLOUD_CA_FILE": ""},
            "",
            lambda text: text.replace(f"verify required {CA_FILE}", "verify none"),
            "insecure = 1",
        ),
        ({}, "[upstream]\nhost = www.example.com\n", str, "host = eu"),
    ],
)
def test_a_certificate_that_the_check_alone_does_not_accept_is_mended_in_its_settings(
    tmp_path: Path, ca_file: dict[str, str], before: str, configure: Callable[[str], str], value: str
) -> None:
    conf = tmp_path / "multicloud.conf"
    conf.write_text(before)
    with edge({"eu": 0.01}, commands={"MULTICLOUD_CONF": str(conf), **ca_file}, configure=configure) as router:
        wait_until(lambda: router.states() == {"eu": "DOWN"}, 30, "the check refuses it")
        (line,), _ = look_at(router)
        said = value.format(directory=router.router.directory)
        assert line.endswith(f"but a check does not use the `server` line; set `{said}` in [upstream] of {conf}")
        mend(router, str, conf, f"[upstream]\n{said}\n")


@pytest.mark.skipif(VERSION < "3.3", reason="before 3.3 HAProxy sends no SNI by itself")
def test_a_certificate_for_the_host_of_each_request_is_unknown() -> None:
    with edge({"eu": 0.01}, configure=lambda text: text.replace(" sni srv_name", "")) as router:
        wait_until(lambda: router.times() != [], 30, "the check accepts it")
        line = one(look_at(router)[1], "must be for a name that depends on the request")
        assert line.startswith("unknown ")
        assert line.endswith("write `sni str(…)`, or `no-sni-auto`")
        mend(
            router, lambda text: text.replace("resolvers default init-addr", "sni srv_name resolvers default init-addr")
        )
        assert "depends on the request" not in str(look_at(router)[1])


@pytest.mark.parametrize("beside", [False, True])
def test_a_certificate_that_has_expired_is_to_be_renewed(beside: bool) -> None:
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    with edge({"eu": 0.01, "us": 0.1}, beside=beside) as router:
        region, regions = router.region["us"], router.regions
        begun = yesterday - datetime.timedelta(days=1)
        expired = regions.authority.issue_cert("us", not_before=begun, not_after=yesterday)
        regions.present(region, expired)
        wait_until(lambda: router.states()["us"] == "DOWN", 30, "its check fails")
        findings = [look_at(router)[0]] + [look(router.router.settings)[0]] * (not beside)
        for wrong in findings:
            line = one(wrong, "certificate has expired")
            assert f"renew it: it expired on {yesterday:%Y-%m-%d}" in line
        regions.present(region, regions.authority.issue_cert("us"))
        wait_until(lambda: look_at(router)[0] == [], 15, "nothing is wrong any more")


def test_certificates_that_both_accept_are_all_well_also_by_settings_that_are_not_seen_here() -> None:
    with edge({"eu": 0.01, "us": 0.1}) as router:
        wait_until(lambda: router.weights() == {"eu": 256, "us": 1}, 30, "the two are ranked")
        for _ in range(2):
            wrong, others = look_at(router)
            assert wrong == []
            one(others, "HAProxy accepts the certificates of ")
            router.router.settings.pop("MULTICLOUD_CA_FILE", None)


def test_a_ca_file_that_cannot_be_read_from_here_is_no_refusal_of_haproxys() -> None:
    """Such as a directory, which HAProxy takes."""

    def in_directory(text: str) -> str:
        return text.replace(CA_FILE, 'ca-file "${UPSTREAM_CA}.d"')

    with edge({"eu": 0.01}) as router:
        wait_until(lambda: router.weights() == {"eu": 256}, 30, "it is measured")
        directory = router.router.directory
        (directory / "authority.pem.d").mkdir()
        (directory / "authority.pem").rename(directory / "authority.pem.d" / "authority.pem")
        (directory / "authority.pem").symlink_to(directory / "authority.pem.d" / "authority.pem")
        mend(router, in_directory)
        wrong, others = look_at(router)
        assert "certificate" not in " ".join(wrong)
        assert "upstream/eu" in one(others, "or their `ca-file`")


def test_a_server_whose_certificate_is_not_had_is_told() -> None:
    with edge({"eu": 0.01}, interval="600s") as router:
        router.regions.freeze(router.region["eu"])
        wrong, others = look_at(router)
        assert "certificate of" not in " ".join(wrong)
        assert "upstream/eu" in one(others, "certificates that were not had in time from here")
