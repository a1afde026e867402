"""The engine's plain values: masks, draft models, sampling parameters, routes, statistics. No text.

Vocabulary of one verification, used everywhere:
  drafted    tokens proposed by the drafter
  accepted   drafted tokens that equal the full model's own, up to the first that does not
  corrected  the full model's own token in place of the first rejected one
  bonus      the full model's own token after a draft that was accepted whole
Every step emits its accepted tokens and then exactly one corrected or bonus token.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from torch import Tensor


@dataclass(frozen=True)
class SkipMask:
    """The sub-layers that a draft leaves out; the empty mask is the full model."""

    attention: frozenset[int] = frozenset()
    mlp: frozenset[int] = frozenset()

    @property
    def is_empty(self) -> bool:
        return not self.attention and not self.mlp

    @property
    def num_skipped(self) -> int:
        return len(self.attention) + len(self.mlp)


EMPTY_MASK = SkipMask()


@dataclass(frozen=True, eq=False)
class DraftVocabulary:
    """The tokens that a draft's passes score, commonest first; two are equal only where they are one object.

    Raises `ValueError` where a token is in it twice.
    """

    token_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(set(self.token_ids)) < len(self.token_ids):
            raise ValueError("a draft vocabulary has each token once")


@dataclass(frozen=True, eq=False)
class Patch:
    """A matrix in place of the layers from `start` on and of the last norm; equal only where they are one object.

    A token's state is weight [hidden_size, 2 * hidden_size] times two others, plus bias [hidden_size]: what reaches
    layer `start`, normalised as by the last norm, and the state of the token before. With start 0 it reads the token's
    embedding, and no layer is left: a step of EAGLE (arXiv 2401.15077, section 4.1) without its layer.
    """

    start: int
    factors: tuple[Tensor, ...]
    """The weight, or two matrices whose product it is."""
    bias: Tensor

    @classmethod
    def of(cls, start: int, tensors: Mapping[str, Tensor]) -> "Patch":
        """A patch of what `tensors` gave."""
        names = ["weight"] if "weight" in tensors else ["up", "down"]
        return cls(start, tuple(tensors[name] for name in names), tensors["bias"])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What files keep: `weight`, or `up` and `down`, in bf16, and `bias` in fp32."""
        names = ["weight"] if self.rank is None else ["up", "down"]
        factors = (factor.bfloat16().cpu().contiguous() for factor in self.factors)
        return {**dict(zip(names, factors, strict=True)), "bias": self.bias.float().cpu().contiguous()}

    @property
    def rank(self) -> int | None:
        """Of the two factors; None where it is kept whole."""
        return self.factors[1].shape[0] if len(self.factors) > 1 else None

    @property
    def weight(self) -> Tensor:
        """The product of the factors, made anew each time, in fp32."""
        first, *rest = (factor.float() for factor in self.factors)
        return first @ rest[0] if rest else first


DraftKind = tuple[int, bool, bool]


@dataclass(frozen=True)
class DraftModel:
    """How drafts are computed, how long they grow and how sure they have to be."""

    mask: SkipMask = EMPTY_MASK
    vocabulary: DraftVocabulary | None = None
    """The tokens that they score; None is all of them."""
    is_low_bit: bool = False
    """Whether with the copy of the weights in fewer bits."""
    max_draft: int | None = None
    """Most tokens of one; None is the engine's number."""
    confidence: float | None = None
    """Top probability under which a token is the last one; None is the engine's."""
    patch: Patch | None = None
    """What takes the place of the last layers, where something does."""
    floor: float = 0.0
    """Top probability under which a token is not drafted: a row of the check may cost more than that promises."""

    @property
    def is_full(self) -> bool:
        """Whether it is the model itself."""
        return self.mask.is_empty and self.patch is None and self.vocabulary is None and not self.is_low_bit

    @property
    def kind(self) -> DraftKind:
        """What its passes compute, which is what they cost: the sub-layers left out, with a patch, with the copy."""
        return len(self.mask.attention) + len(self.mask.mlp), self.patch is not None, self.is_low_bit

    def skips(self, num_layers: int) -> SkipMask:
        """All sub-layers that do not run: those of the mask, and those that the patch stands for."""
        if self.patch is None:
            return self.mask
        patched = range(self.patch.start, num_layers)
        return SkipMask(self.mask.attention.union(patched), self.mask.mlp.union(patched))


FULL_MODEL = DraftModel()


PLAIN = "plain"
"""The method that drafts nothing."""
PATCHED = "patch"
"""The origin of tokens that a patch drafted in place of layers."""
MAX_DRAFT = 31
"""Longest draft; far beyond what pays, and a bound on what one request may cost the others."""
LONGEST_GROWTH = 4
"""How many times the usual length a looked-up draft may have."""


@dataclass(frozen=True)
class ThinkingBudget:
    """Most tokens of thinking, and the token ids that mark it.

    An answer whose thinking is open from the start has no `begin`. Where the budget is used up before `end`
    came, the ids of `closing` follow.
    """

    limit: int
    begin: tuple[int, ...]
    end: tuple[int, ...]
    closing: tuple[int, ...]

    @property
    def places(self) -> range:
        """Numbers of tokens of the answer before those places at which a token may be forced."""
        first = len(self.begin) + self.limit
        return range(first, first + len(self.closing))

    def forced_after(self, answer: list[int]) -> int | None:
        """The only id that may follow these of the answer; None where the model is free."""
        if len(answer) not in self.places or tuple(answer[: len(self.begin)]) != self.begin:
            return None
        thought = answer[len(self.begin) : self.places.start]
        return None if contains(thought, self.end) else self.closing[len(answer) - self.places.start]


