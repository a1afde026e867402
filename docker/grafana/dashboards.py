"""The dashboards: what an operator looks at, and what each panel tells them to do.

python docker/grafana/dashboards.py    writes dashboards/*.json beside this file; commit the result
"""

import json
import sys
from pathlib import Path

from panels import DOMAIN, INSTANCE, Json, Panel, dashboard, quantile, quantiles, ratio, stat, total, variable

DRAFTS = "knnssd_spec_decode_num_drafts_total"
DRAFTED = "knnssd_spec_decode_num_draft_tokens_total"
ACCEPTED = "knnssd_spec_decode_num_accepted_tokens_total"
ACCEPTED_AT = "knnssd_spec_decode_num_accepted_tokens_per_pos_total"
GENERATED = "knnssd_generation_tokens_total"

SPEEDUP = Panel(
    "Speed-up over plain decoding",
    "Time of a token decoded plainly over the time of one with drafts; a small share of steps keeps measuring it.",
    "Under 1 the drafts cost more than they save. Look at acceptance by domain; calibrate again on prompts like "
    "today's, or serve with the method `plain` until then.",
    {"speed-up": f"knnssd_speculation_speedup{{{INSTANCE}}}"},
    unit="x",
)
ACCEPTANCE = Panel(
    "Acceptance by domain",
    "Share of the drafted tokens that the full model agreed with.",
    "A domain that falls: its prompts are no longer like those it was calibrated on. Add some of them and calibrate "
    "again. All domains at once: sampling got hotter, or the artifact does not fit.",
    {"{{domain}}": ratio(ACCEPTED, DRAFTED, "domain", DOMAIN)},
    unit="percentunit",
)
LENGTH = Panel(
    "Tokens per verification by domain",
    "Accepted tokens and the full model's own one: how many tokens one full pass yields.",
    "Near 1 a draft is wasted work. If acceptance is good but this is low, drafts are short: raise the draft length.",
    {"{{domain}}": f"1 + {ratio(ACCEPTED, DRAFTS, 'domain', DOMAIN)}"},
)
TOKENS = Panel(
    "Tokens per second",
    "Tokens read from prompts and tokens generated, over all requests.",
    "Generation that falls while requests run: look at the speed-up, then at the time split by stage.",
    {"generated": total(GENERATED), "prompt": total("knnssd_prompt_tokens_total")},
)
REQUESTS = Panel(
    "Requests running and waiting",
    "Requests that hold a slot, and requests in the queue for one.",
    "A queue that does not empty: the load is above what the slots can do. Raise --max-batch if memory allows, or add "
    "a second server.",
    {
        "running": f"sum(knnssd_num_requests_running{{{INSTANCE}}})",
        "waiting": f"sum(knnssd_num_requests_waiting{{{INSTANCE}}})",
        "slots": f"sum(knnssd_kv_slots_total{{{INSTANCE}}})",
    },
)
FIRST_TOKEN = Panel(
    "Time to first token",
    "From the arrival of a request to its first token, queue included.",
    "Compare with the queue time. If the queue is short, prompts are long: look at prompt tokens per second.",
    quantiles("knnssd_time_to_first_token_seconds"),
    unit="s",
)
REJECTED = Panel(
    "Rejected requests",
    "Requests refused before any token was made, by reason.",
    "`queue_full`: see requests waiting. `loading` and `draining`: a server starts or stops, which passes. `dead`: the "
    "engine stopped; keep the log and restart the server.",
    {"{{reason}}": total("knnssd_request_rejections_total", "reason")},
    unit="reqps",
)

SERVERS = Panel(
    "Servers up",
    "Servers that Prometheus can read.",
    "Read the log of the server that is missing: `docker compose logs server`.",
    {"{{instance}}": f'up{{job="knn-ssd-server", {INSTANCE}}}'},
)

