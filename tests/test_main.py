"""The command itself: it serves, drains after SIGTERM, and refuses a bad start in one line."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import openai
import pytest
import torch
import uvicorn
from gguf import GGMLQuantizationType as Type

from server import served_model
from server.__main__ import Server, main
from server.api.http.connection import listen
from server.app import AppConfig, create_app
from server.engine import (
    Checkpoint,
    EngineConfig,
    GenerationRequest,
    RoutingArtifact,
    SamplingParams,
    StopConditions,
    kernel_build,
)
from server.generation import Prompt
from server.served_model import Source, load
from server.settings import read_settings
from server.worker import UnavailableError
from tests.api.live import make_worker
from tests.gguf_files import wide_config, write_gguf
from tests.tiny import save_random_model, tiny_config

LOADING = """
import torch
from server import start
from server.__main__ import main

def load(*_):
    print("loading", flush=True)
    weight = torch.ones(500, 500)
    while True:
        weight @ weight

start.load = load
main()
"""
"""The server, with a model that never is loaded; the thread is mostly in products, where it needs no interpreter."""


@contextmanager
def running(*arguments: str, hangup: signal.Handlers = signal.SIG_DFL) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The server as a process of its own and its URL, once it says that it serves.

    `hangup` is what SIGHUP does at its start: under nohup that would be what it does here.
    """
    command = [sys.executable, "-m", "server", "--port", "0", *arguments]
    process = subprocess.Popen(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGHUP, hangup),
    )
    assert process.stderr
    try:
        announced = next((line for line in process.stderr if " serving " in line), "")
        yield process, announced.split()[-1]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGHUP], ids=lambda end: end.name)
def test_a_signal_finishes_what_runs(tiny_checkpoint: Path, tiny_artifact_folder: Path, end: signal.Signals) -> None:
    arguments = (
        "--model",
        str(tiny_checkpoint),
        "--artifact",
        str(tiny_artifact_folder),
        "--served-model-name",
        "tiny",
    )
    with (
        running(*arguments) as (process, url),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        stream = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hi"}], max_tokens=200, seed=1, stream=True
        )
        next(iter(stream))
        process.send_signal(end)
        assert [chunk.choices[0].finish_reason for chunk in stream][-1] in ("stop", "length")
        _, log = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "Traceback" not in log


def test_nohup_is_respected(tiny_checkpoint: Path) -> None:
    with running("--model", str(tiny_checkpoint), hangup=signal.SIG_IGN) as (process, url):
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
            assert client.models.list().data


def test_a_signal_ends_a_server_that_still_loads() -> None:
    """With 0 and nothing said: an abort, for one, would be code -6 and a line of C++'s."""
    command = [sys.executable, "-c", LOADING, "--port", "0", "--model", "any", "--log-level", "warning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout and process.stdout.readline() == "loading\n"
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, said) == (0, "")


def test_what_outlasts_the_drain_is_ended(checkpoint: Checkpoint, tiny_artifact: RoutingArtifact) -> None:
    async def main() -> None:
        worker, engine = make_worker(checkpoint, tiny_artifact)
        engine.gate.clear()
        server = Server(uvicorn.Config(create_app(worker, AppConfig())), worker, 1000, "nowhere")
        worker.start()
        while worker.unavailable == "loading":
            await asyncio.sleep(0.01)
        ticket = worker.reserve(1, 1, timeout=30)
        worker.submit(ticket, [Prompt(GenerationRequest([9], SamplingParams(), StopConditions(5)))])
        assert not await server.on_tick(1)
        server.handle_exit(signal.SIGTERM, None)
        assert not await server.on_tick(1)
        assert worker.unavailable == "draining"
        server.handle_exit(signal.SIGTERM, None)
        assert await server.on_tick(1)
        with pytest.raises(UnavailableError, match="draining"):
            await anext(ticket.pieces())
        worker.release(ticket)
        engine.gate.set()
        await worker.stop()

    asyncio.run(main())


Refusal = Callable[..., str]


REFUSING_SECONDS = 120.0
"""In which a start is refused, far more than any takes."""


