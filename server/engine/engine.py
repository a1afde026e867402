"""The engine: requests in, tokens out, several at once. `take_step` tells the story; read it first.

It knows token ids and tensors only: no text, no HTTP, no metrics. One thread owns it.
"""

import itertools
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor

from server.engine.config import EngineConfig
from server.engine.history.history import History
from server.engine.kvcache.budget import fitting_length
from server.engine.kvcache.cache import BLOCK_LENGTH, blocks_of
from server.engine.kvcache.pool import BlockPool
from server.engine.kvcache.tables import BlockTables
from server.engine.kvcache.tree import PrefixTree
from server.engine.masks.artifact import RoutingArtifact
from server.engine.masks.base import MaskParts, MaskSource, mask_sources
from server.engine.masks.router import Router
from server.engine.model.checked import MOST_LOGITS
from server.engine.model.decoder import Decoder
from server.engine.pace import Pace
from server.engine.prefixes import Prefixes
from server.engine.requests import GenerationRequest, check_request
from server.engine.sampling.logprobs import score_prompt
from server.engine.sampling.own_tokens import own_tokens
from server.engine.sampling.sampler import Sampled, sample
from server.engine.scheduler import Chunk, Scheduler, StepPlan
from server.engine.sequence import Emission, Sequence
from server.engine.speculation.base import NO_DRAFT, Draft, DraftingParts
from server.engine.speculation.policy import DraftPolicy
from server.engine.speculation.speculator import Speculator
from server.engine.speculation.verification import Verification, verify
from server.engine.trees import CheckedDraft, Tree, check_batch
from server.engine.types import (
    LONGEST_GROWTH,
    MAX_DRAFT,
    UNROUTED,
    FinishReason,
    RowStats,
    StepStats,
    TokenLogprobs,
    TracedStep,
)


