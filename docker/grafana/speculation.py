"""Panels about drafts: whether speculation pays, for whom, and why not."""

from panels import DOMAIN, INSTANCE, Panel, quantile, ratio, total

GENERATED = "knnssd_generation_tokens_total"
DRAFTS = "knnssd_spec_decode_num_drafts_total"
DRAFTED = "knnssd_spec_decode_num_draft_tokens_total"
ACCEPTED = "knnssd_spec_decode_num_accepted_tokens_total"
ACCEPTED_AT = "knnssd_spec_decode_num_accepted_tokens_per_pos_total"

SPEEDUP = Panel(
    "Speed-up over plain decoding",
    "Time of a token decoded plainly over the time of one with drafts, with its 95 % band; a small share of steps "
    "keeps measuring it.",
    "With the whole band under 1 the drafts cost more than they save. Look at the speed-up by domain for whom; "
    "calibrate again on prompts like today's, or serve with the method `plain` until then. A wide band needs traffic.",
    {
        "speed-up": f"knnssd_speculation_speedup{{{INSTANCE}}}",
        "speed-up low": f"knnssd_speculation_speedup_low{{{INSTANCE}}}",
        "speed-up high": f"knnssd_speculation_speedup_high{{{INSTANCE}}}",
    },
    unit="x",
)
DOMAIN_SPEEDUP = Panel(
    "Speed-up by domain",
    "The same for the sequences of each domain, with its 95 % band.",
    "A domain whose whole band is under 1: look at its acceptance. If that is low, calibrate on its prompts; if it is "
    "good, its mask skips too little for this machine.",
    {
        "{{domain}}": f"knnssd_speculation_domain_speedup{{{DOMAIN}}}",
        "{{domain}} low": f"knnssd_speculation_domain_speedup_low{{{DOMAIN}}}",
        "{{domain}} high": f"knnssd_speculation_domain_speedup_high{{{DOMAIN}}}",
    },
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

SPECULATION = [
    ACCEPTANCE,
    LENGTH,
    DOMAIN_SPEEDUP,
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
        "Seconds of each second that go into reading prompts, routing, drafting and verifying; overhead is the rest of "
        "decoding.",
        "Drafting above verifying: the masks skip too little for this machine; calibrate on it. Routing and overhead "
        "should be thin; thick overhead means that something else uses this processor.",
        {
            **{stage: total(f"knnssd_{stage}_seconds_total") for stage in ("prefill", "route", "draft", "verify")},
            "overhead": " - ".join(total(f"knnssd_{part}_seconds_total") for part in ("decode", "draft", "verify")),
        },
        unit="percentunit",
        is_stacked=True,
    ),
    Panel(
        "Prompts by domain",
        "Where the router sent prompts; `other` is out of domain and drafts with the mixed mask.",
        "A domain that should get traffic and gets none: its anchors are close to another's. Give both more prompts.",
        {"{{domain}}": total("knnssd_routes_total", "domain", DOMAIN)},
        unit="reqps",
        is_stacked=True,
    ),
    Panel(
        "Routing similarity (median)",
        "Centred cosine between a prompt and its nearest anchor.",
        "A domain that sinks towards the threshold: its prompts drift away from its anchors. Calibrate again.",
        {"{{domain}}": quantile(0.5, "knnssd_route_similarity", "domain", DOMAIN)},
    ),
    Panel(
        "Fallbacks",
        "Prompts that are not drafted as a domain of their own would be, by reason.",
        "`out_of_domain`: your prompts are unlike the calibration prompts; add some of them and calibrate again. "
        "`empty_mask`: the calibration found no draft that pays for a domain. `no_draft_weights`: its draft needs a "
        "copy in fewer bits, which the log names. `no_artifact`: the server runs without one; run "
        "`knn-ssd-offline calibrate`.",
        {"{{reason}}": total("knnssd_fallbacks_total", "reason")},
        unit="reqps",
    ),
]
