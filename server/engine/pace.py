"""How many tokens of prompts a step reads, so that nobody waits long for its end.

A number that suits one machine and model does not suit another: 512 tokens of SmolLM2 take half a second on two cores
and a few milliseconds on a GPU. So seconds are what is wanted, and the tokens follow from those that were measured.
"""

from collections import deque
from dataclasses import dataclass
from statistics import median_high

ALONE_SECONDS = 0.1
"""What a step reads for while nobody decodes: so long waits, at most, who has just come."""
FEWEST_ALONE = 64
"""Rows of a pass share its reading of the weights; of fewer ones a large model would read most of the time."""
FEWEST_BESIDE = 2
"""Of a single row each takes longest, for all of them read the same weights and keys."""
SHORTEST = 1e-6
"""Seconds; reading beside answers may seem to have taken none."""
LONGEST_UNSEEN = 8
"""Passes beside answers between two that read nothing, and so show what answers alone take."""


@dataclass
class Budget:
    """A number of tokens, between bounds, that follows the seconds they take."""

    tokens: int
    fewest: int
    most: int

    def learn(self, num_read: int, seconds: float, wanted: float) -> None:
        """At most twice as many the next time; a step that read less than it could says little of more."""
        if num_read >= self.tokens or seconds > wanted:
            tokens = round(num_read * min(wanted / max(seconds, SHORTEST), 2.0))
            self.tokens = min(max(tokens, self.fewest), self.most)


class Pace:
    """The budget of a step, whose one pass reads prompts and checks drafts.

    While nobody decodes it takes about `ALONE_SECONDS`. Beside sequences that decode, reading takes `share` of the
    pass: with 0.6, passes that took 4 ms take 10, so that running answers go on at 0.4 of their speed. What answers
    alone take is a median, so that a few checks of long drafts do not make all passes long.
    """

    def __init__(self, most: int, share: float) -> None:
        self.alone = Budget(most, min(FEWEST_ALONE, most), most)
        self.beside = Budget(min(FEWEST_BESIDE, most), min(FEWEST_BESIDE, most), most)
        self.ratio = share / (1 - share)
        self.decoding: deque[float] = deque(maxlen=9)
        """Seconds of the latest passes that read nothing."""
        self.num_unseen = 0

    def budget(self, is_decoding: bool) -> int:
        """Tokens that the next step reads at most; 0 now and then, to see what decoding alone takes."""
        if not is_decoding:
            return self.alone.tokens
        is_seen = self.decoding and self.num_unseen < LONGEST_UNSEEN
        return self.beside.tokens if is_seen else 0

    def learn(self, num_read: int, seconds: float, is_decoding: bool, crowd: float = 1.0) -> float:
        """Of a pass that read so many tokens, beside answers or not; returns the seconds of it that reading took.

        `crowd` is the number of prompts for each running answer. Seven that wait beside one answer get seven times what
        one gets, up to `ALONE_SECONDS`: nobody is served by an answer that runs alone.
        """
        if not num_read:
            self.decoding.append(seconds)
            self.num_unseen = 0
            return 0.0
        if not is_decoding or not self.decoding:
            self.alone.learn(num_read, seconds, ALONE_SECONDS)
            return seconds
        self.num_unseen += 1
        usual = median_high(self.decoding)
        reading, share = max(seconds - usual, 0.0), self.ratio * usual
        self.beside.learn(num_read, reading, max(share, min(crowd * share, ALONE_SECONDS)))
        return reading
