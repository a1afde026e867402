"""The methods that `evaluate` puts side by side: the engine's own and the peers', and the flag that chooses them."""

from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from offline.evaluation.measure import PLAIN
from offline.evaluation.peers.base import PEERS
from offline.prompts import MIXED
from offline.settings import EvaluationSettings

ROUTED = ("fixed", MIXED, "random", "knn", "cascade")
"""Methods that take their masks from a routing artifact."""
METHODS = (PLAIN, "fixed", MIXED, "random", "knn", "lookup", "cascade", *PEERS)


class MethodSettings(EvaluationSettings):
    """Measures methods side by side on the same prompts: speed, acceptance, exactness, routing."""

    methods: Annotated[list[str], NoDecode] = Field(
        [PLAIN, MIXED, "knn", "cascade"], min_length=1, description="any of: " + ", ".join(METHODS)
    )

    @field_validator("methods")
    @classmethod
    def check_methods(cls, value: list[str]) -> list[str]:
        """The methods that are asked for, after `plain`, which all others are compared with."""
        for name in value:
            if name not in METHODS:
                raise ValueError(f"unknown method {name!r}, known are {', '.join(METHODS)}")
        for name in value:
            if name in PEERS and not PEERS[name].is_installed:
                raise ValueError(f"{name} needs its extra: pip install 'knn-ssd-server[{PEERS[name].extra}]'")
        return list(dict.fromkeys([PLAIN, *value]))
