"""Guesses a prompt's domain from its words, as the answers so far have taught.

The vector that tells it for certain comes out of the whole model's reading of the prompt, which is a replica's work. An
answer says its domain, so the ingress learns by itself which words go with which.
"""

import math
import re
from collections import Counter, defaultdict

from server.engine import OTHER_DOMAIN, UNROUTED

TOLD = re.compile(rb'"speculative_decoding":\s*\{"domain":\s*"([^"\\]+)"')
"""Where an answer tells its domain: quotes of its text are escaped, so no text looks like this."""
ENOUGH = 4
"""Answers of a domain before it is guessed."""
MOST_WORDS = 50_000
KNOWS_NOTHING = frozenset({OTHER_DOMAIN, UNROUTED.domain})


def told_domain(data: bytes) -> str | None:
    """The domain that a piece of an answer tells; None where it tells none, or one that is no kind of prompt."""
    found = TOLD.search(data)
    domain = found[1].decode() if found else None
    return None if domain in KNOWS_NOTHING else domain


class DomainGuess:
    """Naive Bayes over the presence of words."""

    def __init__(self, max_words: int = MOST_WORDS) -> None:
        self.max_words = max_words
        self.prompts: Counter[str] = Counter()
        self.having: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def learn(self, words: set[str], domain: str) -> None:
        """An answer was of this domain, to a prompt of these words."""
        self.prompts[domain] += 1
        for word in words:
            if word in self.having or len(self.having) < self.max_words:
                self.having[word][domain] += 1

    def guess(self, words: set[str]) -> str | None:
        """The likeliest domain; None before any has been seen often enough."""
        known = [self.having[word] for word in words if word in self.having]
        seen = {domain: count for domain, count in self.prompts.items() if count >= ENOUGH}
        if not known or not seen:
            return None
        return max(seen, key=lambda domain: likelihood(known, domain, seen[domain]))


def likelihood(known: list[Counter[str]], domain: str, num_prompts: int) -> float:
    """The logarithm of how likely prompts of a domain have all these words, each counted once more than seen."""
    return sum(math.log((having[domain] + 1) / (num_prompts + 2)) for having in known)
