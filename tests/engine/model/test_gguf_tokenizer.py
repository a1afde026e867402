"""Tokenizers of GGUF files have the ids of the originals, which are spelled out here as Hugging Face has them."""

import json
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import TokenType
from tokenizers import Tokenizer, pre_tokenizers

from server.engine import Checkpoint, CheckpointError, TextCodec, load_checkpoint
from server.engine.model.gguf.file import GgufFile
from server.engine.model.gguf.tokenizer import (
    SPLITTINGS,
    GgufVocabulary,
    build_tokenizer,
    end_ids,
    sentencepiece_merges,
)
from tests.gguf_files import MERGES, TOKENS, Metadata, tokenizer_metadata, write_gguf
from tests.tiny import CHAT_TEMPLATE, CPU, SPECIAL_TOKENS, save_random_model, tiny_config

TEXTS = [
    "Hello, world! I'm fine; you'LL see what they've DONE.",
    "Die Katze saß auf der Straße; Les élèves étaient à l\u2019école.",
    "Быстрая лиса, 1234567 рублей. 猫は座った。２０２４年 한국어 العربية १२३ ไทย",
    "cafe\u0301 nai\u0308ve A\u030a \u1100\u1161\u11a8 ﬁ Å",
    "0 12 345 6789 3.14159 1e-10 0x1F v1.2.3 a1b22c333",
    "  two\n\n\n three \t\ttabs\r\n\r\n \n  \u00a0nbsp\u3000wide   ",
    "def f(x):\n\treturn {'a': x ** 2}  # hello\n\n\nclass HTTPServer: pass\n",
    "😀👩‍👩‍👧🏳️‍🌈 ∑∫ ½ Ⅳ ²",
    "<s>hello</s> <|user|>hello world<|assistant|>\n",
    "\n",
    " ",
    "",
]
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def bytes_of(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


DIGITS = {"type": "Digits", "individual_digits": True}
NFC = {"type": "NFC"}
ORIGINALS: dict[str, tuple[list[dict[str, Any]], dict[str, Any] | None, bool]] = {
    "llama-bpe": ([split(WORDS + r"\p{N}{1,3}" + REST), bytes_of(False)], None, True),
    "smaug-bpe": ([split(WORDS + r"\p{N}{1,3}" + REST), bytes_of(False)], None, False),
    "qwen2": ([split(WORDS + r"\p{N}" + REST), bytes_of(False)], NFC, False),
    "tekken": ([split(TEKKEN), bytes_of(False)], None, True),
    "smollm": ([DIGITS, bytes_of(True)], None, False),
    "gpt-2": ([bytes_of(True)], None, False),
}
"""Pre-tokenizer, normalizer and `ignore_merges` of Llama 3, Smaug, Qwen, Mistral Nemo, SmolLM and GPT-2."""


def original(name: str, tokens: list[str], merges: list[str]) -> Tokenizer:
    steps, normalizer, ignores_merges = ORIGINALS[name]
    added = [{"id": i, "content": token, "special": True} for i, token in enumerate(SPECIAL_TOKENS)]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    model = {"type": "BPE", "vocab": vocabulary, "merges": merges, "ignore_merges": ignores_merges}
    content = {
        "version": "1.0",
        "added_tokens": [{**token, **flags} for token in added],
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": bytes_of(True),
        "model": model,
    }
    return Tokenizer.from_str(json.dumps(content))


def words_of(name: str, text: str) -> list[str]:
    normalised = unicodedata.normalize("NFC", text) if ORIGINALS[name][1] else text
    return [word for word, _ in original(name, TOKENS, []).pre_tokenizer.pre_tokenize_str(normalised)]


def learned(name: str) -> tuple[list[str], list[str]]:
    """Tokens and merges of pairs that the texts have, across words as well: where a split is missing, ids differ."""
    found: dict[str, None] = {}
    for text in TEXTS:
        letters = "".join(words_of(name, text))
        found.update({f"{first} {second}": None for first, second in pairwise(letters)})
    merges = [merge for merge in found if merge not in MERGES]
    return [*TOKENS, *(merge.replace(" ", "") for merge in merges)], [*MERGES, *merges]


def vocabulary(**changes: Any) -> GgufVocabulary:
    renamed = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    metadata = {**tokenizer_metadata(), **renamed}
    return GgufVocabulary(GgufFile(Path("model.gguf"), {k: v for k, v in metadata.items() if v is not None}, {}))


def types(tokens: list[str], **kinds: TokenType) -> list[int]:
    named = {TOKENS.index(token): kind for token, kind in kinds.items()}
    return [
        named.get(i, TokenType.CONTROL if i < len(SPECIAL_TOKENS) else TokenType.NORMAL) for i in range(len(tokens))
    ]


@pytest.mark.parametrize("name", ORIGINALS)
def test_ids_and_text_are_those_of_the_original(name: str) -> None:
    tokens, merges = learned(name)
    built = build_tokenizer(
        vocabulary(pre=name, tokens=tokens, merges=merges, token_type=types(tokens), add_bos_token=False)
    )
    reference = original(name, tokens, merges)
    for text in TEXTS:
        ids = built.encode(text).ids
        assert ids == reference.encode(text).ids
        for skipped in (True, False):
            assert built.decode(ids, skip_special_tokens=skipped) == reference.decode(ids, skip_special_tokens=skipped)


def test_the_texts_tell_the_splittings_apart() -> None:
    words = {str([words_of(name, text) for text in TEXTS]) for name in ORIGINALS}
    assert len(words) == len(ORIGINALS) - 1, "smaug-bpe splits as Llama 3 does"


@pytest.mark.parametrize("name", SPLITTINGS)
def test_other_names_stand_for_one_of_these(name: str) -> None:
    assert SPLITTINGS[name] in [SPLITTINGS[known] for known in ORIGINALS]


def test_a_word_that_is_a_token_needs_no_merges_in_some() -> None:
    tokens = [*TOKENS, "lleh"]
    changes = {"tokens": tokens, "token_type": types(tokens), "add_bos_token": False}
    for name in ("llama-bpe", "tekken"):
        assert build_tokenizer(vocabulary(pre=name, **changes)).encode("lleh").tokens == ["lleh"]
    assert build_tokenizer(vocabulary(pre="qwen2", **changes)).encode("lleh").tokens == ["ll", "e", "h"]


@pytest.mark.parametrize(
    ("pre", "flag", "expected"),
    [
        ("qwen2", None, False),
        ("qwen2", True, True),
        ("qwen2", False, False),
        ("llama-bpe", None, True),
        ("llama-bpe", False, False),
        ("tekken", None, True),
        ("smollm", None, False),
    ],
)
def test_plain_text_begins_with_bos_where_the_file_or_its_kind_says_so(
    pre: str, flag: bool | None, expected: bool
) -> None:
    tokenizer = build_tokenizer(vocabulary(pre=pre, add_bos_token=flag))
    assert tokenizer.encode("hello").tokens == (["<s>", "hello"] if expected else ["hello"])
    assert tokenizer.encode("hello", add_special_tokens=False).tokens == ["hello"]


def test_tokens_of_the_user_are_found_in_text_and_shown() -> None:
    tokens = [*TOKENS, "<tool_call>", "[PAD268]"]
    kinds = [*types(TOKENS), TokenType.USER_DEFINED, TokenType.UNUSED]
    tokenizer = build_tokenizer(vocabulary(tokens=tokens, token_type=kinds))
    encoded = tokenizer.encode("hello<tool_call></s>[PAD268]")
    assert encoded.tokens[:3] == ["hello", "<tool_call>", "</s>"]
    assert len(tokens) - 1 not in encoded.ids
    assert tokenizer.decode(encoded.ids, skip_special_tokens=True) == "hello<tool_call>[PAD268]"


@pytest.mark.parametrize(
    ("more", "changes", "expected"),
    [
        ([], {}, {"</s>"}),
        ([], {"eos_token_id": None}, set()),
        ([], {"eot_token_id": 5, "eom_token_id": 4}, {"</s>", "<|assistant|>", "<|user|>"}),
        (["<|endoftext|>", "<|im_end|>"], {}, {"</s>", "<|endoftext|>", "<|im_end|>"}),
        (["<|eot_id|>", "<|eom_id|>"], {"eos_token_id": None}, {"<|eot_id|>", "<|eom_id|>"}),
        ([], {"eos_token_id": 100_000}, set()),
    ],
)
def test_an_answer_ends_with_the_text_or_the_turn(more: list[str], changes: Metadata, expected: set[str]) -> None:
    tokens = [*TOKENS, *more]
    kinds = [*types(TOKENS), *[int(TokenType.CONTROL)] * len(more)]
    found = end_ids(vocabulary(tokens=tokens, token_type=kinds, **changes))
    assert {tokens[i] for i in found} == expected


def test_an_end_of_turn_is_special_whatever_its_kind() -> None:
    tokens = [*TOKENS, "<|im_end|>"]
    tokenizer = build_tokenizer(vocabulary(tokens=tokens, token_type=types(tokens)))
    ids = tokenizer.encode("hello<|im_end|>").ids
    assert ids[-1] == len(TOKENS)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hello"


SPACE = "\u2581"
LETTERS = [SPACE, "h", "e", "l", "o", "w", "r", "d", "ä"]
PIECES = {
    "he": -1,
    "ll": -2,
    f"{SPACE}w": -3,
    f"{SPACE}he": -4,
    "llo": -5,
    f"{SPACE}hello": -6,
    "ld": -7,
    "lo": -8,
    "el": -9,
}
SENTENCEPIECE = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES, *LETTERS]
SENTENCEPIECE_MERGES = [
    "h e",
    "l l",
    f"{SPACE} w",
    f"{SPACE} he",
    "ll o",
    "l lo",
    f"{SPACE}he llo",
    "l d",
    "l o",
    "e l",
]
"""In the order of the scores; of two ways to one token, the one whose first part has the lower id comes first."""


