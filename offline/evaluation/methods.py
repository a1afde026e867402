"""The methods that `evaluate` puts side by side: the engine's own and the peers', and the flag that chooses them."""

from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from offline.evaluation.peers.base import PEERS
from offline.prompts import MIXED
from offline.settings import EvaluationSettings
from server.engine import PLAIN, methods

BASELINES = ("random",)
"""Skipping drafts with masks of the artifact that no router picked: any domain's."""


def known_methods() -> list[str]:
    """All of the engine's registry, the baselines, and the peers."""
    return [*methods(), *BASELINES, *PEERS]


def needs_artifact(name: str) -> bool:
    """Whether a method takes its masks from a routing artifact."""
    return name in BASELINES or (name in methods() and methods()[name].needs_artifact)


def needs_draft_weights(name: str) -> bool:
    """Whether a method drafts with a low-bit copy of the model and with nothing else."""
    return name in methods() and methods()[name].needs_draft_weights


class MethodSettings(EvaluationSettings):
    """Measures methods side by side on the same prompts: speed, acceptance, exactness, routing."""

    methods: Annotated[list[str], NoDecode] = Field(
        [PLAIN, MIXED, "knn", "cascade"], min_length=1, description="any of: " + ", ".join(known_methods())
    )

    @field_validator("methods")
    @classmethod
    def check_methods(cls, value: list[str]) -> list[str]:
        """The methods that are asked for, after `plain`, which all others are compared with."""
        for name in value:
            if name not in known_methods():
                raise ValueError(f"unknown method {name!r}, known are {', '.join(known_methods())}")
        for name in value:
            if name in PEERS and not PEERS[name].is_installed:
                raise ValueError(f"{name} needs its extra: pip install 'knn-ssd-server[{PEERS[name].extra}]'")
        return list(dict.fromkeys([PLAIN, *value]))
