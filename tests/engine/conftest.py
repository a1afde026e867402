"""A small model that the tests of draft models share."""

from functools import cache

import pytest
import torch

from server.engine import Decoder, add_draft, load_checkpoint
from server.engine.model import kernels
from tests.batches import Models
from tests.tiny import CPU, save_random_model, tiny_config, torch_decoder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The tiny model without kernels, with them in a dtype, and with a copy in 4 bits."""
    folder = save_random_model(tmp_path_factory.mktemp("small"), tiny_config(head_dim=16), seed=1)

    @cache
    def model(name: str) -> Decoder:
        if name == "torch":
            return torch_decoder(folder)
        if kernels.build() is None:
            pytest.skip("no kernels for this processor")
        checkpoint = load_checkpoint(str(folder), getattr(torch, name.split()[0]), CPU)
        decoder = Decoder(checkpoint)
        add_draft(decoder, checkpoint, "int4" if name.endswith("int4") else "none")
        return decoder

    return model
