"""What Prometheus makes of it: the shipped rules and the dashboard, in a real Prometheus that scrapes a real loop."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests import test_docs
from tests.edge import wait_until
from tests.ports import free_port
from tests.prometheus import needs, prometheus
from tests.test_run import site

ROOT = Path(__file__).parents[1]
RULES = ROOT / "deploy/prometheus/rules.yml"
DASHBOARD = ROOT / "deploy/grafana/multicloud.json"
ALERTS = {rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}


@pytest.mark.parametrize(
    "arguments", [("check", "rules", str(RULES)), ("test", "rules", f"{RULES.parent}/rules_test.yml")]
)
def test_the_rules_are_right_and_do_what_their_tests_say(arguments: tuple[str, ...]) -> None:
    needs("promtool")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_how_bad_it_is_what_is_wrong_and_which_page_helps(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"]
    page, _, anchor = rule["annotations"]["manual"].partition("#")
    assert anchor in test_docs.anchors((ROOT / page).read_text())
    assert f"`{alert}`" in (ROOT / "docs/metrics.md").read_text()
    assert alert in (RULES.parent / "rules_test.yml").read_text()
    metrics = set(re.findall(r"multicloud_\w+", rule["expr"]))
    assert all(f"`{name}" in (ROOT / "docs/metrics.md").read_text() for name in metrics)


def test_the_dashboard_is_what_its_script_makes() -> None:
    pytest.importorskip("grafana_foundation_sdk", reason="pip install '.[dashboard]'")
    done = subprocess.run(
        [sys.executable, DASHBOARD.with_name("dashboard.py")], capture_output=True, text=True, check=True
    )
    assert done.stdout == DASHBOARD.read_text()


def queries() -> list[str]:
    """The queries of the dashboard with the values of the variables, as Grafana asks."""
    variables = {"$edge": "edge1", "$backend": "app", "$__rate_interval": "5s"}
    panels = json.loads(DASHBOARD.read_text())["panels"]
    found = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    for name, value in variables.items():
        found = [query.replace(name, value) for query in found]
    return found


def impatient(rules: str) -> str:
    """The rules with seconds for the minutes that an alert waits."""
    seconds = {"15s": "1s", "1m": "3s", "2m": "3s", "5m": "5s"}
    return re.sub(r"(?<=for: )\w+", lambda found: seconds[found[0]], rules)


def selectors(expr: str) -> list[str]:
    """What an alert looks at, without what it compares that with."""
    return re.findall(r"\b(?:up|multicloud_\w+)\b(?:\{.*?\})?", expr)


@pytest.mark.slow
def test_what_breaks_fires_its_alert_and_no_other_and_every_query_has_data(tmp_path: Path) -> None:
    needs("prometheus")
    port = free_port()
    with (
        site(tmp_path) as here,
        here.beside("--metrics", str(port)) as beside,
        prometheus(tmp_path, {"edge1": port}, impatient(RULES.read_text()), "1s") as watching,
    ):

        def without_data() -> list[str]:
            selected = [each for rule in ALERTS.values() for each in selectors(rule["expr"])]
            return [query for query in queries() + selected if not watching.query(query)]

        wait_until(lambda: without_data() == [], 60, "every query has data")
        wait_until(lambda: here.weights() == {"eu": 256, "us": 1}, 10, "the first weights")
        assert {rule["name"] for group in watching.ask("rules")["groups"] for rule in group["rules"]} == {*ALERTS}
        time.sleep(6)  # the longest that an alert waits
        assert watching.firing() == set()

        here.region["eu"].status = 500
        wait_until(lambda: watching.firing() == {"MulticloudServerDown"}, 30, "the alert of a server")
        time.sleep(6)
        assert watching.firing() == {"MulticloudServerDown"}
        (alert,) = watching.ask("alerts")["alerts"]
        assert alert["annotations"]["summary"] == "app/eu is DOWN, as edge1 sees it"
        (changes,) = watching.query("sum by (reason) (increase(multicloud_favorite_changes_total[1m])) > 0")
        assert changes["metric"]["reason"] in ("overtook", "down")  # as failed checks are slow ones, too
        here.region["eu"].status = 200
        wait_until(lambda: watching.firing() == set(), 30, "all is well again")

        here.router.__exit__()
        wait_until(lambda: watching.firing() == {"MulticloudHaproxyAway"}, 30, "the alert of HAProxy")
        time.sleep(6)
        assert watching.firing() == {"MulticloudHaproxyAway"}
        beside.process.terminate()
        wait_until(lambda: watching.firing() == {"MulticloudRunAway"}, 30, "the alert of the loop")
