"""Panels about requests: how many, how long they take, and how they end."""

from panels import INSTANCE, Panel, quantiles, total
from speculation import GENERATED

TOKENS = Panel(
    "Tokens per second",
    "Tokens read from prompts, tokens of prompts that had been read before, and tokens generated, over all requests.",
    "Generation that falls while requests run: look at the speed-up, then at the time split by stage.",
    {
        "generated": total(GENERATED),
        "prompt": total("knnssd_prompt_tokens_total"),
        "cached prompt": total("knnssd_cached_prompt_tokens_total"),
    },
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
CACHE = Panel(
    "Cache blocks",
    "Blocks of 32 tokens: of running requests, kept for prompts that begin as an earlier text did, and all there are.",
    "Running requests have all of them: some give theirs back and begin again later, which the panel beside shows. "
    "Raise --cache-memory, or lower --max-batch.",
    {
        "running": f"sum(knnssd_kv_blocks_used{{{INSTANCE}}})",
        "kept": f"sum(knnssd_kv_blocks_kept{{{INSTANCE}}})",
        "all": f"sum(knnssd_kv_blocks_total{{{INSTANCE}}})",
    },
)
PRESSURE = Panel(
    "Cache too small",
    "Kept blocks that were lost to others, and running requests that gave all of theirs back, to begin again later.",
    "Lost blocks are usual once the cache is full; prompts that begin alike are read anew then. Requests that begin "
    "again cost time: raise --cache-memory, or lower --max-batch.",
    {"lost blocks": total("knnssd_kv_blocks_evicted_total"), "begun again": total("knnssd_num_preemptions_total")},
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
    "`queue_full`: see requests waiting. `loading` and `draining`: a server starts, loads again after a failure, or "
    "stops, which passes. `dead`: the engine stopped; keep the log and restart the server.",
    {"{{reason}}": total("knnssd_request_rejections_total", "reason")},
    unit="reqps",
)
SERVERS = Panel(
    "Engines up",
    "Servers that Prometheus can read and whose engine lives.",
    "A server at 0: its engine stopped; keep its log and restart it. A server that is missing cannot be read at all: "
    "`docker compose logs server`.",
    {"{{instance}}": f"knnssd_worker_up{{{INSTANCE}}}"},
)
ERRORS = Panel(
    "Failed requests",
    "Accepted requests that ended without their whole answer, by reason.",
    "`timeout`: answers take longer than --request-timeout; look at the queue and at the time between tokens. "
    "`failed`: the engine failed and was loaded anew; keep the log. `dead`: it stopped. `draining`: a server was "
    "stopped. `internal`: the log has the traceback.",
    {"{{reason}}": total("knnssd_request_errors_total", "reason")},
    unit="reqps",
)

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
    CACHE,
    PRESSURE,
    Panel(
        "Finished requests",
        "Requests by the reason they ended: `stop`, `length`, or `cancelled` by the client.",
        "Many `cancelled`: clients give up, often because of a timeout on their side that is too short. Many "
        "`length`: answers are cut by the token limit.",
        {"{{finished_reason}}": total("knnssd_request_success_total", "finished_reason")},
        unit="reqps",
        is_stacked=True,
    ),
    REJECTED,
    ERRORS,
]
