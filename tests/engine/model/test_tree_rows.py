"""Trees of drafts in one pass: every row has the bits of plain steps along its branch, and a branch can be kept."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor

from server.engine import Decoder, KVCache, TokenBatch, load_checkpoint
from server.engine.kvcache.batch import Row
from server.engine.model import kernels
from tests.gguf_files import TOKENS, wide_config, write_gguf
from tests.tiny import CPU, save_random_model, tiny_config, torch_decoder

LENGTHS = (1, 29, 32, 61, 63, 64)
"""Of texts, so that branches begin before, at and behind the ends of blocks."""
needs_kernels = pytest.mark.skipif(kernels.build() is None, reason="no kernels for this processor")


def a_text(length: int) -> list[int]:
    return torch.randint(3, 250, (length,), generator=torch.Generator().manual_seed(length)).tolist()


class RandomTree:
    """A chain behind a text's last token, and branches behind any token of what there is."""

    def __init__(self, slot: int, text: list[int], num_rows: int, rng: random.Random) -> None:
        self.slot = slot
        self.text = text
        start = len(text) - 1
        self.rows = [(slot, start, [text[-1], *self.ids(rng.randrange(num_rows // 2), rng)])]
        self.branches = [list(range(len(self.rows[0][2])))]
        """The tokens of each, counted over the tree."""
        self.forks: dict[int, int] = {}
        while sum(len(ids) for _, _, ids in self.rows) < num_rows:
            way = rng.choice(self.branches)
            way = way[: rng.randrange(len(way)) + 1]
            count = sum(len(ids) for _, _, ids in self.rows)
            ids = self.ids(rng.randrange(min(4, num_rows - count)) + 1, rng)
            self.forks[len(self.rows)] = way[-1]
            self.rows.append((slot, start + len(way), ids))
            self.branches.append([*way, *range(count, count + len(ids))])

    @staticmethod
    def ids(count: int, rng: random.Random) -> list[int]:
        return [rng.randrange(3, 250) for _ in range(count)]

    def batch(self, cache: KVCache) -> TokenBatch:
        return TokenBatch(self.rows, cache, self.forks)

    def ids_of(self, branch: list[int]) -> list[int]:
        ids = [token for _, _, row in self.rows for token in row]
        return [ids[token] for token in branch]


def read(model: Decoder, cache: KVCache, slot: int, text: list[int]) -> None:
    if text:
        model.forward(TokenBatch([(slot, 0, text)], cache), cache)


def plainly(model: Decoder, cache: KVCache, slot: int, first: int, ids: list[int]) -> Tensor:
    """States of tokens that are decoded one by one."""
    steps = [TokenBatch([(slot, first + i, [token])], cache) for i, token in enumerate(ids)]
    return torch.cat([model.forward(step, cache) for step in steps])


def check_tree(model: Decoder, length: int, num_rows: int, rng: random.Random, tolerance: float = 0.0) -> None:
    """A tree's rows are those of plain steps; one of its branches is kept, and what follows is as plain."""
    text = a_text(length)
    cache, other = model.new_cache(2, length + 64), model.new_cache(2, length + 64)
    read(model, cache, 1, text[:-1])
    read(model, other, 0, text[:-1])
    tree = RandomTree(1, text, num_rows, rng)
    states = model.forward(tree.batch(cache), cache)
    for branch in tree.branches:
        expected = plainly(model, other, 0, length - 1, tree.ids_of(branch))
        torch.testing.assert_close(states[branch], expected, rtol=tolerance, atol=tolerance)
    branch = rng.choice(tree.branches)
    plainly(model, other, 0, length - 1, tree.ids_of(branch))
    start = length - 1
    model.keep_branch(cache, 1, [start + token for token in branch], start)
    further = [5, 9, 7]
    after = plainly(model, cache, 1, start + len(branch), further)
    expected = plainly(model, other, 0, start + len(branch), further)
    torch.testing.assert_close(after, expected, rtol=tolerance, atol=tolerance)


@needs_kernels
@pytest.mark.parametrize(
    ("dtype", "kind"),
    [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, Type.Q4_1), (torch.bfloat16, Type.Q6_K)],
)
@torch.inference_mode()
def test_rows_have_the_bits_of_plain_steps(build: str, dtype: torch.dtype, kind: Type | None, tmp_path: Path) -> None:
    config = wide_config(num_key_value_heads=2, head_dim=64, num_hidden_layers=2, vocab_size=len(TOKENS))
    folder = save_random_model(tmp_path, config)
    if kind:
        write_gguf(tmp_path / "model.gguf", folder, kind)
        folder = tmp_path / "model.gguf"
    model = Decoder(load_checkpoint(str(folder), dtype, CPU, quantization="auto" if kind else "none"))
    rng = random.Random(1)
    for length in LENGTHS:
        for num_rows in (2, 8, 24):
            check_tree(model, length, num_rows, rng)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets their number for the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_threads_that_share_the_heads_of_a_long_text(
    build: str, dtype: torch.dtype, threads: Callable[[int], None], tmp_path: Path
) -> None:
    """Three heads of keys, which two and four threads cannot deal out evenly."""
    config = tiny_config(max_position_embeddings=1024, num_attention_heads=6, num_key_value_heads=3, hidden_size=96)
    folder = save_random_model(tmp_path, config)
    for num_threads in (1, 2, 4):
        threads(num_threads)
        model = Decoder(load_checkpoint(str(folder), dtype, CPU))
        for length in (40, 620):
            check_tree(model, length, 13, random.Random(length))


@torch.inference_mode()
def test_torch_agrees_with_plain_steps(tmp_path: Path) -> None:
    """Its products add in an order that depends on the batch, so not to the bit."""
    model, rng = torch_decoder(save_random_model(tmp_path, tiny_config())), random.Random(2)
    for length in LENGTHS:
        for num_rows in (2, 8, 24):
            check_tree(model, length, num_rows, rng, tolerance=1e-4)


@torch.inference_mode()
def test_trees_of_several_texts_stand_in_one_batch(tmp_path: Path) -> None:
    model = Decoder(load_checkpoint(str(save_random_model(tmp_path, tiny_config(head_dim=16))), torch.float32, CPU))
    cache, rng = model.new_cache(3, 128), random.Random(3)
    texts = [a_text(length) for length in (20, 33, 64)]
    trees = [RandomTree(slot, text, 9, rng) for slot, text in enumerate(texts)]
    for slot, text in enumerate(texts):
        read(model, cache, slot, text[:-1])
    expected = torch.cat([model.forward(tree.batch(cache), cache) for tree in trees])
    rows, forks, count = list[Row](), dict[int, int](), 0
    for tree in trees:
        forks |= {len(rows) + number: count + token for number, token in tree.forks.items()}
        rows += tree.rows
        count += 9
    together = model.forward(TokenBatch(rows, cache, forks), cache)
    assert torch.equal(together, expected)
