"""The routing artifact on disk: a round trip, and one sentence for everything that is wrong with a folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from server.engine import ArtifactError, RoutingArtifact

Edit = Callable[[dict[str, Any]], object]
TensorEdit = Callable[[dict[str, torch.Tensor]], object]


@pytest.fixture
def folder(tiny_artifact: RoutingArtifact, tmp_path: Path) -> Path:
    tiny_artifact.save(tmp_path)
    return tmp_path


def edit_manifest(folder: Path, edit: Edit) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


def refusal(folder: Path) -> str:
    """The message with which loading is refused: one line that names the folder and what to run."""
    with pytest.raises(ArtifactError) as caught:
        RoutingArtifact.load(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "knn-ssd-offline calibrate" in message
    assert "\n" not in message and "Traceback" not in message
    return message


def test_what_is_saved_is_loaded(tiny_artifact: RoutingArtifact, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "artifact"
    tiny_artifact.save(folder)
    loaded = RoutingArtifact.load(folder)
    assert loaded.manifest == tiny_artifact.manifest
    assert torch.equal(loaded.anchors, tiny_artifact.anchors)
    assert torch.equal(loaded.centre, tiny_artifact.centre)
    assert [d.draft for d in loaded.manifest.records] == [d.draft for d in tiny_artifact.manifest.records]
    assert not loaded.vocabularies
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "anchors.safetensors"}


def test_saving_twice_writes_the_same_bytes(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    RoutingArtifact.load(folder).save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_bf16_anchors_are_saved_in_fp32(tiny_artifact: RoutingArtifact, tmp_path: Path) -> None:
    RoutingArtifact(tiny_artifact.manifest, tiny_artifact.anchors.bfloat16(), tiny_artifact.centre, {}).save(tmp_path)
    assert RoutingArtifact.load(tmp_path).anchors.dtype == torch.float32


def test_a_missing_folder_says_how_to_make_one(tmp_path: Path) -> None:
    assert "no routing artifact" in refusal(tmp_path / "nothing")


def test_a_half_written_folder_is_missing(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    assert "no routing artifact" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"null", b"\xff\xfe"])
def test_a_broken_manifest_is_refused(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    assert "not a routing artifact" in refusal(folder)


FIELD_EDITS: dict[str, Edit] = {
    "format": lambda m: m.update(format="something-else"),
    "domains.0.draft.max_draft": lambda m: m["domains"][0]["draft"].update(max_draft=-3),
    "domains.1.draft.confidence": lambda m: m["domains"][1]["draft"].update(confidence=7.0),
    "mixed.draft.confidence": lambda m: m["mixed"]["draft"].pop("confidence"),
    "mixed.draft.vocabulary_size": lambda m: m["mixed"]["draft"].update(vocabulary_size=0),
    "domains.0.draft.is_low_bit": lambda m: m["domains"][0]["draft"].update(is_low_bit="a bit"),
    "draft_weights": lambda m: m.update(draft_weights="int5"),
    "max_draft": lambda m: m.update(max_draft=3),
    "anchor_domains": lambda m: m.update(anchor_domains=[]),
    "num_layers": lambda m: m.pop("num_layers"),
    "mixed.draft": lambda m: m["mixed"].pop("draft"),
    "anchor_colour": lambda m: m.update(anchor_colour="red"),
    "domains.0.draft.mask.embedding": lambda m: m["domains"][0]["draft"]["mask"].update(embedding=[1]),
    "domains.1.name": lambda m: m["domains"][1].update(name=""),
    "similarity_threshold": lambda m: m.update(similarity_threshold="high"),
    "domains.0.draft.mask.attention.0": lambda m: m["domains"][0]["draft"]["mask"].update(attention=["first"]),
}


@pytest.mark.parametrize("field", FIELD_EDITS)
def test_a_missing_unknown_or_wrong_field_is_named(folder: Path, field: str) -> None:
    edit_manifest(folder, FIELD_EDITS[field])
    assert f" {field}: " in refusal(folder)


SHAPE_EDITS: dict[str, tuple[Edit, str]] = {
    "version": (lambda m: m.update(format_version=99, new_field=1), "artifact format 99"),
    "the version before": (lambda m: m.update(format_version=1, max_draft=4), "artifact format 1, this server reads 2"),
    "a domain named as the mixed one": (lambda m: m["domains"][1].update(name="mixed"), "domain names differ"),
    "a draft of no domain": (lambda m: m["domains"][1].update(draft_of="poems"), "that of 'poems', which is not in"),
    "a copy that is not named": (lambda m: m["mixed"]["draft"].update(is_low_bit=True), "names no copy of the model"),
    "two domains of one name": (lambda m: m["domains"][1].update(name="stories"), "domain names differ"),
    "a domain named other": (lambda m: m["domains"][1].update(name="other"), "domain names differ"),
    "anchor count": (lambda m: m.update(anchor_domains=[0]), "shape"),
    "hidden size": (lambda m: m.update(hidden_size=7), "shape"),
    "layer above": (lambda m: m["domains"][0]["draft"]["mask"].update(attention=[4]), "layer outside 0..3"),
    "layer below": (lambda m: m["mixed"]["draft"]["mask"].update(mlp=[-1]), "layer outside 0..3"),
    "anchor of no domain": (lambda m: m.update(anchor_domains=[0, 2]), "a domain that is not in the manifest"),
}


@pytest.mark.parametrize("name", SHAPE_EDITS)
def test_a_manifest_that_contradicts_itself_is_refused(folder: Path, name: str) -> None:
    edit, expected = SHAPE_EDITS[name]
    edit_manifest(folder, edit)
    assert expected in refusal(folder)


@pytest.mark.parametrize("content", [None, b"", b"not tensors"])
def test_anchors_that_cannot_be_read_are_refused(folder: Path, content: bytes | None) -> None:
    path = folder / "anchors.safetensors"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert "anchors.safetensors cannot be read" in refusal(folder)


TENSOR_EDITS: dict[str, tuple[TensorEdit, str]] = {
    "no centre": (lambda t: t.pop("centre"), "centre"),
    "centre of another size": (lambda t: t.update(centre=torch.zeros(3)), "centre"),
    "anchors that are no numbers": (lambda t: t["anchors"].fill_(torch.nan), "anchors"),
}


@pytest.mark.parametrize("name", TENSOR_EDITS)
def test_a_missing_misshapen_or_infinite_tensor_is_named(folder: Path, name: str) -> None:
    edit, tensor = TENSOR_EDITS[name]
    path = folder / "anchors.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)
    assert f"no finite tensor '{tensor}'" in refusal(folder)


def test_its_own_model_is_accepted_and_others_are_told_to_calibrate(folder: Path) -> None:
    artifact = RoutingArtifact.load(folder)
    model, template = artifact.manifest.model_fingerprint, artifact.manifest.chat_template_hash
    artifact.check_model(model, template, folder)
    for other, said in [(("0" * 32, template), "'tiny'"), ((model, "0" * 16), "another chat template")]:
        with pytest.raises(ArtifactError) as caught:
            artifact.check_model(*other, folder)
        message = str(caught.value)
        assert said in message and "knn-ssd-offline calibrate" in message and "\n" not in message
