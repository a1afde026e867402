"""Grafana panels as plain data: queries over the server's metrics, and their JSON.

Queries follow two rules: rates use `$__rate_interval`, and a ratio has no value while its
denominator is zero, so that an idle server shows "no traffic" and not a wrong number.
"""

from dataclasses import dataclass, field, replace
from typing import Any

Json = dict[str, Any]

DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
INSTANCE = 'instance=~"$instance"'
DOMAIN = f'{INSTANCE}, domain=~"$domain"'
GRID_WIDTH = 24
BAND: Json = {
    "matcher": {"id": "byRegexp", "options": "/ (low|high)$/"},
    "properties": [
        {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [4, 4]}},
        {"id": "custom.fillOpacity", "value": 0},
    ],
}
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
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    steps: dict[float, str] = field(default_factory=dict)
    stacked: bool = False

    def json(self, number: int, x: int, y: int) -> Json:
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": f"{self.shows}\n\n**When it is bad:** {self.when_bad}",
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "datasource": DATASOURCE,
            "targets": [
                {"refId": chr(ord("A") + i), "datasource": DATASOURCE, "expr": query, "legendFormat": legend}
                for i, (legend, query) in enumerate(self.queries.items())
            ],
            "fieldConfig": {"defaults": self.defaults(), "overrides": [BAND] if self.kind == "timeseries" else []},
            "options": self.options(),
        }

    def defaults(self) -> Json:
        steps = [{"value": None, "color": "green"}, *({"value": v, "color": c} for v, c in self.steps.items())]
        custom = {"fillOpacity": 10, "showPoints": "never", "stacking": {"mode": "normal" if self.stacked else "none"}}
        return {
            "unit": self.unit,
            "noValue": "no traffic",
            "thresholds": {"mode": "absolute", "steps": steps},
            "custom": custom if self.kind == "timeseries" else {},
        }

    def options(self) -> Json:
        if self.kind == "timeseries":
            return {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
        return {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"}


def stat(panel: Panel, title: str, query: str, steps: dict[float, str] | None = None) -> Panel:
    """The same panel as one large number."""
    return replace(panel, title=title, queries={"": query}, kind="stat", width=6, height=5, steps=steps or {})


def variable(name: str, label: str, query: str) -> Json:
    """A drop-down of label values, all of them chosen at first."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard(name: str, title: str, panels: list[Panel], variables: list[Json]) -> Json:
    """Lays panels out from left to right and adds what all dashboards share."""
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    return {
        "uid": f"knnssd-{name}",
        "title": title,
        "tags": ["knn-ssd"],
        "schemaVersion": 41,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "links": [{"type": "dashboards", "tags": ["knn-ssd"], "title": "KNN-SSD", "includeVars": True}],
        "templating": {"list": [source, *variables]},
        "panels": list(place(panels)),
    }


def place(panels: list[Panel]) -> list[Json]:
    placed, x, y, row_height = [], 0, 0, 0
    for number, panel in enumerate(panels, start=1):
        if x + panel.width > GRID_WIDTH:
            x, y, row_height = 0, y + row_height, 0
        placed.append(panel.json(number, x, y))
        x, row_height = x + panel.width, max(row_height, panel.height)
    return placed
