"""Calls in an answer's text are found whatever pieces it comes in, and a text without calls stays as it is."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.answers.tool_parser import CallReader, Part
from server.engine import GENERIC, HERMES, LLAMA, MISTRAL, ToolFormat

FORMATS = {"hermes": HERMES, "generic": GENERIC, "llama": LLAMA, "mistral": MISTRAL}
NAMES = {"add", "get_weather"}
values = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
calls = st.tuples(st.sampled_from(sorted(NAMES)), st.dictionaries(st.text(max_size=4), values, max_size=3))
texts = st.text(st.sampled_from('ab {}[]"\\<>/tol_c,:\nü'), max_size=30)


def split(text: str, cuts: list[int]) -> list[str]:
    places = sorted({cut % (len(text) + 1) for cut in cuts} | {0, len(text)})
    return [text[a:b] for a, b in pairwise(places)]


def read(form: ToolFormat, pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """Content, and name and arguments of each call; checks the order of the parts."""
    reader, content, found = CallReader(form, NAMES), "", list[list[str]]()
    parts: list[Part] = [part for piece in pieces for part in reader.push(piece)] + reader.flush()
    for part in parts:
        if part.call is None:
            content += part.text
        elif part.name is not None:
            assert part.id and part.call == len(found)
            found.append([part.name, part.text])
        else:
            assert part.id is None and part.call == len(found) - 1
            found[-1][1] += part.text
    return content, [(name, arguments) for name, arguments in found]


def written(form: ToolFormat, called: list[tuple[str, Any]], is_compact: bool) -> str:
    separators = (",", ":") if is_compact else None
    objects = [json.dumps({"name": name, form.arguments: value}, separators=separators) for name, value in called]
    if form.is_list:
        return f"{form.begin}[{', '.join(objects)}]"
    return "\n".join(f"{form.begin}{one}{form.end}" for one in objects)


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
def test_calls_are_found_in_any_pieces(name: str, data: st.DataObject) -> None:
    form = FORMATS[name]
    called = data.draw(st.lists(calls, min_size=1, max_size=1 if name == "llama" else 3))
    content = "" if form.is_bare else data.draw(st.sampled_from(["", "Sure.", "a < b", "{ no"]))
    text = content + data.draw(st.sampled_from(["", "\n", " "])) + written(form, called, data.draw(st.booleans()))
    pieces = split(text, data.draw(st.lists(st.integers(0, 500), max_size=12)))
    read_content, found = read(form, pieces)
    assert read_content == content
    assert [(name, json.loads(arguments)) for name, arguments in found] == called


@pytest.mark.parametrize("name", FORMATS)
@given(texts, st.lists(st.integers(0, 500), max_size=8))
def test_texts_without_calls_stay_as_they_are(name: str, text: str, cuts: list[int]) -> None:
    assert read(FORMATS[name], split(text, cuts)) == (text, [])


@pytest.mark.parametrize("name", FORMATS)
@given(st.lists(calls, min_size=1, max_size=2), st.integers(0, 300), st.lists(st.integers(0, 500), max_size=8))
def test_what_is_cut_off_reads_alike_in_any_pieces(
    name: str, called: list[tuple[str, Any]], length: int, cuts: list[int]
) -> None:
    text = written(FORMATS[name], called, False)[:length]
    assert read(FORMATS[name], split(text, cuts)) == read(FORMATS[name], [text])


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call>', ("", [("add", '{"a": 1}')])),
        ("hermes", '<tool_call>{"name": "add"}</tool_call>', ("", [("add", "{}")])),
        ("llama", '{"name": "add", "parameters": "{\\"a\\": 1}"}', ("", [("add", '{"a": 1}')])),
        ("llama", '{"name": "add", "parameters": {"a": 1}}', ("", [("add", '{"a": 1}')])),
        ("llama", '{"name": "Bob", "parameters": {}}', ('{"name": "Bob", "parameters": {}}', [])),
        ("mistral", '[{"name": "add", "arguments": {}, "id": "123456789"}]', ("", [("add", "{}")])),
        ("mistral", "[1, 2]", ("[1, 2]", [])),
        ("hermes", '<tool_call>{"name": "add"}</tool_call>\n<tool_call>\n{"na', ("", [("add", "{}")])),
        ("hermes", '<tool_call>{"name": "add"}</tool_call>\n<tool_c', ("", [("add", "{}")])),
        ("hermes", '<tool_call>\n{"na', ('<tool_call>\n{"na', [])),
        ("hermes", "<tool_call>nothing</tool_call>", ("<tool_call>nothing</tool_call>", [])),
        (
            "hermes",
            '<tool_call>\n{"name": "sub", "arguments": {}}',
            ('<tool_call>\n{"name": "sub", "arguments": {}}', []),
        ),
        (
            "hermes",
            'a<tool_call>{"name":"add","arguments":{"x":"}</tool_call>"}}</tool_call> b',
            ("a b", [("add", '{"x":"}</tool_call>"}')]),
        ),
    ],
)
def test_forms_that_models_write(name: str, text: str, expected: Any) -> None:
    assert read(FORMATS[name], [text]) == expected
    assert read(FORMATS[name], list(text)) == expected


@pytest.mark.parametrize(("form", "length"), [(HERMES, 29), (MISTRAL, 9)])
def test_ids_have_the_length_that_templates_ask_for(form: ToolFormat, length: int) -> None:
    first = CallReader(form, NAMES).push(written(form, [("add", {})], False))[0]
    assert first.id and len(first.id) == length and first.id.replace("call_", "").isalnum()