def contains(ids: list[int], wanted: tuple[int, ...]) -> bool:
    return any(tuple(ids[i : i + len(wanted)]) == wanted for i in range(len(ids) - len(wanted) + 1))


@dataclass(frozen=True)
class Adjustments:
    """Changes of the logits before temperature; the defaults change nothing.

    Presence and frequency count the output's tokens, as OpenAI's; repetition counts prompt and output,
    as transformers'. `logit_bias` is pairs of token id and what is added to its logit.
    """

    logit_bias: tuple[tuple[int, float], ...] = ()
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    thinking: ThinkingBudget | None = None


UNADJUSTED = Adjustments()


@dataclass(frozen=True)
class SamplingParams:
    """What the caller asks of the token distribution; temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    adjustments: Adjustments = UNADJUSTED

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0


@dataclass(frozen=True)
class StopConditions:
    """When a sequence ends: after `max_tokens`, or at one of `token_ids` (which is not emitted as text).

    Zero tokens are a prompt that is only read, for its log-probabilities.
    The first `min_tokens` tokens are none of `token_ids`.
    """

    max_tokens: int
    token_ids: frozenset[int] = frozenset()
    min_tokens: int = 0


@dataclass(frozen=True)
class TokenLogprobs:
    """A token with its log-probability, and the most likely tokens in its place, best first.

    They are the model's own, from before any adjustment or temperature. The first token of a prompt
    has none.
    """

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


class FinishReason(StrEnum):
    """ERROR is a grammar that grew too complex on the way, or the `failure` of a sequence."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True)
class Route:
    """The router's decision for one prompt.

    `similarity` is the centred cosine to the nearest anchor; None where nothing was looked up.
    """

    domain: str
    draft: DraftModel
    similarity: float | None = None


@dataclass(frozen=True)
class Place:
    """Where a prompt lies among the anchors: its point in their plane, and the nearest ones, the very nearest first.

    An anchor is a domain and a number within it: ("sql", 0) is the first of that domain.
    """

    point: tuple[float, float]
    nearest: tuple[tuple[str, int], ...]


OTHER_DOMAIN = "other"
UNROUTED = Route("none", FULL_MODEL)
"""Route of an engine without a routing artifact: everything runs plainly."""


@dataclass
class SequenceStats:
    """What speculation did for one sequence; counts stop at the end of the sequence."""

    num_drafts: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    num_steps: int = 0
    accepted_per_step: Counter[int] = field(default_factory=Counter)
    """How many verifications of a draft accepted so many tokens."""

    @property
    def acceptance(self) -> float | None:
        return self.num_accepted / self.num_drafted if self.num_drafted else None

    @property
    def mean_accepted_length(self) -> float | None:
        """Tokens emitted per verification that had a draft, the corrected or bonus token included."""
        return 1 + self.num_accepted / self.num_drafts if self.num_drafts else None

    def copy(self) -> "SequenceStats":
        return replace(self, accepted_per_step=Counter(self.accepted_per_step))

    def record(self, num_drafted: int, num_accepted: int) -> None:
        self.num_steps += 1
        if num_drafted:
            self.accepted_per_step[num_accepted] += 1
            self.num_drafts += 1
            self.num_drafted += num_drafted
            self.num_accepted += num_accepted


@dataclass(frozen=True)
class TracedStep:
    """Where a step's tokens came from: `origin` drafted the first `num_accepted`, and then the `rejected` ids.

    `origin` is a drafter's name, `patch`, or `plain` where nothing was drafted.
    """

    origin: str = PLAIN
    num_accepted: int = 0
    rejected: tuple[int, ...] = ()


@dataclass(frozen=True)
class RowStats:
    """One sequence's part in one decode step."""

    domain: str
    num_drafted: int
    num_accepted: int
    num_emitted: int
    drafter: str = PLAIN


@dataclass
class StepStats:
    """What one engine step did and how long its parts took, in seconds; observers turn it into metrics."""

    prefill_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that did not have to be read."""
    prefill_seconds: float = 0.0
    routes: list[Route] = field(default_factory=list)
    route_seconds: float = 0.0
    draft_seconds: float = 0.0
    drafting_seconds: dict[str, float] = field(default_factory=dict)
    """Of these, those of each drafter that took passes of the model."""
    verify_seconds: float = 0.0
    decode_seconds: float = 0.0
    """Draft, verify and commit together: what the emitted tokens cost."""
    is_baseline: bool = False
    """A decode step run plainly on purpose, to measure what speculation is compared with."""
    rows: list[RowStats] = field(default_factory=list)
    num_running: int = 0
    num_waiting: int = 0
    num_preempted: int = 0
    """Sequences that lost their slot, to begin again later."""
    num_evicted: int = 0
    """Blocks of texts of the past whose content was lost to others."""
