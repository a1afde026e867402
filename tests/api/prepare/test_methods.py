"""Methods that a request asks for: refused where the server lacks what they need, else the same text."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch

from server.engine import Checkpoint, RoutingArtifact, kernel_build, load_checkpoint
from tests.api.live import make_worker, serve
from tests.tiny import CPU, save_random_model, tiny_config

ENDPOINTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 24},
    "/v1/completions": {"prompt": "hello", "max_tokens": 24},
    "/v1/responses": {"input": "hello", "max_output_tokens": 24},
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A checkpoint that the kernels run."""
    folder = save_random_model(tmp_path_factory.mktemp("small"), tiny_config(head_dim=16))
    return load_checkpoint(str(folder), torch.bfloat16, CPU, quantization="int8")


@pytest.fixture(scope="module")
def without_copy(small: Checkpoint) -> Iterator[httpx.Client]:
    worker, _ = make_worker(small, None)
    with serve(worker) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def with_copy(small: Checkpoint) -> Iterator[httpx.Client]:
    if kernel_build() == "none":
        pytest.skip("no kernels for this processor")
    worker, _ = make_worker(small, None, draft_weights="int4")
    with serve(worker) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


def ask(client: httpx.Client, endpoint: str, method: str, **fields: Any) -> httpx.Response:
    body = {"model": "tiny", **ENDPOINTS[endpoint], "speculation": {"method": method}, **fields}
    return client.post(endpoint, json=body)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(
    ("method", "lacking"),
    [("low-bit", "draft weights"), ("skip", "a routing artifact"), ("knn", "a routing artifact")],
)
def test_a_method_whose_means_are_not_there_is_refused(
    without_copy: httpx.Client, endpoint: str, method: str, lacking: str
) -> None:
    for fields in ({}, {"stream": True}):
        answer = ask(without_copy, endpoint, method, **fields)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["message"] == f"Method '{method}' needs {lacking}, and this server has none."
        assert (error["param"], error["code"]) == ("speculation.method", "invalid_value")


def test_the_cascade_needs_neither(without_copy: httpx.Client) -> None:
    assert ask(without_copy, "/v1/completions", "cascade").is_success


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.9, "seed": 3}], ids=["greedy", "sampled"])
def test_low_bit_drafts_write_the_plain_text(with_copy: httpx.Client, endpoint: str, sampling: dict[str, Any]) -> None:
    texts = []
    for method in ("plain", "low-bit", "cascade"):
        answer = ask(with_copy, endpoint, method, **sampling).json()
        texts.append([answer.get("choices"), [each.get("content") for each in answer.get("output", [])]])
        speculation = answer["metrics"]["speculative_decoding"]
        assert speculation["method"] == method
        assert (speculation["num_draft_tokens"] > 0) == (method != "plain")
    assert texts[0] == texts[1] == texts[2]


def test_metrics_say_what_is_served_and_who_drafted(with_copy: httpx.Client, without_copy: httpx.Client) -> None:
    ask(with_copy, "/v1/completions", "low-bit", temperature=0)
    metrics = with_copy.get("/metrics").text
    (info,) = [line for line in metrics.splitlines() if line.startswith("knnssd_model_info{")]
    assert 'precision="int8 weights, fine activations, bfloat16 cache"' in info
    assert 'draft_weights="int4 weights, 8-bit activations, bfloat16 cache"' in info
    for count in ("draft", "accepted"):
        name = f'knnssd_drafter_{count}_tokens_total{{drafter="low-bit"}} '
        (line,) = [line for line in metrics.splitlines() if line.startswith(name)]
        assert float(line.removeprefix(name)) > 0
    other = without_copy.get("/metrics").text
    assert 'draft_weights="none"' in other
    assert 'knnssd_drafter_draft_tokens_total{drafter="low-bit"} 0.0' in other


VOCABULARY = torch.arange(40, 130, dtype=torch.int32)


@pytest.fixture(scope="module")
def over_vocabulary(small: Checkpoint, tiny_artifact: RoutingArtifact) -> Iterator[httpx.Client]:
    """Stories and sql draft over a vocabulary, sql with the copy too; others as the tiny artifact has it."""
    if kernel_build() == "none":
        pytest.skip("no kernels for this processor")
    stories, sql = tiny_artifact.manifest.domains
    drafts = [
        stories.draft.model_copy(update={"vocabulary_size": 90}),
        sql.draft.model_copy(update={"vocabulary_size": 90, "is_low_bit": True, "max_draft": 20, "confidence": 0.0}),
    ]
    domains = [
        record.model_copy(update={"draft": draft, "draft_of": "stories"})
        for record, draft in zip((stories, sql), drafts, strict=True)
    ]
    manifest = tiny_artifact.manifest.model_copy(update={"domains": domains, "draft_weights": "int4"})
    artifact = RoutingArtifact(manifest, tiny_artifact.anchors, tiny_artifact.centre, {"stories": VOCABULARY})
    worker, _ = make_worker(small, artifact, draft_weights="int4")
    with serve(worker) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


def test_models_and_answers_say_how_a_domain_is_drafted_for(over_vocabulary: httpx.Client) -> None:
    (card,) = over_vocabulary.get("/v1/models").json()["data"]
    assert over_vocabulary.get("/v1/models/tiny").json() == card
    assert {name: (draft["vocabulary_size"], draft["is_low_bit"]) for name, draft in card["drafts"].items()} == {
        "stories": (90, False),
        "sql": (90, True),
        "other": (None, False),
    }
    texts = set()
    for domain, draft in card["drafts"].items():
        for method in ("plain", "skip", "cascade"):
            asked = {"method": method, "domain": domain}
            answer = ask(over_vocabulary, "/v1/completions", method, temperature=0, speculation=asked).json()
            figures = answer["metrics"]["speculative_decoding"]
            assert (figures["domain"], figures["draft"]) == (domain, draft)
            assert (figures["num_draft_tokens"] > 0) == (method != "plain")
            assert figures["num_spec_tokens"] == (20 if domain == "sql" else 16)
            assert sum(figures["acceptance_histogram"]) == figures["num_spec_steps"]
            texts.add(answer["choices"][0]["text"])
    assert len(texts) == 1


def test_without_an_artifact_there_are_no_drafts_to_tell_of(without_copy: httpx.Client) -> None:
    (card,) = without_copy.get("/v1/models").json()["data"]
    assert (card["domains"], card["drafts"]) == ([], {})
    answer = ask(without_copy, "/v1/completions", "cascade").json()
    assert answer["metrics"]["speculative_decoding"]["draft"] == {
        "skipped_attention": 0,
        "skipped_mlp": 0,
        "patched_from": None,
        "vocabulary_size": None,
        "is_low_bit": False,
        "max_draft": None,
        "confidence": None,
        "floor": 0.0,
    }
