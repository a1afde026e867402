"""Panels as plain data, queries over the server's metrics, and the Grafana objects made of them.

Queries follow two rules: rates use `$__rate_interval`, and a ratio has no value while its
denominator is zero, so that an idle server shows "no traffic" and not a wrong number.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from grafana_foundation_sdk.builders import common, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    ThresholdsConfig,
)
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    DataSourceRef,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardLinkType,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
)

SOURCE = DataSourceRef("prometheus", "${datasource}")
INSTANCE = 'instance=~"$instance"'
DOMAIN = f'{INSTANCE}, domain=~"$domain"'
TAG = "knn-ssd"
BAND = [
    DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [4, 4]}),
    DynamicConfigValue("custom.fillOpacity", 0),
]
"""Ends of a band are dashed."""


def total(metric: str, by: str = "", labels: str = INSTANCE) -> str:
    """Events a second, summed over everything but the labels in `by`."""
    grouping = f" by ({by}) " if by else ""
    return f"sum{grouping}(rate({metric}{{{labels}}}[$__rate_interval]))"


def ratio(part: str, whole: str, by: str = "", labels: str = INSTANCE) -> str:
    return f"{total(part, by, labels)} / ({total(whole, by, labels)} > 0)"


def quantile(share: float, histogram: str, by: str = "", labels: str = INSTANCE) -> str:
    buckets = total(f"{histogram}_bucket", f"le, {by}" if by else "le", labels)
    return f"histogram_quantile({share}, {buckets})"


def quantiles(histogram: str) -> dict[str, str]:
    return {f"p{share * 100:.0f}": quantile(share, histogram) for share in (0.5, 0.95, 0.99)}


@dataclass(frozen=True)
class Panel:
    """One panel; `queries` maps the legend to PromQL, `steps` colours values from a bound upwards."""

    title: str
    shows: str
    when_bad: str
    queries: dict[str, str]
    unit: str = "short"
    kind: Literal["timeseries", "stat"] = "timeseries"
    width: int = 8
    height: int = 8
    steps: dict[float, str] = field(default_factory=dict)
    is_stacked: bool = False

    def build(self, number: int) -> timeseries.Panel | stat.Panel:
        """The panel for Grafana, `number` being its own within the dashboard."""
        bounds = [Threshold(None, "green"), *(Threshold(bound, colour) for bound, colour in self.steps.items())]
        panel = (
            (self.curves() if self.kind == "timeseries" else self.large_number())
            .id(number)
            .title(self.title)
            .description(f"{self.shows}\n\n**When it is bad:** {self.when_bad}")
            .span(self.width)
            .height(self.height)
            .datasource(SOURCE)
            .unit(self.unit)
            .no_value("no traffic")
            .thresholds(ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(bounds))
        )
        for place, (legend, query) in enumerate(self.queries.items()):
            target = prometheus.Dataquery().ref_id(chr(ord("A") + place)).expr(query).legend_format(legend).range()
            panel.with_target(target)
        return panel

    def curves(self) -> timeseries.Panel:
        return (
            timeseries.Panel()
            .fill_opacity(10)
            .show_points(VisibilityMode.NEVER)
            .stacking(common.StackingConfig().mode(StackingMode.NORMAL if self.is_stacked else StackingMode.NONE))
            .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
            .override_by_regexp("/ (low|high)$/", BAND)
        )

    @staticmethod
    def large_number() -> stat.Panel:
        latest = common.ReduceDataOptions().calcs(["lastNotNull"])
        return (
            stat.Panel().reduce_options(latest).color_mode(BigValueColorMode.VALUE).graph_mode(BigValueGraphMode.AREA)
        )


def as_number(panel: Panel, title: str, query: str, steps: dict[float, str] | None = None) -> Panel:
    """The same panel as one large number."""
    return replace(panel, title=title, queries={"": query}, kind="stat", width=6, height=5, steps=steps or {})


def variable(name: str, label: str, query: str) -> QueryVariable:
    """A drop-down of label values, all of them chosen at first."""
    return (
        QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query({"query": query, "refId": name})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(text="All", value="$__all"))
    )


def dashboard(name: str, title: str, panels: list[Panel], variables: list[QueryVariable]) -> Dashboard:
    """Panels from left to right, and what all dashboards share."""
    link = DashboardLink("KNN-SSD").type(DashboardLinkType.DASHBOARDS).tags([TAG]).include_vars(True)
    board = (
        Dashboard(title)
        .uid(f"knnssd-{name}")
        .tags([TAG])
        .readonly()
        .refresh("10s")
        .time("now-30m", "now")
        .link(link)
        .variables([DatasourceVariable("datasource").label("Data source").type("prometheus"), *variables])
    )
    for place, panel in enumerate(panels, start=1):
        board.with_panel(panel.build(place))
    return board
