"""Grammars of calls in every form, and what a chat template tells of its form."""

from pathlib import Path
from typing import Any

import pytest

from server.api.answers.tool_parser import CallReader
from server.api.prepare.grammar import calls
from server.api.schema.tools import Tool, Toolset
from server.engine import GENERIC, HERMES, LLAMA, MISTRAL, Grammar, GrammarCompiler, TextCodec, ToolFormat
from server.engine.sampling.grammar_matcher import GrammarMatcher
from server.engine.text.tool_format import tool_format
from tests.api.answers.test_tools import TOOLS

HERMES_CALL = '<tool_call>\n{"name": "move", "arguments": {"x": 1, "y": 2}}\n</tool_call>'
MARK = 264
"""A special token of a tokenizer of Mistral's kind."""


def follows(grammar: str, codec: TextCodec, text: str, marker: int | None = None) -> bool:
    """Whether a walk takes the whole text, `marker` first, and may end there."""
    size = 262 if marker is None else marker + 1
    walk = GrammarMatcher(
        GrammarCompiler(codec.vocabulary, size, frozenset({2})).compile(Grammar.of_lark(grammar)), 0, frozenset({2})
    )
    ids = [*([] if marker is None else [marker]), *codec.encode(text, False)]
    for i in range(len(ids) + 1):
        allowed = walk.after(ids[:i], tuple(ids[:i]))
        if allowed is None or not allowed[ids[i] if i < len(ids) else 2]:
            return False
    return True


@pytest.mark.parametrize(
    ("form", "choice", "text", "is_followed"),
    [
        (HERMES, "required", HERMES_CALL, True),
        (HERMES, "required", f"{HERMES_CALL}\n{HERMES_CALL}", True),
        (HERMES, "required", "Sure.", False),
        (HERMES, "required", HERMES_CALL.replace("2", "12"), False),
        (HERMES, "auto", "Sure.", True),
        (HERMES, "auto", "", True),
        (GENERIC, "auto", f"Sure.\n{HERMES_CALL}", True),
        (HERMES, "auto", f"{HERMES_CALL}\n{HERMES_CALL}", True),
        (HERMES, "auto", "<tool_call>\nno", False),
        (HERMES, "auto", HERMES_CALL.replace("<tool_call>\n", "<tool_call>"), True),
        (HERMES, "auto", "<tool_call>no", False),
        (HERMES, "auto", HERMES_CALL.replace("move", "go"), False),
        (LLAMA, "required", '{"name": "stay", "parameters": {}}', True),
        (LLAMA, "auto", '{"name": "stay", "parameters": {}}', True),
        (LLAMA, "auto", "Sure: {}", True),
        (LLAMA, "auto", '{"name": "Bob"}', False),
    ],
)
def test_grammars_of_calls(codec: TextCodec, form: ToolFormat, choice: Any, text: str, is_followed: bool) -> None:
    toolset = Toolset.of([Tool.model_validate(tool) for tool in TOOLS], choice, True)
    assert toolset
    grammar = calls(toolset, form, None, None)
    assert follows(grammar, codec, text) is is_followed
    if is_followed and choice == "required":
        reader = CallReader(form, toolset.names)
        assert sum(part.name is not None for part in reader.push(text)) == text.count('"name"')


def test_mistrals_marker_is_a_token(codec: TextCodec) -> None:
    toolset = Toolset.of([Tool.model_validate(tool) for tool in TOOLS], "required", True)
    assert toolset
    grammar = calls(toolset, MISTRAL, MARK, None)
    text = '[{"name": "stay", "arguments": {}}, {"name": "move", "arguments": {"x": 1, "y": 2}}]'
    assert follows(grammar, codec, text, MARK)
    assert not follows(calls(toolset, MISTRAL, MARK, None), codec, "[]", MARK)


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{{ messages }}", GENERIC),
        ("{% if tools %}<tool_call>", HERMES),
        ("{% if tools %}<tool_call><function=", GENERIC),
        ("{% if tools %}[TOOL_CALLS]", MISTRAL),
        ("{% if tools %}[TOOL_CALLS][ARGS]", GENERIC),
        ('{% if tools %}{"name": function name, "parameters": dictionary', LLAMA),
        ("{% if tools %}{{ tools }}", GENERIC),
    ],
)
def test_templates_tell_the_format(template: str, form: ToolFormat) -> None:
    assert tool_format(template) == form


def test_a_template_that_knows_tools_gets_them(codec: TextCodec, tmp_path: Path) -> None:
    codec.tokenizer.save_pretrained(tmp_path)
    known = type(codec.tokenizer).from_pretrained(tmp_path)
    known.chat_template = (
        "{{ tools | map(attribute='function.name') | join(',') }}<tool_call>"
        "{% for m in messages %}{{ m.role }}"
        "{% for c in m.tool_calls %}{{ c.function.arguments.x }}{% endfor %}{% endfor %}"
    )
    own = TextCodec(known)
    function = {"name": "move", "arguments": {"x": 7}}
    messages: list[Any] = [
        {"role": "assistant", "content": "", "tool_calls": [{"function": function}]},
        {"role": "tool", "content": ""},
    ]
    ids = own.encode_chat(messages, [Tool.model_validate(tool).for_template for tool in TOOLS])
    assert own.vocabulary.decode(ids) == "move,stay<tool_call>assistant7tool"
    assert own.special_id("</s>") == 2 and own.special_id("<tool_call>") is None
    told = codec.encode_chat([{"role": "user", "content": "Go"}], [Tool.model_validate(TOOLS[0]).for_template])
    assert '{"name": "move", "description": "Goes there"' in codec.vocabulary.decode(told)
