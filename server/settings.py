"""Settings of the server, read once at the edge: flags, then `KNNSSD_*` variables, then defaults.

The rest of the server gets the frozen dataclasses that the properties build, such as `EngineConfig`.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from server.api.http.client_limits import ClientLimits
from server.api.http.connection import ConnectionLimits
from server.app import AppConfig
from server.engine import (
    DEFAULT_ARTIFACT,
    MAX_DRAFT,
    MAX_THREADS,
    Activations,
    DraftWeights,
    DtypeName,
    EngineConfig,
    Quantization,
    Wishes,
    method_named,
    methods,
    parse_device,
    parse_dtype,
    public_name,
)
from server.served_model import Source
from server.telemetry.logs import LogFormat
from server.tickets import QueueLimits

USUAL_BATCH = EngineConfig().max_batch


class Settings(BaseSettings):
    """OpenAI-compatible server. Every flag is also a variable: --max-batch is KNNSSD_MAX_BATCH; the flag wins."""

    model_config = SettingsConfigDict(
        env_prefix="KNNSSD_",
        env_ignore_empty=True,
        extra="forbid",
        cli_prog_name="knn-ssd-server",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    model: str | None = None
    """Model folder, GGUF file or hub name; without it, SmolLM2-135M-Instruct."""
    served_model_name: str | None = None
    """Name that requests use; without it, the last part of the model's name."""
    revision: str | None = None
    """Commit, branch or tag of a hub model; without it, its newest commit."""
    artifact: Path | None = None
    """Routing artifact folder of this model, made by `knn-ssd-offline calibrate`."""
    trust_remote_code: bool = False
    """Run Python code that the model's repository brings along."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto takes CUDA where there is one."""
    dtype: DtypeName = "auto"
    """Precision of cache, activations and weights of 16 bits or more; auto keeps the checkpoint's own."""
    quantization: Quantization = "auto"
    """Bits of the weights; auto keeps a GGUF file's, none dequantises them, int8 and int4 round any model's."""
    activations: Activations = "auto"
    """What weights of few bits are multiplied with: activations of 8 bits, finer ones, or fp32; auto is fine."""
    draft_weights: DraftWeights = "auto"
    """A copy in fewer bits that drafts are computed with; auto takes the artifact's, or int4 where that pays."""
    threads: Annotated[int, Field(ge=1, le=MAX_THREADS)] | None = None
    """Threads that compute on the CPU; without it, as many as affinity and cgroup quota allow."""
    method: str = "cascade"
    """How tokens are drafted."""
    max_batch: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Sequences decoded at once; each holds a slot of the cache; without it 8, or fewer where memory is short."""
    max_tree: Annotated[int, Field(ge=0, le=MAX_DRAFT)] = 0
    """Further slots, in which a lone answer's draft may branch; with 0 every draft is a chain."""
    history_memory: Annotated[int, Field(ge=0, le=65536)] = 64
    """MiB that are kept of answers to draft from; with 0 nothing is learned from them."""
    history_file: Path | None = None
    """File that keeps what was learned of answers over a restart; with API keys only with --share-history."""
    share_history: bool = False
    """Let the texts of one API key draft for the others and be their beginning; without it each key has its own."""
    prefix_reuse: bool = True
    """Spare a prompt what it has in common with an earlier text of the same API key."""
    max_length: Annotated[int, Field(ge=2)] | None = None
    """Longest prompt and answer together, in tokens; without it, what fits memory and model."""
    cache_memory: Annotated[int, Field(ge=1)] | None = None
    """MiB that keys and values of all slots take at most; without it three quarters of what weights leave."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 takes a free one."""
    replicas: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Copies of the model on this machine, each with its part of threads and memory; needs the extra ray."""
    routing: Literal["domain", "prefix", "load"] = "domain"
    """What decides between replicas: domain and known beginning of a prompt, its beginning, or load alone."""
    max_queue: Annotated[int, Field(ge=0)] = 128
    """Requests that may wait beyond those decoded; more are refused with 429."""
    max_queue_tokens: Annotated[int, Field(ge=1)] = 262_144
    """Prompt tokens of all unfinished requests together; more are refused with 429."""
    max_client_requests: Annotated[int, Field(ge=1)] | None = None
    """Unfinished requests that one client, an API key or else an address, may have; more are refused with 429."""
    max_client_rate: Annotated[int, Field(ge=1)] | None = None
    """Requests that one client may begin in a minute; more are refused with 429."""
    max_choices: Annotated[int, Field(ge=1, le=128)] = 8
    """Largest number of answers that one request may ask for."""
    max_sequences: Annotated[int, Field(ge=1)] = 64
    """Most answers that one request may ask for, its prompts times n."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 4 * 1024 * 1024
    """Largest request body; a larger one is refused with 413."""
    max_connections: Annotated[int, Field(ge=8)] = 1000
    """Connections at once; beyond them, the one whose client has been waited for longest is closed."""
    client_timeout: Annotated[float, Field(gt=0)] = 30.0
    """Seconds that a client has to send a request, and to go on reading its answer; then it is disconnected."""
    request_timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds after which a request is ended with an error."""
    step_timeout: Annotated[float, Field(gt=0)] = 300.0
    """Seconds after which a step of the engine counts as hanging; the server then exits with code 1."""
    drain_seconds: Annotated[float, Field(ge=0)] = 30.0
    """Seconds that running requests get to finish after SIGTERM or SIGHUP."""
    api_keys: SecretStr = SecretStr("")
    """Comma-separated keys; with one or more, requests need `Authorization: Bearer KEY`."""
    api_key_file: Path | None = None
    """File with one key a line; the keys are added to those of --api-keys."""
    cors_origins: str = ""
    """Comma-separated origins that browsers may call from; * allows all."""
    tokenizer_info: bool = False
    """Show the tokenizer's chat template and special tokens at /tokenizer_info."""
    grafana_url: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """Where Grafana shows this server, as http://127.0.0.1:3000; the page links to it."""
    otlp_endpoint: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """OTLP/HTTP collector that traces are sent to, as http://127.0.0.1:4318; needs the extra otel."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log lines that are printed."""
    log_format: LogFormat = "text"
    """Form of a log line: text, or one JSON object."""

    @field_validator("method")
    @classmethod
    def check_method(cls, value: str) -> str:
        return method_named(value).name

    @model_validator(mode="after")
    def check_together(self) -> Self:
        """Refuses a device that is not there, and a method without the artifact or the weights that it needs."""
        try:
            parse_device(self.device)
        except ValueError as error:
            raise ValueError(f"--device {self.device}: {error}; use --device cpu") from error
        if self.revision is not None and self.model is None:
            raise ValueError("--revision needs --model: the default model is a package, pinned by its version")
        if self.history_file and not self.share_history and (self.api_keys.get_secret_value() or self.api_key_file):
            raise ValueError("--history-file keeps what all may draft from; with API keys it needs --share-history")
        if self.history_file and self.replicas and self.replicas > 1:
            raise ValueError("--history-file is of one server: replicas would write over each other's; leave it out")
        method = methods()[self.method]
        if method.needs_artifact and self.artifact_folder is None:
            raise ValueError(f"--method {self.method} needs --artifact; run `knn-ssd-offline calibrate` for this model")
        if method.needs_draft_weights and self.draft_weights == "none":
            raise ValueError(f"--method {self.method} needs --draft-weights; use --draft-weights int4")
        return self

    @property
    def artifact_folder(self) -> Path | None:
        """The artifact to load; the shipped one belongs to the default model only."""
        return self.artifact or (DEFAULT_ARTIFACT if self.model is None else None)

    @property
    def source(self) -> Source:
        return Source(
            model=self.model,
            name=self.served_model_name or public_name(self.model),
            artifact=self.artifact_folder,
            dtype=parse_dtype(self.dtype),
            device=parse_device(self.device),
            threads=self.threads,
            revision=self.revision,
            history_file=self.history_file,
            trust_remote_code=self.trust_remote_code,
            quantization=self.quantization,
            activations=self.activations,
            draft_weights=self.draft_weights,
        )

    @property
    def engine_config(self) -> EngineConfig:
        return EngineConfig(
            max_batch=self.max_batch or USUAL_BATCH,
            max_length=self.max_length,
            method=self.method,
            max_tree=self.max_tree,
            history_bytes=self.history_memory << 20,
            reuses_prefixes=self.prefix_reuse,
        )

    @property
    def wishes(self) -> Wishes:
        """What was chosen of the cache."""
        return Wishes(self.max_batch, self.max_length, self.cache_memory << 20 if self.cache_memory else None)

    @property
    def queue_limits(self) -> QueueLimits:
        return QueueLimits((self.max_batch or USUAL_BATCH) + self.max_queue, self.max_queue_tokens)

    @property
    def connection_limits(self) -> ConnectionLimits:
        return ConnectionLimits(self.max_connections, self.client_timeout).fitting()

    @property
    def app_config(self) -> AppConfig:
        return AppConfig(
            api_keys=(*split(self.api_keys.get_secret_value()), *read_keys(self.api_key_file)),
            cors_origins=split(self.cors_origins),
            max_body_bytes=self.max_body_bytes,
            max_choices=self.max_choices,
            max_sequences=self.max_sequences,
            request_timeout=self.request_timeout,
            shares_history=self.share_history,
            shows_tokenizer=self.tokenizer_info,
            grafana_url=self.grafana_url,
            client_limits=ClientLimits(self.max_client_requests, self.max_client_rate),
        )


def split(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated text, without blank ones."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def read_keys(path: Path | None) -> tuple[str, ...]:
    """Keys of a file, one a line; a file without any would open the server by accident and is refused."""
    if path is None:
        return ()
    try:
        keys = tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--api-key-file {path}: cannot be read: {error}") from error
    if not keys:
        raise SettingsError(f"--api-key-file {path}: holds no key")
    return keys


def read_settings(arguments: list[str]) -> Settings:
    """Settings from flags and environment; raises `SettingsError` with one clear line."""
    try:
        return Settings(_cli_parse_args=arguments)
    except ValidationError as error:
        raise clear(error) from error


def clear(error: ValidationError) -> SettingsError:
    """The first mistake in one line, with the flag and the variable that it is in."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if first["loc"]:
        name = str(first["loc"][0])
        message = f"--{name.replace('_', '-')} (KNNSSD_{name.upper()}): {message}"
    return SettingsError(message)
