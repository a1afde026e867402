"""Errors that the framework raises before a route is reached, in OpenAI's form: unknown URLs, invalid bodies.

Errors of the routes themselves pass on to `middleware.Exchange`.
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from server.api.errors import ApiError, BadRequestError

UNREADABLE: dict[type[BaseException | None], str] = {
    RecursionError: "The body is nested too deeply.",
    UnicodeDecodeError: "The body is not valid UTF-8.",
    ValueError: "The body has a number with too many digits.",
}
"""Messages for JSON that cannot be read, by the error that its parser raised."""


def from_validation(error: RequestValidationError) -> ApiError:
    """The first of the body's mistakes; `param` is the path of its field, as in `messages[0].role`."""
    first = error.errors()[0]
    param = path_of(first["loc"][1:], str(first.get("ctx", {}).get("field", "")))
    match first["type"]:
        case "json_invalid":
            return BadRequestError(f"The body is not valid JSON: {first['ctx']['error']}.")
        case "missing" if not param:
            return BadRequestError("The body is empty; it must be a JSON object.")
        case "missing":
            return BadRequestError(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
        case "extra_forbidden":
            return BadRequestError(f"Unknown parameter: '{param}'.", param, "unknown_parameter")
        case "unsupported":
            return BadRequestError(f"'{param}': {first['msg']}", param, "unsupported_parameter")
        case "string_unicode" if not param:
            return BadRequestError("A parameter's name is not valid Unicode.")
    if not param:
        return BadRequestError("The body must be a JSON object, sent with content type application/json.")
    return BadRequestError(f"Invalid value for '{param}': {first['msg']}.", param, "invalid_value")


def path_of(location: Sequence[Any], field: str) -> str | None:
    """`messages[0].role` from ("messages", 0, "role"); union branches (`<list>`) and keys (`[key]`) are no fields."""
    parts = [part for part in (*location, *([field] if field else [])) if not str(part).startswith(("<", "["))]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return path.removeprefix(".") or None


def from_http(error: HTTPException, request: Request) -> ApiError:
    """An unknown URL, a wrong method or unreadable JSON; the status stays that of the framework, 404 for instance."""
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            refused = BadRequestError(f"Unknown request URL: {request.method} {request.url.path}.", code="unknown_url")
        case HTTPStatus.METHOD_NOT_ALLOWED:
            message = f"{request.method} is not allowed for {request.url.path}."
            refused = BadRequestError(message, code="method_not_allowed")
        case HTTPStatus.BAD_REQUEST:
            refused = BadRequestError(UNREADABLE.get(type(error.__cause__), str(error.detail)))
        case _:
            refused = BadRequestError(str(error.detail))
    refused.status, refused.headers = error.status_code, error.headers or {}
    return refused


def install_handlers(app: FastAPI) -> None:
    """Gives OpenAI's form to errors for which the framework has a form of its own."""

    async def on_validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return from_validation(error).response

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return from_http(error, request).response

    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
