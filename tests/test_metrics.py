"""What Prometheus makes of it: the shipped rules and the dashboard, in a real Prometheus that scrapes a real loop."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests import test_docs

ROOT = Path(__file__).parents[1]
RULES = ROOT / "deploy/prometheus/rules.yml"
ALERTS = {rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}


def needs(program: str) -> None:
    """Skip the test where the program is not there."""
    if not shutil.which(program):
        pytest.skip(f"no {program}: it comes with Debian's package prometheus")


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
