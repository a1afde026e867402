"""The routing artifact on disk: what calibration learned about one model.

A folder with `manifest.json` (typed below) and `anchors.safetensors`. It belongs to exactly one
model and chat template; loading it for another is refused.
"""

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetPydanticSchema,
    JsonValue,
    ValidationError,
    ValidatorFunctionWrapHandler,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema
from safetensors.torch import load_file, save
from torch import Tensor

from server.engine.types import MAX_DRAFT, OTHER_DOMAIN, SkipMask

FORMAT_VERSION = 1


class ArtifactError(Exception):
    """The artifact is missing, broken, or made for another model."""


class Strict(BaseModel):
    """A record that cannot be changed and refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def mask_schema(source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
    """How pydantic reads a mask from its JSON form, and writes it back with the layers in order."""
    layers = core_schema.frozenset_schema(core_schema.int_schema())
    fields = {part: core_schema.typed_dict_field(layers) for part in ("attention", "mlp")}
    return core_schema.no_info_wrap_validator_function(
        read_mask,
        core_schema.typed_dict_schema(fields, extra_behavior="forbid"),
        serialization=core_schema.plain_serializer_function_ser_schema(mask_layers),
    )


def read_mask(value: object, read_layers: ValidatorFunctionWrapHandler) -> SkipMask:
    """A mask as it is, or made from its JSON form."""
    return value if isinstance(value, SkipMask) else SkipMask(**read_layers(value))


def mask_layers(mask: SkipMask) -> dict[str, list[int]]:
    """The JSON form of a mask."""
    return {"attention": sorted(mask.attention), "mlp": sorted(mask.mlp)}


JsonMask = Annotated[SkipMask, GetPydanticSchema(mask_schema)]
"""A `SkipMask` in a record; in JSON it is {"attention": [1, 2], "mlp": [2]}, the numbers of the skipped layers."""


class DomainRecord(Strict):
    """One domain: its mask and what was measured when the mask was chosen.

    `predicted_speedup` and `acceptance` come from the search score, `measured_speedup` from real
    decoding of prompts that the search did not see.
    """

    name: Annotated[str, Field(min_length=1, max_length=64)]
    mask: JsonMask
    num_prompts: Annotated[int, Field(ge=0)]
    acceptance: Annotated[float, Field(ge=0, le=1)]
    predicted_speedup: float
    measured_speedup: float | None = None
    mask_of: str | None = None
    """Whose mask it is: the domain's own, another's that does as well, or the mixed one."""


class Manifest(Strict):
    """`manifest.json`: everything but the anchor vectors."""

    format: Literal["knnssd-artifact"] = "knnssd-artifact"
    format_version: int = FORMAT_VERSION
    model_fingerprint: str
    model_name: str
    num_layers: int
    hidden_size: int
    dtype: str
    chat_template_hash: str
    domains: Annotated[list[DomainRecord], Field(min_length=1)]
    mixed: DomainRecord
    anchor_domains: Annotated[list[int], Field(min_length=1)]
    """Index into `domains` of each anchor row."""
    similarity_threshold: float
    """Centred cosine under which a prompt is out of domain and drafts with the mixed mask."""
    false_reject_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of held-out prompts of the domains that fall under the threshold."""
    false_accept_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of prompts above it, each domain in turn taken for an unknown one."""
    max_draft: Annotated[int, Field(ge=0, le=MAX_DRAFT)]
    confidence: Annotated[float, Field(ge=0, le=1)]
    seed: int
    settings: dict[str, JsonValue] = {}
    """All options of the calibration; with the same prompts, model and versions they repeat it."""
    prompts_digest: str | None = None
    created: str
    versions: dict[str, str] = {}

    @model_validator(mode="before")
    @classmethod
    def check_version(cls, data: object) -> object:
        """First of all: another version's fields would be misread as errors."""
        version = data.get("format_version", FORMAT_VERSION) if isinstance(data, dict) else FORMAT_VERSION
        if version != FORMAT_VERSION:
            raise ValueError(f"artifact format {version}, this server reads {FORMAT_VERSION}")
        return data

    @model_validator(mode="after")
    def check_domains(self) -> Self:
        """Names are distinct, anchors belong to domains, and masks name layers that the model has."""
        names = [domain.name for domain in self.domains]
        if len(set(names)) < len(names) or OTHER_DOMAIN in names:
            raise ValueError(f"domain names differ from each other and from {OTHER_DOMAIN!r}")
        if any(not 0 <= i < len(names) for i in self.anchor_domains):
            raise ValueError("an anchor names a domain that is not in the manifest")
        layers = [i for d in [*self.domains, self.mixed] for i in [*d.mask.attention, *d.mask.mlp]]
        if any(not 0 <= i < self.num_layers for i in layers):
            raise ValueError(f"a mask names a layer outside 0..{self.num_layers - 1}")
        return self


class RoutingArtifact:
    """A manifest with its anchors [num_anchors, hidden_size] and their centre [hidden_size], fp32."""

    def __init__(self, manifest: Manifest, anchors: Tensor, centre: Tensor) -> None:
        self.manifest = manifest
        self.anchors = anchors
        self.centre = centre

    def save(self, folder: Path) -> None:
        """Writes both files, each at once or not at all: an interruption leaves what was there before."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"anchors": self.anchors.float().contiguous(), "centre": self.centre.float().contiguous()}
        contents = {"anchors.safetensors": save(tensors), "manifest.json": self.manifest_text.encode()}
        for name, content in contents.items():
            (folder / (name + ".part")).write_bytes(content)
        for name in contents:
            os.replace(folder / (name + ".part"), folder / name)

    @property
    def manifest_text(self) -> str:
        return self.manifest.model_dump_json(indent=2) + "\n"

    @classmethod
    def load(cls, folder: Path) -> "RoutingArtifact":
        """Reads and checks a folder; raises `ArtifactError` with one sentence that says what is wrong."""
        path = folder / "manifest.json"
        if not path.exists():
            raise ArtifactError(f"no routing artifact in {folder}: run `knn-ssd-offline calibrate --out {folder}`")
        again = "run `knn-ssd-offline calibrate` again"
        try:
            manifest = Manifest.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise ArtifactError(f"{path} is not a routing artifact: {where}: {first['msg']}; {again}") from error
        path = folder / "anchors.safetensors"
        try:
            tensors = load_file(path)
        except Exception as error:
            raise ArtifactError(f"{path} cannot be read: {error}; {again}") from error
        shapes = {"anchors": (len(manifest.anchor_domains), manifest.hidden_size), "centre": (manifest.hidden_size,)}
        for name, shape in shapes.items():
            if name not in tensors or tensors[name].shape != shape or not tensors[name].isfinite().all():
                raise ArtifactError(f"{path} holds no finite tensor {name!r} of shape {shape}; {again}")
        return cls(manifest, tensors["anchors"], tensors["centre"])

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
