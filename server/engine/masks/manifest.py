"""What `manifest.json` of a routing artifact says, as typed records: the domains, and how each is drafted for."""

from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetPydanticSchema,
    JsonValue,
    ValidatorFunctionWrapHandler,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from server.engine.types import EMPTY_MASK, MAX_DRAFT, OTHER_DOMAIN, SkipMask

FORMAT_VERSION = 2


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


class PatchRecord(Strict):
    """A matrix in place of the layers from `start` on, whole or of so low a rank; it lies in `drafts.safetensors`."""

    start: Annotated[int, Field(ge=0)]
    rank: Annotated[int, Field(ge=1)] | None = None


class DraftRecord(Strict):
    """How one domain's drafts are computed, how long they grow and how sure they have to be."""

    mask: JsonMask = EMPTY_MASK
    vocabulary_size: Annotated[int, Field(ge=1)] | None = None
    """How many tokens they score, which lie in `drafts.safetensors`; None is all of them."""
    patch: PatchRecord | None = None
    is_low_bit: bool = False
    """Whether with the copy of the weights in fewer bits, which the manifest's `draft_weights` names."""
    max_draft: Annotated[int, Field(ge=0, le=MAX_DRAFT)]
    confidence: Annotated[float, Field(ge=0, le=1)]
    """Top probability under which a token is the last one,"""
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """and under which it is not drafted at all."""


class DomainRecord(Strict):
    """One domain: its draft and what was measured when that was chosen.

    `predicted_speedup` and `acceptance` come from the search score, `measured_speedup` from real
    decoding of prompts that the search did not see.
    """

    name: Annotated[str, Field(min_length=1, max_length=64)]
    draft: DraftRecord
    num_prompts: Annotated[int, Field(ge=0)]
    acceptance: Annotated[float, Field(ge=0, le=1)]
    predicted_speedup: float
    measured_speedup: float | None = None
    draft_of: str | None = None
    """Whose draft it is: the domain's own, another's that does as well, or the mixed one."""
    similarity_threshold: float | None = None
    """Centred cosine under which a prompt nearest to this domain is of none; None takes the manifest's."""
    history_size: Annotated[int, Field(ge=1)] | None = None
    """Contexts of the model's own answers that drafts without a pass follow; they lie in `drafts.safetensors`."""

    @property
    def draft_owner(self) -> str:
        """The name under which the draft's vocabulary is kept."""
        return self.draft_of or self.name


class Manifest(Strict):
    """`manifest.json`: everything but the anchor vectors and the drafts' tensors."""

    format: Literal["knnssd-artifact"] = "knnssd-artifact"
    format_version: int = FORMAT_VERSION
    model_fingerprint: str
    model_name: str
    num_layers: int
    hidden_size: int
    dtype: str
    chat_template_hash: str
    draft_weights: Literal["none", "int8", "int4"] = "none"
    """The copy of the model that drafts were calibrated with."""
    domains: Annotated[list[DomainRecord], Field(min_length=1)]
    mixed: DomainRecord
    anchor_domains: Annotated[list[int], Field(min_length=1)]
    """Index into `domains` of each anchor row."""
    similarity_threshold: float
    """Centred cosine under which a prompt is out of domain and drafted for as `mixed` says; domains may differ."""
    false_reject_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of held-out prompts of the domains that fall under the threshold."""
    false_accept_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of prompts above it, each domain in turn taken for an unknown one."""
    seed: int
    settings: dict[str, JsonValue] = {}
    """All options of the calibration; with the same prompts, model and versions they repeat it."""
    prompts_digest: str | None = None
    created: str
    versions: dict[str, str] = {}

    @property
    def records(self) -> list[DomainRecord]:
        """The domains, and last the mixed one."""
        return [*self.domains, self.mixed]

    @property
    def has_low_bit_drafts(self) -> bool:
        return any(record.draft.is_low_bit for record in self.records)

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
        """Names are distinct, anchors belong to domains, and drafts are of domains that are there."""
        names = [domain.name for domain in self.domains]
        if len({*names, self.mixed.name}) <= len(names) or OTHER_DOMAIN in names:
            raise ValueError(f"domain names differ from each other, from {OTHER_DOMAIN!r} and from the mixed one's")
        if any(not 0 <= i < len(names) for i in self.anchor_domains):
            raise ValueError("an anchor names a domain that is not in the manifest")
        owners = [record.draft_owner for record in self.records]
        if unknown := set(owners).difference(names, [self.mixed.name]):
            raise ValueError(f"a draft is that of {min(unknown)!r}, which is not in the manifest")
        return self

    @model_validator(mode="after")
    def check_drafts(self) -> Self:
        """Masks name layers that the model has, and low-bit drafts have a copy."""
        masks = [record.draft.mask for record in self.records]
        if any(not 0 <= i < self.num_layers for mask in masks for i in [*mask.attention, *mask.mlp]):
            raise ValueError(f"a mask names a layer outside 0..{self.num_layers - 1}")
        if any(r.draft.patch and r.draft.patch.start >= self.num_layers for r in self.records):
            raise ValueError(f"a patch begins at a layer outside 0..{self.num_layers - 1}")
        if self.has_low_bit_drafts and self.draft_weights == "none":
            raise ValueError("a draft is low-bit, and draft_weights names no copy of the model")
        return self
