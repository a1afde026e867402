"""A drafter or a source of masks that takes one class and one registration is a method everywhere."""

from collections.abc import Iterator
from pathlib import Path
from typing import Self

import httpx
import openai
import pytest

from offline.evaluation.evaluate import evaluate
from offline.evaluation.methods import MethodSettings
from offline.settings import read_settings
from server.engine import Checkpoint, DraftModel, Route, RoutingArtifact, Sequence, SkipMask, methods
from server.engine.masks.base import MASK_SOURCES, MaskParts, MaskSource
from server.engine.masks.base import register as register_source
from server.engine.speculation.base import DRAFTERS, Drafter, DraftingParts, Feedback, Proposals, register
from server.settings import read_settings as read_server_settings
from server.telemetry.metrics import Metrics
from tests.api.live import make_worker, serve

QUESTION = [{"role": "user", "content": "hi"}]


class EchoDrafter(Drafter):
    """Bets that the last token comes again."""

    name = "echo"
    summary = "the last token once more"
    is_free = True

    def __init__(self) -> None:
        self.num_heard = 0
        self.known: set[int] = set()

    @classmethod
    def of(cls, parts: DraftingParts) -> Self:
        return cls()

    def propose(self, sequences: list[Sequence], row_price: float) -> Proposals:
        self.known |= {sequence.id for sequence in sequences}
        return {sequence.id: sequence.ids[-1:] * min(2, sequence.draft_limit) for sequence in sequences}

    def learn(self, sequence: Sequence, feedback: Feedback) -> None:
        assert feedback.num_agreed <= len(feedback.proposed)
        self.num_heard += 1

    def forget(self, sequence: Sequence) -> None:
        self.known.discard(sequence.id)


class TurningMask(MaskSource):
    """Skips one layer more with every step: a mask that changes as the answer grows."""

    name = "turning"
    summary = "with one layer more each step"
    needs_artifact = False

    @classmethod
    def of(cls, parts: MaskParts) -> Self:
        return cls()

    def first_route(self, sequence: Sequence) -> Route:
        return Route("none", DraftModel(SkipMask(frozenset({1}))))

    def next_route(self, sequence: Sequence, emitted: list[int]) -> Route:
        layers = frozenset(range(1, 2 + len(sequence.route.draft.mask.attention)))
        return Route("none", DraftModel(SkipMask(layers & {1, 2, 3})))


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register(EchoDrafter)
    register_source(TurningMask)
    yield
    del DRAFTERS["echo"], MASK_SOURCES["turning"]


def test_a_registered_drafter_is_a_method_of_the_server(tiny_checkpoint: Path) -> None:
    settings = read_server_settings(["--model", str(tiny_checkpoint), "--method", "echo"])
    assert settings.engine_config.method == "echo"
    assert methods()["echo"].drafters == ("echo",)
    assert not methods()["turning"].needs_artifact


@pytest.mark.parametrize("method", ["echo", "turning"])
def test_a_request_can_ask_for_it_and_its_text_stays_the_same(
    checkpoint: Checkpoint, tiny_artifact: RoutingArtifact, method: str
) -> None:
    worker, engine = make_worker(checkpoint, tiny_artifact)
    with serve(worker) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:

        def answer(name: str) -> openai.types.chat.ChatCompletion:
            return client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "hi"}],
                max_tokens=40,
                seed=3,
                extra_body={"speculation": {"method": name}},
            )

        drafted, plain = answer(method), answer("plain")
        listed = httpx.get(f"{url}/openapi.json").json()["components"]["schemas"]["Speculation"]
        exposed = httpx.get(f"{url}/metrics").text
    assert drafted.choices[0].message.content == plain.choices[0].message.content
    figures = drafted.model_extra["metrics"]["speculative_decoding"]  # type: ignore[index]
    assert figures["method"] == method and figures["num_draft_tokens"] > 0
    assert method in str(listed)
    name = "echo" if method == "echo" else "skip"
    assert f'knnssd_drafter_draft_tokens_total{{drafter="{name}"}} {float(figures["num_draft_tokens"])}' in exposed
    echo = engine.speculator.drafters["echo"]
    assert isinstance(echo, EchoDrafter) and not echo.known
    assert bool(echo.num_heard) == (method == "echo")


def test_evaluate_measures_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "one two three", "domain": "a"}\n{"prompt": "four five six", "domain": "a"}\n')
    options = ["--model", str(tiny_checkpoint), "--prompts", str(prompts), "--max-new-tokens", "12"]
    settings = read_settings(MethodSettings, "evaluate", [*options, "--methods", "echo,turning"])
    (found,) = evaluate(settings)
    rows = {(row.method, row.domain): row for row in found.results}
    assert rows["echo", "mean"].acceptance is not None
    assert rows["turning", "mean"].acceptance is not None
    assert rows["echo", "mean"].exact == rows["turning", "mean"].exact == 1.0


def test_metrics_have_a_series_for_each_drafter() -> None:
    assert 'knnssd_drafter_accepted_tokens_total{drafter="echo"} 0.0' in Metrics().render().decode()
