"""The peers: other programs whose speed is measured in the same run as the engine's.

A peer needs a function that makes its runners and a line in `PEERS`; the flag `--methods` follows from that.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol

from offline.evaluation.measure import Job, Runner
from offline.evaluation.peers.hf_generate import ASSISTED, assisted_runners
from offline.loaded_model import LoadedModel
from offline.settings import EvaluationSettings

LLAMA_CPP = "llama-cpp"


class MakeRunners(Protocol):
    """The one thing that a peer has to bring."""

    def __call__(
        self, names: Sequence[str], loaded: LoadedModel, settings: EvaluationSettings, longest: int
    ) -> dict[str, Runner]:
        """Runners of the methods `names` in the engine's dtype, for prompts of up to `longest` tokens.

        Raises `SettingsMistake` where the program cannot do what the settings ask for.
        """
        ...


@dataclass(frozen=True)
class Peer:
    """One program; `make_runners` gets all of its methods that are asked for at once, so they can share a model.

    `extra` names the optional dependency of pyproject.toml that brings `packages`. Where `is_tried`, each
    method answers one batch before the measurement, and is left out with a warning if that fails.
    """

    make_runners: MakeRunners
    extra: str | None = None
    packages: tuple[str, ...] = ()
    is_tried: bool = False

    @property
    def is_installed(self) -> bool:
        return all(map(find_spec, self.packages))


def llamacpp_runners(
    names: Sequence[str], loaded: LoadedModel, settings: EvaluationSettings, longest: int
) -> dict[str, Runner]:
    # Imported late: without the extra, the module cannot be.
    from offline.evaluation.peers.llamacpp import llamacpp_runner

    return {name: llamacpp_runner(loaded, settings, longest) for name in names}


TRANSFORMERS = Peer(assisted_runners, is_tried=True)
PEERS: dict[str, Peer] = {
    **dict.fromkeys(ASSISTED, TRANSFORMERS),
    LLAMA_CPP: Peer(llamacpp_runners, extra="llama-cpp", packages=("llama_cpp", "gguf")),
}
"""Each method that another program runs, with that program."""


def peer_runners(
    names: Sequence[str], loaded: LoadedModel, settings: EvaluationSettings, longest: int
) -> dict[str, Runner]:
    """Runners of the peers' methods among `names`, each peer asked once."""
    runners: dict[str, Runner] = {}
    for peer in dict.fromkeys(PEERS.values()):
        asked = [name for name in names if PEERS.get(name) is peer]
        if asked:
            runners |= peer.make_runners(asked, loaded, settings, longest)
    return runners


def runnable(name: str, runner: Runner, jobs: Sequence[Job], report: Callable[[str], None]) -> bool:
    """Whether a method gets through one batch; where it does not, one line says why."""
    try:
        runner(jobs)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        report(f"{name} is left out, it cannot run here: {reason}")
        return False
    return True
