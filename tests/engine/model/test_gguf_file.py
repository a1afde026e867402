"""Which files make a model, and one sentence for each that does not."""

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from server.engine import Checkpoint, CheckpointError, load_checkpoint
from server.engine.model import hub
from server.engine.model.gguf.file import open_gguf
from tests.gguf_files import TOKENS, write_gguf
from tests.tiny import CPU, save_random_model, tiny_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("tiny"), tiny_config(vocab_size=len(TOKENS)))


@pytest.fixture(scope="module")
def written(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(path, folder)
    return path


@pytest.fixture
def path(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copy(written, tmp_path / "model.gguf"))


def load(name: Path | str) -> Checkpoint:
    return load_checkpoint(str(name), torch.float32, CPU)


def refusal(name: Path | str) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(name)
    message = str(caught.value)
    assert "\n" not in message
    return message


def equal(first: Checkpoint, second: Checkpoint) -> bool:
    same = all(torch.equal(first.weights[name], weight) for name, weight in second.weights.items())
    return same and first.fingerprint == second.fingerprint and first.config == second.config


def test_what_a_file_holds_is_what_its_folder_held(path: Path, folder: Path) -> None:
    checkpoint, original = load(path), load(folder)
    assert checkpoint.name == str(path)
    assert equal(checkpoint, original)
    assert torch.equal(checkpoint.rope, original.rope)
    assert checkpoint.eos_ids == original.eos_ids
    assert checkpoint.defaults == original.defaults
    assert checkpoint.tokenizer.chat_template == original.tokenizer.chat_template


def test_a_folder_with_one_file_is_that_file(path: Path) -> None:
    assert equal(load(path.parent), load(path))


def test_a_folder_with_a_config_is_read_as_such(path: Path, folder: Path) -> None:
    both = shutil.copytree(folder, path.parent / "both")
    path.rename(both / "model.gguf")
    (both / "model.gguf").write_bytes(b"never read")
    assert equal(load(both), load(folder))


def test_a_folder_with_two_models_asks_for_one(path: Path) -> None:
    shutil.copy(path, path.with_name("other.gguf"))
    assert "holds 2 GGUF models, model.gguf, other.gguf; name one of these files" in refusal(path.parent)


def split(folder: Path, to: Path) -> list[Path]:
    write_gguf(to / "model.gguf", folder, max_tensors=15)
    return sorted(to.glob("model-*-of-*.gguf"))


def test_a_split_model_is_whole_whatever_names_it(folder: Path, written: Path, tmp_path: Path) -> None:
    parts = split(folder, tmp_path)
    assert [part.name for part in parts] == [f"model-{i:05}-of-00003.gguf" for i in (1, 2, 3)]
    for name in (*parts, tmp_path):
        assert equal(load(name), load(written))


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_part_is_named(folder: Path, tmp_path: Path, missing: int) -> None:
    parts = split(folder, tmp_path)
    parts[missing].unlink()
    named = parts[2 if missing == 0 else 0]
    message = f"{named.name} is one of 3 parts, and {parts[missing]} is missing; download it as well"
    assert message in refusal(named)
    assert f"{parts[missing]} is missing" in refusal(tmp_path)


def test_a_part_under_another_name_is_told_from_a_whole_model(folder: Path, tmp_path: Path) -> None:
    first = split(folder, tmp_path)[0].rename(tmp_path / "mine.gguf")
    assert "is one of 3 parts; name them mine-00001-of-00003.gguf and so on" in refusal(first)


def test_a_name_that_only_looks_like_a_parts_is_a_whole_model(path: Path, written: Path) -> None:
    assert equal(load(path.rename(path.with_name("model-00001-of-00000.gguf"))), load(written))


def with_part(content: bytes, start: int, new: bytes) -> bytes:
    return content[:start] + new + content[start + len(new) :]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda content: b"", "cannot be read as a GGUF file"),
        (lambda content: b"GG", "does not begin with the letters GGUF"),
        (lambda content: b"PK" + content[2:], "does not begin with the letters GGUF"),
        (lambda content: content[:6], "is cut off or damaged within its metadata"),
        (lambda content: content[:100], "is cut off or damaged within its metadata"),
        (lambda content: content[:3000], "is cut off or damaged within its metadata"),
        (lambda content: content[:-1], "is cut off: it has"),
        (lambda content: content[: len(content) // 2], "download it again"),
        (lambda content: with_part(content, 4, struct.pack("<I", 1)), "is GGUF version 1, which is not supported"),
        (lambda content: with_part(content, 4, struct.pack(">I", 3)), "is GGUF version 50331648"),
        (
            lambda content: with_part(content, 8, struct.pack("<Q", 1 << 60)),
            "is cut off or damaged within its metadata",
        ),
        (
            lambda content: with_part(content, 16, struct.pack("<Q", 1 << 60)),
            "is cut off or damaged within its metadata",
        ),
        (
            lambda content: with_part(content, 24, struct.pack("<Q", 1 << 60)),
            "is cut off or damaged within its metadata",
        ),
    ],
)
def test_a_file_that_is_damaged_or_none_is_refused(path: Path, change: Callable[[bytes], bytes], expected: str) -> None:
    path.write_bytes(change(path.read_bytes()))
    message = refusal(path)
    assert str(path) in message
    assert expected in message


def test_a_type_that_nobody_knows_has_its_number_named(path: Path) -> None:
    name = b"blk.0.ffn_up.weight"
    content = path.read_bytes()
    place = content.index(name) + len(name) + 4 + 2 * 8
    path.write_bytes(with_part(content, place, struct.pack("<I", 99)))
    assert "blk.0.ffn_up.weight has the type number 99, which is not supported" in refusal(path)


