"""The page's files over HTTP: open to all, with headers that let nothing but themselves run."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.app import AppConfig
from server.engine import Checkpoint
from server.page.page import FOLDER
from tests.api.live import make_worker, serve

ROOT = Path(__file__).parents[2]
FILES = sorted(path.name for path in FOLDER.iterdir())


@pytest.fixture(scope="module")
def http(checkpoint: Checkpoint) -> Iterator[httpx.Client]:
    worker, _ = make_worker(checkpoint, None)
    with serve(worker, AppConfig(api_keys=("secret",))) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.mark.parametrize("path", ["/", *(f"/page/{name}" for name in FILES)])
def test_files_come_without_a_key_and_with_the_policy(http: httpx.Client, path: str) -> None:
    response = http.get(path)
    assert response.status_code == 200
    assert response.content == (FOLDER / (path.removeprefix("/page").strip("/") or "index.html")).read_bytes()
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"


def test_a_file_is_sent_once_and_asked_for_anew(http: httpx.Client) -> None:
    first = http.get("/")
    assert first.headers["cache-control"] == "no-cache"
    again = http.get("/", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == first.headers["content-security-policy"]
    assert http.head("/").status_code == 200


@pytest.mark.parametrize("path", ["/page/", "/page/none.js", "/page/%2e%2e/page.py", "/page/..%2fpage.py", "/page/%00"])
def test_nothing_else_is_sent(http: httpx.Client, path: str) -> None:
    response = http.get(path)
    assert response.status_code == 404 and response.json()["error"]["code"] == "unknown_url"


def test_a_file_takes_no_body(http: httpx.Client) -> None:
    assert http.post("/page/index.html").status_code == 405
    assert http.post("/").status_code == 405


@pytest.mark.parametrize("path", ["/now", "/map", "/v1/models", "/metrics", "/page"])
def test_all_else_is_keyed(http: httpx.Client, path: str) -> None:
    assert http.get(path).status_code == 401


def test_the_package_has_each_file() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packaged = {path for pattern in settings["package-data"]["server"] for path in (ROOT / "server").glob(pattern)}
    assert FILES and {FOLDER / name for name in FILES} <= packaged
