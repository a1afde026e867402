"""The dashboards: what an operator looks at, and what each panel tells them to do.

python docker/grafana/dashboards.py    writes dashboards/*.json beside this file; commit the result
"""

import json
import sys
from pathlib import Path

from panels import INSTANCE, Json, dashboard, ratio, stat, total, variable
from service import ERRORS, FIRST_TOKEN, LATENCY, REJECTED, REQUESTS, SERVERS, TOKENS
from speculation import ACCEPTANCE, ACCEPTED, DOMAIN_SPEEDUP, DRAFTED, GENERATED, SPECULATION, SPEEDUP

OVERVIEW = [
    stat(SPEEDUP, "Speed-up", f"avg(knnssd_speculation_speedup{{{INSTANCE}}})", {0: "red", 1: "green"}),
    stat(ACCEPTANCE, "Acceptance", ratio(ACCEPTED, DRAFTED)),
    stat(TOKENS, "Generated tokens per second", total(GENERATED)),
    stat(SERVERS, "Engines up", f"sum(knnssd_worker_up{{{INSTANCE}}})", {0: "red", 1: "green"}),
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

INSTANCES = variable("instance", "Server", 'label_values(up{job="knn-ssd-server"}, instance)')
DOMAINS = variable("domain", "Domain", "label_values(knnssd_routes_total, domain)")


def dashboards() -> dict[str, Json]:
    return {
        "overview": dashboard("overview", "KNN-SSD: overview", OVERVIEW, [INSTANCES]),
        "speculation": dashboard("speculation", "KNN-SSD: speculation", SPECULATION, [INSTANCES, DOMAINS]),
        "latency": dashboard("latency", "KNN-SSD: requests and latency", LATENCY, [INSTANCES]),
    }


def main(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in dashboards().items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("dashboards"))
