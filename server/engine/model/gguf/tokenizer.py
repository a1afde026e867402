"""Builds the tokenizer that a GGUF file describes, with the ids of the model's original one.

Two kinds cover our architectures: byte-level BPE (`gpt2`: Llama 3, Qwen, SmolLM, Mistral Nemo) and SentencePiece BPE
(`llama`: Llama 2, Mistral). A file gives tokens and merges; how text is normalised and split before them it only names,
and the rules behind the names stand here. A wrong split gives plausible text and other ids, so that a name which is
not here is refused.
"""

from dataclasses import dataclass
from typing import Any

from gguf.constants import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from server.engine.model.gguf.file import GgufFile
from server.engine.model.weights import CheckpointError

CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Llama 3's and Qwen's way to split words; they differ in how many digits stay together."""
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Splitting:
    """How a byte-level tokenizer treats text before its merges; without a `pattern`, as GPT-2 does."""

    pattern: str | None = None
    has_single_digits: bool = False
    is_composed: bool = False
    """Whether text is brought to Unicode's composed form (NFC)."""
    takes_whole_words: bool = False
    """Whether a word that is a token is that one, whatever the merges make of it."""
    adds_bos: bool = False
    """Whether plain text begins with the BOS token where the file does not say."""


LLAMA_3 = Splitting(CL100K % r"\p{N}{1,3}", takes_whole_words=True, adds_bos=True)
QWEN_2 = Splitting(CL100K % r"\p{N}", is_composed=True)
SPLITTINGS = {
    "llama-bpe": LLAMA_3,
    "llama3": LLAMA_3,
    "llama-v3": LLAMA_3,
    "smaug-bpe": Splitting(CL100K % r"\p{N}{1,3}"),
    "qwen2": QWEN_2,
    "deepseek-r1-qwen": QWEN_2,
    "tekken": Splitting(TEKKEN, takes_whole_words=True, adds_bos=True),
    "smollm": Splitting(has_single_digits=True),
    "gpt-2": Splitting(),
}
"""By `tokenizer.ggml.pre`; llama.cpp has the same names in `llama-vocab.cpp`."""

TURN_ENDS = frozenset(
    [
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<|end_of_turn|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
    ]
)
"""Tokens that end a turn or a text wherever a vocabulary has them; many files name only one of theirs."""

SPACE = "\u2581"
SENTENCEPIECE_IDS = {"bos": 1, "eos": 2, "unknown": 0}
"""The special tokens of a SentencePiece file that does not name them, as llama.cpp takes them."""


class GgufVocabulary:
    """The tokens of a file, their kinds, and the special ones among them."""

    def __init__(self, file: GgufFile) -> None:
        if "tokenizer.ggml.tokens" not in file.metadata:
            raise CheckpointError(f"{file.path} has no tokenizer; use a file that was converted with its vocabulary")
        self.file = file
        self.is_sentencepiece = self.kind() == "llama"
        self.tokens: list[str] = file.get("tokenizer.ggml.tokens", list)
        normal = [int(TokenType.NORMAL)] * len(self.tokens)
        self.types: list[int] = self.array("token_type", normal)

    def kind(self) -> str:
        kind = str(self.file.get("tokenizer.ggml.model", str))
        if kind not in ("gpt2", "llama"):
            raise CheckpointError(f"{self.file.path} has the tokenizer {kind!r}; supported: 'gpt2', 'llama'")
        return kind

    def array(self, name: str, default: list[Any] | None = None) -> list[Any]:
        """An array with one item for each token."""
        values: list[Any] = self.file.get(f"tokenizer.ggml.{name}", list, default)
        if len(values) != len(self.tokens):
            raise CheckpointError(f"{self.file.path} has {len(self.tokens)} tokens and {len(values)} {name}s")
        return values

    @property
    def ids(self) -> dict[str, int]:
        """Ids by token, without those that only fill up the embedding matrix."""
        return {token: i for i, token in enumerate(self.tokens) if self.types[i] != TokenType.UNUSED}

    def special(self, role: str) -> int | None:
        """The id of the token in a role such as `eos`, where there is one."""
        default = SENTENCEPIECE_IDS.get(role, -1) if self.is_sentencepiece else -1
        number = int(self.file.get(f"tokenizer.ggml.{role}_token_id", int, default))
        return number if 0 <= number < len(self.tokens) else None

    def added_tokens(self) -> list[AddedToken]:
        """The tokens that are found in text before it is split, in the order of their ids."""
        is_special: dict[int, bool] = {TokenType.CONTROL: True, TokenType.UNKNOWN: True, TokenType.USER_DEFINED: False}
        return [
            AddedToken(token, special=token in TURN_ENDS or is_special[kind], normalized=False)
            for token, kind in zip(self.tokens, self.types, strict=True)
            if token in TURN_ENDS or kind in is_special
        ]


