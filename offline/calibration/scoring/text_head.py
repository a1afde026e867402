"""The tokens that a draft may choose on known texts: its vocabulary's, and those that a text itself brings."""

from collections.abc import Sequence

import torch
from torch import Tensor

from offline.calibration.scoring.continuations import Text
from server.engine import Decoder, DraftHead, DraftVocabulary


class TextHead:
    """A decoder's choices on some texts: over all tokens, or over a vocabulary and each text's own tokens.

    `is_known` [places] says where the model's token was already there to be drafted: in the vocabulary, the
    prompt, or the answer before it. The engine's head learns a new token only after the model wrote it.
    """

    def __init__(self, decoder: Decoder, vocabulary: DraftVocabulary | None, texts: Sequence[Text]) -> None:
        self.decoder = decoder
        self.head: DraftHead | None = None
        self.is_known = torch.ones(sum(len(text.output_ids) - 1 for text in texts), dtype=torch.bool)
        if vocabulary is None:
            return
        fixed = set(vocabulary.token_ids)
        self.is_known = torch.tensor([known for text in texts for known in known_places(text, fixed)])
        further = dict.fromkeys(t for text in texts for t in text.prompt_ids + text.output_ids if t not in fixed)
        rows = DraftVocabulary((*vocabulary.token_ids, *further))
        self.head = DraftHead(decoder, rows, tail=0)
        row_of = {token: row for row, token in enumerate(rows.token_ids)}
        self.is_closed = torch.ones(len(texts), len(rows.token_ids), dtype=torch.bool, device=decoder.device)
        self.is_closed[:, : len(fixed)] = False
        for number, text in enumerate(texts):
            self.is_closed[number, [row_of[token] for token in set(text.prompt_ids + text.output_ids)]] = False

    def choose(self, states: Tensor, owners: Tensor) -> tuple[Tensor, Tensor]:
        """(top probabilities, their tokens) of states [places, hidden_size] that belong to these texts."""
        if self.head is None:
            top, token = torch.softmax(self.decoder.logits(states), -1).max(-1)
            return top, token
        logits = self.head.rows.logits(states)
        logits.masked_fill_(self.is_closed[owners.to(logits.device)], float("-inf"))
        top, row = torch.softmax(logits, -1).max(-1)
        return top, self.head.token_ids.to(row.device)[row]


def known_places(text: Text, known: set[int]) -> list[bool]:
    """Of each token of the answer after the first, whether it is of `known`, the prompt or the answer before it."""
    seen = known | set(text.prompt_ids) | {text.output_ids[0]}
    places = []
    for token in text.output_ids[1:]:
        places.append(token in seen)
        seen.add(token)
    return places
