"""How many tokens of prompts a step reads, so that nobody waits long for its end.

A number that suits one machine and model does not suit another: 512 tokens of SmolLM2 take half a second on two cores
and a few milliseconds on a GPU. So seconds are what is wanted, and the tokens follow from those that were measured.
"""

from dataclasses import dataclass

ALONE_SECONDS = 0.1
"""What a step reads for while nobody decodes: so long waits, at most, who has just come."""
FEWEST_ALONE = 64
"""Rows of a pass share its reading of the weights; of fewer ones a large model would read most of the time."""
FEWEST_BESIDE = 8
"""Of fewer rows each takes longer, for they read the same weights and keys."""
RATE = 1 / 16
"""By so much the middle of decoding times is moved at each step, up or down."""


@dataclass
class Budget:
    """A number of tokens, between bounds, that follows the seconds they take."""

    tokens: int
    fewest: int
    most: int

    def learn(self, num_read: int, seconds: float, wanted: float) -> None:
        """At most twice as many the next time; a step that read less than it could says little of more."""
        if num_read >= self.tokens or seconds > wanted:
            tokens = round(num_read * min(wanted / seconds, 2.0))
            self.tokens = min(max(tokens, self.fewest), self.most)


class Pace:
    """The budget of a step.

    While nobody decodes it takes about `ALONE_SECONDS`. Beside sequences that decode, reading takes `share` of the
    step's time: with 0.6, steps that took 4 ms take 10, so that running answers go on at 0.4 of their speed. What they
    took is a median, so that a few checks of long drafts do not make all steps long.
    """

    def __init__(self, most: int, share: float) -> None:
        self.alone = Budget(most, min(FEWEST_ALONE, most), most)
        self.beside = Budget(min(FEWEST_BESIDE, most), min(FEWEST_BESIDE, most), most)
        self.ratio = share / (1 - share)
        self.decode_seconds = 0.0

    def budget(self, is_decoding: bool) -> int:
        """Tokens that the next step reads at most."""
        return self.beside.tokens if is_decoding else self.alone.tokens

    def learn(self, num_read: int, read_seconds: float, decode_seconds: float, crowd: float = 1.0) -> None:
        """Of a step that read so many tokens in so many seconds; `decode_seconds` 0 is one that decoded nothing.

        `crowd` is the number of prompts for each running answer. Seven that wait beside one answer get seven times what
        one gets, up to `ALONE_SECONDS`: nobody is served by an answer that runs alone.
        """
        if decode_seconds:
            known = self.decode_seconds or decode_seconds
            self.decode_seconds = known * (1 + RATE if decode_seconds > known else 1 - RATE)
        if num_read and decode_seconds:
            share = self.ratio * self.decode_seconds
            self.beside.learn(num_read, read_seconds, max(share, min(crowd * share, ALONE_SECONDS)))
        elif num_read:
            self.alone.learn(num_read, read_seconds, ALONE_SECONDS)
