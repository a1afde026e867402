"""Text at the engine's edge: messages -> ids, and ids -> text piece by piece with stop strings.

The engine itself never imports this module.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedTokenizerBase

from server.engine.text.thinking import CLOSING, THINK_BEGIN, THINK_END, Thinking, thinking_after, thinks
from server.engine.text.tool_format import GENERIC, ToolFormat, tool_format, without_tools
from server.engine.text.vocabulary import REPLACEMENT, Vocabulary
from server.engine.types import ThinkingBudget

MAX_PENDING = 8
"""More ids than a character's bytes can need: what still is no character then never becomes one."""
INFILL_MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
)
"""Tokens before prompt, suffix and answer, as Qwen, StarCoder, Granite, DeepSeek and GLM have them."""
MAX_MARKER = 32
"""More ids at the end of a prompt than the marker of thinking there can have."""


class ChatError(ValueError):
    """The model's chat template refuses the messages, or there is none."""


class TextCodec:
    """The checkpoint's tokenizer and chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = Vocabulary(tokenizer)

    @property
    def template_hash(self) -> str:
        template = self.tokenizer.chat_template
        return hashlib.sha256(repr(template).encode()).hexdigest()[:16]

    @cached_property
    def tool_format(self) -> ToolFormat:
        """How the model writes calls of tools."""
        try:
            return tool_format(str(self.tokenizer.get_chat_template(tools=[{}])))
        except ValueError:
            return GENERIC

    @cached_property
    def longest_token(self) -> int:
        """Most characters that a token stands for."""
        return max(map(len, self.tokenizer.get_vocab()))

    def special_id(self, text: str) -> int | None:
        """The token that `text` is, where that is one which `decode` does not show."""
        found = self.tokenizer.added_tokens_encoder.get(text)
        is_special = found is not None and self.tokenizer.added_tokens_decoder[found].special
        return found if is_special else None

    @cached_property
    def template(self) -> str:
        """The text of the chat template; empty where there is none."""
        try:
            return str(self.tokenizer.get_chat_template())
        except ValueError:
            return ""

    @property
    def has_thoughts(self) -> bool:
        """Whether the model thinks before it answers, and marks that by text."""
        return thinks(self.template) and self.special_id(THINK_END) is None

    @property
    def special_tokens(self) -> dict[str, str | list[str]]:
        """Special tokens by their names, as `eos_token`."""
        return dict(self.tokenizer.special_tokens_map)

    @cached_property
    def infill_ids(self) -> tuple[int, int, int] | None:
        """Tokens before prompt, suffix and answer, of a model that fills in the middle."""
        known = self.tokenizer.added_tokens_encoder
        for before, between, after in INFILL_MARKS:
            if before in known and between in known and after in known:
                return known[before], known[between], known[after]
        return None

    def thinking_after(self, prompt_ids: Sequence[int]) -> Thinking:
        """Where an answer to the prompt begins: with, before or without thoughts."""
        if not self.has_thoughts:
            return Thinking.NONE
        return thinking_after(self.vocabulary.decode(list(prompt_ids[-MAX_MARKER:])))

    def thinking_budget(self, limit: int, thinking: Thinking) -> ThinkingBudget | None:
        """The budget over ids of tokens; None where there is nothing to be limited."""
        if thinking is Thinking.NONE:
            return None
        begin = tuple(self.encode(THINK_BEGIN, False)) if thinking is Thinking.POSSIBLE else ()
        end = tuple(self.encode(THINK_END, False))
        if len(end) > 1:
            # Its last letter may be one token with what follows.
            end = tuple(self.encode(THINK_END[:-1], False))
        return ThinkingBudget(limit, begin, end, tuple(self.encode(CLOSING, False)))

    def encode_chat(
        self,
        messages: list[dict[str, Any]],
        tools: Sequence[dict[str, Any]] = (),
        variables: Mapping[str, Any] = MappingProxyType({}),
        is_continued: bool = False,
    ) -> list[int]:
        """The prompt's ids, ending where the assistant's answer begins, or goes on; raises `ChatError`.

        `variables` are for the template, as `enable_thinking`.
        """
        if not self.tokenizer.chat_template:
            raise ChatError("this model has no chat template; use /v1/completions")
        try:
            if not self.tool_format.is_native:
                messages, tools = without_tools(messages, list(tools)), ()
            text = self.tokenizer.apply_chat_template(
                messages,
                tools=list(tools) or None,
                tokenize=False,
                add_generation_prompt=not is_continued,
                continue_final_message=is_continued,
                **variables,
            )
        except Exception as error:
            # A template is a program of the checkpoint's authors: it may fail in any way.
            raise ChatError(f"the model's chat template refuses these messages: {error}") from error
        return self.encode(str(text), add_special_tokens=False)

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text, with the special tokens that the tokenizer itself puts around it."""
        return self.encode(text, add_special_tokens=True)

    def encode_infill(self, before: str, after: str) -> list[int]:
        """A prompt for what stands between two texts; raises `ChatError` where the model was not made for that."""
        if self.infill_ids is None:
            raise ChatError("this model has no tokens for filling in the middle; it only continues a prompt")
        first, second, last = self.infill_ids
        return [first, *self.encode(before, False), second, *self.encode(after, False), last]

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        # Cleaning up would take back spaces that a stream has already sent.
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def stream(self, stop: Sequence[str] = (), min_tokens: int = 0) -> "TextStream":
        return TextStream(self, stop, min_tokens)


