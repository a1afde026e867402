"""Checks of JSON schemas: only keywords that a grammar can enforce, within limits of size and work.

Other keywords (`not`, `uniqueItems`) are refused with their name and place, for an answer that looks right and
breaks its schema would be worse. Limits are counted, not timed, so that a schema is refused always or never.
"""

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from math import isfinite
from typing import Any

from server.api.schema.base import check_encodable, invalid, refusal

MAX_CHARACTERS = 128 * 1024
MAX_DEPTH = 64
"""Levels of braces and brackets; a level of a schema takes two."""
MAX_PATTERN = 1024
MAX_REPEATS = 10_000
"""Copies that counted repetitions such as `a{20}` make in all patterns of a schema; nested ones multiply."""
MAX_OPTIONAL = 500
"""Most properties of one object that are not required; with thousands of them a single token takes a second."""
MAX_MULTIPLE = 10_000
"""Largest divisor without its decimal point (25 for 0.25): a grammar needs as many states."""

ENFORCED = frozenset(
    [
        "$defs",
        "$ref",
        "additionalProperties",
        "allOf",
        "anyOf",
        "const",
        "definitions",
        "enum",
        "exclusiveMaximum",
        "exclusiveMinimum",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "multipleOf",
        "oneOf",
        "pattern",
        "patternProperties",
        "prefixItems",
        "properties",
        "required",
        "type",
    ]
)
ANNOTATIONS = frozenset(
    (
        "$comment",
        "$id",
        "$schema",
        "default",
        "deprecated",
        "description",
        "discriminator",
        "examples",
        "readOnly",
        "title",
        "writeOnly",
    )
)
OF_ONE = ("additionalProperties", "items")
OF_SEVERAL = ("allOf", "anyOf", "oneOf", "prefixItems")
BY_NAME = ("$defs", "definitions", "patternProperties", "properties")

TOKEN = re.compile(r"\\.|\[(?:\\.|[^\]\\])+\]|\{(\d+)(?:,(\d*))?\}|.", re.DOTALL)
"""A piece of a pattern: an escape, a class, a counted repetition, or a character."""


def check_schema(schema: dict[str, Any], field: str, is_lenient: bool = False) -> None:
    """Raises a validation error that names the place, as in `schema.properties.age`.

    A lenient check passes over keywords that cannot be enforced, but keeps all limits.
    """
    if depth(schema) > MAX_DEPTH:
        raise invalid(field, f"The schema is nested more than {MAX_DEPTH} levels deep")
    if len(json.dumps(schema)) > MAX_CHARACTERS:
        raise invalid(field, f"The schema has more than {MAX_CHARACTERS:,} characters")
    check_encodable(json.dumps(schema, ensure_ascii=False), field=field)
    num_copies = 0
    for place, part in parts(schema, field):
        if isinstance(part, bool) or (is_lenient and isinstance(part, list)):
            continue
        if not isinstance(part, dict):
            raise invalid(place, "A schema is an object or a boolean")
        if (unknown := sorted(part.keys() - ENFORCED - ANNOTATIONS)) and not is_lenient:
            names = ", ".join(f"'{name}'" for name in unknown[:8])
            raise refusal(place, f"These schema keywords cannot be enforced: {names}.")
        check_multiple(place, part)
        check_optional(place, part)
        num_copies += sum(num_repeats(pattern) for pattern in patterns(place, part))
        if num_copies > MAX_REPEATS:
            raise invalid(place, f"Patterns have more than {MAX_REPEATS:,} counted repetitions, multiplied if nested")


def parts(schema: Any, place: str) -> Iterator[tuple[str, Any]]:
    """The schema and all schemas inside it, each with its place, as in `schema.items.anyOf[0]`."""
    yield place, schema
    if isinstance(schema, list):
        # Older schemas have a list of `items`, for tuples.
        for i, part in enumerate(schema):
            yield from parts(part, f"{place}[{i}]")
    if not isinstance(schema, dict):
        return
    for name in OF_ONE:
        if name in schema:
            yield from parts(schema[name], f"{place}.{name}")
    for name in OF_SEVERAL:
        for i, part in enumerate(schema[name] if isinstance(schema.get(name), list) else ()):
            yield from parts(part, f"{place}.{name}[{i}]")
    for name in BY_NAME:
        for key, part in schema[name].items() if isinstance(schema.get(name), dict) else ():
            yield from parts(part, f"{place}.{name}.{key}")


def check_optional(place: str, schema: dict[str, Any]) -> None:
    named, required = schema.get("properties"), schema.get("required")
    is_required = set(map(str, required)) if isinstance(required, list) else set()
    if isinstance(named, dict) and len(named.keys() - is_required) > MAX_OPTIONAL:
        raise invalid(f"{place}.properties", f"More than {MAX_OPTIONAL} properties are not required")


def patterns(place: str, schema: dict[str, Any]) -> list[str]:
    """Regular expressions of this one schema, without those inside it; raises an error where one is too long."""
    named = schema.get("patternProperties")
    found = [schema.get("pattern"), *(named if isinstance(named, dict) else ())]
    texts = [pattern for pattern in found if isinstance(pattern, str)]
    if max(map(len, texts), default=0) > MAX_PATTERN:
        raise invalid(place, f"A pattern has more than {MAX_PATTERN:,} characters")
    return texts


def check_multiple(place: str, schema: dict[str, Any]) -> None:
    multiple = schema.get("multipleOf", 1)
    is_number = isinstance(multiple, int | float) and not isinstance(multiple, bool) and isfinite(multiple)
    if not is_number or not 0 < num_units(multiple) <= MAX_MULTIPLE:
        raise invalid(f"{place}.multipleOf", f"It is above 0, and at most {MAX_MULTIPLE:,} without its decimal point")


def num_units(value: float) -> int:
    """The number without its decimal point: 25 for 0.25."""
    number = Decimal(str(value))
    exponent = int(number.as_tuple().exponent)
    return int(number.scaleb(-exponent)) if exponent < 0 else min(int(number), MAX_MULTIPLE + 1)


def num_repeats(pattern: str) -> int:
    """Copies that counted repetitions make of a pattern's parts: 6 in `(a{2}b){3}`, at least 1."""
    outer: list[int] = []
    """For each open group, the copies counted in it so far."""
    inside, last = 1, 1
    for piece in TOKEN.finditer(pattern):
        if piece[0] == "(":
            outer.append(inside)
            inside, last = 1, 1
        elif piece[0] == ")" and outer:
            inside, last = max(outer.pop(), inside), inside
        elif piece[1]:
            last *= int(piece[2] or piece[1])
            inside = max(inside, last)
        else:
            last = 1
    return inside


def depth(value: Any) -> int:
    """Levels of objects and lists in each other: 2 in `{"a": [1]}`.

    It is a loop, because the client decides how deep the value is, and Python limits how deep functions nest.
    """
    level, found = [value], 0
    while level := [part for part in level if isinstance(part, dict | list)]:
        found += 1
        level = [part for whole in level for part in (whole.values() if isinstance(whole, dict) else whole)]
    return found
