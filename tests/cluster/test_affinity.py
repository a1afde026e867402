"""The rules by which a replica is chosen, without Ray."""

from collections import Counter

from server.cluster.affinity import Affinity, Reason, homes_of, within
from server.cluster.call import Call
from server.cluster.domains import ENOUGH, DomainGuess, told_domain
from server.cluster.prompt_text import BLOCK, blocks_of, prompt_text, words_of

IDLE = {"a": 0, "b": 0, "c": 0}


def chat(*contents: str) -> bytes:
    import json

    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return json.dumps({"model": "m", "stream": True, "messages": messages}).encode()


def test_the_next_turn_goes_where_the_first_was_read() -> None:
    affinity = Affinity()
    first = blocks_of(prompt_text(chat("question " * 50)), "")
    later = blocks_of(prompt_text(chat("question " * 50, "answer " * 50, "and then?")), "")
    affinity.remember(first, "b")
    assert later[: len(first)] == first
    assert all(affinity.choose(later, None, IDLE) == ("b", Reason.PREFIX) for _ in range(20))
    assert affinity.choose(blocks_of(prompt_text(chat("other " * 50)), ""), None, IDLE)[1] is Reason.LOAD


def test_of_two_readers_the_one_with_more_of_it_is_asked() -> None:
    affinity = Affinity()
    affinity.remember([1, 2], "a")
    affinity.remember([1, 2, 3], "b")
    assert affinity.choose([1, 2, 3, 4], None, IDLE) == ("b", Reason.PREFIX)
    assert affinity.choose([1, 2], None, IDLE | {"a": 1})[0] == "b"


def test_a_busy_or_dead_reader_is_passed_over() -> None:
    affinity = Affinity()
    affinity.remember([1], "a")
    assert affinity.choose([1], None, {"a": 9, "b": 0, "c": 0})[1] is Reason.LOAD
    assert affinity.choose([1], None, {"b": 0, "c": 0})[1] is Reason.LOAD


def test_a_domain_has_a_home_and_goes_elsewhere_where_that_is_busy() -> None:
    affinity = Affinity()
    first, second, _ = homes_of("sql", IDLE)
    assert affinity.choose([], "sql", IDLE) == (first, Reason.DOMAIN)
    assert affinity.choose([], "sql", IDLE | {first: 5}) == (second, Reason.DOMAIN)
    assert Affinity(by_domain=False).choose([], "sql", IDLE)[1] is Reason.LOAD


def test_loads_are_bounded_by_the_mean() -> None:
    assert within({"a": 5, "b": 3}, ["a", "b"], 0) == ["b"]
    assert within({"a": 5, "b": 3}, ["a", "b"], 2) == ["a", "b"]
    assert within({}, [], 0) == []


def test_old_beginnings_are_forgotten() -> None:
    affinity = Affinity(max_blocks=2)
    affinity.remember([1, 2, 3], "a")
    assert affinity.choose([1], None, IDLE)[1] is Reason.LOAD
    assert affinity.choose([3], None, IDLE) == ("a", Reason.PREFIX)


def test_a_call_asks_others_before_it_asks_one_twice() -> None:
    call = Call(Affinity(), Counter())
    for _ in range(3):
        call.begin(call.choose(IDLE))
    assert set(call.tried) == set(IDLE) and call.num_others == 0
    assert call.choose(IDLE) in IDLE
    for replica in IDLE:
        call.end(replica)
    assert not call.loads


def test_bodies_that_ask_about_nothing_have_no_text() -> None:
    for body in (b"", b"[", b"[1]", b'{"model": "m"}', b"[" * 100_000, b"\xff"):
        assert prompt_text(body) == ""


def test_another_owner_has_other_beginnings() -> None:
    text = "x" * BLOCK * 3
    assert len(blocks_of(text, "a")) == 3
    assert not set(blocks_of(text, "a")) & set(blocks_of(text, "b"))


def test_words_of_answers_tell_the_domain_of_prompts() -> None:
    domains = DomainGuess()
    assert domains.guess({"table"}) is None
    for i in range(ENOUGH):
        domains.learn(words_of(f"Write a query for table {i}"), "sql")
        domains.learn(words_of(f"Tell a story about dragon {i}"), "stories")
    assert domains.guess(words_of("A query over the table of users")) == "sql"
    assert domains.guess(words_of("a story, please")) == "stories"
    assert domains.guess({"unheard"}) is None


def test_the_words_that_are_kept_are_bounded() -> None:
    domains = DomainGuess(max_words=2)
    for _ in range(ENOUGH):
        domains.learn({"a", "b"}, "sql")
        domains.learn({"c"}, "stories")
    assert domains.guess({"c"}) is None


def test_only_an_answers_own_words_tell_its_domain() -> None:
    assert told_domain(b'{"metrics":{"speculative_decoding":{"domain":"sql","similarity":1}}}') == "sql"
    assert told_domain(b'{"metrics":{"speculative_decoding":{"domain":"other"}}}') is None
    assert told_domain(rb'{"content":"\"speculative_decoding\":{\"domain\":\"sql\""}') is None
    assert told_domain(b"data: [DONE]") is None
