"""Patches of a routing artifact: whole or as two factors, beside the vocabularies, and checked."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from server.engine import ArtifactError, DraftRecord, Patch, RoutingArtifact
from server.engine.masks.manifest import PatchRecord


def patched(artifact: RoutingArtifact) -> RoutingArtifact:
    """A whole patch of stories, which sql shares, and one of rank 3 in the mixed draft."""
    size, generator = artifact.manifest.hidden_size, torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).bfloat16()

    def draft(record: DraftRecord, patch: PatchRecord) -> DraftRecord:
        return record.model_copy(update={"patch": patch})

    patches = {
        "stories": Patch(0, (random(size, 2 * size),), torch.ones(size)),
        "mixed": Patch(2, (random(size, 3), random(3, 2 * size)), torch.zeros(size)),
    }
    stories, sql = artifact.manifest.domains
    whole, low = PatchRecord(start=0), PatchRecord(start=2, rank=3)
    domains = [
        stories.model_copy(update={"draft": draft(stories.draft, whole)}),
        sql.model_copy(update={"draft": draft(sql.draft, whole), "draft_of": "stories"}),
    ]
    mixed = artifact.manifest.mixed
    changes = {"domains": domains, "mixed": mixed.model_copy(update={"draft": draft(mixed.draft, low)})}
    manifest = artifact.manifest.model_copy(update=changes)
    return RoutingArtifact(manifest, artifact.anchors, artifact.centre, {}, patches)


@pytest.fixture
def folder(tiny_artifact: RoutingArtifact, tmp_path: Path) -> Path:
    patched(tiny_artifact).save(tmp_path)
    return tmp_path


def test_patches_are_saved_and_loaded(tiny_artifact: RoutingArtifact, folder: Path) -> None:
    before, loaded = patched(tiny_artifact), RoutingArtifact.load(folder)
    assert loaded.manifest == before.manifest
    stories, sql, mixed = (loaded.draft_model(record).patch for record in loaded.manifest.records)
    assert stories and mixed and stories is sql is not mixed
    for patch, expected in ((stories, before.patches["stories"]), (mixed, before.patches["mixed"])):
        assert patch.start == expected.start
        assert torch.equal(patch.weight, expected.weight) and torch.equal(patch.bias, expected.bias)
    size = loaded.manifest.hidden_size
    assert mixed.weight.shape == stories.weight.shape == (size, 2 * size)


def test_saving_twice_writes_the_same_bytes(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    RoutingArtifact.load(folder).save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


Edit = Callable[[dict[str, Tensor]], object]
EDITS: dict[str, tuple[Edit, str]] = {
    "missing": (lambda t: t.pop("patch.stories.weight"), "no finite tensor 'patch.stories.weight' of shape (32, 64)"),
    "no bias": (lambda t: t.pop("patch.mixed.bias"), "no finite tensor 'patch.mixed.bias' of shape (32,)"),
    "another rank": (lambda t: t.update({"patch.mixed.up": torch.zeros(32, 4)}), "'patch.mixed.up' of shape (32, 3)"),
    "no numbers": (lambda t: t["patch.mixed.down"].fill_(torch.nan), "'patch.mixed.down' of shape (3, 64)"),
}


@pytest.mark.parametrize("name", EDITS)
def test_tensors_that_are_no_patch_are_refused(folder: Path, name: str) -> None:
    edit, expected = EDITS[name]
    path = folder / "drafts.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)
    with pytest.raises(ArtifactError) as caught:
        RoutingArtifact.load(folder)
    message = str(caught.value)
    assert message.startswith(str(path)) and expected in message
    assert message.endswith("; run `knn-ssd-offline calibrate` again") and "\n" not in message


def test_a_patch_beyond_the_last_layer_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"start": 2', '"start": 4'))
    with pytest.raises(ArtifactError, match=r"a patch begins at a layer outside 0\.\.3"):
        RoutingArtifact.load(folder)