def sentencepiece(**changes: Any) -> GgufVocabulary:
    scores = [0.0] * 259 + [float(score) for score in PIECES.values()] + [-100.0] * len(LETTERS)
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
    kinds += [TokenType.NORMAL] * (len(SENTENCEPIECE) - len(kinds))
    fields = {"model": "llama", "pre": None, "tokens": SENTENCEPIECE, "scores": scores, "token_type": kinds}
    return vocabulary(**{**fields, "merges": None, "padding_token_id": None, **changes})


def sentencepiece_original() -> Tokenizer:
    """As Llama 2's `tokenizer.json` is built."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    bos = {"id": "<s>", "ids": [1], "tokens": ["<s>"]}
    steps = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    to_space = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    content = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": SENTENCEPIECE[i], "special": True, **flags} for i in range(3)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": steps,
            "pair": steps,
            "special_tokens": {"<s>": bos},
        },
        "decoder": {"type": "Sequence", "decoders": [to_space, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {token: i for i, token in enumerate(SENTENCEPIECE)},
            "merges": SENTENCEPIECE_MERGES,
        },
    }
    return Tokenizer.from_str(json.dumps(content))


@pytest.mark.parametrize("text", [*TEXTS, "hello world", " hello", "helloworld  hello", "<s>hello</s>hello <unk>"])
def test_sentencepiece_ids_are_those_of_the_original(text: str) -> None:
    built, reference = build_tokenizer(sentencepiece()), sentencepiece_original()
    ids = built.encode(text).ids
    assert ids == reference.encode(text).ids
    for skipped in (True, False):
        assert built.decode(ids, skip_special_tokens=skipped) == reference.decode(ids, skip_special_tokens=skipped)


def test_sentencepiece_merges_are_those_of_the_original() -> None:
    assert [" ".join(pair) for pair in sentencepiece_merges(sentencepiece())] == SENTENCEPIECE_MERGES


def test_sentencepiece_has_its_own_special_tokens_and_flags() -> None:
    ids = {"bos_token_id": None, "eos_token_id": None}
    assert end_ids(sentencepiece(**ids)) == {2}
    assert build_tokenizer(sentencepiece(**ids)).encode("hello").tokens == ["<s>", f"{SPACE}hello"]
    bare = build_tokenizer(sentencepiece(add_space_prefix=False, add_bos_token=False))
    assert bare.encode("hello").tokens == ["he", "llo"]
    assert bare.decode(bare.encode(" hello").ids) == " hello"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tokens": None}, "has no tokenizer; use a file that was converted with its vocabulary"),
        ({"model": None}, "has no tokenizer.ggml.model"),
        ({"model": "t5"}, "has the tokenizer 't5'; supported: 'gpt2', 'llama'"),
        ({"pre": None}, "splits text by the rules 'none'"),
        (
            {"pre": "bloom"},
            "splits text by the rules 'bloom' (tokenizer.ggml.pre), which are not supported; supported:",
        ),
        ({"merges": None}, "has no tokenizer.ggml.merges"),
        ({"token_type": [1, 2, 3]}, "has 267 tokens and 3 token_types"),
        ({"model": "llama"}, "has no tokenizer.ggml.scores"),
        ({"merges": ["no such"]}, "cannot read the tokenizer"),
        ({"add_bos_token": 1}, "tokenizer.ggml.add_bos_token is 1, where one bool is expected"),
    ],
)
def test_a_tokenizer_that_we_cannot_build_is_refused(
    folder: Path, tmp_path: Path, changes: Metadata, expected: str
) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, folder, changes={f"tokenizer.ggml.{name}": value for name, value in changes.items()})
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(str(path), torch.float32, CPU)
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("tiny"), tiny_config(vocab_size=len(TOKENS)))


def load(folder: Path, to: Path, changes: Metadata) -> Checkpoint:
    write_gguf(to / "model.gguf", folder, changes=changes)
    return load_checkpoint(str(to / "model.gguf"), torch.float32, CPU)


def test_a_conversation_is_written_as_the_files_template_says(folder: Path, tmp_path: Path) -> None:
    codec = TextCodec(load(folder, tmp_path, {}).tokenizer)
    ids = codec.encode_chat([{"role": "user", "content": "hello"}])
    assert [TOKENS[i] for i in ids] == ["<s>", "<|user|>", "hello", "</s>", "<|assistant|>"]
    assert codec.decode(ids) == "hello"
    assert codec.special_id("</s>") == 2


def test_special_tokens_and_the_longest_text_are_the_files(folder: Path, tmp_path: Path) -> None:
    tokenizer = load(folder, tmp_path, {"tokenizer.ggml.unknown_token_id": 3}).tokenizer
    named = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    assert named == ("<s>", "</s>", "<pad>", "<|system|>")
    assert len(tokenizer) == len(TOKENS)
    assert tokenizer.model_max_length == 256


def test_a_file_without_a_template_is_served_without_one(folder: Path, tmp_path: Path) -> None:
    assert load(folder, tmp_path, {"tokenizer.chat_template": None}).tokenizer.chat_template is None


def test_a_template_for_tools_is_taken_where_there_are_tools(folder: Path, tmp_path: Path) -> None:
    tools = "{{ tools | tojson }}" + CHAT_TEMPLATE
    tokenizer = load(folder, tmp_path, {"tokenizer.chat_template.tool_use": tools}).tokenizer
    assert tokenizer.get_chat_template() == CHAT_TEMPLATE
    assert tokenizer.get_chat_template(tools=[{}]) == tools


def test_bytes_have_the_alphabet_of_every_byte_level_tokenizer() -> None:
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(TOKENS)
