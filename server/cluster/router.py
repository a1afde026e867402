"""Serve's request router for calls of the ingress; it runs there, where `choose_replica` is called."""

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from server.cluster.call import Call


class CallRouter(RequestRouter):  # type: ignore[misc]  # Ray may be missing where types are checked
    """Has a call choose; what is no call, as a question for all replicas, may go to any."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        call = pending_request.args[0] if pending_request and pending_request.args else None
        if not candidate_replicas or not isinstance(call, Call):
            return [candidate_replicas]
        named = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        return [[named[call.choose(named)]]]
