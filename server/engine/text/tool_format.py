"""How a chat template has a model write calls of tools, and how messages about tools enter its prompt.

A template without tools gets them in words: a system message describes them in the form that Hermes
models know, calls come back in that form, and results are put into the user's mouth.
"""

import json
from dataclasses import dataclass, replace
from typing import Any

Message = dict[str, Any]


@dataclass(frozen=True)
class ToolFormat:
    """The text around a call, which itself is `{"name": ..., ARGUMENTS: {...}}`.

    Without an `end` the answer consists of calls from its beginning, so that its first character tells.
    """

    begin: str
    end: str
    arguments: str = "arguments"
    is_list: bool = False
    is_native: bool = True
    has_short_ids: bool = False

    @property
    def is_bare(self) -> bool:
        return not self.end


HERMES = ToolFormat("<tool_call>\n", "\n</tool_call>")
"""Also Qwen's."""
MISTRAL = ToolFormat("[TOOL_CALLS]", "", is_list=True, has_short_ids=True)
LLAMA = ToolFormat("", "", "parameters")
GENERIC = replace(HERMES, is_native=False)

INSTRUCTION = """You may call functions to help with the user's request. They are described here, one per line:
{tools}
To call a function, answer with its name and its arguments as JSON, between these marks:
<tool_call>
{{"name": "...", "arguments": {{...}}}}
</tool_call>"""


def tool_format(template: str) -> ToolFormat:
    """The format that the text of a template tells of; the generic one where it tells of none that is known here."""
    if "tools" not in template or "<function=" in template:
        return GENERIC
    if "<tool_call>" in template:
        return HERMES
    if "[TOOL_CALLS]" in template and "[ARGS]" not in template:
        return MISTRAL
    return LLAMA if '"parameters": ' in template else GENERIC


def without_tools(messages: list[Message], tools: list[Message]) -> list[Message]:
    """Messages for a template that knows neither tools nor calls nor results."""
    turns: list[Message] = []
    for message in messages:
        turn = plain_turn(message)
        is_result = message["role"] == "tool"
        if is_result and turns and turns[-1]["role"] == "user":
            # Many templates insist on turns that alternate.
            turn["content"] = f"{turns.pop()['content']}\n{turn['content']}"
        turns.append(turn)
    return [*instructed(turns, tools)] if tools else turns


def plain_turn(message: Message) -> Message:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = [written(call["function"]) for call in message.get("tool_calls", ())]
    content = "\n".join([*([message["content"]] if message["content"] or not calls else []), *calls])
    kept = {name: value for name, value in message.items() if name != "tool_calls"}
    return {**kept, "content": content}


def written(function: Message) -> str:
    return f"{GENERIC.begin}{json.dumps(function, ensure_ascii=False)}{GENERIC.end}"


def instructed(turns: list[Message], tools: list[Message]) -> list[Message]:
    """The turns with a first system message that ends with the instruction."""
    lines = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    instruction = INSTRUCTION.format(tools=lines)
    if turns[0]["role"] == "system":
        return [{"role": "system", "content": f"{turns[0]['content']}\n\n{instruction}"}, *turns[1:]]
    return [{"role": "system", "content": instruction}, *turns]
