"""Settings of the command line, read once here from flags and `KNNSSD_*` environment variables.

One class per kind of command. Lists take a flag per item, or items parted by commas.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self, TypeVar

import torch
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from server.engine import (
    DEFAULT_ARTIFACT,
    MAX_THREADS,
    Activations,
    DraftWeights,
    DtypeName,
    Quantization,
    parse_device,
    parse_dtype,
)


class ObjectiveName(StrEnum):
    """The quantity that a search for drafts maximises."""

    SCORE = "score"
    WALLCLOCK = "wallclock"


class SettingsMistake(Exception):
    """A flag or an environment variable is wrong; the message is one clear sentence."""


COMMAND_LINE = SettingsConfigDict(
    frozen=True,
    env_prefix="KNNSSD_",
    env_prefix_target="all",
    cli_kebab_case=True,
    cli_implicit_flags=True,
    cli_exit_on_error=False,
    cli_avoid_json=True,
    cli_hide_none_type=True,
    cli_shortcuts={"prompts": "p"},
)


class FlagSettings(BaseSettings):
    """How every command reads its flags: lists also parted by commas, pictures as .png."""

    model_config = COMMAND_LINE

    @field_validator("prompts", "methods", "variants", "temperatures", "rates", mode="before", check_fields=False)
    @classmethod
    def split_commas(cls, value: object) -> object:
        return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value

    @field_validator("plot", check_fields=False)
    @classmethod
    def check_plot(cls, value: Path | None) -> Path | None:
        if value is not None and value.suffix != ".png":
            raise ValueError("must end in .png")
        return value


class CommandSettings(FlagSettings):
    """The settings that every command on a model has: that model, prompts, where to run, and in which dtype."""

    model: str | None = Field(
        None, description="model folder, GGUF file or hub name; without it, SmolLM2-135M-Instruct"
    )
    prompts: Annotated[list[Path], NoDecode] = Field(
        min_length=1, description="prompt files, .jsonl or .jsonl.gz; repeat the flag or part them by commas"
    )
    device: str = Field("auto", description="torch device; auto takes a GPU where there is one")
    dtype: DtypeName = Field("auto", description="auto is the checkpoint's own")
    threads: int | None = Field(
        None,
        ge=1,
        le=MAX_THREADS,
        description="threads that compute on the CPU; without it, as many as affinity and cgroup quota allow",
    )
    trust_remote_code: bool = Field(False, description="run code that the model folder brings along")
    seed: int = Field(0, ge=0, description="seed of every random choice")

    @property
    def torch_device(self) -> torch.device:
        return parse_device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """None stands for the checkpoint's own."""
        return parse_dtype(self.dtype)

    @field_validator("device")
    @classmethod
    def check_device(cls, value: str) -> str:
        parse_device(value)
        return value


class BitsSettings(CommandSettings):
    """The settings of commands that run the model at one number of bits."""

    quantization: Quantization = Field(
        "auto", description="bits of the weights: auto keeps a GGUF file's, none dequantises, int8 and int4 round"
    )
    activations: Activations = Field(
        "auto", description="what weights of few bits are multiplied with: activations of 8 bits, fine or exact ones"
    )
    draft_weights: DraftWeights = Field(
        "none", description="a copy in fewer bits that drafts are computed with; auto takes int4 where that pays"
    )


class CalibrationSettings(BitsSettings):
    """Learns with which drafts each domain is fastest, and writes a routing artifact."""

    out: Path = Field(description="folder of the artifact; the stages keep their files in its work/")
    prompts_per_domain: int = Field(100, ge=3, description="prompts used at most per domain")
    search_prompts: int = Field(16, ge=1, description="of these, prompts per domain that drafts are scored on")
    heldout_prompts: int = Field(32, ge=1, description="of these, prompts per domain that results are judged on")
    continuation_tokens: int = Field(64, ge=8, description="tokens the full model writes per scored prompt")
    anchors_per_domain: int = Field(10, ge=1, description="k-means centres per domain")
    threshold_quantile: float = Field(
        0.01, ge=0, le=0.5, description="share of in-domain prompts that may fall under the similarity threshold"
    )
    budget: int = Field(150, ge=0, description="masks scored per domain after the simple rules")
    objective: ObjectiveName = Field(
        ObjectiveName.SCORE, description="score: predicted from one pass; wallclock: timed decoding, as in the paper"
    )
    controls: bool = Field(
        True, description="search again with another seed and on half the prompts, to know the noise"
    )
    measure_prompts: int = Field(4, ge=0, description="held-out prompts per domain decoded for real; 0: none")


