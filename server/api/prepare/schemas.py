"""A JSON schema in the words that grammars know, so that more of it can be enforced.

Branches of `oneOf` that exclude each other are those of `anyOf`. Where a schema need not be followed to the letter,
what no grammar can enforce is dropped: patterns with look-ahead, for instance.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from server.api.schema.json_schema import BY_NAME, OF_ONE, OF_SEVERAL
from server.engine import can_enforce_pattern

Schema = dict[str, Any]


def enforceable(schema: Schema, is_lenient: bool) -> Schema:
    """The schema for a grammar; a lenient one may lose what no grammar can enforce."""
    rewritten: Schema = rewrite(schema, partial(rewritten_part, root=schema, is_lenient=is_lenient))
    return rewritten


def rewrite(schema: Any, change: Callable[[Schema], Schema]) -> Any:
    """The schema with each schema in it changed, the inner ones first."""
    if not isinstance(schema, dict):
        return [rewrite(part, change) for part in schema] if isinstance(schema, list) else schema
    found = dict(schema)
    for name in (*OF_ONE, *OF_SEVERAL):
        if name in found:
            found[name] = rewrite(found[name], change)
    for name in BY_NAME:
        if isinstance(found.get(name), dict):
            found[name] = {key: rewrite(part, change) for key, part in found[name].items()}
    return change(found)


def rewritten_part(schema: Schema, root: Schema, is_lenient: bool) -> Schema:
    tagged = schema.pop("discriminator", None)
    if isinstance(schema.get("oneOf"), list) and "anyOf" not in schema:
        tag = tagged.get("propertyName") if isinstance(tagged, dict) else None
        branches = [resolved(branch, root) for branch in schema["oneOf"]]
        # Without the property nobody could tell which branch is meant, so it is required in all of them.
        if (name := exclusive_property(branches, tag)) is not None:
            schema["anyOf"] = [
                branch if name in target.get("required", ()) else {"allOf": [branch, {"required": [name]}]}
                for branch, target in zip(schema.pop("oneOf"), branches, strict=True)
            ]
    return without_unenforceable(schema) if is_lenient else schema


def resolved(branch: Any, root: Schema) -> Any:
    """The schema that a reference inside the document leads to; other schemas as they are."""
    for _ in range(8):
        if not isinstance(branch, dict) or not str(branch.get("$ref", "")).startswith("#/"):
            break
        path, branch = branch["$ref"].removeprefix("#/").split("/"), root
        for step in path:
            branch = branch.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(branch, dict) else None
    return branch


def exclusive_property(branches: list[Any], tag: str | None) -> str | None:
    """A property whose constants differ between all branches; required in each, if it is not their `tag`."""
    for name in [tag] if tag else sorted(names_of(branches)):
        constants = [constants_of(branch, name, is_tag=name == tag) for branch in branches]
        values = [value for found in constants for value in found]
        if all(constants) and len(set(values)) == len(values):
            return name
    return None


def names_of(branches: list[Any]) -> set[str]:
    first = branches[0].get("properties") if branches and isinstance(branches[0], dict) else None
    return set(map(str, first)) if isinstance(first, dict) else set()


def constants_of(branch: Any, name: str, is_tag: bool) -> list[str]:
    """The values, as JSON, that a property may have; none where they are not listed, or where it may be absent."""
    fields = branch if isinstance(branch, dict) else {}
    properties, required = fields.get("properties"), fields.get("required")
    described = properties.get(name) if isinstance(properties, dict) else None
    if not isinstance(described, dict) or not (is_tag or (isinstance(required, list) and name in required)):
        return []
    values = [described["const"]] if "const" in described else described.get("enum")
    return [json.dumps(value, sort_keys=True) for value in values] if isinstance(values, list) else []


def without_unenforceable(schema: Schema) -> Schema:
    """The schema without patterns that need look-around; `null` is allowed where OpenAPI's `nullable` says so."""
    if isinstance(pattern := schema.get("pattern"), str) and not can_enforce_pattern(pattern):
        del schema["pattern"]
    if isinstance(named := schema.get("patternProperties"), dict):
        schema["patternProperties"] = {key: part for key, part in named.items() if can_enforce_pattern(key)}
        if len(schema["patternProperties"]) < len(named):
            # Their properties would now be additional ones, which may be forbidden.
            schema.pop("additionalProperties", None)
    if isinstance(schema.get("items"), list):
        schema["prefixItems"] = schema.pop("items")
    if schema.pop("nullable", None) is True:
        return {"anyOf": [schema, {"type": "null"}]}
    return schema
