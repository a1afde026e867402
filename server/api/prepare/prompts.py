"""The prompts of a request, from its body to token ids. Only `encode` tokenises, so that a thread can do it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from server.api.errors import BadRequestError
from server.api.schema.generation import ChatBody
from server.api.schema.messages import Message
from server.api.schema.tools import Toolset
from server.engine import ChatError
from server.served_model import ServedModel


@dataclass(frozen=True)
class PromptSource:
    """Prompts that are still to be tokenised; `field` is their name in the body, as errors give it: messages.

    `num_characters` is that of all of them, `longest` that of the longest text; a token id counts as one.
    """

    field: str
    num_prompts: int
    num_characters: int
    longest: int
    encode: Callable[[ServedModel], list[list[int]]]
    is_chat: bool = False


def chat_source(
    messages: Sequence[Message],
    field: str,
    tools: Toolset | None = None,
    variables: Mapping[str, Any] = MappingProxyType({}),
    is_continued: bool = False,
) -> PromptSource:
    """One prompt, of the messages and tools as the chat template writes them; errors of the template name `field`.

    A continued one ends inside the last message, with which the answer goes on.
    """
    turns = [message.for_template for message in messages]
    offered = [tool.for_template for tool in tools.offered] if tools else []
    num_characters = sum(len(str(turn)) for turn in (*turns, *offered))

    def encode(served: ServedModel) -> list[list[int]]:
        try:
            return [served.codec.encode_chat(turns, offered, variables, is_continued)]
        except ChatError as error:
            raise BadRequestError(str(error), field) from error

    longest = sum(len(turn["content"]) for turn in turns)
    return PromptSource(field, 1, num_characters, longest, encode, is_chat=True)


def source_of(chat: ChatBody, field: str) -> PromptSource:
    """The prompt of a chat; `field` is the name of its messages in the body."""
    return chat_source(chat.messages, field, chat.toolset, chat.variables, bool(chat.continue_final_message))


def predicted_ids(text: str, served: ServedModel) -> tuple[int, ...]:
    """The tokens of what an answer is expected to be like, as far as the context reaches."""
    return tuple(served.codec.encode(text[: served.most_characters], add_special_tokens=False)[: served.max_length])


def text_source(prompts: Sequence[str | list[int]], suffix: str = "") -> PromptSource:
    """Prompts of a text completion, as text or token ids; with a suffix the answer is what belongs between both."""

    def encode(served: ServedModel) -> list[list[int]]:
        if suffix:
            return [infilled(str(text), suffix, served) for text in prompts]
        return [served.codec.encode_text(text) if isinstance(text, str) else text for text in prompts]

    lengths = [len(prompt) + len(suffix) for prompt in prompts]
    return PromptSource("prompt", len(prompts), sum(lengths), max(lengths, default=0), encode)


def infilled(prompt: str, suffix: str, served: ServedModel) -> list[int]:
    try:
        return served.codec.encode_infill(prompt, suffix)
    except ChatError as error:
        raise BadRequestError(f"'suffix': {error}.", "suffix", "unsupported_parameter") from error
