"""The page at `/`: files of this package, sent so that nothing but the page itself runs in them.

They hold no secret and need no key; what they show comes from the API, with the key that the user gives.
"""

import os
from pathlib import Path

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

FOLDER = Path(__file__).parent / "static"
INDEX = "index.html"
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    # Kept, but asked for anew each time: a server that was updated has no page of the one before.
    "cache-control": "no-cache",
}


class PageFiles(StaticFiles):
    """The files, each with the page's headers and an ETag."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(HEADERS)
        return response

    async def index(self, request: Request) -> Response:
        return await self.get_response(INDEX, request.scope)


def add_page(app: FastAPI) -> None:
    """Serves the page at `/` and its files at `/page/NAME`."""
    files = PageFiles()
    app.add_api_route("/", files.index, methods=["GET", "HEAD"], response_model=None, include_in_schema=False)
    app.mount("/page", files)
