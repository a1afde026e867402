"""The routing artifact on disk: what calibration learned about one model.

A folder with `manifest.json` (typed below) and `anchors.safetensors`. It belongs to exactly one
model and chat template; loading it for another is refused.
"""

import hashlib
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from server.engine.types import SkipMask

FORMAT_VERSION = 1


class ArtifactError(Exception):
    """The artifact is missing, broken, or made for another model."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MaskRecord(Strict):
    """A skip mask as sorted layer lists."""

    attention: list[int]
    mlp: list[int]

    @classmethod
    def of(cls, mask: SkipMask) -> "MaskRecord":
        return cls(attention=sorted(mask.attention), mlp=sorted(mask.mlp))

    @property
    def mask(self) -> SkipMask:
        return SkipMask(frozenset(self.attention), frozenset(self.mlp))


class DomainRecord(Strict):
    """One domain: its mask and what was measured when the mask was chosen.

    `predicted_speedup` and `acceptance` come from the search score, `measured_speedup` from real
    decoding of prompts that the search did not see.
    """

    name: Annotated[str, Field(min_length=1, max_length=64)]
    mask: MaskRecord
    num_prompts: int
    acceptance: float
    predicted_speedup: float
    measured_speedup: float | None = None


class Manifest(Strict):
    """`manifest.json`: everything but the anchor vectors."""

    format: str = "knnssd-artifact"
    format_version: int = FORMAT_VERSION
    model_fingerprint: str
    model_name: str
    num_layers: int
    hidden_size: int
    dtype: str
    chat_template_hash: str
    domains: list[DomainRecord]
    mixed: DomainRecord
    anchor_domains: list[int]
    """Index into `domains` of each anchor row."""
    similarity_threshold: float
    """Centred cosine under which a prompt is out of domain and drafts with the mixed mask."""
    max_draft: int
    confidence: float
    seed: int
    created: str
    versions: dict[str, str] = {}


class RoutingArtifact:
    """A manifest with its anchors [num_anchors, hidden_size] and their centre [hidden_size], fp32."""

    def __init__(self, manifest: Manifest, anchors: Tensor, centre: Tensor) -> None:
        self.manifest = manifest
        self.anchors = anchors
        self.centre = centre

    def save(self, folder: Path) -> None:
        """Writes both files; the manifest last, so that a half-written folder does not load."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"anchors": self.anchors.float().contiguous(), "centre": self.centre.float().contiguous()}
        save_file(tensors, folder / "anchors.safetensors")
        (folder / "manifest.json").write_text(self.manifest.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "RoutingArtifact":
        """Reads and checks a folder; raises `ArtifactError` with one sentence that says what is wrong."""
        path = folder / "manifest.json"
        if not path.exists():
            raise ArtifactError(f"no routing artifact in {folder}: run `knn-ssd-offline calibrate --out {folder}`")
        try:
            manifest = Manifest.model_validate_json(path.read_bytes())
            tensors = load_file(folder / "anchors.safetensors")
            artifact = cls(manifest, tensors["anchors"], tensors["centre"])
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise ArtifactError(f"{path} is not a routing artifact: {where}: {first['msg']}") from error
        except Exception as error:
            raise ArtifactError(f"{folder / 'anchors.safetensors'} cannot be read: {error}") from error
        artifact.check_shapes(folder)
        return artifact

    def check_shapes(self, folder: Path) -> None:
        manifest = self.manifest
        if manifest.format_version != FORMAT_VERSION:
            raise ArtifactError(
                f"{folder} has artifact format {manifest.format_version}, this server reads {FORMAT_VERSION}: "
                "run `knn-ssd-offline calibrate` again"
            )
        expected = (len(manifest.anchor_domains), manifest.hidden_size)
        if tuple(self.anchors.shape) != expected or tuple(self.centre.shape) != expected[1:]:
            raise ArtifactError(
                f"{folder}: anchors have shape {tuple(self.anchors.shape)}, the manifest says {expected}"
            )
        layers = [i for d in [*manifest.domains, manifest.mixed] for i in [*d.mask.attention, *d.mask.mlp]]
        if any(not 0 <= i < manifest.num_layers for i in layers):
            raise ArtifactError(f"{folder}: a mask names a layer outside 0..{manifest.num_layers - 1}")
        if any(not 0 <= i < len(manifest.domains) for i in manifest.anchor_domains):
            raise ArtifactError(f"{folder}: an anchor names a domain that is not in the manifest")

    def check_model(self, fingerprint: str, template_hash: str, folder: Path) -> None:
        """Refuses an artifact made for another model or chat template."""
        if self.manifest.model_fingerprint != fingerprint:
            raise ArtifactError(
                f"{folder} was made for the model {self.manifest.model_name!r} with other weights: "
                "run `knn-ssd-offline calibrate` for this model"
            )
        if self.manifest.chat_template_hash != template_hash:
            raise ArtifactError(
                f"{folder} was made with another chat template: run `knn-ssd-offline calibrate` for this model"
            )


def fingerprint(architecture: dict[str, object], weights: dict[str, Tensor]) -> str:
    """A digest of the architecture and of an even sample of at most 4,096 values of every weight."""
    digest = hashlib.sha256(repr(sorted(architecture.items())).encode())
    for name in sorted(weights):
        flat = weights[name].flatten()
        sample = flat[:: max(flat.numel() // 4096, 1)].to("cpu", torch.float32)
        digest.update(f"{name}{tuple(weights[name].shape)}".encode())
        digest.update(sample.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
