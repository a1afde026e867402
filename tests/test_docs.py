"""The documentation says what is true: commands, settings, metrics, links and snippets exist."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
from prometheus_client import Metric

from server.cluster.ingress_metrics import IngressMetrics
from server.engine import methods
from server.settings import Settings
from server.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
SERVER_README = ROOT / "server" / "README.md"
DOCUMENTS = [
    README,
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    SERVER_README,
    ROOT / "offline" / "README.md",
    ROOT / "docker" / "README.md",
]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(document: Path, language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(document.read_text()) if name == language]


def exposed_name(family: Metric) -> str:
    return family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")


def metric_names() -> set[str]:
    families = [*Metrics().registry.collect(), *IngressMetrics().registry.collect()]
    return {exposed_name(family) for family in families}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z]+)", document.read_text(), re.MULTILINE)) <= targets


def test_each_make_target_is_explained() -> None:
    lines = (ROOT / "Makefile").read_text().splitlines()
    for previous, line in pairwise(lines):
        assert not re.match(r"[a-z]+:", line) or previous.startswith("# "), line


def test_continuous_integration_runs_what_the_readme_names() -> None:
    steps = re.findall(r"^make .*$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert steps == ["make lint", "make test"]
    assert all(f"`{step}`" in README.read_text() for step in steps)


def test_python_snippets_compile() -> None:
    snippets = blocks(README, "python")
    assert snippets
    for snippet in snippets:
        compile(snippet, str(README), "exec")


def test_file_map_names_what_exists() -> None:
    (file_map,) = [block for block in blocks(README, "") if "docker-compose.yml" in block]
    folder = ROOT
    for line in file_map.splitlines():
        name = line.split()[0]
        folder = folder if line.startswith(" ") else ROOT / name
        assert (folder / name if line.startswith(" ") else folder).exists(), line


def test_readme_uses_the_servers_defaults() -> None:
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    assert (defaults["host"], defaults["port"]) == ("127.0.0.1", 8000)
    assert set(re.findall(r"http://([\d.]+:\d+)/v1", README.read_text())) == {"127.0.0.1:8000"}


def test_each_setting_is_documented() -> None:
    text = SERVER_README.read_text()
    for name, field in Settings.model_fields.items():
        assert field.description, f"{name} has no description for --help"
        assert f"--{name.replace('_', '-')}" in text, name


@pytest.mark.parametrize("document", [README, SERVER_README], ids=["README.md", "server/README.md"])
def test_documented_settings_exist(document: Path) -> None:
    text = document.read_text()
    flags = [flag for line in re.findall(r"knn-ssd-server .*", text) for flag in re.findall(r"--([a-z-]+)", line)]
    names = [*re.findall(r"\bKNNSSD_([A-Z_]+)\b", text), *(flag.replace("-", "_") for flag in flags)]
    assert {name.lower() for name in names} - {"help"} <= Settings.model_fields.keys()


def test_each_metric_is_documented() -> None:
    text = SERVER_README.read_text()
    documented = set(re.findall(r"\bknnssd_[a-z0-9_]+", text))
    assert documented == {name for name in metric_names() if not name.startswith("process_")}


def test_each_method_is_documented() -> None:
    text = SERVER_README.read_text()
    table = text[text.index("| Method |") :].split("\n\n")[0]
    assert set(re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE)) == set(methods())