class TextStream:
    """Turns ids into text as they come.

    Holds back what may still change: an incomplete character, or the beginning of a stop string.
    Everything pushed and flushed, joined, is the whole text up to the stop string. A stop string that
    is complete within the first `min_tokens` ids is passed over.
    """

    def __init__(self, codec: TextCodec, stop: Sequence[str], min_tokens: int = 0) -> None:
        self.codec = codec
        self.stop = [text for text in stop if text]
        self.min_tokens = min_tokens
        self.context: list[int] = []
        self.pending: list[int] = []
        self.held = ""
        self.stopped_by: str | None = None
        self.starts: list[int] = []
        """Where the text of each id begins, up to and including the one that completed a stop string."""
        self.num_released = 0

    @property
    def is_stopped(self) -> bool:
        return self.stopped_by is not None

    @property
    def num_tokens(self) -> int:
        return len(self.starts)

    @property
    def num_shown(self) -> int:
        """How many ids have, at least in part, text that was released."""
        return bisect_left(self.starts, self.num_released)

    def push(self, token_ids: Iterable[int]) -> str:
        """Text that is safe to send now; nothing after a stop string was met."""
        text = ""
        for token_id in token_ids:
            if self.is_stopped:
                break
            self.starts.append(self.num_released + len(self.held))
            self.pending.append(token_id)
            text += self.release(self.decode_pending(is_end=False))
        return text

    def flush(self) -> str:
        """What was held back, at the end of the sequence."""
        text = self.release(self.decode_pending(is_end=True))
        rest, self.held = self.held, ""
        self.num_released += len(rest)
        return text + rest

    def decode_pending(self, is_end: bool) -> str:
        """Text of the pending ids once they are whole, decoded beside the piece before, since spaces depend on it."""
        if not self.pending or self.is_stopped:
            return ""
        before = self.codec.decode(self.context)
        text = self.codec.decode([*self.context, *self.pending])
        is_incomplete = len(text) <= len(before) or text.endswith(REPLACEMENT)
        if is_incomplete and not is_end and len(self.pending) < MAX_PENDING:
            return ""
        self.context, self.pending = self.pending, []
        return text[len(before) :]

    def release(self, new: str) -> str:
        self.held += new
        found = [(position, text) for text in self.stop if (position := self.held.find(text)) >= 0]
        if found and self.num_tokens > self.min_tokens:
            position, self.stopped_by = min(found)
            safe, self.held = self.held[:position], ""
        else:
            keep = held_back(self.held, self.stop)
            safe, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        self.num_released += len(safe)
        return safe


def held_back(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of `text` that is a beginning of a stop string, but not all of one."""
    longest = max((len(stopper) for stopper in stop), default=0)
    for length in range(min(longest - 1, len(text)), 0, -1):
        if any(len(stopper) > length and stopper.startswith(text[-length:]) for stopper in stop):
            return length
    return 0
