"""The engine's public face: what other packages may import, by name."""

import server.engine

NAMES = """
DEFAULT_ARTIFACT EMPTY_MASK FULL_MODEL GENERIC HERMES LLAMA MAX_DRAFT MAX_THREADS MISTRAL OTHER_DOMAIN PLAIN
THINK_BEGIN THINK_END UNADJUSTED UNROUTED Activations Adjustments ArtifactError ChatError Checkpoint CheckpointError
CompiledGrammar Decoder DecoderConfig DomainRecord DraftHead DraftModel DraftRecord DraftVocabulary DraftWeights
DtypeName Emission Engine EngineConfig FinishReason GenerationRequest Grammar GrammarCompiler GrammarError HistoryError
JsonMask KVCache Manifest MemoryPlan MemoryPlanError Method Outline Patch PatchRecord Place PromptTooLongError
Quantization Route Router RoutingArtifact Row RowStats SamplingParams Sequence SequenceStats SkipMask StepStats
StepTexts StopConditions TextCodec TextStream TextTrace Thinking ThinkingBudget TokenBatch TokenLogprobs TokenText
ToolFormat TracedStep Vocabulary Wishes add_draft answer_counts available_memory can_enforce_pattern held_back
interleaved_quartiles json_rule kernel_build load_checkpoint load_counts load_model method_named methods parse_device
parse_dtype plan_memory prompt_vector public_name save_counts similarities use_threads
"""


def test_the_exported_names_are_these() -> None:
    """A name that is added or goes is a decision: it changes what the server and the offline tools may rely on."""
    assert server.engine.__all__ == NAMES.split()
    assert all(hasattr(server.engine, name) for name in server.engine.__all__)
