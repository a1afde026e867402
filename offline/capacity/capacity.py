"""`knn-ssd-offline capacity`: the replicas that rates of requests need, for each kind of routing."""

import json

from offline.capacity.plot import draw_capacity
from offline.capacity.simulation import Costs, Routing, Traffic, replicas_needed
from offline.settings import CapacitySettings

ROUTINGS: dict[Routing, str] = {"prefix": "by beginning", "load": "by load alone"}


def capacity(settings: CapacitySettings) -> str:
    """One JSON object: for each kind of routing the replicas at each rate, null where none are enough."""
    costs = Costs(settings.step_ms, settings.row_ms, settings.read_ms, settings.tokens_per_step, settings.slots)
    traffic = Traffic(
        settings.turns, settings.first_tokens, settings.further_tokens, settings.answer_tokens, settings.pause
    )
    goals = settings.goal_first, settings.goal_further
    needed = {
        routing: [replicas_needed(costs, traffic, rate, *goals, routing, settings.most) for rate in settings.rates]
        for routing in ROUTINGS
    }
    if settings.plot:
        title = f"first token within {goals[0]:g} s (95 %), others each {1000 * goals[1]:g} ms (median)"
        named = {ROUTINGS[routing]: counts for routing, counts in needed.items()}
        draw_capacity(settings.rates, named, title).savefig(settings.plot, dpi=120)
    return json.dumps({"rates": settings.rates, "replicas": needed})
