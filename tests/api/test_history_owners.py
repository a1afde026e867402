"""With API keys, the answers to one key draft for that key alone, unless the server lets all share them."""

import httpx
import pytest

from server.app import AppConfig
from server.engine import Checkpoint, RoutingArtifact
from server.engine.history.counts import library
from server.engine.speculation.drafters import SuffixDrafter
from tests.api.live import make_worker, serve

pytestmark = pytest.mark.skipif(library() is None, reason="no compiler has built the table")

PATHS = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 24},
    "/v1/completions": {"prompt": "hi", "max_tokens": 24},
    "/v1/responses": {"input": "hi", "max_output_tokens": 24, "store": False},
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("keys", "is_shared", "knowing"),
    [
        (("a", "b"), False, {"key 0"}),
        (("a", "b"), True, {"key 0", "key 1", None}),
        ((), False, {"key 0", "key 1", None}),
    ],
)
def test_whose_answers_draft_for_whom(
    checkpoint: Checkpoint,
    tiny_artifact: RoutingArtifact,
    path: str,
    keys: tuple[str, ...],
    is_shared: bool,
    knowing: set[str | None],
) -> None:
    worker, engine = make_worker(checkpoint, tiny_artifact)
    with serve(worker, AppConfig(api_keys=keys, shares_history=is_shared)) as url:
        name = httpx.get(f"{url}/v1/models", headers={"authorization": "Bearer a"}).json()["data"][0]["id"]
        body = {"model": name, "temperature": 0, "speculation": {"method": "suffix"}} | PATHS[path]
        response = httpx.post(url + path, json=body, headers={"authorization": "Bearer a"}, timeout=30)
        assert response.status_code == 200, response.text
    drafter = engine.speculator.drafters["suffix"]
    assert isinstance(drafter, SuffixDrafter)
    counted = drafter.history.past.entries()
    domains = [route.domain for route in engine.router.all] if engine.router else []
    assert len(counted)

    def knows(owner: str | None) -> bool:
        """Whether this owner's drafts would follow the answer: no other text has any of its contexts."""
        every = range(checkpoint.config.vocabulary_size)
        texts = [drafter.history.text(domain, owner, 8) for domain in domains]
        return any(text.continuation([token], 1, 0.0).ids for text in texts for token in every)

    assert {owner for owner in ("key 0", "key 1", None) if knows(owner)} == knowing
