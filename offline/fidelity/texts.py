"""The texts that variants read: prompts from each domain in turn, and what the reference greedily answers."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, zip_longest

from tqdm import tqdm

from offline.calibration.scoring.continuations import WRITERS, Text, make_texts
from offline.loaded_model import LoadedModel
from offline.prompts import Prompt, PromptError, PromptSet
from offline.records import log


def in_turn(prompts: PromptSet, seed: int) -> list[Prompt]:
    """All prompts in a seeded order: one of each domain, then the next of each."""
    groups: dict[str | None, list[Prompt]] = defaultdict(list)
    for prompt in prompts.limited(len(prompts.prompts), seed).prompts:
        groups[prompt.domain].append(prompt)
    return [prompt for prompt in chain.from_iterable(zip_longest(*groups.values())) if prompt is not None]


def usable_ids(loaded: LoadedModel, prompts: Sequence[Prompt], max_new_tokens: int) -> list[list[int]]:
    """Token ids of the prompts that leave room for an answer, and have a token that follows another.

    Raises `PromptError` where there is none.
    """
    limit = loaded.model.config.max_length - max_new_tokens
    encoded = [loaded.encode(prompt) for prompt in prompts]
    usable = [ids for ids in encoded if 2 <= len(ids) <= limit]
    if len(usable) < len(encoded):
        log.info("%d prompts of less than 2 or more than %d tokens dropped", len(encoded) - len(usable), limit)
    if not usable:
        raise PromptError(f"no prompt is within 2 to {limit} tokens, the model's context less --max-new-tokens")
    return usable


def answered(reference: LoadedModel, prompts: Sequence[list[int]], max_new_tokens: int, places: int) -> list[Text]:
    """The first prompts with their answers, as many as have `places` places together, or all."""
    texts: list[Text] = []
    found = 0
    with tqdm(total=places, desc="places", delay=2, leave=False) as bar:
        for first in range(0, len(prompts), WRITERS):
            for text in make_texts(reference, list(prompts[first : first + WRITERS]), max_new_tokens):
                if found < places:
                    texts.append(text)
                    found += num_places(text)
                    bar.update(num_places(text))
            if found >= places:
                return texts
    log.info("the prompts are too few for --places %d: all %d of them have %d", places, len(prompts), found)
    return texts


def num_places(text: Text) -> int:
    """The places of a text are its tokens but the last, after which nothing is known."""
    return len(text.prompt_ids) + len(text.output_ids) - 1
