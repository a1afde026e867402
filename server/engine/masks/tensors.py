"""The tensors of an artifact's drafts, `drafts.safetensors`: vocabularies, patches, histories; checked when read."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from server.engine.history.counts import ENTRY_BYTES
from server.engine.masks.manifest import DomainRecord, Manifest
from server.engine.types import Patch

AGAIN = "run `knn-ssd-offline calibrate` again"


class ArtifactError(Exception):
    """The artifact is missing, broken, or made for another model."""


def vocabulary_name(domain: str) -> str:
    """The name of a domain's vocabulary in the file."""
    return f"vocabulary.{domain}"


def patch_name(domain: str, part: str) -> str:
    """The name in the file of a part that `Patch.tensors` names."""
    return f"patch.{domain}.{part}"


def history_name(domain: str) -> str:
    """The name of the entries that were counted for a domain."""
    return f"history.{domain}"


def draft_tensors(
    vocabularies: Mapping[str, Tensor], patches: Mapping[str, Patch], histories: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What the file holds, by name."""
    tensors = {vocabulary_name(name): ids.int().contiguous() for name, ids in vocabularies.items()}
    tensors |= {history_name(name): entries.contiguous() for name, entries in histories.items()}
    for domain, patch in patches.items():
        tensors |= {patch_name(domain, part): tensor for part, tensor in patch.tensors.items()}
    return tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:
        raise ArtifactError(f"{path} cannot be read: {error}; {AGAIN}") from error


class DraftFile(NamedTuple):
    """What drafts have, each by the name of the domain that it was made for, or of the mixed record."""

    vocabularies: dict[str, Tensor]
    patches: dict[str, Patch]
    histories: dict[str, Tensor]

    @classmethod
    def read(cls, path: Path, manifest: Manifest) -> "DraftFile":
        """What the manifest's drafts have; the file is not read where that is nothing.

        Raises `ArtifactError` where a tensor is missing, of another shape, or makes no sense.
        """
        sized = [record for record in manifest.records if record.draft.vocabulary_size is not None]
        patched = [record for record in manifest.records if record.draft.patch is not None]
        known = [record for record in manifest.records if record.history_size is not None]
        tensors = read_tensors(path) if sized or patched or known else {}
        vocabularies = {record.draft_owner: read_vocabulary(path, tensors, record) for record in sized}
        size = manifest.hidden_size
        patches = {record.draft_owner: read_patch(path, tensors, record, size) for record in patched}
        histories = {record.name: read_history(path, tensors, record) for record in known}
        return cls(vocabularies, patches, histories)


def read_vocabulary(path: Path, tensors: Mapping[str, Tensor], record: DomainRecord) -> Tensor:
    name, size = vocabulary_name(record.draft_owner), record.draft.vocabulary_size
    ids = tensors.get(name)
    if ids is None or ids.dtype != torch.int32 or ids.shape != (size,):
        raise ArtifactError(f"{path} holds no tensor {name!r} of {size} token ids in int32; {AGAIN}")
    if int(ids.min()) < 0:
        raise ArtifactError(f"{path} has a token below 0 in {name!r}; {AGAIN}")
    if len(ids.unique()) < len(ids):
        raise ArtifactError(f"{path} has a token twice in {name!r}; {AGAIN}")
    return ids


def read_history(path: Path, tensors: Mapping[str, Tensor], record: DomainRecord) -> Tensor:
    name, size = history_name(record.name), record.history_size
    entries = tensors.get(name)
    if entries is None or entries.dtype != torch.uint8 or entries.shape != (size, ENTRY_BYTES):
        raise ArtifactError(f"{path} holds no tensor {name!r} of {size} entries of {ENTRY_BYTES} bytes; {AGAIN}")
    return entries


def read_patch(path: Path, tensors: Mapping[str, Tensor], record: DomainRecord, hidden_size: int) -> Patch:
    """The patch of a record that has one."""
    patch = record.draft.patch
    assert patch is not None
    whole = {"weight": (hidden_size, 2 * hidden_size)}
    halves = {"up": (hidden_size, patch.rank), "down": (patch.rank, 2 * hidden_size)}
    parts = {}
    for part, shape in ((whole if patch.rank is None else halves) | {"bias": (hidden_size,)}).items():
        name = patch_name(record.draft_owner, part)
        tensor = tensors.get(name)
        if tensor is None or tensor.shape != shape or not tensor.isfinite().all():
            raise ArtifactError(f"{path} holds no finite tensor {name!r} of shape {shape}; {AGAIN}")
        parts[part] = tensor
    return Patch.of(patch.start, parts)
