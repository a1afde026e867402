"""How many replicas there should be: so many that each has about as many sequences as it decodes at once.

Serve's own policy counts the calls that pass through it; here they go to the replicas by HTTP, and these say themselves
what runs and waits. Named in a config file as `policy_function: server.cluster.autoscaling:by_sequences`.
"""

import math
from typing import Any

STATS = "sequences"


def by_sequences(context: Any) -> tuple[int, dict[str, Any]]:
    """The number of replicas for `target_ongoing_requests` sequences each, within the bounds of the configuration."""
    reported = context.aggregated_metrics.get(STATS, {})
    total = sum(reported.values())
    wanted = math.ceil(total / context.config.get_target_ongoing_requests())
    least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
    return max(least, min(wanted, most)), {}