@pytest.fixture
def refusal(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Refusal:
    """Starts the server in this process and returns the one line that it prints; nothing is logged either.

    A server that serves, or goes on loading, was not refused, and is ended.
    """
    on_tick = Server.on_tick

    def start(*arguments: str) -> str:
        ends_at = time.monotonic() + REFUSING_SECONDS

        async def ending(server: Server, counter: int) -> bool:
            if server.worker.served or time.monotonic() > ends_at:
                server.stop_at = 0.0
            return await on_tick(server, counter)

        capsys.readouterr()
        monkeypatch.setattr(Server, "on_tick", ending)
        monkeypatch.setattr(sys, "argv", ["knn-ssd-server", "--port", "0", *arguments])
        with caplog.at_level("INFO"):
            try:
                main()
            except SystemExit as ended:
                assert ended.code == 2
            else:
                pytest.fail(f"nothing was refused: {' '.join(arguments)}")
        (line,) = capsys.readouterr().err.splitlines()
        assert not caplog.records
        return line

    return start


def test_a_start_that_is_not_refused_is_a_failure(refusal: Refusal, tiny_checkpoint: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match=f"nothing was refused: --model {tiny_checkpoint}"):
        refusal("--model", str(tiny_checkpoint))


def test_bad_starts_are_refused_in_one_line(
    refusal: Refusal, tmp_path: Path, tiny_checkpoint: Path, tiny_artifact_folder: Path
) -> None:
    model = ("--model", str(tiny_checkpoint))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no routing artifact in" in refusal(*model, "--artifact", str(empty))
    assert "cannot read the model" in refusal("--model", str(empty))
    assert "--max-batch" in refusal(*model, "--max-batch", "0")
    assert "holds no key" in refusal(*model, "--api-key-file", os.devnull)
    other = save_random_model(tmp_path / "other", tiny_config(), seed=1)
    line = refusal("--model", str(other), "--artifact", str(tiny_artifact_folder))
    assert "other weights" in line and "calibrate" in line
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"cannot listen on 127.0.0.1:{port}" in refusal(*model, "--port", port)


def test_connections_send_small_writes_at_once() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_an_unsupported_architecture_is_refused(refusal: Refusal, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}')
    line = refusal("--model", str(tmp_path))
    assert "GPT2LMHeadModel" in line and "supported: LlamaForCausalLM" in line


def test_threads_are_announced_and_torch_follows(tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = Source(str(tiny_checkpoint), "tiny", None, torch.float32, torch.device("cpu"), threads=3)
    before = torch.get_num_threads()
    try:
        with caplog.at_level("INFO", "server"):
            load(source, EngineConfig(max_batch=1, method="lookup"))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert "threads: 3 (--threads; without it 1 (OMP_NUM_THREADS: 1))" in caplog.messages


def test_a_start_with_too_little_memory_says_what_to_change(
    refusal: Refusal, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ("--model", str(tiny_checkpoint), "--max-length", "100")
    monkeypatch.setattr(served_model, "available_memory", lambda device: 400_000_000)
    line = refusal(*model)
    assert "of 400 MB memory do not fit: use" in line and "a smaller model or more memory" in line
    monkeypatch.setattr(served_model, "available_memory", lambda device: 700_000_000)
    assert "--cache-memory of 1,049 MB does not fit" in refusal(*model, "--cache-memory", "1000")
    assert "--cache-memory" in refusal(*model, "--cache-memory", "0")
    monkeypatch.setattr("server.engine.plan.block_bytes", lambda config, dtype: 1 << 20)  # as of a large model
    line = refusal(*model, "--cache-memory", "4")
    assert "a context of 100 tokens take 5 MB" in line
    assert line.endswith("leave 4 MB for them: use --max-length 96 or a larger --cache-memory")


def test_the_plan_is_announced_and_followed(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = read_settings(["--model", str(tiny_checkpoint), "--cache-memory", "1"])
    with caplog.at_level("INFO", "server"):
        served = load(settings.source, settings.engine_config, settings.wishes)
    (line,) = (message for message in caplog.messages if message.startswith("memory: "))
    assert "weights 0 MB" in line and "cache 1 MB (1,600 tokens, 8 slots of up to 256)" in line
    assert (served.engine.config.max_batch, served.max_length) == (8, 256)
    assert served.engine.cache.nbytes <= 2**20


def test_a_model_without_artifact_is_announced(tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = Source(str(tiny_checkpoint), "tiny", None, torch.float32, torch.device("cpu"))
    served = load(source, EngineConfig(max_batch=1, method="lookup"))
    assert served.domains == []
    assert served.engine.lacks("skip") == "a routing artifact"
    assert served.engine.lacks("low-bit") == "draft weights"
    assert served.engine.lacks("cascade") is served.engine.lacks("lookup") is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "tiny is served with method lookup" in caplog.text


@pytest.mark.skipif(kernel_build() == "none", reason="no kernels for this processor")
def test_a_file_is_served_at_its_bits_with_the_copy_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, save_random_model(tmp_path, wide_config(head_dim=64)), Type.Q8_0)
    settings = read_settings(["--model", str(path), "--method", "low-bit"])
    served = load(settings.source, settings.engine_config)
    model = served.engine.model
    assert model.precision == "Q8_0 weights, fine activations, bfloat16 cache"
    assert model.low_bit is not None and model.low_bit.precision.startswith("int4 weights")
    assert not served.checkpoint.quantized and not served.checkpoint.weights
    assert served.engine.lacks("low-bit") is None


def test_draft_weights_without_kernels_are_refused_in_one_line(refusal: Refusal, tiny_checkpoint: Path) -> None:
    for flags in (("--draft-weights", "int8"), ("--method", "low-bit")):
        line = refusal("--model", str(tiny_checkpoint), *flags)
        assert "need the CPU kernels, which do not run this model here" in line
