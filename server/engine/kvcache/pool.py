"""Which blocks are in use, by how many slots; which are kept for a text that may come again; which are free."""

from collections import OrderedDict
from collections.abc import Iterable

from server.engine.kvcache.tree import PrefixTree


class OutOfBlocksError(Exception):
    """Every block is in use."""


class BlockPool:
    """Blocks by number, from 1 on; 0 is what a table has where its slot has none.

    A block that nobody uses any more is free, unless the tree knows its text. Such a block is given away where none is
    free, the one first that has been used by nobody for longest.
    """

    def __init__(self, num_blocks: int, tree: PrefixTree) -> None:
        self.num_blocks = num_blocks
        self.tree = tree
        self.num_users = [0] * (num_blocks + 1)
        self.free = list(range(num_blocks, 0, -1))
        self.kept: OrderedDict[int, None] = OrderedDict()
        self.num_evicted = 0

    @property
    def num_available(self) -> int:
        """Blocks that `take` can give."""
        return len(self.free) + len(self.kept)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_available

    def is_used(self, block: int) -> bool:
        return self.num_users[block] > 0

    def take(self) -> int:
        """A block with one user; raises `OutOfBlocksError`."""
        if self.free:
            block = self.free.pop()
        elif self.kept:
            block = self.evict()
        else:
            raise OutOfBlocksError
        self.num_users[block] = 1
        return block

    def evict(self) -> int:
        """The block that nobody has used for longest; what the tree had behind it is of no more use."""
        block, _ = self.kept.popitem(last=False)
        behind = [each for each in self.tree.remove(block) if each in self.kept]
        for each in behind:
            del self.kept[each]
        self.free += behind
        self.num_evicted += 1 + len(behind)
        return block

    def share(self, blocks: Iterable[int]) -> None:
        """Gives each a further user."""
        for block in blocks:
            self.kept.pop(block, None)
            self.num_users[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Takes a user from each; of those that are kept then, the first will be given away first."""
        for block in blocks:
            self.num_users[block] -= 1
            if self.num_users[block] == 0 and block in self.tree:
                self.kept[block] = None
            elif self.num_users[block] == 0:
                self.free.append(block)

    def renew(self, blocks: Iterable[int]) -> None:
        """Puts off giving these away, as if they had been used just now."""
        for block in blocks:
            if block in self.kept:
                self.kept.move_to_end(block)
