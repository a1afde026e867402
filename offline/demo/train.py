"""Trains the embedded model on CPU or GPU; stops and resumes at any checkpoint.

Learning rate: warm-up, constant, then linear decay to zero (WSD), so that the total can still be
changed while the rate is constant. Matrices are trained by Muon, the rest by AdamW.
"""

import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoTokenizer

from offline.demo.corpus import SOURCES, Batch, Documents, Source, batches, encode_source
from offline.demo.network import Layer, Network, Recipe, demo_config


@dataclass(frozen=True)
class Schedule:
    """`steps` optimiser steps of `batches_per_step` batches; rates are peaks."""

    steps: int
    batches_per_step: int = 3
    warmup: int = 60
    decay_share: float = 0.3
    matrix_rate: float = 4e-3
    vector_rate: float = 4e-3
    weight_decay: float = 0.05
    seed: int = 0

    def factor(self, step: int) -> float:
        decay_steps = self.decay_share * self.steps
        return min((step + 1) / self.warmup, 1.0, max((self.steps - step) / decay_steps, 0.0))


class Optimizer:
    """Muon for the matrices of the layers, AdamW for embeddings and norms, one schedule for both."""

    def __init__(self, network: Network, schedule: Schedule) -> None:
        self.schedule = schedule
        matrices = [p for p in network.model.layers.parameters() if p.ndim == 2]
        others = [p for p in network.parameters() if p.ndim != 2 or p is network.model.embed_tokens.weight]
        self.parts = [
            torch.optim.Muon(
                matrices,
                lr=schedule.matrix_rate,
                weight_decay=schedule.weight_decay,
                momentum=0.95,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(others, lr=schedule.vector_rate, weight_decay=0.0, betas=(0.9, 0.95)),
        ]
        self.rates = [schedule.matrix_rate, schedule.vector_rate]

    def step(self, step: int) -> None:
        for part, rate in zip(self.parts, self.rates, strict=True):
            for group in part.param_groups:
                group["lr"] = rate * self.schedule.factor(step)
            part.step()
            part.zero_grad(set_to_none=True)

    def state(self) -> list[dict[str, object]]:
        return [part.state_dict() for part in self.parts]

    def load(self, states: list[dict[str, object]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def load_corpus(folder: Path, tokenizer_folder: Path, split: str) -> list[tuple[Source, Documents]]:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    sources = [s for s in SOURCES if (folder / f"{s.name}.{split}.jsonl.gz").exists()]
    return [(s, encode_source(tokenizer, folder, s, split, seed=i)) for i, s in enumerate(sources)]


def held_out(network: Network, corpus: list[tuple[Source, Documents]], pad: int) -> dict[str, list[float]]:
    """Mean (loss per token, draft loss, acceptance) of each source on test documents."""
    network.eval()
    figures = {}
    with torch.inference_mode(), autocast(network):
        for source, documents in corpus:
            stream = batches([(source, documents)], pad, seed=1)
            values = [torch.stack(network(*to_device(next(stream), network))) for _ in range(4)]
            figures[source.name] = torch.stack(values).mean(0).tolist()
    network.train()
    return figures


def to_device(batch: Batch, network: Network) -> tuple[Tensor, Tensor, int]:
    device = network.model.embed_tokens.weight.device
    return batch.ids.to(device), batch.is_target.to(device), batch.domain


def autocast(network: Network) -> torch.autocast:
    return torch.autocast(network.model.embed_tokens.weight.device.type, torch.bfloat16)


def compile_layers() -> None:
    """Compiles the two token-wise parts of a layer; attention stays eager, since widths differ."""
    Layer.queries = torch.compile(Layer.queries, dynamic=False)  # type: ignore[method-assign]
    Layer.transform = torch.compile(Layer.transform, dynamic=False)  # type: ignore[method-assign]


def save_checkpoint(path: Path, state: dict[str, object]) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def train(data: Path, folder: Path, schedule: Schedule, device: str, save_every: int = 100) -> None:
    """Trains up to `schedule.steps`; reads and writes `folder/checkpoint.pt`, appends to `folder/log.jsonl`."""
    torch.manual_seed(schedule.seed)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    corpus = load_corpus(data, folder / "tokenizer", "train")
    test_corpus = load_corpus(data, folder / "tokenizer", "test")
    pad = int(tokenizer.pad_token_id)
    config = demo_config(len(tokenizer), tokenizer.eos_token_id, tokenizer.bos_token_id, pad)
    network = Network(config, Recipe()).to(device)
    optimizer = Optimizer(network, schedule)
    first, seconds = resume(folder / "checkpoint.pt", network, optimizer)
    compile_layers()
    stream = batches(corpus, pad, schedule.seed + first)
    averages = torch.zeros(3)
    progress = tqdm(range(first, schedule.steps), initial=first, total=schedule.steps, desc="train", mininterval=5)
    for step in progress:
        started = time.monotonic()
        averages += train_step(network, optimizer, [next(stream) for _ in range(schedule.batches_per_step)], step)
        seconds += time.monotonic() - started
        if (step + 1) % 20 == 0:
            figures = (averages / 20).tolist()
            averages.zero_()
            progress.set_postfix(zip(("loss", "draft", "acceptance"), figures, strict=True))
        if (step + 1) % save_every == 0 or step + 1 == schedule.steps:
            record = {"step": step + 1, "seconds": seconds, "held_out": held_out(network, test_corpus, pad)}
            save_checkpoint(
                folder / "checkpoint.pt",
                {"network": network.state_dict(), "optimizer": optimizer.state(), "config": config.to_dict(), **record},
            )
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(record | {"train": figures, "schedule": asdict(schedule)}) + "\n")


def resume(path: Path, network: Network, optimizer: Optimizer) -> tuple[int, float]:
    """(first step, seconds trained so far), from the checkpoint where there is one."""
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    network.load_state_dict(state["network"])
    optimizer.load(state["optimizer"])
    return state["step"], state["seconds"]


def train_step(network: Network, optimizer: Optimizer, step_batches: list[Batch], step: int) -> Tensor:
    """One optimiser step; returns [token loss, draft loss, acceptance], each weighted by its targets."""
    targets = sum(int(batch.is_target.sum()) for batch in step_batches)
    figures = torch.zeros(3)
    for batch in step_batches:
        share = int(batch.is_target.sum()) / targets
        with autocast(network):
            loss, draft_loss, acceptance = network(*to_device(batch, network))
        ((loss + network.recipe.path_weight * draft_loss) * share).backward()
        figures += torch.stack((loss, draft_loss, acceptance)).detach().cpu() * share
    norm = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    if math.isfinite(norm.item()):
        optimizer.step(step)
    return figures
