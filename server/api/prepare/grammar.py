"""The grammar that an answer must follow: of its response format, of its calls of tools, or of both."""

import json
from typing import Any

from server.api.errors import BadRequestError
from server.api.schema.generation import GenerationBody
from server.api.schema.tools import FunctionDefinition, Toolset
from server.engine import CompiledGrammar, Grammar, GrammarError, TextCodec, ToolFormat, json_rule
from server.served_model import ServedModel

TEXT = r"/(.|\n)*/"
TEXT_BUT_JSON = r"/([^\[{\s](.|\n)*)?/"
"""Text that does not begin like JSON; where calls have no marker around them, only calls begin so."""


def compiled(body: GenerationBody, served: ServedModel) -> CompiledGrammar | None:
    """The grammar of an answer, None where any text will do; a large one takes long, so it belongs in a thread."""
    try:
        grammar = grammar_of(body, served.codec)
        return served.grammars.compile(grammar) if grammar else None
    except GrammarError as error:
        field = "tools" if body.toolset else body.schema_field
        message = f"Invalid value for '{field}': it cannot be enforced: {error}."
        raise BadRequestError(message, field, "invalid_value") from error


def grammar_of(body: GenerationBody, codec: TextCodec) -> Grammar | None:
    schema = body.response_format.schema_of_answer if body.response_format else None
    if body.toolset:
        form = codec.tool_format
        return Grammar.of_lark(calls(body.toolset, form, codec.special_id(form.begin), schema))
    return None if schema is None else Grammar.of_schema(schema)


def calls(tools: Toolset, form: ToolFormat, marker: int | None, schema: dict[str, Any] | None) -> str:
    """The grammar, in Lark's notation, of an answer that may call tools, or must.

    An answer without calls is any text or, with `schema`, JSON; where `tools.must_call`, there is none. `marker` is
    the token id of `form.begin` where that is one token, as [TOOL_CALLS] is for Mistral's models.
    """
    rules = [rule for i, function in enumerate(tools.callable) for rule in call_rules(i, function, form)]
    rules.append("call: " + " | ".join(f"call_{i}" for i in range(len(tools.callable))))
    begin = f"<[{marker}]>" if marker is not None else json.dumps(form.begin) if form.begin else ""
    end = json.dumps(form.end) if form.end else ""
    several = tools.is_parallel and (form.is_list or not form.is_bare)
    if form.is_list:
        rules.append(f'marked: {begin} "[" call' + (' (", " call)*' if several else "") + ' "]"')
        only_calls = "marked"
    else:
        rules.append(f"marked: {begin} call {end}")
        only_calls = r'marked ("\n" marked)*' if several else "marked"
    if tools.must_call:
        start = only_calls
    elif schema is not None:
        start = f"{only_calls} | answer"
        rules.append(f"answer: {json_rule(schema)}")
    elif form.is_bare:
        start = f"{only_calls} | text"
        rules += ["text: TEXT", f"TEXT: {TEXT_BUT_JSON}"]
    else:
        start = ("within* " if several else "within | ") + "text"
        opening = f"TEXT {begin}" if marker is not None else "opening"
        rules += [f"within: {opening} call {end}", f"opening[lazy]: TEXT {begin}", "text: TEXT", f"TEXT: {TEXT}"]
    return "\n".join([f"start: {start}", *rules])


def call_rules(number: int, function: FunctionDefinition, form: ToolFormat) -> list[str]:
    """The rules of one call, with spaces where models are taught to write them.

    The arguments' schema has a rule of its own, so that its references (`#/$defs/...`) are looked up from its root.
    """
    head = json.dumps(f'{{"name": {json.dumps(function.name)}, "{form.arguments}": ')
    arguments = json_rule(function.schema_of_arguments, is_lenient=not function.strict)
    return [f'call_{number}: {head} arguments_{number} "}}"', f"arguments_{number}: {arguments}"]