def build_tokenizer(vocabulary: GgufVocabulary) -> Tokenizer:
    """The tokenizer itself; raises `CheckpointError` for one whose rules are not here."""
    file = vocabulary.file
    tokenizer, adds_bos = sentencepiece(vocabulary) if vocabulary.is_sentencepiece else byte_level(vocabulary)
    tokenizer.add_tokens(vocabulary.added_tokens())
    bos = vocabulary.special("bos")
    if bos is not None and file.get("tokenizer.ggml.add_bos_token", bool, adds_bos):
        token = vocabulary.tokens[bos]
        tokenizer.post_processor = processors.TemplateProcessing(single=[token, "$A"], special_tokens=[(token, bos)])
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def byte_level(vocabulary: GgufVocabulary) -> tuple[Tokenizer, bool]:
    """The tokenizer, and whether it adds BOS where the file does not say."""
    file = vocabulary.file
    name = file.metadata.get("tokenizer.ggml.pre", "none")
    if name not in SPLITTINGS:
        raise CheckpointError(
            f"{file.path} splits text by the rules {name!r} (tokenizer.ggml.pre), which are not supported; "
            f"supported: {', '.join(SPLITTINGS)}"
        )
    splitting = SPLITTINGS[name]
    merges = [tuple(merge.split(" ", 1)) for merge in file.get("tokenizer.ggml.merges", list)]
    tokenizer = Tokenizer(models.BPE(vocabulary.ids, merges, ignore_merges=splitting.takes_whole_words))
    if splitting.is_composed:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[pre_tokenizers.PreTokenizer] = []
    if splitting.has_single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if splitting.pattern:
        steps.append(pre_tokenizers.Split(Regex(splitting.pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splitting.pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, splitting.adds_bos


def sentencepiece(vocabulary: GgufVocabulary) -> tuple[Tokenizer, bool]:
    """SentencePiece's BPE with bytes for what it has no token for, as Hugging Face writes it; it adds BOS."""
    unknown = vocabulary.special("unknown")
    model = models.BPE(
        vocabulary.ids,
        sentencepiece_merges(vocabulary),
        unk_token=None if unknown is None else vocabulary.tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    normalizer: list[normalizers.Normalizer] = [normalizers.Replace(" ", SPACE)]
    decoder: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.file.get("tokenizer.ggml.add_space_prefix", bool, True):
        normalizer.insert(0, normalizers.Prepend(SPACE))
        decoder.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(normalizer)
    tokenizer.decoder = decoders.Sequence(decoder)
    return tokenizer, True


def sentencepiece_merges(vocabulary: GgufVocabulary) -> list[tuple[str, str]]:
    """Each way to make a token of two others, best score first: SentencePiece has scores where BPE has merges."""
    ids, scores = vocabulary.ids, vocabulary.array("scores")
    by_score = sorted(ids.items(), key=lambda item: -scores[item[1]])
    merges = []
    for token, i in by_score:
        if vocabulary.types[i] == TokenType.NORMAL:
            halves = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
            known = [(left, right) for left, right in halves if left in ids and right in ids]
            merges += sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return merges


def end_ids(vocabulary: GgufVocabulary) -> frozenset[int]:
    """The tokens that end an answer: those that the file names, and what else is known to end a turn."""
    named = {vocabulary.special(role) for role in ("eos", "eot", "eom")} - {None}
    known = {i for i, token in enumerate(vocabulary.tokens) if token in TURN_ENDS}
    return frozenset(i for i in named | known if i is not None)


def tokenizer_settings(vocabulary: GgufVocabulary) -> dict[str, Any]:
    """Special tokens and chat template, by their names in Hugging Face's tokenizer config."""
    roles = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    ids = {f"{name}_token": vocabulary.special(role) for role, name in roles.items()}
    tokens = {name: vocabulary.tokens[i] for name, i in ids.items() if i is not None}
    return {**tokens, "chat_template": chat_template(vocabulary.file)}


def chat_template(file: GgufFile) -> str | dict[str, str] | None:
    """The template; where the file has several, all of them by name, one for conversations with tools among them."""
    prefix = "tokenizer.chat_template"
    named = {key[len(prefix) + 1 :]: str(text) for key, text in file.metadata.items() if key.startswith(prefix + ".")}
    default = file.get(prefix, str, "") or None
    return {**named, "default": default} if named and default else default
