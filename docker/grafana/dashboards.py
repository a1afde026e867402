"""The dashboards: what an operator looks at, and what each panel tells them to do.

python docker/grafana/dashboards.py    writes dashboards/*.json beside this file; commit the result
"""

import sys
from pathlib import Path

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from panels import INSTANCE, as_number, dashboard, ratio, total, variable
from replicas import REPLICAS
from service import ERRORS, FIRST_TOKEN, LATENCY, REJECTED, REQUESTS, SERVERS, TOKENS
from speculation import ACCEPTANCE, ACCEPTED, DOMAIN_SPEEDUP, DRAFTED, GENERATED, SPECULATION, SPEEDUP

OVERVIEW = [
    as_number(SPEEDUP, "Speed-up", f"avg(knnssd_speculation_speedup{{{INSTANCE}}})", {0: "red", 1: "green"}),
    as_number(ACCEPTANCE, "Acceptance", ratio(ACCEPTED, DRAFTED)),
    as_number(TOKENS, "Generated tokens per second", total(GENERATED)),
    as_number(SERVERS, "Engines up", f"sum(knnssd_worker_up{{{INSTANCE}}})", {0: "red", 1: "green"}),
    SPEEDUP,
    DOMAIN_SPEEDUP,
    TOKENS,
    REQUESTS,
    FIRST_TOKEN,
    ACCEPTANCE,
    REJECTED,
    ERRORS,
    SERVERS,
]


def dashboards() -> dict[str, Dashboard]:
    instances = variable("instance", "Server", 'label_values(up{job="knn-ssd-server"}, instance)')
    domains = variable("domain", "Domain", "label_values(knnssd_routes_total, domain)")
    deployments = variable("deployment", "Deployment", "label_values(knnssd_worker_up, deployment)")
    of_these = 'label_values(knnssd_worker_up{deployment=~"$deployment"}, replica)'
    replicas = variable("replica", "Replica", of_these)
    return {
        "overview": dashboard("overview", "KNN-SSD: overview", OVERVIEW, [instances]),
        "speculation": dashboard("speculation", "KNN-SSD: speculation", SPECULATION, [instances, domains]),
        "latency": dashboard("latency", "KNN-SSD: requests and latency", LATENCY, [instances]),
        "replicas": dashboard("replicas", "KNN-SSD: replicas", REPLICAS, [deployments, replicas]),
    }


def main(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in dashboards().items():
        (folder / f"{name}.json").write_text(JSONEncoder(indent=1).encode(content.build()) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("dashboards"))