OVERVIEW = [
    stat(SPEEDUP, "Speed-up", f"avg(knnssd_speculation_speedup{{{INSTANCE}}})", {0: "red", 1: "green"}),
    stat(ACCEPTANCE, "Acceptance", ratio(ACCEPTED, DRAFTED)),
    stat(TOKENS, "Generated tokens per second", total(GENERATED)),
    stat(SERVERS, "Servers up", f'sum(up{{job="knn-ssd-server", {INSTANCE}}})', {0: "red", 1: "green"}),
    SPEEDUP,
    TOKENS,
    REQUESTS,
    FIRST_TOKEN,
    ACCEPTANCE,
    REJECTED,
]

SPECULATION = [
    ACCEPTANCE,
    LENGTH,
    SPEEDUP,
    Panel(
        "Acceptance by draft position",
        "How often the first, second, third ... token of a draft is accepted.",
        "Late positions near zero: drafts are longer than they are good for. Lower the draft length or raise the "
        "confidence at which a draft stops.",
        {
            "position {{position}}": f"{total(ACCEPTED_AT, 'position', DOMAIN)} / ignoring (position) group_left () "
            f"({total(DRAFTS, '', DOMAIN)} > 0)"
        },
        unit="percentunit",
    ),
    Panel(
        "Output that comes from drafts",
        "Share of the generated tokens that were accepted drafts; the rest the full model made itself.",
        "Low while acceptance is high: most steps run without a draft. See fallbacks.",
        {"share": ratio(ACCEPTED, GENERATED)},
        unit="percentunit",
    ),
    Panel(
        "Time by stage",
        "Seconds of each second that go into reading prompts, routing, drafting and verifying.",
        "Drafting above verifying: the masks skip too little for this machine; calibrate on it. Routing should be "
        "invisible.",
        {stage: total(f"knnssd_{stage}_seconds_total") for stage in ("prefill", "route", "draft", "verify")},
        unit="percentunit",
        stacked=True,
    ),
    Panel(
        "Prompts by domain",
        "Where the router sent prompts; `other` is out of domain and drafts with the pooled mask.",
        "A domain that should get traffic and gets none: its anchors are close to another's. Give both more prompts.",
        {"{{domain}}": total("knnssd_routes_total", "domain", DOMAIN)},
        unit="reqps",
        stacked=True,
    ),
    Panel(
        "Routing similarity (median)",
        "Centred cosine between a prompt and its nearest anchor.",
        "A domain that sinks towards the threshold: its prompts drift away from its anchors. Calibrate again.",
        {"{{domain}}": quantile(0.5, "knnssd_route_similarity", "domain", DOMAIN)},
    ),
    Panel(
        "Fallbacks",
        "Prompts that got no mask of a domain of their own, by reason.",
        "`out_of_domain`: your prompts are unlike the calibration prompts. Add some of them and calibrate again.",
        {"{{reason}}": total("knnssd_fallbacks_total", "reason")},
        unit="reqps",
    ),
]

LATENCY = [
    FIRST_TOKEN,
    Panel(
        "Time between tokens",
        "Between two tokens that a client receives one after the other.",
        "High while few requests run: look at the speed-up. High while many run: lower --max-batch, or add a server.",
        quantiles("knnssd_inter_token_latency_seconds"),
        unit="s",
    ),
    Panel(
        "Whole request",
        "From the arrival of a request to its last token.",
        "Long answers take long; compare with the time between tokens before looking further.",
        quantiles("knnssd_e2e_request_latency_seconds"),
        unit="s",
    ),
    Panel(
        "Time in the queue",
        "From the arrival of a request to the moment it gets a slot.",
        REQUESTS.when_bad,
        quantiles("knnssd_request_queue_time_seconds"),
        unit="s",
    ),
    REQUESTS,
    TOKENS,
    Panel(
        "Finished requests",
        "Requests by the reason they ended: `stop`, `length`, or `cancelled` by the client.",
        "Many `cancelled`: clients give up, often because of a timeout on their side that is too short. Many "
        "`length`: answers are cut by the token limit.",
        {"{{finished_reason}}": total("knnssd_request_success_total", "finished_reason")},
        unit="reqps",
        stacked=True,
    ),
    REJECTED,
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
