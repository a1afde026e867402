"""The tree of kept texts: what it finds is what a search through all of them finds."""

from hypothesis import given
from hypothesis import strategies as st

from server.engine.kvcache.cache import BLOCK_LENGTH, blocks_of
from server.engine.kvcache.pool import BlockPool, OutOfBlocksError
from server.engine.kvcache.tree import UNKNOWN, PrefixTree, num_equal

TEXTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=2).map(lambda ids: ids * 40), min_size=1, max_size=6)
"""Texts of few words, so that many begin alike, of 40 or 80 tokens."""


@given(TEXTS, st.lists(st.integers(0, 2), max_size=100))
def test_the_longest_beginning_is_found(texts: list[list[int]], ids: list[int]) -> None:
    tree, held, first = PrefixTree(), dict[int, list[int]](), 1
    for text in texts:
        blocks = list(range(first, first + blocks_of(len(text))))
        first += len(blocks)
        held |= {block: text[i * BLOCK_LENGTH :][:BLOCK_LENGTH] for i, block in enumerate(blocks)}
        way = tree.insert("a", text, blocks)
        assert [token for block in way for token in held[block]][: len(text)] == text
    found = tree.find("a", ids)
    assert found.length == max(num_equal(text, ids) for text in texts)
    assert len(found.blocks) == found.length // BLOCK_LENGTH
    assert (found.tail is not None) == (found.length % BLOCK_LENGTH > 0)
    tail = [] if found.tail is None else [found.tail]
    assert [token for block in found.blocks + tail for token in held[block]][: found.length] == ids[: found.length]
    assert tree.find("b", ids) == UNKNOWN


def test_what_stands_behind_a_block_goes_with_it() -> None:
    tree = PrefixTree()
    tree.insert(None, list(range(80)), [1, 2, 3])
    tree.insert(None, [*range(32), 7, 7], [4, 5])
    assert sorted(tree.nodes) == [1, 2, 3, 5], "the first block was known"
    assert sorted(tree.remove(2)) == [2, 3]
    assert tree.find(None, list(range(80))).length == 32
    assert sorted(tree.remove(1)) == [1, 5] and not tree.roots and not tree.nodes


def test_a_pool_gives_away_what_was_used_least_lately() -> None:
    tree = PrefixTree()
    pool = BlockPool(4, tree)
    first, second, third = (pool.take() for _ in range(3))
    for block in (first, second, third):
        tree.insert(None, [block] * 32, [block])
        pool.release([block])
    assert (pool.num_used, pool.num_available, list(pool.kept)) == (0, 4, [first, second, third])
    pool.share([first])
    pool.release([first])
    pool.renew([second])
    assert [pool.take() for _ in range(4)] == [4, third, first, second]
    assert pool.num_evicted == 3 and not tree.nodes
    try:
        pool.take()
    except OutOfBlocksError:
        return
    raise AssertionError("a fifth block of four")


def test_a_block_that_was_shared_behind_a_lost_one_is_free_in_the_end() -> None:
    """Two hold the second block; the tree loses the first one, which neither of them had."""
    tree = PrefixTree()
    pool = BlockPool(3, tree)
    known, own, last = (pool.take() for _ in range(3))
    tree.insert(None, list(range(32)), [known])
    pool.release([known])
    tree.insert(None, list(range(64)), [own, last])
    pool.release([own])
    assert pool.take() == own and pool.take() == known and last not in tree
    pool.release([last])
    assert pool.free == [last]
