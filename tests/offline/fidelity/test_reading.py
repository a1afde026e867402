"""What a variant makes of texts is what the model itself says; texts come from the domains in turn."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from offline.calibration.scoring.continuations import Text
from offline.fidelity import models
from offline.fidelity.models import DecoderVariant
from offline.fidelity.reading import num_scored, read
from offline.fidelity.texts import answered, in_turn, num_places, usable_ids
from offline.fidelity.timing import median_seconds
from offline.fidelity.variants import differing_variants
from offline.loaded_model import LoadedModel
from offline.prompts import read_prompts
from server.engine import Checkpoint, Decoder, TextCodec, load_checkpoint
from tests.tiny import CPU


@pytest.fixture(scope="module")
def loaded(checkpoint: Checkpoint, model: Decoder, codec: TextCodec) -> LoadedModel:
    return LoadedModel(checkpoint, model, codec)


@pytest.fixture(scope="module")
def texts(loaded: LoadedModel, prompts: Path) -> list[Text]:
    return answered(loaded, usable_ids(loaded, in_turn(read_prompts([prompts]), 0), 16), 16, 400)


@pytest.mark.parametrize("rows", [7, 128])
def test_choices_and_loss_are_those_of_the_model(
    rows: int,
    texts: list[Text],
    tiny_checkpoint: Path,
    checkpoint: Checkpoint,
    model: Decoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(models, "ROWS", rows)
    reading = read(DecoderVariant("it", model, 32, 1), texts)
    theirs = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    losses, choices = [], []
    with torch.inference_mode():
        for text in texts:
            ids = torch.tensor(text.prompt_ids + text.output_ids)
            logits = theirs(ids[None]).logits[0, :-1]
            choices.append(logits.argmax(-1))
            first = len(text.prompt_ids) - 1
            losses.append(F.cross_entropy(logits[:first], ids[1 : first + 1], reduction="none"))
    assert torch.equal(reading.choices, torch.cat(choices))
    assert reading.loss == pytest.approx(torch.cat(losses).mean().item(), rel=1e-4)
    assert len(reading.choices) == sum(map(num_places, texts))
    assert num_scored(texts) == sum(map(len, losses))
    assert reading.agreement(reading) == 1


def test_the_reference_chooses_what_it_answered(texts: list[Text], model: Decoder) -> None:
    choices = read(DecoderVariant("it", model, 32, 1), texts).choices.tolist()
    for text in texts:
        here, choices = choices[: num_places(text)], choices[num_places(text) :]
        assert here[len(text.prompt_ids) - 1 :] == text.output_ids
    assert not choices


def test_domains_take_turns_in_an_order_of_the_seed(prompts: Path) -> None:
    order = in_turn(read_prompts([prompts]), 0)
    assert [prompt.domain for prompt in order] == ["a", "b"] * 6
    assert {prompt.key for prompt in order} == {prompt.key for prompt in read_prompts([prompts]).prompts}
    assert order == in_turn(read_prompts([prompts]), 0) != in_turn(read_prompts([prompts]), 1)


def test_texts_are_the_first_that_have_enough_places(loaded: LoadedModel, texts: list[Text], prompts: Path) -> None:
    ids = usable_ids(loaded, in_turn(read_prompts([prompts]), 0), 16)
    assert [text.prompt_ids for text in texts] == ids[: len(texts)]
    assert sum(map(num_places, texts)) >= 400 > sum(map(num_places, texts[:-1]))


def test_prompts_without_room_are_dropped(
    loaded: LoadedModel, prompts: Path, messages: pytest.LogCaptureFixture
) -> None:
    order = in_turn(read_prompts([prompts]), 0)
    lengths = sorted(len(loaded.encode(prompt)) for prompt in order)
    room = loaded.model.config.max_length - lengths[5]
    kept = usable_ids(loaded, order, room)
    assert sorted(map(len, kept)) == [length for length in lengths if length <= lengths[5]]
    assert f"{12 - len(kept)} prompts of less than 2 or more than {lengths[5]} tokens dropped" in messages.text


def test_what_is_compared_by_default_depends_on_the_model(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offline.evaluation.peers.base.find_spec", lambda name: True)
    half = load_checkpoint(str(tiny_checkpoint), torch.bfloat16, CPU, quantization="auto")
    assert differing_variants(half) == ["none/exact", "int8/fine", "int4/fine"]


def test_the_second_of_two_steps_counts() -> None:
    calls = {"slow": 0, "quick": 0}

    def step(name: str) -> None:
        calls[name] += 1
        # The first step of a turn is long, and no figure shows it.
        torch.randn(10**6 if calls[name] % 2 or name == "slow" else 1)

    seconds = median_seconds({name: lambda name=name: step(name) for name in calls}, 0)  # type: ignore[misc]
    assert calls == {"slow": 6, "quick": 6}
    assert 0 < seconds["quick"] < seconds["slow"]
