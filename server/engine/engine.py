"""The engine: requests in, tokens out, several at once. `take_step` tells the story; read it first.

It knows token ids and tensors only: no text, no HTTP, no metrics. One thread owns it.
"""

import heapq
import itertools
import time
from collections import deque

import torch
from torch import Tensor

from server.engine.config import EngineConfig
from server.engine.kvcache.slots import TokenBatch
from server.engine.masks.artifact import RoutingArtifact
from server.engine.masks.router import Router, prompt_vector
from server.engine.model.decoder import Decoder
from server.engine.requests import GenerationRequest, check_request
from server.engine.sampling.logprobs import score, score_prompt
from server.engine.sampling.sampler import Choices, Span, choices, greedy_choices
from server.engine.sequence import Emission, Sequence
from server.engine.speculation.drafting import NO_DRAFT, LookupDrafter, MethodDrafter, SkipDrafter
from server.engine.speculation.policy import Draft, DraftPolicy
from server.engine.speculation.verification import count_accepted, verify
from server.engine.types import LONGEST_GROWTH, MAX_DRAFT, UNROUTED, FinishReason, RowStats, StepStats


class Engine:
    """A batch of sequences over one model, each with its own mask, method and sampling."""

    def __init__(self, model: Decoder, config: EngineConfig, artifact: RoutingArtifact | None = None) -> None:
        self.model = model
        self.config = config
        self.max_length = min(config.max_length or model.config.max_length, model.config.max_length)
        self.cache = model.new_cache(config.max_batch, self.max_length)
        self.router = Router(artifact) if artifact else None
        manifest = artifact.manifest if artifact else None
        confidence = config.confidence if config.confidence is not None else manifest.confidence if manifest else 0.5
        self.max_draft = config.max_draft if config.max_draft is not None else manifest.max_draft if manifest else 8
        self.longest_draft = min(LONGEST_GROWTH * self.max_draft, MAX_DRAFT)
        policy = DraftPolicy() if config.is_adaptive else None
        self.drafter = MethodDrafter(SkipDrafter(model, self.cache, confidence), LookupDrafter(), policy)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.free_slots = list(range(config.max_batch))
        self.numbers = itertools.count()
        self.steps_until_baseline = self.baseline_interval

    @property
    def baseline_interval(self) -> int:
        return round(1 / self.config.baseline_share) if self.config.baseline_share else 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def num_running(self) -> int:
        return len(self.running)

    @property
    def num_waiting(self) -> int:
        return len(self.waiting)

    def add(self, request: GenerationRequest) -> Sequence:
        """Queues a request.

        Raises `PromptTooLongError` where prompt and one token exceed the context, `ValueError` for
        what cannot be run.
        """
        check_request(request, self.model.config.vocabulary_size, self.max_length)
        max_draft = self.max_draft if request.max_draft is None else request.max_draft
        method = request.method or self.config.method
        sequence = Sequence.of(next(self.numbers), request, method, max_draft, self.max_length)
        self.waiting.append(sequence)
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        """Ends a sequence now; its slot is free for the next step."""
        if sequence.finish_reason is None:
            self.finish(sequence, FinishReason.CANCELLED)

    @torch.inference_mode()
    def step(self) -> tuple[list[Emission], StepStats]:
        """Admits what fits, advances one prefill, and decodes one draft and verification for the rest."""
        with self.model.lone_threads():
            return self.take_step()

    def take_step(self) -> tuple[list[Emission], StepStats]:
        stats = StepStats()
        self.admit()
        decoding = [s for s in self.running if s.is_prefilled]
        emissions = self.prefill(stats)
        if decoding:
            started = time.perf_counter()
            drafts = self.draft(decoding, stats)
            chosen = self.choose_next(decoding, drafts, stats)
            accepted = [self.accept(s, drafts.get(s.id, NO_DRAFT).ids, chosen[s.id].token_ids, stats) for s in decoding]
            self.drafter.learn(decoding, drafts, accepted, stats)
            emissions += [self.emit(s, ids, chosen[s.id].logits) for s, ids in zip(decoding, accepted, strict=True)]
            stats.decode_seconds = time.perf_counter() - started
        stats.num_running, stats.num_waiting = self.num_running, self.num_waiting
        return emissions, stats

    def generate(self, requests: list[GenerationRequest]) -> list[Sequence]:
        """Runs requests to their end; for offline use."""
        sequences = [self.add(request) for request in requests]
        while any(sequence.finish_reason is None for sequence in sequences):
            self.step()
        return sequences

    def admit(self) -> None:
        while self.waiting and self.free_slots:
            sequence = self.waiting.popleft()
            sequence.slot = heapq.heappop(self.free_slots)
            if self.model.native is None:
                self.cache.clear(sequence.slot)
            sequence.admitted_at = time.perf_counter()
            self.running.append(sequence)

    def prefill(self, stats: StepStats) -> list[Emission]:
        """Runs the next chunk of the oldest unfinished prompt; the last chunk routes and emits the first token."""
        sequence = next((s for s in self.running if not s.is_prefilled), None)
        if sequence is None:
            return []
        started = time.perf_counter()
        chunk = sequence.ids[sequence.cursor : sequence.cursor + self.config.prefill_chunk]
        batch = TokenBatch.of([(sequence.slot, sequence.cursor, chunk)], self.cache)
        hidden = self.model.forward(batch, self.cache)
        sequence.hidden_chunks.append(hidden)
        if sequence.request.scores_prompt:
            sequence.prompt_logprobs += score_prompt(self.model, hidden, sequence)
        sequence.cursor += len(chunk)
        stats.prefill_tokens = len(chunk)
        if not sequence.is_prefilled:
            stats.prefill_seconds = time.perf_counter() - started
            return []
        if sequence.room <= 0:
            stats.prefill_seconds = time.perf_counter() - started
            self.finish(sequence, FinishReason.LENGTH)
            return [Emission(sequence, [], sequence.finish_reason)]
        (first,) = choices(self.model.logits(hidden[-1:]), [Span(sequence, [], num_rows=1)])
        emission = self.emit(sequence, *first)
        stats.prefill_seconds = time.perf_counter() - started
        self.route(sequence, stats)
        return [emission]

    def route(self, sequence: Sequence, stats: StepStats) -> None:
        """Selects the sequence's mask from the hidden states of its prompt."""
        started = time.perf_counter()
        sequence.prompt_vector = prompt_vector(torch.cat(sequence.hidden_chunks))
        sequence.hidden_chunks.clear()
        if sequence.request.route is not None:
            sequence.route = sequence.request.route
        else:
            sequence.route = self.router.route(sequence.prompt_vector) if self.router else UNROUTED
        stats.routes.append(sequence.route)
        stats.route_seconds += time.perf_counter() - started

    def draft(self, decoding: list[Sequence], stats: StepStats) -> dict[int, Draft]:
        """Drafts for every decoding sequence; now and then for none, to measure plain decoding."""
        started = time.perf_counter()
        self.steps_until_baseline -= 1
        if self.steps_until_baseline == 0:
            self.steps_until_baseline = self.baseline_interval
            stats.is_baseline = True
            return {}
        drafts = self.drafter.draft(decoding)
        stats.draft_seconds = time.perf_counter() - started
        return drafts

    def choose_next(self, decoding: list[Sequence], drafts: dict[int, Draft], stats: StepStats) -> dict[int, Choices]:
        """One full pass over all drafted tokens: the model's own choice after each of them."""
        started = time.perf_counter()
        drafted = [drafts.get(s.id, NO_DRAFT).ids for s in decoding]
        rows = [(s.slot, s.cursor, [s.ids[-1], *ids]) for s, ids in zip(decoding, drafted, strict=True)]
        spans = [Span(s, ids, num_rows=len(ids) + 1) for s, ids in zip(decoding, drafted, strict=True)]
        batch = TokenBatch.of(rows, self.cache)
        if any(s.needs_logits for s in decoding):
            chosen = choices(self.model.logits(self.model.forward(batch, self.cache)), spans)
        else:
            chosen = greedy_choices(self.model.greedy(batch, self.cache), spans)
        stats.verify_seconds = time.perf_counter() - started
        return {s.id: one for s, one in zip(decoding, chosen, strict=True)}

    def accept(self, sequence: Sequence, drafted: list[int], chosen: list[int], stats: StepStats) -> list[int]:
        """Moves the cursor over what was accepted and the corrected or bonus token; returns all of them."""
        emitted = verify(drafted, chosen, sequence.request.stop.token_ids, sequence.room)
        num_accepted = min(count_accepted(drafted, chosen), len(emitted))
        num_drafted = len(drafted) if len(emitted) > num_accepted else num_accepted
        sequence.cursor += len(emitted)
        sequence.stats.record(num_drafted, num_accepted)
        stats.rows.append(RowStats(sequence.route.domain, num_drafted, num_accepted, len(emitted)))
        return emitted

    def emit(self, sequence: Sequence, token_ids: list[int], logits: Tensor | None) -> Emission:
        """Appends ids and ends the sequence at a stop token, its own limit, or the end of the context.

        `logits` are the rows that the ids were chosen in; it may have more, and is None where nobody asked.
        """
        sequence.ids += token_ids
        if sequence.walk and sequence.walk.failed_at == len(sequence.ids) - 1:
            self.finish(sequence, FinishReason.ERROR)
        elif token_ids[-1] in sequence.request.stop.token_ids:
            self.finish(sequence, FinishReason.STOP)
        elif sequence.room <= 0:
            self.finish(sequence, FinishReason.LENGTH)
        num_top, logprobs = sequence.request.num_logprobs, []
        if num_top is not None and logits is not None:
            logprobs = score(logits[: len(token_ids)], token_ids, num_top)
        return Emission(sequence, token_ids, sequence.finish_reason, logprobs)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        sequence.finish_reason = reason
        if sequence in self.running:
            self.running.remove(sequence)
            heapq.heappush(self.free_slots, sequence.slot)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self.drafter.forget(sequence)
