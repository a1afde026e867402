"""The methods that `evaluate` puts side by side: the engine's own and the peers', and the flag that chooses them."""

from typing import Annotated, NamedTuple, Self

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from offline.evaluation.peers.base import PEERS
from offline.prompts import MIXED
from offline.settings import EvaluationSettings
from server.engine import PLAIN, methods

ANOTHER = "another"
"""As a route: some domain that is not the prompt's own."""


class Candidate(NamedTuple):
    """What is measured: a method, and the domain whose draft every prompt takes; None leaves that to the router."""

    method: str
    domain: str | None = None

    @classmethod
    def of(cls, name: str) -> Self:
        """`knn` is routed, `knn@recipes` takes the draft of that domain for every prompt."""
        method, sign, domain = name.partition("@")
        return cls(method, domain if sign else None)

    @property
    def needs_artifact(self) -> bool:
        """Whether it drafts nothing without a routing artifact, or is not itself."""
        own = methods().get(self.method)
        return self.domain is not None or (own is not None and own.needs_artifact)

    @property
    def needs_draft_weights(self) -> bool:
        """Whether it drafts with a low-bit copy of the model and with nothing else."""
        own = methods().get(self.method)
        return own is not None and own.needs_draft_weights


def known_methods() -> list[str]:
    """All of the engine's registry, and the peers."""
    return [*methods(), *PEERS]


class MethodSettings(EvaluationSettings):
    """Measures methods side by side on the same prompts: speed, acceptance, exactness, routing."""

    methods: Annotated[list[str], NoDecode] = Field(
        [PLAIN, MIXED, "knn", "cascade"],
        min_length=1,
        description=f"any of: {', '.join(known_methods())}; METHOD@DOMAIN takes that domain's draft for every prompt, "
        f"METHOD@{ANOTHER} a wrong one",
    )

    @field_validator("methods")
    @classmethod
    def check_methods(cls, value: list[str]) -> list[str]:
        """The methods that are asked for, after `plain`, which all others are compared with."""
        for name in value:
            known = methods() if "@" in name else known_methods()
            if Candidate.of(name).method not in known:
                raise ValueError(f"unknown method {name!r}, known are {', '.join(known)}")
        for name in value:
            if name in PEERS and not PEERS[name].is_installed:
                raise ValueError(f"{name} needs its extra: pip install 'knn-ssd-server[{PEERS[name].extra}]'")
        return list(dict.fromkeys([PLAIN, *value]))
