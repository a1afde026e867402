"""Training documents of the embedded model: which sets, in which proportion, as which token rows.

Every set named here may be redistributed together with a model trained on it; sets under a
research-only licence (CNN/DailyMail, XSum, WMT, Alpaca) are deliberately absent.
"""

import gzip
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

WIDTHS = (64, 96, 128, 192, 256, 384, 512, 768)
TOKENS_PER_BATCH = 3072
"""Divisible by every width, so that the matrix products of all batches have one shape."""

PROMPT_LOSS_SHARE = 0.3
SYSTEM_PROMPT_SHARE = 0.1
DOMAINS = ("summarization", "reasoning", "translation", "storytelling", "text2sql")
SYSTEM_PROMPT = "You are a helpful assistant."


@dataclass(frozen=True)
class Source:
    """One prompt file, its licence, and its share of the training tokens."""

    name: str
    share: float
    licence: str
    may_truncate: bool = False

    @property
    def domain(self) -> int:
        return DOMAINS.index(self.name.split("_")[0])


SOURCES = (
    Source("summarization_scitldr", 0.14, "Apache-2.0"),
    Source("reasoning_gsm8k", 0.18, "MIT"),
    Source("translation_tatoeba", 0.26, "CC BY 2.0 (tatoeba.org, manythings.org/anki)"),
    Source("storytelling_tinystories", 0.10, "CDLA-Sharing-1.0"),
    Source("storytelling_fairytales", 0.13, "public domain, CC0, Apache-2.0", may_truncate=True),
    Source("storytelling_african", 0.01, "CC BY (African Storybook)"),
    Source("text2sql_spider", 0.09, "CC BY-SA 4.0"),
    Source("text2sql_wikisql", 0.09, "BSD-3-Clause"),
)


@dataclass(frozen=True)
class Documents:
    """The tokenised documents of one source: `ids[starts[i]:starts[i + 1]]` is document i."""

    ids: np.ndarray
    starts: np.ndarray
    prompt_lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.prompt_lengths)


@dataclass(frozen=True)
class Batch:
    """Rows of one width and domain: `ids` [rows, width + 1] and the positions whose next token is learned."""

    ids: Tensor
    is_target: Tensor
    domain: int


def read_examples(folder: Path, name: str, split: str) -> Iterator[dict[str, str]]:
    with gzip.open(folder / f"{name}.{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def encode_source(tokenizer: PreTrainedTokenizerFast, folder: Path, source: Source, split: str, seed: int) -> Documents:
    """Renders each example through the chat template, as the server will, and tokenises it."""
    rng = np.random.default_rng(seed)
    ids: list[int] = []
    starts, prompt_lengths = [0], []
    for example in tqdm(read_examples(folder, source.name, split), desc=f"tokenise {source.name}"):
        messages = [{"role": "user", "content": example["prompt"]}]
        if rng.random() < SYSTEM_PROMPT_SHARE:
            messages.insert(0, {"role": "system", "content": SYSTEM_PROMPT})
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer.encode(text, add_special_tokens=False)
        answer = tokenizer.encode(example["completion"], add_special_tokens=False)
        document = [*prompt, *answer, tokenizer.eos_token_id]
        if len(document) > WIDTHS[-1] + 1:
            if not source.may_truncate or len(prompt) > WIDTHS[-1] // 2:
                continue
            document = document[: WIDTHS[-1] + 1]
        ids.extend(document)
        starts.append(len(ids))
        prompt_lengths.append(len(prompt))
    return Documents(np.array(ids, np.uint16), np.array(starts), np.array(prompt_lengths))


def stream_documents(documents: Documents, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, int]]:
    """Endless (ids, prompt length) pairs, every document once before any a second time."""
    while True:
        for i in rng.permutation(len(documents)):
            yield documents.ids[documents.starts[i] : documents.starts[i + 1]], documents.prompt_lengths[i]


def batches(corpus: list[tuple[Source, Documents]], pad: int, seed: int) -> Iterator[Batch]:
    """Endless batches: documents are drawn by token share and wait until a row set of their kind is full.

    Sorting by width keeps whole documents apart (nothing attends across two of them) at
    little padding.
    """
    rng = np.random.default_rng(seed)
    streams = [stream_documents(documents, rng) for _, documents in corpus]
    shares = np.array([s.share / (len(d.ids) / len(d)) for s, d in corpus])
    waiting: dict[tuple[int, int], list[tuple[np.ndarray, int]]] = defaultdict(list)
    while True:
        drawn = rng.choice(len(streams), p=shares / shares.sum())
        document = next(streams[drawn])
        width, domain = next(w for w in WIDTHS if len(document[0]) <= w + 1), corpus[drawn][0].domain
        waiting[width, domain].append(document)
        if len(waiting[width, domain]) * width == TOKENS_PER_BATCH:
            yield assemble(waiting.pop((width, domain)), width, domain, pad, rng)


def assemble(rows: list[tuple[np.ndarray, int]], width: int, domain: int, pad: int, rng: np.random.Generator) -> Batch:
    """Pads rows to one width; all answer tokens are targets, and a random share of prompt tokens."""
    ids = np.full((len(rows), width + 1), pad, np.int64)
    is_target = np.zeros((len(rows), width), bool)
    for row, (document, prompt_length) in enumerate(rows):
        ids[row, : len(document)] = document
        is_target[row, : len(document) - 1] = True
        is_prompt = slice(0, max(prompt_length - 1, 0))
        is_target[row, is_prompt] = rng.random(is_target[row, is_prompt].shape) < PROMPT_LOSS_SHARE
    return Batch(torch.from_numpy(ids), torch.from_numpy(is_target), domain)
