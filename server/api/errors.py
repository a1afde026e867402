"""What clients are told when something is refused or fails, in OpenAI's form.

ApiError                 status, type and code of the error body
+- BadRequestError       400
|  +- ContextLengthError
+- AuthenticationError   401
+- NotFoundError         404
+- BodyTooLargeError     413
+- RateLimitError        429
+- InternalError         500
+- ServiceUnavailableError 503
+- RequestTimeoutError   504
"""

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from server.engine import ChatError, PromptTooLongError
from server.tickets import DeadlineError, QueueFullError
from server.worker import UnavailableError

logger = logging.getLogger(__name__)


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """OpenAI's error body."""

    error: ErrorDetail


def presentable(text: str, limit: int) -> str:
    """Text that may repeat what was sent: of bounded length, and without lone surrogates, which no answer can carry."""
    text = text.encode(errors="replace").decode()
    return text if len(text) <= limit else f"{text[:limit]}..."


class ApiError(Exception):
    """An error with a place in OpenAI's vocabulary; `param` names the field at fault."""

    status = 500
    type = "server_error"
    code: str | None = None
    headers: Mapping[str, str] = {}

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(presentable(message, 1000))
        self.param = presentable(param, 200) if param else None
        self.code = code or self.code

    @property
    def body(self) -> ErrorBody:
        return ErrorBody(error=ErrorDetail(message=str(self), type=self.type, param=self.param, code=self.code))

    @property
    def response(self) -> JSONResponse:
        return JSONResponse(self.body.model_dump(), self.status, self.headers)


class BadRequestError(ApiError):
    status = 400
    type = "invalid_request_error"


class ContextLengthError(BadRequestError):
    code = "context_length_exceeded"


class AuthenticationError(ApiError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"
    headers: Mapping[str, str] = {"WWW-Authenticate": "Bearer"}


class NotFoundError(ApiError):
    status = 404
    type = "invalid_request_error"


class BodyTooLargeError(ApiError):
    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class RateLimitError(ApiError):
    status = 429
    type = "rate_limit_error"
    code = "queue_full"
    headers: Mapping[str, str] = {"Retry-After": "1", "retry-after-ms": "1000"}


class InternalError(ApiError):
    code = "internal_error"


class ServiceUnavailableError(ApiError):
    status = 503
    code = "unavailable"


class RequestTimeoutError(ApiError):
    status = 504
    code = "request_timeout"
    # A repetition would take as long and load the server again.
    headers: Mapping[str, str] = {"x-should-retry": "false"}


UNAVAILABLE = {
    "loading": "The model is still loading; try again soon.",
    "draining": "The server is shutting down.",
    "dead": "The engine has stopped; the server must be restarted.",
}


UNREADABLE: dict[type[BaseException | None], str] = {
    RecursionError: "The body is nested too deeply.",
    UnicodeDecodeError: "The body is not valid UTF-8.",
    ValueError: "The body has a number with too many digits.",
}
"""Why JSON could not be read, by what its parser raised."""


def api_error(error: Exception) -> ApiError:
    """What a client is told of `error`; whatever is not foreseen is logged and kept from the client."""
    match error:
        case ApiError():
            return error
        case QueueFullError():
            return RateLimitError("The server has too many unfinished requests; try again later.")
        case UnavailableError(reason=reason):
            return ServiceUnavailableError(UNAVAILABLE[reason])
        case DeadlineError():
            return RequestTimeoutError("The request took longer than this server allows.")
        case PromptTooLongError(prompt_length=length, max_length=limit):
            return ContextLengthError(
                f"This model's maximum context length is {limit} tokens, and the answer needs at least one of them. "
                f"Your prompt has {length} tokens."
            )
        case ChatError():
            return BadRequestError(str(error), "messages")
    logger.error("unexpected error", exc_info=error)
    return InternalError("The server had an unexpected error.")


def from_validation(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong with a request body; `param` is its path, as in `messages[0].role`."""
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
    """What the framework refuses by itself: unknown routes, wrong methods, bodies that cannot be parsed."""
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
    """Every error that a route raises leaves in OpenAI's form."""

    async def on_error(request: Request, error: Exception) -> JSONResponse:
        return api_error(error).response

    async def on_validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return from_validation(error).response

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return from_http(error, request).response

    for kind in (ApiError, QueueFullError, UnavailableError, DeadlineError, PromptTooLongError, ChatError):
        app.add_exception_handler(kind, on_error)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
