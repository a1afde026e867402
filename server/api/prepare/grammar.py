"""The grammar that an answer must follow: of its response format, of its calls of tools, or of both."""

import json
import re

from server.api.errors import BadRequestError
from server.api.prepare.schemas import enforceable
from server.api.schema.generation import GenerationBody
from server.api.schema.response_format import AnswerForm
from server.api.schema.tools import FunctionDefinition, Toolset
from server.engine import CompiledGrammar, Grammar, GrammarError, TextCodec, Thinking, ToolFormat, json_rule
from server.served_model import ServedModel

TEXT = r"/(.|\n)*/"
TEXT_BUT_JSON = r"/([^\[{\s](.|\n)*)?/"
"""Text that does not begin like JSON; where calls have no marker around them, only calls begin so."""
NO_THOUGHTS = r" & ~/<think>(.|\n)*/"
"""Beside text that may begin with thoughts: markers of calls among them are no calls."""
ESCAPES = re.compile(r"\\.|/|\n", re.DOTALL)
SHOWN = {"/": r"\/", "\n": r"\n"}
"""How an expression has what would end it, or its line, in a grammar."""
THOUGHTS = {
    Thinking.OPEN: r"/(.|\n)*<\/think>/",
    Thinking.POSSIBLE: r"/<think>(.|\n)*<\/think>/",
}


def compiled(body: GenerationBody, served: ServedModel, thinking: Thinking = Thinking.NONE) -> CompiledGrammar | None:
    """The grammar of an answer, None where any text will do; a large one takes long, so it belongs in a thread."""
    try:
        grammar = grammar_of(body, served.codec, thinking)
        return served.grammars.compile(grammar) if grammar else None
    except GrammarError as error:
        field = "tools" if body.toolset else body.form_field
        message = f"Invalid value for '{field}': it cannot be enforced: {error}."
        raise BadRequestError(message, field, "invalid_value") from error


def grammar_of(body: GenerationBody, codec: TextCodec, thinking: Thinking) -> Grammar | None:
    answer = body.form
    if body.toolset:
        form = codec.tool_format
        return Grammar.of_lark(calls(body.toolset, form, codec.special_id(form.begin), answer, thinking))
    if answer is None:
        return None
    if thinking is Thinking.NONE and answer.schema is not None and not answer.is_lenient:
        return Grammar.of_schema(enforceable(answer.schema, is_lenient=False))
    if thinking is Thinking.NONE and answer.lark is not None:
        return Grammar.of_lark(answer.lark)
    return Grammar.of_lark("\n".join([*after_thoughts(thinking), f"reply: {rule_of(answer)}"]))


def rule_of(answer: AnswerForm) -> str:
    """The right side of the rule for an answer of this form."""
    if answer.schema is not None:
        return json_rule(enforceable(answer.schema, answer.is_lenient), answer.is_lenient)
    if answer.regex is not None:
        return "/" + ESCAPES.sub(lambda found: SHOWN.get(found[0], found[0]), answer.regex) + "/"
    if answer.lark is not None:
        return f"%lark {{\n{answer.lark}\n}}"
    return " | ".join(json.dumps(text, ensure_ascii=False) for text in answer.choices)


def after_thoughts(thinking: Thinking) -> list[str]:
    """The first rules of a grammar: `reply` comes after the thoughts, which are free."""
    if thinking is Thinking.NONE:
        return ["start: reply"]
    begin = "thoughts BLANKS reply" + (" | reply" if thinking is Thinking.POSSIBLE else "")
    return [f"start: {begin}", f"thoughts[lazy]: {THOUGHTS[thinking]}", r"BLANKS: /\s{0,8}/"]


def calls(
    tools: Toolset,
    form: ToolFormat,
    marker: int | None,
    answer: AnswerForm | None,
    thinking: Thinking = Thinking.NONE,
) -> str:
    """The grammar, in Lark's notation, of an answer that may call tools, or must.

    An answer without calls is any text or, with `answer`, of that form; where `tools.must_call`, there is none.
    `marker` is the token id of `form.begin` where that is one token, as [TOOL_CALLS] is for Mistral's models.
    """
    rules = [rule for i, function in enumerate(tools.callable) for rule in call_rules(i, function, form)]
    rules.append("call: " + " | ".join(f"call_{i}" for i in range(len(tools.callable))))
    begin = f"<[{marker}]>" if marker is not None else json.dumps(form.begin) if form.begin else ""
    end = json.dumps(form.end) if form.end else ""
    but_thoughts = NO_THOUGHTS if thinking is Thinking.POSSIBLE else ""
    several = tools.is_parallel and (form.is_list or not form.is_bare)
    if form.is_list:
        rules.append(f'marked: {begin} "[" call' + (' (", " call)*' if several else "") + ' "]"')
        only_calls = "marked"
    else:
        rules.append(f"marked: {begin} call {end}")
        only_calls = r'marked ("\n" marked)*' if several else "marked"
    if tools.must_call:
        reply = only_calls
    elif answer is not None:
        reply = f"{only_calls} | answer"
        rules.append(f"answer: {rule_of(answer)}")
    elif form.is_bare:
        reply = f"{only_calls} | text"
        rules += ["text: TEXT", f"TEXT: {TEXT_BUT_JSON}{but_thoughts}"]
    else:
        reply = ("within* " if several else "within | ") + "text"
        # The marker alone begins a call: models may leave out the line break that they were shown after it.
        mark = json.dumps(form.begin.rstrip())
        opening = f"TEXT {begin}" if marker is not None else r'opening "\n"?'
        rules += [f"within: {opening} call {end}", f"opening[lazy]: TEXT {mark}", "text: TEXT"]
        rules.append(f"TEXT: {TEXT}{but_thoughts}")
    return "\n".join([*after_thoughts(thinking), f"reply: {reply}", *rules])


def call_rules(number: int, function: FunctionDefinition, form: ToolFormat) -> list[str]:
    """The rules of one call, with spaces where models are taught to write them.

    The arguments' schema has a rule of its own, so that its references (`#/$defs/...`) are looked up from its root.
    """
    head = json.dumps(f'{{"name": {json.dumps(function.name)}, "{form.arguments}": ')
    is_lenient = not function.strict
    arguments = json_rule(enforceable(function.schema_of_arguments, is_lenient), is_lenient)
    return [f'call_{number}: {head} arguments_{number} "}}"', f"arguments_{number}: {arguments}"]