class Engine:
    """A batch of sequences over one model, each with its own mask, method and sampling."""

    def __init__(self, model: Decoder, config: EngineConfig, artifact: RoutingArtifact | None = None) -> None:
        self.model = model
        self.config = config
        fitting = fitting_length(model.config, config.max_batch, model.dtype, model.device)
        self.max_length = min(config.max_length or fitting, model.config.max_length)
        num_tokens = max(config.cache_tokens or config.max_batch * self.max_length, self.max_length)
        num_blocks = blocks_of(num_tokens)
        self.cache = model.new_shared_cache(config.max_batch, self.max_length, num_blocks)
        tree = PrefixTree()
        self.tables = BlockTables(self.cache, BlockPool(num_blocks, tree))
        self.pace = Pace(config.prefill_chunk, config.reading_share)
        prefixes = Prefixes(self.tables, tree, config.reuses_prefixes)
        self.scheduler = Scheduler(config.max_batch, self.pace, self.tables, prefixes)
        self.router = Router(artifact, config.max_draft, config.confidence) if artifact else None
        self.mask_sources = mask_sources(MaskParts(model, self.cache, artifact, self.router))
        mixed = artifact.manifest.mixed.draft if artifact else None
        if mixed and mixed.patch:
            # What suits a patch, short drafts and a floor, suits no draft of another kind.
            mixed = None
        confidence = config.confidence if config.confidence is not None else mixed.confidence if mixed else 0.5
        self.max_draft = config.max_draft if config.max_draft is not None else mixed.max_draft if mixed else 8
        policy = DraftPolicy() if config.is_adaptive else None
        seeds = artifact.history if artifact else {}
        self.history = History(config.history_bytes, seeds) if History.is_built() else None
        parts = DraftingParts(model, self.cache, confidence, self.history, config.max_tree > 0)
        self.speculator = Speculator.of(parts, policy, config.max_tree)
        self.numbers = itertools.count()
        self.is_at_work = False
        self.steps_until_baseline = self.baseline_interval

    @property
    def baseline_interval(self) -> int:
        return round(1 / self.config.baseline_share) if self.config.baseline_share else 0

    @property
    def longest_draft(self) -> int:
        """No draft is longer, grown or of any domain, unless its request asks for that."""
        chains = [route.draft.max_draft or 0 for route in self.router.all] if self.router else []
        return max(min(LONGEST_GROWTH * self.max_draft, MAX_DRAFT), *chains, 0)

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    @property
    def num_running(self) -> int:
        return len(self.scheduler.running)

    @property
    def num_waiting(self) -> int:
        return self.scheduler.num_waiting

    @property
    def num_held(self) -> int:
        """Tokens that used and kept blocks hold, or have room for."""
        return (self.tables.pool.num_blocks - len(self.tables.pool.free)) * BLOCK_LENGTH

    @property
    def cache_tokens(self) -> int:
        """Tokens that all blocks hold."""
        return self.tables.pool.num_blocks * BLOCK_LENGTH

    def add(self, request: GenerationRequest) -> Sequence:
        """Queues a request.

        Raises `PromptTooLongError` where prompt and one token exceed the context, `ValueError` for
        what cannot be run.
        """
        check_request(request, self.model.config.vocabulary_size, self.max_length)
        max_draft = self.max_draft if request.max_draft is None else request.max_draft
        method = request.method or self.config.method
        if method not in self.speculator.methods:
            raise ValueError(f"this engine has no method {method!r}, only {', '.join(self.speculator.methods)}")
        sequence = Sequence.of(next(self.numbers), request, method, max_draft, self.max_length)
        self.scheduler.add(sequence)
        return sequence

    def lacks(self, method: str) -> str | None:
        """What this method cannot draft without and the engine does not have."""
        known = self.speculator.methods[method]
        if known.needs_artifact and self.router is None:
            return "a routing artifact"
        if known.needs_draft_weights and self.model.low_bit is None:
            return "draft weights"
        if known.drafters and not any(name in self.speculator.drafters for name in known.drafters):
            return "the compiled table of counts"
        return None

    def cancel(self, sequence: Sequence) -> None:
        """Ends a sequence now; its slot is free for the next step."""
        if sequence.finish_reason is None:
            self.finish(sequence, FinishReason.CANCELLED)

    def step(self) -> tuple[list[Emission], StepStats]:
        """Admits what fits, decodes one draft and verification for whoever can, and reads on in the other prompts."""
        with self.at_work():
            return self.take_step()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """What steps need of torch, in this thread. Around many of them it saves each the time of setting it up."""
        if self.is_at_work:
            yield
            return
        with torch.inference_mode(), self.model.lone_threads():
            self.is_at_work = True
            try:
                yield
            finally:
                self.is_at_work = False

    def take_step(self) -> tuple[list[Emission], StepStats]:
        stats = StepStats()
        before = self.scheduler.num_preempted, self.tables.pool.num_evicted
        # 1) Who takes part: every sequence whose prompt was read, and chunks of the other prompts.
        plan = self.scheduler.plan()
        # 2) Draft cheaply.
        drafts = self.draft(plan, stats) if plan.decoding else {}
        # 3) One full pass reads on in prompts, and says what the model itself writes after each drafted token.
        found, states = self.run(plan, drafts, stats)
        # 4) Keep what agrees and one token more, and hand it out; a prompt that was read to its end has a first token.
        emissions = self.commit(plan.decoding, found, stats) if plan.decoding else []
        emissions += self.begin(plan.chunks, states, stats) if plan.chunks else []
        stats.num_running, stats.num_waiting = self.num_running, self.num_waiting
        stats.num_preempted = self.scheduler.num_preempted - before[0]
        stats.num_evicted = self.tables.pool.num_evicted - before[1]
        return emissions, stats

    def commit(self, decoding: list[Sequence], found: dict[int, CheckedDraft], stats: StepStats) -> list[Emission]:
        """Moves every decoding sequence on; drafters and policy learn what their drafts were worth."""
        started = time.perf_counter()
        checks = [self.accept(s, found[s.id], stats) for s in decoding]
        drafts = {number: each.draft for number, each in found.items() if each.draft is not NO_DRAFT}
        self.speculator.learn(decoding, drafts, checks, stats)
        emissions = [self.emit_checked(s, found[s.id], c) for s, c in zip(decoding, checks, strict=True)]
        stats.decode_seconds = stats.draft_seconds + stats.verify_seconds + time.perf_counter() - started
        return emissions

    def generate(self, requests: list[GenerationRequest]) -> list[Sequence]:
        """Runs requests to their end; for offline use."""
        sequences = [self.add(request) for request in requests]
        with self.at_work():
            while any(sequence.finish_reason is None for sequence in sequences):
                self.step()
        return sequences

    def begin(self, chunks: list[Chunk], states: Iterable[Tensor], stats: StepStats) -> list[Emission]:
        """Moves prompts on by the states of their chunks; the last one routes its sequence and emits a first token."""
        started = time.perf_counter()
        begun = [s for s, _ in chunks if s.cursor == s.num_cached and not s.output_ids]
        stats.cached_tokens = sum(sequence.num_cached for sequence in begun)
        for chunk, hidden in zip(chunks, states, strict=True):
            self.keep(chunk, hidden)
        last = [sequence for sequence, _ in chunks if sequence.is_prefilled and not sequence.output_ids]
        for sequence in last:
            sequence.prompt_vector = self.cache.mean_state(sequence.slot, sequence.prompt_length)
        emissions = self.begin_answers(last) if last else []
        stats.prefill_seconds += time.perf_counter() - started
        for sequence in (sequence for sequence in last if sequence.output_ids):
            self.route(sequence, stats)
        return emissions

    def keep(self, chunk: Chunk, hidden: Tensor) -> None:
        """Keeps the states [tokens, hidden_size] of what was read, and moves the cursor behind it."""
        sequence, ids = chunk
        self.cache.keep_states(sequence.slot, sequence.cursor, hidden)
        if sequence.request.scores_prompt and not sequence.output_ids:
            num_top = sequence.request.num_logprobs or 0
            sequence.prompt_logprobs += score_prompt(self.model, hidden, sequence.ids, sequence.cursor, num_top)
        sequence.cursor += len(ids)
        if sequence.is_prefilled:
            sequence.last_state = hidden[-1].clone()

    def begin_answers(self, read: list[Sequence]) -> list[Emission]:
        """First tokens of sequences, by the states of their prompts' ends; who has no room ends here."""
        going = [sequence for sequence in read if sequence.room > 0]
        ended = [sequence for sequence in read if sequence.room <= 0]
        for sequence in ended:
            self.finish(sequence, FinishReason.LENGTH)
        emissions = [Emission(sequence, [], sequence.finish_reason) for sequence in ended]
        if not going:
            return emissions
        first = list[Sampled]()
        for start in range(0, len(going), MOST_LOGITS):
            some = going[start : start + MOST_LOGITS]
            logits = self.model.passing_logits(torch.stack([sequence.last_state for sequence in some]))
            first += sample(logits, [sequence.span([]) for sequence in some])
        for sequence, sampled in zip(going, first, strict=True):
            step = TracedStep() if sequence.request.is_traced else None
            emissions.append(self.emit(sequence, sampled.token_ids, sampled.logprobs, step))
        return emissions

    def route(self, sequence: Sequence, stats: StepStats) -> None:
        """Gives the sequence its mask, by the hidden states of its prompt."""
        started = time.perf_counter()
        source = self.mask_source(sequence)
        sequence.route = sequence.request.route or (source.first_route(sequence) if source else UNROUTED)
        if sequence.request.is_traced and self.router and sequence.prompt_vector is not None:
            sequence.place = self.router.place(sequence.prompt_vector)
        stats.routes.append(sequence.route)
        stats.route_seconds += time.perf_counter() - started

    def mask_source(self, sequence: Sequence) -> MaskSource | None:
        """What its method takes masks from; None where that needs a routing artifact and the engine has none."""
        return self.mask_sources.get(self.speculator.methods[sequence.method].masks)

    def draft(self, plan: StepPlan, stats: StepStats) -> dict[int, Draft]:
        """Drafts for every decoding sequence; now and then for none, to measure plain decoding."""
        started = time.perf_counter()
        self.steps_until_baseline -= 1
        if self.baseline_interval and self.steps_until_baseline <= 0 and not plan.chunks:
            self.steps_until_baseline = self.baseline_interval
            stats.is_baseline = True
            return {}
        drafts = self.speculator.draft(plan.decoding, stats)
        stats.draft_seconds = time.perf_counter() - started
        return drafts

    def run(
        self, plan: StepPlan, drafts: dict[int, Draft], stats: StepStats
    ) -> tuple[dict[int, CheckedDraft], tuple[Tensor, ...]]:
        """One full pass: the model's own token after each drafted one and its states there, and those of each chunk."""
        if not plan.decoding and not plan.chunks:
            return {}, ()
        started = time.perf_counter()
        trees = [Tree.of(sequence, drafts.get(sequence.id, NO_DRAFT)) for sequence in plan.decoding]
        spans = [tree.spans for tree in trees]
        read = [(sequence.slot, sequence.cursor, ids) for sequence, ids in plan.chunks]
        batch = check_batch(trees, self.cache)
        own, states = own_tokens(self.model, self.cache, batch, [span for each in spans for span in each], read)
        sizes = [tree.num_rows for tree in trees] + [len(ids) for _, _, ids in read]
        tokens, parts = iter(own), states.split(sizes) if len(sizes) > 1 else (states,)
        found = {
            tree.sequence.id: tree.best(list(islice(tokens, len(each))), part)
            for tree, each, part in zip(trees, spans, parts, strict=False)
        }
        for sequence in plan.decoding:
            if elsewhere := found[sequence.id].elsewhere:
                self.model.keep_branch(self.cache, sequence.slot, elsewhere, found[sequence.id].first)
        self.book(plan, time.perf_counter() - started, stats)
        return found, parts[len(trees) :]

    def book(self, plan: StepPlan, seconds: float, stats: StepStats) -> None:
        """Says which part of a pass was reading prompts, and which was checking drafts."""
        stats.prefill_tokens = sum(len(ids) for _, ids in plan.chunks)
        stats.prefill_seconds = self.pace.learn(stats.prefill_tokens, seconds, bool(plan.decoding), plan.crowd)
        stats.verify_seconds = seconds - stats.prefill_seconds

    def accept(self, sequence: Sequence, found: CheckedDraft, stats: StepStats) -> Verification:
        """Moves the cursor over what was accepted and the corrected or bonus token, and keeps the states there."""
        draft = found.draft
        check = verify(draft.ids, found.own.token_ids, sequence.request.stop.token_ids, sequence.room)
        accepted = found.states[: len(check.emitted)]
        self.cache.keep_states(sequence.slot, sequence.cursor, accepted)
        sequence.cursor += len(check.emitted)
        sequence.stats.record(check.num_drafted, check.num_accepted)
        domain, counts = sequence.route.domain, (check.num_drafted, check.num_accepted, len(check.emitted))
        stats.rows.append(RowStats(domain, *counts, draft.drafter))
        if sequence.request.route is None and (source := self.mask_source(sequence)):
            sequence.route = source.next_route(sequence, check.emitted)
        if self.speculator.reads_state(sequence):
            sequence.last_state = accepted[-1]
        return check

    def emit_checked(self, sequence: Sequence, found: CheckedDraft, check: Verification) -> Emission:
        step = self.speculator.traced(sequence, found.draft, check)
        return self.emit(sequence, check.emitted, found.own.logprobs, step)

    def emit(
        self, sequence: Sequence, token_ids: list[int], logprobs: list[TokenLogprobs], step: TracedStep | None = None
    ) -> Emission:
        """Appends ids and ends the sequence at a stop token, its own limit, or the end of the context.

        `logprobs` are those of the ids, and may be of more; none where the request asks for none.
        """
        sequence.ids += token_ids
        if sequence.failure or sequence.exceeds_grammar:
            self.finish(sequence, FinishReason.ERROR)
        elif token_ids[-1] in sequence.request.stop.token_ids:
            self.finish(sequence, FinishReason.STOP)
        elif sequence.room <= 0:
            self.finish(sequence, FinishReason.LENGTH)
        return Emission(sequence, token_ids, sequence.finish_reason, logprobs[: len(token_ids)], step)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        sequence.finish_reason = reason
        self.scheduler.release(sequence)
        self.speculator.forget(sequence)
        for source in self.mask_sources.values():
            source.forget(sequence)
