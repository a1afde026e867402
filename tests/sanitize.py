"""Builds the kernels with sanitizers and runs the engine's tests on them: `make sanitize`.

AddressSanitizer and UndefinedBehaviorSanitizer watch the tests of `FOLDERS`, in a copy of the project whose compiled
parts are theirs; of the kernels there is the build that fits this processor. ThreadSanitizer watches a program that
uses the team of threads alone (`team_race.cpp`). Weights and cache lie in large pages of their own, so of these only
the ends are watched.

python tests/sanitize.py [arguments of pytest]
"""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from server.engine import kernel_build

ROOT = Path(__file__).parents[1]
COPY = ROOT / "build" / "sanitized"
FOLDERS = ["tests/engine"]
WATCHED = ["-g", "-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
MODULES = (f"server.engine.model.native.{kernel_build()}", "server.engine.history.native.counts")


def copy_project() -> None:
    shutil.rmtree(COPY, ignore_errors=True)
    for folder in ("server", "tests"):
        shutil.copytree(ROOT / folder, COPY / folder, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copy(ROOT / "pyproject.toml", COPY)


def build(module: dict[str, Any]) -> None:
    """Compiles an extension of pyproject.toml with the sanitizers in place of its optimisation."""
    flags = [flag for flag in module["extra-compile-args"] if flag != "-O3"]
    library = Path(module["name"].replace(".", "/") + ".so")
    run("g++", *flags, *WATCHED, "-shared", "-fPIC", *module["sources"], "-o", str(library))


def run(*command: str, **variables: str) -> None:
    print(" ".join(command), flush=True)
    subprocess.run(command, cwd=COPY, env=os.environ | variables, check=True)


def file_of(library: str) -> str:
    return subprocess.check_output(["g++", f"-print-file-name={library}"], text=True).strip()


def main() -> None:
    copy_project()
    run("g++", "-std=c++20", "-g", "-O1", "-fsanitize=thread", "-pthread", "tests/team_race.cpp", "-o", "team_race")
    run("./team_race", TSAN_OPTIONS="halt_on_error=1")
    modules = tomllib.loads((COPY / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    for module in modules:
        if module["name"] in MODULES:
            build(module)
    run(
        # Reports of a sanitizer end the process, so nothing may hold back what it prints.
        *(sys.executable, "-m", "pytest", "-q", "--capture=no", "-p", "no:cacheprovider"),
        *(sys.argv[1:] or FOLDERS),
        LD_PRELOAD=" ".join(map(file_of, ("libasan.so", "libubsan.so"))),
        # Python and torch leave memory to the system when they end; hnswlib frees with `delete` what `new[]` gave.
        ASAN_OPTIONS="detect_leaks=0:alloc_dealloc_mismatch=0",
        UBSAN_OPTIONS="print_stacktrace=1",
    )


if __name__ == "__main__":
    main()
