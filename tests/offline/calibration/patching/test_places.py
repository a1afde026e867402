"""The places of texts are those of single passes, whatever shares a pass with them."""

import torch

from offline.calibration.patching.places import places_of
from offline.calibration.scoring.continuations import Text
from server.engine import Decoder, DraftModel, SkipMask, TokenBatch

PROMPTS = [[5, 6, 7, 8], [20, 21, 22, 23, 24, 25]]
ANSWERS = [[[30, 31, 32], [40], [50, 51]], [[60, 61, 62, 63, 64]]]
GROUPS = [
    [Text(prompt_ids=prompt, output_ids=answer) for answer in answers]
    for prompt, answers in zip(PROMPTS, ANSWERS, strict=True)
]


@torch.inference_mode()
def states(model: Decoder, ids: list[int], draft: DraftModel) -> torch.Tensor:
    cache = model.new_cache(1, 32)
    return model.forward(TokenBatch([(0, 0, ids)], cache), cache, draft)


def test_each_place_has_its_token_the_state_before_and_its_own_state(model: Decoder) -> None:
    start = 2
    layers = frozenset(range(start, model.config.num_layers))
    below = DraftModel(SkipMask(layers, layers))
    found = places_of(model, GROUPS, start)
    inputs, targets, answers = [], [], []
    for group in GROUPS:
        for number, text in enumerate(group):
            ids = text.prompt_ids + text.output_ids
            full, reached = states(model, ids, DraftModel()), states(model, ids, below)
            first = 1 if number == 0 else len(text.prompt_ids)
            inputs.append(torch.cat((reached[first:], full[first - 1 : -1]), 1))
            targets.append(full[first:])
            answers += [place >= len(text.prompt_ids) for place in range(first, len(ids))]
    torch.testing.assert_close(found.inputs, torch.cat(inputs), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.states, torch.cat(targets), rtol=1e-4, atol=1e-4)
    assert found.is_answer.tolist() == answers
    assert found.count == len(answers) == 4 + 6 - 2 + 6 + 5
    assert set(found.weights[found.is_answer].tolist()) == {5.0}
    assert set(found.weights[~found.is_answer].tolist()) == {1.0}


def test_an_empty_answer_leaves_the_prompts_places(model: Decoder) -> None:
    found = places_of(model, [[Text(prompt_ids=PROMPTS[0], output_ids=[])]], 0)
    assert found.count == 3 and not found.is_answer.any()
