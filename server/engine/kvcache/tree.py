"""What kept blocks hold, as a tree: the way from its root is a text, a block at a time. Each owner has a tree."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from server.engine.kvcache.cache import BLOCK_LENGTH

Tokens = tuple[int, ...]
by_tokens = attrgetter("tokens")


@dataclass(eq=False)
class Node:
    """A block behind those of its parents, and its tokens; fewer than a block's are the end of a text."""

    block: int
    tokens: Tokens
    parent: "Node | None"
    children: list["Node"] = field(default_factory=list)
    """In the order of their tokens, so that those that begin most like a text are its neighbours."""

    def most_like(self, tokens: Tokens) -> tuple["Node | None", int]:
        """The child that has most of the tokens' beginning, and how many of them."""
        place = bisect_left(self.children, tokens, key=by_tokens)
        near = self.children[max(place - 1, 0) : place + 1]
        return max(((node, num_equal(node.tokens, tokens)) for node in near), key=lambda it: it[1], default=(None, 0))


NOTHING = Node(0, (), None)


class Beginning(NamedTuple):
    """What is known of a text: whole blocks of it, a block that begins with its next tokens, and how many in all."""

    blocks: list[int]
    tail: int | None
    length: int


UNKNOWN = Beginning([], None, 0)


class PrefixTree:
    """Texts of the past, by owner. It knows their blocks' numbers only; a pool says when one is given away."""

    def __init__(self) -> None:
        self.roots: dict[str | None, Node] = {}
        self.nodes: dict[int, Node] = {}
        """By block."""

    def __contains__(self, block: int) -> bool:
        return block in self.nodes

    def find(self, owner: str | None, ids: list[int]) -> Beginning:
        """The longest beginning of a text."""
        node, blocks = self.roots.get(owner, NOTHING), list[int]()
        for part in parts(ids):
            child, same = node.most_like(part)
            length = len(blocks) * BLOCK_LENGTH + same
            if child is None or same < BLOCK_LENGTH:
                return Beginning(blocks, child.block if child and same else None, length)
            blocks.append(child.block)
            node = child
        return Beginning(blocks, None, len(blocks) * BLOCK_LENGTH)

    def insert(self, owner: str | None, ids: list[int], blocks: list[int]) -> list[int]:
        """Notes a text and the blocks that hold it; returns those of its way, others' where they are as good."""
        node, way = self.roots.setdefault(owner, Node(0, (), None)), []
        for part, block in zip(parts(ids), blocks, strict=False):
            child, same = node.most_like(part)
            if child is None or same < len(part):
                child = Node(block, part, node)
                insort(node.children, child, key=by_tokens)
                self.nodes[block] = child
            way.append(child.block)
            node = child
        return way

    def remove(self, block: int) -> list[int]:
        """Forgets a block and all behind it; returns them."""
        node = self.nodes[block]
        assert node.parent is not None
        node.parent.children.remove(node)
        if node.parent.parent is None and not node.parent.children:
            self.roots = {owner: root for owner, root in self.roots.items() if root is not node.parent}
        removed = [node]
        for each in removed:
            removed += each.children
            del self.nodes[each.block]
        return [each.block for each in removed]


def parts(ids: list[int]) -> Iterator[Tokens]:
    """A text's tokens, a block at a time."""
    return (tuple(ids[first : first + BLOCK_LENGTH]) for first in range(0, len(ids), BLOCK_LENGTH))


def num_equal(first: Iterable[int], second: Iterable[int]) -> int:
    """The length of their common beginning."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count