def test_rows_that_no_block_fits_are_refused(path: Path) -> None:
    name = b"blk.0.ffn_up.weight"
    content = path.read_bytes()
    place = content.index(name) + len(name) + 4 + 2 * 8
    path.write_bytes(with_part(content, place, struct.pack("<I", Type.Q4_K)))
    assert "blk.0.ffn_up.weight has shape (64, 32), which Q4_K cannot have" in refusal(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("nothing.gguf", "there is no model file"), ("nothing", "there is no model folder")],
)
def test_what_is_not_there_is_named(tmp_path: Path, name: str, expected: str) -> None:
    assert f"{expected} {str(tmp_path / name)!r}" in refusal(tmp_path / name)


def test_a_relative_name_is_not_looked_for_in_the_hub() -> None:
    assert "there is no model file 'models/nothing.gguf'" in refusal("models/nothing.gguf")


def test_every_kind_of_metadata_is_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "kinds.gguf", "llama")
    kinds = gguf.GGUFValueType
    numbers = {kinds.UINT8: 200, kinds.INT8: -5, kinds.UINT16: 60000, kinds.INT16: -300, kinds.UINT32: 1 << 31}
    numbers |= {kinds.INT32: -70000, kinds.UINT64: 1 << 40, kinds.INT64: -(1 << 40)}
    for kind, number in numbers.items():
        writer.add_key_value(kind.name, number, kind)
    writer.add_key_value("half", 0.5, kinds.FLOAT64)
    writer.add_float32("epsilon", 1e-5)
    writer.add_bool("yes", True)
    writer.add_array("words", ["a", "é", ""])
    writer.add_array("numbers", [1, 2, 3])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata = open_gguf(tmp_path / "kinds.gguf").metadata
    assert {kind: metadata[kind.name] for kind in numbers} == numbers
    assert (metadata["half"], metadata["epsilon"], metadata["yes"]) == (0.5, 1e-05, True)
    assert (metadata["words"], metadata["numbers"]) == (["a", "é", ""], [1, 2, 3])


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Stands for `hf_hub_download`: repositories are folders here."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []
        self.revisions: list[str | None] = []

    def __call__(self, repository: str, name: str, revision: str | None = None) -> str:
        self.asked.append(name)
        self.revisions.append(revision)
        path = self.root / repository / name
        if not path.exists():
            raise FileNotFoundError(f"404 Client Error\nEntry {name} not found")
        return str(path)


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path)
    monkeypatch.setattr(hub, "hf_hub_download", fake)
    return fake


@pytest.mark.parametrize("name", ["model.gguf", "Q4_K_M/model.gguf"])
def test_a_file_of_a_hub_repository_is_downloaded(fake_hub: FakeHub, written: Path, name: str) -> None:
    there = fake_hub.root / "org" / "repo" / name
    there.parent.mkdir(parents=True)
    shutil.copy(written, there)
    checkpoint = load(f"org/repo:{name}")
    assert equal(checkpoint, load(written))
    assert checkpoint.name == f"org/repo:{name}"
    assert fake_hub.asked == [name]


def test_all_parts_of_a_hub_model_are_downloaded(fake_hub: FakeHub, folder: Path, written: Path) -> None:
    there = fake_hub.root / "org" / "repo" / "big"
    there.mkdir(parents=True)
    parts = split(folder, there)
    assert equal(load("org/repo:big/model-00002-of-00003.gguf"), load(written))
    assert fake_hub.asked == [f"big/{part.name}" for part in parts]


def test_all_parts_are_of_the_first_ones_commit(fake_hub: FakeHub, folder: Path) -> None:
    """A branch may move on between two of them."""
    there = fake_hub.root / "org" / "repo" / "snapshots" / COMMIT
    there.mkdir(parents=True)
    split(folder, there)
    name = f"org/repo:snapshots/{COMMIT}/model-00002-of-00003.gguf"
    checkpoint = load_checkpoint(name, torch.float32, CPU, revision="main")
    assert checkpoint.revision == COMMIT
    assert fake_hub.revisions == ["main", COMMIT, COMMIT]


def test_all_of_a_hub_model_is_of_one_commit(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Config, tokenizer and weights are read from the folder of that commit, and nothing is asked for by name."""
    snapshot = Path(shutil.copytree(folder, tmp_path / "snapshots" / COMMIT))
    asked: list[tuple[str, str | None]] = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        return str(snapshot)

    monkeypatch.setattr(hub, "snapshot_download", download)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    checkpoint = load_checkpoint("org/repo", torch.float32, CPU, revision="v1.0")
    assert (checkpoint.name, checkpoint.revision) == ("org/repo", COMMIT)
    assert asked == [("org/repo", "v1.0")]
    assert equal(checkpoint, load_checkpoint(str(folder), torch.float32, CPU))


def test_a_model_here_has_no_revision(folder: Path, path: Path) -> None:
    assert load(folder).revision is None
    for name in (folder, path):
        with pytest.raises(CheckpointError, match="only models of the hub have revisions"):
            load_checkpoint(str(name), torch.float32, CPU, revision="main")


def test_what_the_hub_does_not_have_is_named(fake_hub: FakeHub) -> None:
    message = refusal("org/repo:nothing.gguf")
    assert "'org/repo:nothing.gguf' is no file here, and cannot be downloaded: 404 Client Error" in message
