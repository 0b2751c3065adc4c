"""The dashboard as JSON, which Grafana imports: python deploy/grafana/dashboard.py > deploy/grafana/multicloud.json

Needs `pip install '.[dashboard]'`. docs/metrics.md says what the panels show.
"""

from __future__ import annotations

from grafana_foundation_sdk.builders import common, dashboard, prometheus, statetimeline, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as choices
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import (
    Dashboard,
    DashboardCursorSync,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    ValueMap,
    ValueMappingResult,
    VariableOption,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
EDGE = 'instance=~"$edge"'
SERVERS = f'{EDGE}, backend=~"$backend"'
WIDE, HALF, HEIGHT = 24, 12, 8


def query(expr: str, legend: str) -> prometheus.Dataquery:
    """A query over time."""
    return prometheus.Dataquery().expr(expr).legend_format(legend).datasource(SOURCE).range()


def lines(title: str, unit: str, *queries: tuple[str, str]) -> timeseries.Panel:
    """A panel of lines; the queries are pairs of an expression and a legend."""
    panel = timeseries.Panel().title(title).datasource(SOURCE).unit(unit).min(0).span(HALF).height(HEIGHT)
    panel = panel.legend(common.VizLegendOptions().display_mode(choices.LegendDisplayMode.LIST).show_legend(True))
    return panel.targets(
        [query(expr, legend).ref_id(chr(ord("A") + place)) for place, (expr, legend) in enumerate(queries)]
    )


def areas(title: str, unit: str, *queries: tuple[str, str]) -> timeseries.Panel:
    """The same of areas, one upon the other."""
    stacked = common.StackingConfig().mode(choices.StackingMode.NORMAL)
    return lines(title, unit, *queries).fill_opacity(40).line_width(0).stacking(stacked)


def bars(title: str, *queries: tuple[str, str]) -> timeseries.Panel:
    """The same of bars, which count."""
    return areas(title, units.Short, *queries).draw_style(choices.GraphDrawStyle.BARS).fill_opacity(80)


def leads() -> statetimeline.Panel:
    """Who leads where, over time."""
    words = {
        "1": ValueMappingResult(text="leads", color="green", index=0),
        "0": ValueMappingResult(text=" ", color="transparent", index=1),
    }
    panel = statetimeline.Panel().title("Who leads").datasource(SOURCE).span(HALF).height(HEIGHT)
    panel = panel.mappings([ValueMap(words)]).show_value(choices.VisibilityMode.NEVER).merge_values(True)
    return panel.with_target(
        query(f"multicloud_server_favorite{{{SERVERS}}}", "{{instance}} {{backend}}/{{server}}").ref_id("A")
    )


def since() -> table.Panel:
    """Who leads now, and since when."""
    expr = f"1000 * multicloud_favorite_since_timestamp_seconds{{{SERVERS}}}"
    now = prometheus.Dataquery().expr(expr).datasource(SOURCE).instant().ref_id("A")
    columns = {
        "excludeByName": {"Time": True, "job": True},
        "indexByName": {"instance": 0, "backend": 1, "server": 2, "Value": 3},
        "renameByName": {"instance": "edge", "server": "leads", "Value": "since"},
    }
    panel = table.Panel().title("Leads now, and since when").datasource(SOURCE).span(HALF).height(HEIGHT)
    panel = panel.with_target(now.format(PromQueryFormat.TABLE))
    panel = panel.with_transformation(DataTransformerConfig(id_val="organize", options=columns))
    return panel.override_by_name("since", [DynamicConfigValue("unit", "dateTimeFromNow")])


def variable(name: str, label: str, expr: str) -> dashboard.QueryVariable:
    """A variable with the values of a label, all of them at first."""
    everything = VariableOption(selected=True, text=["All"], value=["$__all"])
    made = dashboard.QueryVariable(name).label(label).query(expr).datasource(SOURCE).multi(True).include_all(True)
    return made.current(everything).refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)


def made() -> Dashboard:
    """The dashboard, its panels numbered."""
    shown = described().build()
    for number, panel in enumerate(shown.panels or [], 1):
        panel.id_val = number
    return shown


