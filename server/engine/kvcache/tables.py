"""The blocks of each slot: they grow with its text, and slots share them where their texts begin alike."""

from server.engine.kvcache.cache import BLOCK_LENGTH, KVCache, blocks_of
from server.engine.kvcache.pool import BlockPool
from server.engine.kvcache.tree import Beginning


class BlockTables:
    """What slots have of a pool's blocks; the cache's tables follow. Only blocks full of common tokens are shared."""

    def __init__(self, cache: KVCache, pool: BlockPool) -> None:
        self.cache = cache
        self.pool = pool
        self.blocks: list[list[int]] = [[] for _ in range(cache.num_slots)]

    def num_missing(self, slot: int, length: int) -> int:
        """Blocks that a slot lacks for so many positions."""
        return max(blocks_of(length) - len(self.blocks[slot]), 0)

    def grow(self, slot: int, length: int) -> bool:
        """Gives a slot blocks for so many positions; none, and False, where there are not enough."""
        missing = self.num_missing(slot, length)
        if not missing:
            return True
        if missing > self.pool.num_available:
            return False
        self.put(slot, [self.take() for _ in range(missing)])
        return True

    def begin(self, slot: int, known: Beginning) -> int:
        """Gives an empty slot what is known of its text; returns the number of positions.

        Of the last block, which others go on to write, it gets a copy, where there is a block for that.
        """
        tail = [] if known.tail is None else [known.tail]
        self.pool.share(known.blocks + tail)
        self.put(slot, known.blocks)
        can_copy = bool(tail) and self.grow(slot, known.length)
        if can_copy:
            self.cache.copy_block(tail[0], self.blocks[slot][-1], known.length % BLOCK_LENGTH)
        self.pool.release(tail)
        return known.length if can_copy else len(known.blocks) * BLOCK_LENGTH

    def held(self, slot: int, length: int) -> Beginning:
        """The first positions of a slot."""
        count = length // BLOCK_LENGTH
        tail = self.blocks[slot][count] if length % BLOCK_LENGTH else None
        return Beginning(self.blocks[slot][:count], tail, length)

    def release(self, slot: int) -> None:
        """Takes all blocks from a slot, the last one first."""
        self.pool.release(reversed(self.blocks[slot]))
        self.cache.place(slot, 0, [0] * len(self.blocks[slot]))
        del self.blocks[slot][:]

    def take(self) -> int:
        block = self.pool.take()
        self.cache.clear(block)
        return block

    def put(self, slot: int, blocks: list[int]) -> None:
        self.cache.place(slot, len(self.blocks[slot]), blocks)
        self.blocks[slot] += blocks
