"""The methods that `evaluate` puts side by side: the engine's own and the peers', and the flag that chooses them."""

import re
from typing import Annotated, NamedTuple, Self

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from offline.evaluation.peers.base import PEERS
from offline.prompts import MIXED
from offline.settings import EvaluationSettings
from server.engine import MAX_DRAFT, PLAIN, methods

ANOTHER = "another"
"""As a route: some domain that is not the prompt's own."""


NAME = re.compile(r"(?P<method>[^:@]+)(:(?P<tree>\d{1,2}))?(@(?P<domain>.*))?")


class Candidate(NamedTuple):
    """What is measured: a method, how many tokens its trees have, and whose draft it takes.

    With 0 tokens its drafts are chains. With None as its domain the router finds the draft.
    """

    method: str
    tree: int = 0
    domain: str | None = None

    @classmethod
    def of(cls, name: str) -> Self:
        """`knn` is routed, `knn@recipes` takes one domain's draft for every prompt, `recycling:8` drafts trees of 8.

        Raises `ValueError` for a name of no method, or of larger trees than there may be.
        """
        parts = NAME.fullmatch(name)
        found = cls(parts["method"], int(parts["tree"] or 0), parts["domain"]) if parts else cls(name)
        known = known_methods() if found == (name, 0, None) else methods()
        if found.method not in known:
            raise ValueError(f"unknown method {name!r}, known are {', '.join(known)}")
        if found.tree > MAX_DRAFT:
            raise ValueError(f"{name!r}: a tree has at most {MAX_DRAFT} tokens")
        return found

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
        f"METHOD@{ANOTHER} a wrong one; METHOD:N drafts trees of N tokens",
    )

    @field_validator("methods")
    @classmethod
    def check_methods(cls, value: list[str]) -> list[str]:
        """The methods that are asked for, after `plain`, which all others are compared with."""
        for name in value:
            Candidate.of(name)
            if name in PEERS and not PEERS[name].is_installed:
                raise ValueError(f"{name} needs its extra: pip install 'knn-ssd-server[{PEERS[name].extra}]'")
        return list(dict.fromkeys([PLAIN, *value]))
