"""The import rules of pyproject.toml: they hold, and they notice when they do not."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMAND = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"


def check_contracts(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", COMMAND], cwd=folder, capture_output=True, text=True)


def test_the_project_keeps_its_import_rules() -> None:
    result = check_contracts(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("file", "statement", "broken"),
    [
        ("server/engine/types.py", "import fastapi", "the engine knows nothing of the web"),
        ("server/engine/types.py", "import server.settings", "the engine knows nothing of the web"),
        ("server/worker.py", "import server.app", "the server's layers"),
        ("server/api/schema/base.py", "import server.api.prepare.prompts", "the API's layers"),
        ("server/api/answers/models.py", "import server.api.http.reply", "the API's layers"),
        ("server/engine/sampling/sampler.py", "import server.engine.sequence", "the engine's layers"),
        ("server/engine/scheduler.py", "import server.engine.engine", "the engine's layers"),
        ("server/worker.py", "import offline", "the server never needs the offline tools"),
        ("offline/evaluation/measure.py", "import offline.calibration.pack", "the offline tools' layers"),
        ("offline/__main__.py", "import server.engine.kvcache.cache", "offline uses the engine's public names"),
        ("offline/__main__.py", "import server.settings", "offline uses the engine's public names"),
    ],
)
def test_a_forbidden_import_is_noticed(tmp_path: Path, file: str, statement: str, broken: str) -> None:
    for package in ("server", "offline"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    source = tmp_path / file
    source.write_text(source.read_text() + f"\n{statement}\n")
    result = check_contracts(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"{broken}" in result.stdout and "BROKEN" in result.stdout
