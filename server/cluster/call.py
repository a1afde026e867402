"""A request in the ingress, as the router sees it."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from server.cluster.affinity import Affinity, Reason


@dataclass
class Call:
    """`blocks` names the beginnings of its prompt, `domain` is what that is likely about.

    `loads` counts the calls that each replica has of this ingress, and `tried` has the replicas that were asked so far.
    The router notes why it chose the last one, and how many others there were; `num_lost` of those tried were lost.
    """

    affinity: Affinity
    loads: Counter[str]
    blocks: tuple[int, ...] = ()
    domain: str | None = None
    tried: list[str] = field(default_factory=list)
    reason: Reason = Reason.LOAD
    num_others: int = 0
    num_lost: int = 0

    def choose(self, replicas: Collection[str]) -> str:
        """The replica that it is best sent to; one that it has tried only where there is no other."""
        fresh = [replica for replica in replicas if replica not in self.tried]
        self.num_others = max(len(fresh) - 1, 0)
        chosen, self.reason = self.affinity.choose(
            self.blocks, self.domain, {replica: self.loads[replica] for replica in fresh or replicas}
        )
        return chosen

    def begin(self, replica: str) -> None:
        """This replica is asked, and has the prompt from now on."""
        self.tried.append(replica)
        self.loads[replica] += 1
        self.affinity.remember(self.blocks, replica)

    def end(self, replica: str) -> None:
        """It has answered, or it is lost."""
        self.loads[replica] -= 1
        if not self.loads[replica]:
            del self.loads[replica]
