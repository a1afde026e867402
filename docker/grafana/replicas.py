"""Panels about replicas on Ray Serve: who is there, what each has to do, and how requests came to it."""

from panels import Panel, as_number, quantile, ratio, total
from speculation import ACCEPTED, DRAFTED, GENERATED

REPLICA = 'deployment=~"$deployment", replica=~"$replica"'
BY = "deployment, replica"
NAMED = "{{replica}}"
CACHED, READ = "knnssd_cached_prompt_tokens_total", "knnssd_prompt_tokens_total"
ROUTED, LOST = "knnssd_ingress_routed_total", "knnssd_ingress_lost_total"


def gauge(metric: str, by: str = "") -> str:
    grouping = f" by ({by}) " if by else ""
    return f"sum{grouping}({metric}{{{REPLICA}}})"


def cached_share(by: str = "") -> str:
    cached, read = total(CACHED, by, REPLICA), total(READ, by, REPLICA)
    return f"{cached} / ({cached} + {read} > 0)"


ALIVE = Panel(
    "Replicas alive",
    "Replicas of each deployment whose metrics the ingress has and whose engine lives.",
    "Fewer than there should be: `serve status` says what holds the others up; mostly CPUs or memory that no node has. "
    "None at all while the ingress answers: their log has the reason, often a model that cannot be loaded.",
    {"{{deployment}}": gauge("knnssd_worker_up", "deployment")},
)
CACHED_SHARE = Panel(
    "Prompt tokens not read again",
    "Share of each replica's prompt tokens that an earlier text of its cache began with.",
    "Low for all while conversations have many turns: beginnings do not stay where they were read. Look at why "
    "replicas were chosen; many by `load`: those with the beginning are too busy. Low for a new one: it passes.",
    {NAMED: cached_share(BY)},
    unit="percentunit",
)
TOKENS = Panel(
    "Tokens per second by replica",
    "Tokens that each replica generated.",
    "One far below the others while its queue is long: its machine is slower or shared; compare with its first token. "
    "One without any while others have queues: it hangs, and Serve replaces it.",
    {NAMED: total(GENERATED, BY, REPLICA)},
    is_stacked=True,
)

REPLICAS = [
    as_number(ALIVE, "Replicas alive", gauge("knnssd_worker_up"), {0: "red", 1: "green"}),
    as_number(TOKENS, "Generated tokens per second", total(GENERATED, "", REPLICA)),
    as_number(CACHED_SHARE, "Prompt tokens not read again", cached_share()),
    as_number(
        ALIVE, "Requests whose replica was lost, last hour", f"sum(increase({LOST}{{{REPLICA}}}[1h]))", {1: "red"}
    ),
    ALIVE,
    Panel(
        "Requests running by replica",
        "Requests that hold a slot of each replica.",
        "One replica that has far more than the others: one beginning or domain has most of the traffic. The bound on "
        "loads keeps it at 1.25 times the mean and two; `--routing load` spreads evenly.",
        {NAMED: gauge("knnssd_num_requests_running", BY)},
        is_stacked=True,
    ),
    Panel(
        "Queue by replica",
        "Requests that wait for a slot of each replica.",
        "All have queues: raise max_replicas, or lower target_ongoing_requests so that replicas come sooner. One "
        "alone: its answers are longer, or its machine is slower.",
        {NAMED: gauge("knnssd_num_requests_waiting", BY)},
        is_stacked=True,
    ),
    TOKENS,
    Panel(
        "Time to first token by replica (p95)",
        "From the arrival of a request at its replica to its first token, queue included; the hop before it adds a few "
        "milliseconds.",
        "One that is slower than the others: look at its queue, then at how much of its prompts it has to read.",
        {NAMED: quantile(0.95, "knnssd_time_to_first_token_seconds", BY, REPLICA)},
        unit="s",
    ),
    CACHED_SHARE,
    Panel(
        "Requests by why their replica was chosen",
        "`prefix`: it has the prompt's beginning. `domain`: it is the home of the prompt's domain. `load`: the less "
        "loaded of two.",
        "Many by `load` while conversations have many turns: those with the beginning are too busy, so texts are read "
        "twice. More replicas help; so do fewer clients at once.",
        {"{{reason}}": total(ROUTED, "reason", REPLICA)},
        unit="reqps",
        is_stacked=True,
    ),
    Panel(
        "Requests by replica",
        "Requests that the ingress sent to each replica, those that it was asked again for included.",
        "One that gets none while others have queues: it has just come, or it is full and refuses. Its log says which.",
        {NAMED: total(ROUTED, BY, REPLICA)},
        unit="reqps",
        is_stacked=True,
    ),
    Panel(
        "Prompts by domain and replica",
        "Which replica read prompts of which domain: a domain at home has most of its prompts at one replica.",
        "A domain that is everywhere although it has little traffic: its prompts are not guessed by their words. With "
        "much traffic that is the bound on loads, as it should be.",
        {"{{domain}} at {{replica}}": total("knnssd_routes_total", f"domain, {BY}", REPLICA)},
        unit="reqps",
        is_stacked=True,
    ),
    Panel(
        "Acceptance by replica",
        "Share of each replica's drafted tokens that the full model agreed with.",
        "One below the others: it has the domains that are hard to draft for, or it is new and has few counts yet.",
        {NAMED: ratio(ACCEPTED, DRAFTED, BY, REPLICA)},
        unit="percentunit",
    ),
    Panel(
        "Lost and asked again",
        "Requests whose replica died or could not be reached, and those that another replica was asked for.",
        "Lost ones: `serve status` and the node's log say why it died, mostly memory. Asked again without lost ones: "
        "replicas are full and say 429; add some.",
        {
            "lost at {{replica}}": total(LOST, BY, REPLICA),
            "asked again": "sum(rate(knnssd_ingress_retries_total[$__rate_interval]))",
        },
        unit="reqps",
    ),
    Panel(
        "Memory by replica",
        "Resident memory of each replica's process.",
        "One that grows for hours: keep its log and restart it. Near the node's memory: lower --cache-memory, or set "
        "more aside for a replica.",
        {NAMED: gauge("process_resident_memory_bytes", BY)},
        unit="bytes",
    ),
    Panel(
        "Refused by a client's limits",
        "Requests beyond --max-client-requests or --max-client-rate, which the ingress counts for all replicas.",
        "Limits at work. Where honest clients meet them, raise them.",
        {"refused": "sum(rate(knnssd_ingress_limited_total[$__rate_interval]))"},
        unit="reqps",
    ),
]
