"""Vocabularies of a routing artifact: kept beside the anchors, shared as the manifest says, and checked."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from server.engine import ArtifactError, DomainRecord, DraftModel, Router, RoutingArtifact, SkipMask

STORIES, MIXED = torch.tensor([7, 3, 250], dtype=torch.int32), torch.tensor([5, 6], dtype=torch.int32)


def with_drafts(artifact: RoutingArtifact) -> RoutingArtifact:
    """Drafts over vocabularies: of stories, which sql shares, and of the mixed one; those of sql are low-bit."""

    def drafting(record: DomainRecord, draft_of: str | None, **changes: object) -> DomainRecord:
        return record.model_copy(update={"draft": record.draft.model_copy(update=changes), "draft_of": draft_of})

    stories, sql = artifact.manifest.domains
    domains = [
        drafting(stories, None, vocabulary_size=3, max_draft=6),
        drafting(sql, "stories", vocabulary_size=3, is_low_bit=True, confidence=0.25),
    ]
    mixed = drafting(artifact.manifest.mixed, "mixed", vocabulary_size=2)
    changes = {"domains": domains, "mixed": mixed, "draft_weights": "int8"}
    manifest = artifact.manifest.model_copy(update=changes)
    return RoutingArtifact(manifest, artifact.anchors, artifact.centre, {"stories": STORIES, "mixed": MIXED})


@pytest.fixture
def drafting(tiny_artifact: RoutingArtifact) -> RoutingArtifact:
    return with_drafts(tiny_artifact)


@pytest.fixture
def folder(drafting: RoutingArtifact, tmp_path: Path) -> Path:
    drafting.save(tmp_path)
    return tmp_path


def drafts(artifact: RoutingArtifact) -> list[DraftModel]:
    return [artifact.draft_model(record) for record in artifact.manifest.records]


def test_drafts_are_saved_and_loaded(drafting: RoutingArtifact, folder: Path) -> None:
    loaded = RoutingArtifact.load(folder)
    assert loaded.manifest == drafting.manifest
    for (name, ids), expected in zip(loaded.vocabularies.items(), (STORIES, MIXED), strict=True):
        assert ids.dtype == torch.int32 and torch.equal(ids, expected), name
    stories, sql, mixed = drafts(loaded)
    assert stories.vocabulary and stories.vocabulary.token_ids == (7, 3, 250)
    assert mixed.vocabulary and mixed.vocabulary.token_ids == (5, 6)
    assert (stories.is_low_bit, stories.max_draft, stories.confidence) == (False, 6, 0.0)
    assert (sql.is_low_bit, sql.max_draft, sql.confidence) == (True, 4, 0.25)
    assert sql.mask == SkipMask(frozenset({3}), frozenset({1, 3}))


def test_who_shares_a_draft_has_the_same_vocabulary_object(folder: Path) -> None:
    loaded = RoutingArtifact.load(folder)
    stories, sql, mixed = drafts(loaded)
    assert stories.vocabulary is sql.vocabulary is not mixed.vocabulary
    assert drafts(loaded)[0].vocabulary is stories.vocabulary
    router = Router(loaded)
    assert [route.draft for route in router.all] == [stories, sql, mixed]
    assert router.all[0].draft.vocabulary is router.all[1].draft.vocabulary


def test_without_vocabularies_all_tokens_are_scored(tiny_artifact: RoutingArtifact) -> None:
    assert {draft.vocabulary for draft in drafts(tiny_artifact)} == {None}


def test_the_routers_own_length_and_confidence_go_before_the_artifacts(drafting: RoutingArtifact) -> None:
    given = [route.draft for route in Router(drafting, 9, 0.75).all]
    assert [(draft.max_draft, draft.confidence) for draft in given] == [(9, 0.75)] * 3
    length = [route.draft for route in Router(drafting, 0).all]
    assert [(draft.max_draft, draft.confidence) for draft in length] == [(0, 0.0), (0, 0.25), (0, 0.0)]
    assert [draft.vocabulary for draft in given] == [draft.vocabulary for draft in drafts(drafting)]


def test_int64_ids_are_saved_in_int32(drafting: RoutingArtifact, tmp_path: Path) -> None:
    wide = {name: ids.long() for name, ids in drafting.vocabularies.items()}
    RoutingArtifact(drafting.manifest, drafting.anchors, drafting.centre, wide).save(tmp_path)
    assert RoutingArtifact.load(tmp_path).vocabularies["stories"].dtype == torch.int32


def test_an_artifact_without_vocabularies_leaves_no_file_of_the_one_before(
    tiny_artifact: RoutingArtifact, folder: Path
) -> None:
    assert (folder / "drafts.safetensors").exists()
    tiny_artifact.save(folder)
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "anchors.safetensors"}
    assert RoutingArtifact.load(folder).manifest == tiny_artifact.manifest


def test_a_file_that_no_draft_needs_is_not_read(tiny_artifact: RoutingArtifact, folder: Path) -> None:
    """It is what an interrupted save may leave behind."""
    tiny_artifact.save(folder)
    (folder / "drafts.safetensors").write_bytes(b"half")
    assert not RoutingArtifact.load(folder).vocabularies


def refusal(folder: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        RoutingArtifact.load(folder)
    message = str(caught.value)
    assert message.startswith(str(folder / "drafts.safetensors"))
    assert message.endswith("; run `knn-ssd-offline calibrate` again") and "\n" not in message
    return message


@pytest.mark.parametrize("left", [None, 0, 5, 40, -1])
def test_a_missing_or_truncated_file_is_refused(folder: Path, left: int | None) -> None:
    path = folder / "drafts.safetensors"
    content = path.read_bytes()
    path.unlink()
    if left is not None:
        path.write_bytes(content[:left])
    assert "cannot be read" in refusal(folder)


Ids = Callable[[Tensor], Tensor | None]
EDITS: dict[str, tuple[Ids, str]] = {
    "missing": (lambda ids: None, "holds no tensor 'vocabulary.stories' of 3 token ids in int32"),
    "floats": (lambda ids: ids.float(), "holds no tensor 'vocabulary.stories' of 3 token ids in int32"),
    "wide": (lambda ids: ids.long(), "holds no tensor 'vocabulary.stories' of 3 token ids in int32"),
    "too few": (lambda ids: ids[:2].clone(), "of 3 token ids"),
    "in a table": (lambda ids: ids[None].clone(), "of 3 token ids"),
    "none": (lambda ids: ids[:0].clone(), "of 3 token ids"),
    "negative": (lambda ids: ids - 4, "has a token below 0 in 'vocabulary.stories'"),
    "twice": (lambda ids: torch.tensor([7, 3, 7], dtype=torch.int32), "has a token twice in 'vocabulary.stories'"),
}


@pytest.mark.parametrize("name", EDITS)
def test_ids_that_are_no_vocabulary_are_refused(folder: Path, name: str) -> None:
    edit, expected = EDITS[name]
    path = folder / "drafts.safetensors"
    tensors = load_file(path)
    edited = edit(tensors.pop("vocabulary.stories"))
    save_file(tensors if edited is None else {**tensors, "vocabulary.stories": edited}, path)
    assert expected in refusal(folder)


def test_ids_beyond_the_models_are_refused_where_the_model_is_known(folder: Path) -> None:
    artifact = RoutingArtifact.load(folder)
    known = artifact.manifest.model_fingerprint, artifact.manifest.chat_template_hash
    artifact.check_model(*known, folder)
    artifact.check_model(*known, folder, 251)
    with pytest.raises(ArtifactError) as caught:
        artifact.check_model(*known, folder, 250)
    assert str(caught.value) == (
        f"{folder / 'drafts.safetensors'} has token 250 in 'vocabulary.stories', and the model has 0 to 249; "
        "run `knn-ssd-offline calibrate` again"
    )


def test_a_vocabulary_with_a_token_twice_is_no_artifact(drafting: RoutingArtifact) -> None:
    with pytest.raises(ValueError, match="each token once"):
        RoutingArtifact(drafting.manifest, drafting.anchors, drafting.centre, {"stories": torch.tensor([1, 1])})
