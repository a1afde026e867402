"""Log-probabilities in OpenAI's two forms: an object for each token in chats, parallel lists in text completions."""

from collections.abc import Sequence

from pydantic import BaseModel

from server.engine import TokenLogprobs, Vocabulary
from server.generation import ShownToken

LOWEST = -9999.0
"""Stands for minus infinity, which JSON lacks; OpenAI uses the same value for tokens that are all but impossible."""


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]

    @classmethod
    def of(cls, token_id: int, logprob: float, vocabulary: Vocabulary) -> "TopLogprob":
        token = vocabulary[token_id]
        return cls(token=token.text, logprob=max(logprob, LOWEST), bytes=list(token.content))


class ChatTokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]

    @classmethod
    def of_answer(cls, scores: TokenLogprobs, vocabulary: Vocabulary) -> "ChatTokenLogprob":
        # Only a prompt's first token has no log-probability, and chats show no prompt.
        own = TopLogprob.of(scores.token_id, scores.logprob or 0.0, vocabulary)
        top = [TopLogprob.of(token_id, logprob, vocabulary) for token_id, logprob in scores.top]
        return cls(token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=top)


class ChatLogprobs(BaseModel):
    content: list[ChatTokenLogprob]
    refusal: None = None

    @classmethod
    def of(cls, tokens: Sequence[ShownToken], vocabulary: Vocabulary) -> "ChatLogprobs":
        return cls(content=[ChatTokenLogprob.of_answer(token.scores, vocabulary) for token in tokens])


class TextLogprobs(BaseModel):
    """Parallel lists; the first token of an echoed prompt has nulls, for nothing comes before it."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]

    @classmethod
    def of(cls, tokens: Sequence[ShownToken], vocabulary: Vocabulary) -> "TextLogprobs":
        return cls(
            tokens=[vocabulary[scores.token_id].text for _, scores in tokens],
            token_logprobs=[bounded(scores.logprob) for _, scores in tokens],
            top_logprobs=[top_by_text(token, vocabulary) for token in tokens],
            text_offset=[token.start for token in tokens],
        )


def top_by_text(token: ShownToken, vocabulary: Vocabulary) -> dict[str, float] | None:
    """The most likely tokens and the token itself by their text; two tokens with one text show the likelier one."""
    scores = token.scores
    if scores.logprob is None:
        return None
    top: dict[str, float] = {}
    for token_id, logprob in (*scores.top, (scores.token_id, scores.logprob)):
        top.setdefault(vocabulary[token_id].text, max(logprob, LOWEST))
    return top


def bounded(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LOWEST)
