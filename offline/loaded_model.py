"""The model that a command works with, loaded once."""

from dataclasses import dataclass
from pathlib import Path

from offline.prompts import Prompt, PromptError
from offline.records import digest_of, log
from offline.settings import BitsSettings
from server.engine import (
    ChatError,
    Checkpoint,
    Decoder,
    RoutingArtifact,
    TextCodec,
    add_draft,
    load_model,
    use_threads,
)


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint, the decoder that runs it, and the codec that turns its text into token ids and back."""

    checkpoint: Checkpoint
    model: Decoder
    codec: TextCodec

    @classmethod
    def open(cls, settings: BitsSettings) -> "LoadedModel":
        """Sets the number of threads and loads the model; raises `CheckpointError` with one sentence if it cannot."""
        threads = use_threads(settings.threads)
        checkpoint = load_model(
            settings.model,
            settings.torch_dtype,
            settings.torch_device,
            settings.trust_remote_code,
            settings.quantization,
        )
        model = Decoder(checkpoint, settings.activations)
        add_draft(model, checkpoint, settings.draft_weights)
        log.info("threads: %s", threads)
        return cls(checkpoint, model, TextCodec(checkpoint.tokenizer))

    @property
    def dtype(self) -> str:
        """The precision of the weights, as `float32`."""
        return str(self.checkpoint.dtype).removeprefix("torch.")

    @property
    def digest(self) -> str:
        """Identifies weights, chat template, precision and kind of device: results depend on these too."""
        precisions = self.model.precision, (self.model.low_bit or self.model).precision
        device = self.checkpoint.device.type
        return digest_of(self.checkpoint.fingerprint, self.codec.template_hash, *precisions, device)

    def check(self, artifact: RoutingArtifact, folder: Path) -> None:
        """Raises `ArtifactError` for an artifact, read from this folder, that is another model's."""
        known = self.checkpoint.fingerprint, self.codec.template_hash
        artifact.check_model(*known, folder, self.checkpoint.config.vocabulary_size)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of the prompt in the model's chat template; raises `PromptError` where that refuses it."""
        try:
            return self.codec.encode_chat([dict(message) for message in prompt.messages])
        except ChatError as error:
            raise PromptError(f"prompt {prompt.text[:40]!r}: {error}") from error
