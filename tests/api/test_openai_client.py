"""The official SDK against a live server: what its users see."""

from typing import Any

import httpx
import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Once upon a time"}]
GREEDY: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 24}
SAMPLED: dict[str, Any] = {"model": "tiny", "temperature": 1.2, "seed": 7, "max_tokens": 24}


def chat(client: openai.OpenAI, **options: Any) -> ChatCompletion:
    answer = client.chat.completions.create(messages=MESSAGES, **options)
    assert isinstance(answer, ChatCompletion)
    return answer


def text_of(answer: ChatCompletion, index: int = 0) -> str:
    return answer.choices[index].message.content or ""


def extra(answer: Any, name: str) -> Any:
    return (answer.model_extra or {})[name]


@pytest.mark.parametrize("options", [GREEDY, SAMPLED])
def test_stream_and_whole_answer_have_the_same_text(client: openai.OpenAI, options: dict[str, Any]) -> None:
    whole = chat(client, **options)
    stream = client.chat.completions.create(messages=MESSAGES, stream=True, **options)
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text_of(whole)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert all(chunk.usage is None for chunk in chunks)
    assert extra(chunks[-1], "metrics")["speculative_decoding"]["domain"] in ("stories", "sql")


def test_usage_comes_on_a_last_chunk_of_its_own(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **GREEDY)
    )
    usage = chunks[-1].usage
    assert chunks[-1].choices == []
    whole = chat(client, **GREEDY).usage
    assert usage is not None and whole is not None
    # How much of it was drafted may differ: the second request can draft from the first one's answer.
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.prompt_tokens, whole.completion_tokens)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens == 24
    assert extra(chunks[-1], "metrics")["speculative_decoding"]["num_spec_steps"] > 0


def test_answer_has_openais_fields_and_this_servers_metrics(base_url: str) -> None:
    body = {"messages": MESSAGES, **GREEDY}
    answer = httpx.post(f"{base_url}/v1/chat/completions", json=body).json()
    choice = answer["choices"][0]
    assert set(choice) == {"index", "message", "logprobs", "finish_reason"}
    assert choice["logprobs"] is None
    assert choice["message"]["refusal"] is None
    details = answer["usage"]["completion_tokens_details"]
    metrics = answer["metrics"]
    speculation = metrics["speculative_decoding"]
    assert speculation["num_accepted_draft_tokens"] == details["accepted_prediction_tokens"]
    assert (
        speculation["num_draft_tokens"] - speculation["num_accepted_draft_tokens"]
        == details["rejected_prediction_tokens"]
    )
    assert sum(speculation["acceptance_histogram"]) == speculation["num_spec_steps"]
    assert (
        sum(i * n for i, n in enumerate(speculation["acceptance_histogram"])) == details["accepted_prediction_tokens"]
    )
    assert -1 <= speculation["similarity"] <= 1
    assert metrics["tokens_per_second"] == pytest.approx(1000 / metrics["mean_itl_ms"])


@pytest.mark.parametrize("method", ["plain", "skip", "lookup", "cascade"])
@pytest.mark.parametrize("options", [GREEDY, SAMPLED])
def test_speculation_never_changes_the_text(client: openai.OpenAI, options: dict[str, Any], method: str) -> None:
    expected = text_of(chat(client, **options, extra_body={"speculation": {"method": "plain"}}))
    answer = chat(client, **options, extra_body={"speculation": {"method": method, "domain": "sql", "max_draft": 3}})
    assert text_of(answer) == expected
    speculation = extra(answer, "metrics")["speculative_decoding"]
    assert (speculation["method"], speculation["domain"], speculation["num_spec_tokens"]) == (method, "sql", 3)
    assert speculation["draft"] == extra(client.models.retrieve("tiny"), "drafts")["sql"]


def test_choices_differ_and_the_first_is_the_single_one(client: openai.OpenAI) -> None:
    answer = chat(client, n=3, **SAMPLED)
    texts = [text_of(answer, i) for i in range(3)]
    assert len(set(texts)) == 3
    assert texts[0] == text_of(chat(client, **SAMPLED))
    assert extra(answer, "metrics") is None
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(messages=MESSAGES, n=3, stream=True, **SAMPLED):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts


def test_stop_string_ends_text_and_counts(client: openai.OpenAI) -> None:
    full = chat(client, **SAMPLED)
    stop = text_of(full)[6:8]
    answer = chat(client, stop=["never seen", stop], **SAMPLED)
    assert text_of(answer) == text_of(full).split(stop)[0]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage and full.usage
    assert answer.usage.completion_tokens < full.usage.completion_tokens
    speculation = extra(answer, "metrics")["speculative_decoding"]
    assert speculation["num_accepted_draft_tokens"] < answer.usage.completion_tokens
    chunks = client.chat.completions.create(messages=MESSAGES, stop=stop, stream=True, **SAMPLED)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text_of(answer)


def test_a_conversation_goes_on_with_the_sdks_own_message(client: openai.OpenAI) -> None:
    first = chat(client, **GREEDY).choices[0].message
    messages: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        *MESSAGES,
        first,
        {"role": "user", "content": [{"type": "text", "text": "And"}, {"type": "text", "text": "then?"}]},
    ]
    answer = client.chat.completions.create(messages=messages, **GREEDY)
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_text_completions_take_text_and_ids(client: openai.OpenAI) -> None:
    def complete(prompt: Any, **options: Any) -> Completion:
        answer = client.completions.create(prompt=prompt, **GREEDY, **options)
        assert isinstance(answer, Completion)
        return answer

    ids = [72, 105, 99]
    single, several = complete(ids), complete([ids, [80, 81]], n=2)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].text == several.choices[1].text == single.choices[0].text
    assert several.usage and several.usage.prompt_tokens == 5
    assert complete("Hi").choices[0].text == complete(["Hi"]).choices[0].text
    streamed = client.completions.create(prompt="Hi", stream=True, **GREEDY)
    assert "".join(chunk.choices[0].text for chunk in streamed) == complete("Hi").choices[0].text


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    cards = client.models.list().data
    assert [card.id for card in cards] == ["tiny"]
    assert client.models.retrieve("tiny") == cards[0]
    assert extra(cards[0], "max_model_len") == 256
    assert extra(cards[0], "domains") == ["stories", "sql", "other"]
    drafts = extra(cards[0], "drafts")
    assert list(drafts) == ["stories", "sql", "other"]
    assert drafts["sql"] == {
        "skipped_attention": 1,
        "skipped_mlp": 2,
        "patched_from": None,
        "vocabulary_size": None,
        "is_low_bit": False,
        "max_draft": 4,
        "confidence": 0.0,
        "floor": 0.0,
    }
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("some/other")