def described() -> dashboard.Dashboard:
    """What is in it."""
    by_server = "{{instance}} {{backend}}/{{server}}"
    of_reason = "{{backend}}: {{reason}}"
    changes = f"sum by (backend, reason) (increase(multicloud_favorite_changes_total{{{SERVERS}}}[$__rate_interval]))"
    decisions = f"sum by (backend, reason) (rate(multicloud_decisions_total{{{SERVERS}}}[$__rate_interval]))"
    weights = f"sum by (instance, backend) (increase(multicloud_weight_changes_total{{{SERVERS}}}[$__rate_interval]))"
    failed = f"sum by (instance, backend, server) (rate(multicloud_checks_failed_total{{{SERVERS}}}[$__rate_interval]))"
    buckets = f"sum by (backend, server, le) (rate(multicloud_check_seconds_bucket{{{SERVERS}}}[$__rate_interval]))"
    return (
        dashboard.Dashboard("multicloud: latency routing")
        .uid("multicloud")
        .tags(["haproxy", "multicloud"])
        .description("Who leads on which edge and why, what users wait, and whether all is well.")
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .editable()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(variable("edge", "edge", "label_values(multicloud_server_up, instance)"))
        .with_variable(variable("backend", "backend", 'label_values(multicloud_server_up{instance=~"$edge"}, backend)'))
        .with_row(dashboard.Row("Where traffic goes"))
        .with_panel(leads())
        .with_panel(since())
        .with_panel(
            areas(
                "Parts of the traffic, by the weights",
                units.PercentUnit,
                (f"avg by (backend, server) (multicloud_server_traffic_ratio{{{SERVERS}}})", "{{backend}}/{{server}}"),
            )
        )
        .with_panel(
            lines(
                "Requests in flight",
                units.Short,
                (f"multicloud_server_requests_in_flight{{{SERVERS}}}", by_server),
            )
        )
        .with_row(dashboard.Row("What users wait"))
        .with_panel(
            lines("What decides, by edge", units.Seconds, (f"multicloud_server_score_seconds{{{SERVERS}}}", by_server))
        )
        .with_panel(
            lines(
                "Nine of ten checks, over all edges",
                units.Seconds,
                (f"histogram_quantile(0.9, {buckets})", "{{backend}}/{{server}}"),
            )
        )
        .with_row(dashboard.Row("What was decided, and why"))
        .with_panel(bars("Changes of favourite, by reason", (changes, of_reason)))
        .with_panel(bars("Changes of weights", (weights, "{{instance}} {{backend}}")))
        .with_panel(areas("Decisions a second, by reason", units.Short, (decisions, of_reason)).span(WIDE))
        .with_row(dashboard.Row("What is wrong"))
        .with_panel(lines("Failed checks a second", units.Short, (failed, by_server)))
        .with_panel(
            lines(
                "Problems, and the states of servers",
                units.Short,
                (f"multicloud_problems{{{EDGE}}}", "{{instance}}: problems"),
                (f"sum by (instance, state) (multicloud_server_state{{{SERVERS}}})", "{{instance}}: {{state}}"),
            )
        )
        .with_row(dashboard.Row("The loop itself"))
        .with_panel(
            lines(
                "A round, and the time since the last one",
                units.Seconds,
                (f"multicloud_round_duration_seconds{{{EDGE}}}", "{{instance}}: a round"),
                (f"time() - multicloud_last_round_timestamp_seconds{{{EDGE}}}", "{{instance}}: since the last one"),
            )
        )
        .with_panel(
            lines(
                "Rounds a second, and HAProxy",
                units.Short,
                (f"rate(multicloud_rounds_total{{{EDGE}}}[$__rate_interval])", "{{instance}}: rounds"),
                (f"rate(multicloud_rounds_failed_total{{{EDGE}}}[$__rate_interval])", "{{instance}}: failed"),
                (f"multicloud_haproxy_up{{{EDGE}}}", "{{instance}}: HAProxy is up"),
            )
        )
    )


if __name__ == "__main__":
    print(JSONEncoder(sort_keys=True, indent=1).encode(made()))
