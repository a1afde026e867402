"""Prompt files, good and bad."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.prompts import Prompt, PromptError, PromptSet, parse_line, read_prompts


def write(path: Path, *records: object) -> Path:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    text = "\n".join(lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_plain_and_compressed_files_read_alike(tmp_path: Path) -> None:
    records = [{"prompt": "one", "domain": "a", "completion": "x"}, {"prompt": "two", "domain": "b"}]
    plain = read_prompts([write(tmp_path / "p.jsonl", *records)])
    packed = read_prompts([write(tmp_path / "p.jsonl.gz", *records)])
    assert plain == packed
    assert [(p.text, p.domain) for p in plain.prompts] == [("one", "a"), ("two", "b")]
    assert plain.is_labelled


def test_messages_and_blank_lines(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    found = read_prompts([write(tmp_path / "p.jsonl", "", {"messages": messages}, "  ")])
    assert [dict(m) for m in found.prompts[0].messages] == messages
    assert not found.is_labelled


def test_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    one, two = {"prompt": "one"}, {"messages": [{"role": "user", "content": "one"}]}
    found = read_prompts([write(tmp_path / "a.jsonl", one, two), write(tmp_path / "b.jsonl", one, {"prompt": "two"})])
    assert len(found.prompts) == 2
    assert found.num_duplicates == 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "must be a JSON object, is a list"),
        ("{}", "needs either `prompt` or `messages`"),
        ('{"prompt": "a", "messages": []}', "needs either"),
        ('{"prompt": 3}', "must be text"),
        ('{"prompt": "  "}', "not blank"),
        ('{"messages": "a"}', "must be a list"),
        ('{"messages": []}', "at least one message"),
        ('{"messages": ["a"]}', "must be an object with a `role`"),
        ('{"messages": [{"role": "user"}]}', "must be text"),
        ('{"prompt": "a", "domain": 1}', "`domain` must be a text"),
        ('{"prompt": "a", "domain": ""}', "`domain` must be a text"),
        ('{"prompt": "a", "domain": "other"}', "the router uses that name"),
        ('{"prompt": "a", "completion": []}', "`completion` must be text"),
        ('{"prompt": "b"}', "on every line or on none"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "good", "domain": "a"}, line)
    with pytest.raises(PromptError) as caught:
        read_prompts([path])
    assert str(caught.value).startswith(f"{path}:2: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "broken.jsonl.gz").write_bytes(b"not gzip")
    (tmp_path / "damaged.jsonl.gz").write_bytes(gzip.compress(b"")[:10] + b"\xff" * 20)
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "a"}')[:-6])
    write(tmp_path / "empty.jsonl")
    for name, reason in [
        ("missing.jsonl", "does not exist"),
        ("text.jsonl", "not UTF-8"),
        ("broken.jsonl.gz", "cannot be read"),
        ("damaged.jsonl.gz", "cannot be read"),
        ("cut.jsonl.gz", "cannot be read"),
        ("empty.jsonl", "holds no prompts"),
        ("", "cannot be read"),
    ]:
        with pytest.raises(PromptError, match=reason):
            read_prompts([tmp_path / name])


@given(st.text())
def test_any_line_parses_or_says_why(line: str) -> None:
    try:
        assert parse_line(line).messages
    except ValueError as error:
        assert str(error)


def test_a_sample_is_seeded_and_limited_by_domain() -> None:
    prompts = tuple(Prompt(({"role": "user", "content": str(i)},), "ab"[i % 2]) for i in range(20))
    whole = PromptSet(prompts, 0)
    one, again, other = whole.limited(3, 1), whole.limited(3, 1), whole.limited(3, 2)
    assert one == again != other
    assert sorted(p.domain or "" for p in one.prompts) == ["a"] * 3 + ["b"] * 3
    assert one.digest == again.digest != whole.digest
