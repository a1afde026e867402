"""The routing artifact on disk: what calibration learned about one model.

A folder with `manifest.json`, `anchors.safetensors`, and `drafts.safetensors` where drafts have tensors.
It belongs to exactly one model and chat template; loading it for another is refused.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from pydantic import ValidationError
from safetensors.torch import save
from torch import Tensor

from server.engine.history.counts import tokens_of
from server.engine.masks.manifest import DomainRecord, Manifest
from server.engine.masks.tensors import (
    AGAIN,
    ArtifactError,
    DraftFile,
    draft_tensors,
    history_name,
    read_tensors,
    vocabulary_name,
)
from server.engine.types import OTHER_DOMAIN, DraftModel, DraftVocabulary, Patch

MANIFEST, ANCHORS, DRAFTS = "manifest.json", "anchors.safetensors", "drafts.safetensors"
NO_PATCHES: Mapping[str, Patch] = MappingProxyType({})
NO_HISTORIES: Mapping[str, Tensor] = MappingProxyType({})


class RoutingArtifact:
    """A manifest, its anchors [num_anchors, hidden_size] and their centre [hidden_size] in fp32, and drafts' tensors.

    `vocabularies` are int32 ids [vocabulary_size], commonest first, `patches` the matrices, and `histories` entries of
    counts, each by the name of the domain that it was made for, or of the mixed record.
    """

    def __init__(
        self,
        manifest: Manifest,
        anchors: Tensor,
        centre: Tensor,
        vocabularies: Mapping[str, Tensor],
        patches: Mapping[str, Patch] = NO_PATCHES,
        histories: Mapping[str, Tensor] = NO_HISTORIES,
    ) -> None:
        """Raises `ValueError` where a vocabulary has a token twice."""
        self.manifest = manifest
        self.anchors = anchors
        self.centre = centre
        self.vocabularies = vocabularies
        self.patches = patches
        self.histories = histories
        self.draft_vocabularies = {name: DraftVocabulary(tuple(ids.tolist())) for name, ids in vocabularies.items()}

    @property
    def history(self) -> dict[str, Tensor]:
        """The entries of what was answered, by the domain of the prompts that are routed to them."""
        mixed = self.manifest.mixed.name
        return {OTHER_DOMAIN if name == mixed else name: entries for name, entries in self.histories.items()}

    def draft_model(self, record: DomainRecord) -> DraftModel:
        """The draft of one of the manifest's records; drafts of one vocabulary share its object, and so their heads."""
        draft = record.draft
        vocabulary = None if draft.vocabulary_size is None else self.draft_vocabularies[record.draft_owner]
        patch = None if draft.patch is None else self.patches[record.draft_owner]
        return DraftModel(
            draft.mask, vocabulary, draft.is_low_bit, draft.max_draft, draft.confidence, patch, draft.floor
        )

    def save(self, folder: Path) -> None:
        """Writes the files, each at once or not at all: an interruption leaves what was there before."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"anchors": self.anchors.float().contiguous(), "centre": self.centre.float().contiguous()}
        drafts = draft_tensors(self.vocabularies, self.patches, self.histories)
        contents = {DRAFTS: save(drafts)} if drafts else {}
        contents |= {ANCHORS: save(tensors), MANIFEST: self.manifest_text.encode()}
        for name, content in contents.items():
            (folder / (name + ".part")).write_bytes(content)
        for name in contents:
            os.replace(folder / (name + ".part"), folder / name)
        if not drafts:
            (folder / DRAFTS).unlink(missing_ok=True)

    @property
    def manifest_text(self) -> str:
        return self.manifest.model_dump_json(indent=2) + "\n"

    @classmethod
    def load(cls, folder: Path) -> "RoutingArtifact":
        """Reads and checks a folder; raises `ArtifactError` with one sentence that says what is wrong."""
        manifest = read_manifest(folder)
        path = folder / ANCHORS
        tensors = read_tensors(path)
        shapes = {"anchors": (len(manifest.anchor_domains), manifest.hidden_size), "centre": (manifest.hidden_size,)}
        for name, shape in shapes.items():
            if name not in tensors or tensors[name].shape != shape or not tensors[name].isfinite().all():
                raise ArtifactError(f"{path} holds no finite tensor {name!r} of shape {shape}; {AGAIN}")
        drafts = DraftFile.read(folder / DRAFTS, manifest)
        return cls(manifest, tensors["anchors"], tensors["centre"], *drafts)

    def check_model(
        self, fingerprint: str, template_hash: str, folder: Path, vocabulary_size: int | None = None
    ) -> None:
        """Refuses an artifact made for another model or chat template, or with ids beyond the model's vocabulary."""
        if self.manifest.model_fingerprint != fingerprint:
            raise ArtifactError(
                f"{folder} was made for the model {self.manifest.model_name!r} with other weights: "
                "run `knn-ssd-offline calibrate` for this model"
            )
        if self.manifest.chat_template_hash != template_hash:
            raise ArtifactError(
                f"{folder} was made with another chat template: run `knn-ssd-offline calibrate` for this model"
            )
        tokens = {vocabulary_name(name): ids for name, ids in self.vocabularies.items()}
        tokens |= {history_name(name): tokens_of(entries) for name, entries in self.histories.items()}
        for name, ids in tokens.items():
            if vocabulary_size is not None and int(ids.max()) >= vocabulary_size:
                raise ArtifactError(
                    f"{folder / DRAFTS} has token {int(ids.max())} in {name!r}, "
                    f"and the model has 0 to {vocabulary_size - 1}; {AGAIN}"
                )


def read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not path.exists():
        raise ArtifactError(f"no routing artifact in {folder}: run `knn-ssd-offline calibrate --out {folder}`")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ArtifactError(f"{path} is not a routing artifact: {where}: {first['msg']}; {AGAIN}") from error