class StudySettings(CalibrationSettings):
    """Checks a calibration: score against measured speed, strategies of search, another artifact."""

    masks: int = Field(64, ge=3, description="masks that are decoded and compared with their scores")
    seeds: int = Field(3, ge=1, description="runs of each strategy of search on each domain")
    repeats: int = Field(2, ge=1, description="times that each prompt is decoded with each mask")
    rival: Path | None = Field(None, description="another artifact of the model, to decode the same prompts with")


class EvaluationSettings(BitsSettings):
    """How `evaluate` measures; which methods it measures is added by `MethodSettings`, which knows the peers."""

    artifact: Path | None = Field(
        None, description="routing artifact folder; some methods need none, and the default model has a shipped one"
    )
    json_only: bool = Field(False, alias="json", description="print the JSON line without the table")
    max_new_tokens: int = Field(128, ge=1, description="tokens per answer at most")
    ignore_eos: bool = Field(False, description="write all of --max-new-tokens, past the model's own end")
    temperature: float = Field(0.0, ge=0, le=2, description="0 is greedy; else top-p and top-k are the model's own")
    temperatures: Annotated[list[Annotated[float, Field(ge=0, le=2)]], NoDecode] = Field(
        [], description="measure at each of these, one after the other; --plot then shows how they differ"
    )
    batch_size: int = Field(1, ge=1, description="prompts decoded together")
    limit: int | None = Field(None, ge=1, description="prompts per domain at most")
    repeats: int = Field(1, ge=1, description="times that every prompt is decoded by every method")
    learn: bool = Field(
        False, description="let each method's answers draft for its later ones, as in a server; the first only warms up"
    )
    mix_ratio: float = Field(0.0, ge=0, le=1, description="chance that the next prompt is of another domain")
    plot: Path | None = Field(None, description="draw the speed-ups to this .png")

    @property
    def runs(self) -> list[Self]:
        """The same settings for each temperature in turn."""
        return [self.model_copy(update={"temperature": each}) for each in self.temperatures or [self.temperature]]

    @property
    def artifact_folder(self) -> Path | None:
        """The artifact to load; the shipped one belongs to the default model only."""
        return self.artifact or (DEFAULT_ARTIFACT if self.model is None else None)

    @model_validator(mode="after")
    def check_learn(self) -> Self:
        if self.learn and self.repeats > 1:
            raise ValueError("--learn goes with one repeat: an answer that comes again would draft for itself")
        return self


class CapacitySettings(FlagSettings):
    """Which requests come, what a step costs as measured, and what they are to feel like."""

    step_ms: float = Field(gt=0, description="milliseconds of a step, beside those of its rows")
    row_ms: float = Field(ge=0, description="milliseconds that each answer adds to a step")
    read_ms: float = Field(gt=0, description="milliseconds to read a token of a prompt")
    tokens_per_step: float = Field(1.0, ge=1, description="tokens that a step gives an answer, with its drafts")
    slots: int = Field(8, ge=1, description="answers that a replica decodes at once")
    turns: int = Field(3, ge=1, description="turns of a conversation")
    first_tokens: int = Field(160, ge=1, description="tokens of a conversation's first prompt")
    further_tokens: int = Field(12, ge=1, description="tokens that each later turn adds")
    answer_tokens: int = Field(340, ge=1, description="tokens of an answer, on average")
    pause: float = Field(10.0, gt=0, description="seconds between an answer and the next turn, on average")
    goal_first: float = Field(2.0, gt=0, description="seconds in which 95 of 100 requests have their first token")
    goal_further: float = Field(0.1, gt=0, description="seconds for a further token, of half of the requests")
    rates: Annotated[list[float], NoDecode] = Field(
        min_length=1, description="requests a second; repeat the flag or part them by commas"
    )
    most: int = Field(32, ge=1, description="replicas that are tried at most")
    plot: Path | None = Field(None, description="draw the replicas to this .png")


S = TypeVar("S", bound=FlagSettings)


def read_settings(kind: type[S], command: str, arguments: list[str]) -> S:
    """The settings of one command; raises `SettingsMistake` naming the first wrong flag."""
    try:
        return kind(_cli_parse_args=arguments, _cli_prog_name=f"knn-ssd-offline {command}")
    except SettingsError as error:
        raise SettingsMistake(str(error).removeprefix("error parsing CLI: ")) from error
    except ValidationError as error:
        first = error.errors()[0]
        flag = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else "settings"
        raise SettingsMistake(f"{flag}: {first['msg'].removeprefix('Value error, ')}") from error
