"""Errors in OpenAI's form: status, type, code and message of whatever is refused or fails.

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
from collections.abc import Mapping

from fastapi.responses import JSONResponse
from pydantic import BaseModel

from server.engine import ChatError, PromptTooLongError
from server.tickets import DeadlineError, FailureReason, QueueFullError
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
    """Text that may repeat a client's, cut to `limit` characters; lone surrogates, which UTF-8 lacks, become "?"."""
    text = text.encode(errors="replace").decode()
    return text if len(text) <= limit else f"{text[:limit]}..."


class ApiError(Exception):
    """An error with OpenAI's status, type and code; `param` names the field of the request that is at fault."""

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
    FailureReason.LOADING: "The model is still loading; try again soon.",
    FailureReason.DRAINING: "The server is shutting down.",
    FailureReason.FAILED: "The engine failed while it worked on this request. It starts anew: try again soon.",
    FailureReason.DEAD: "The engine has stopped; the server must be restarted.",
}


def api_error(error: Exception) -> ApiError:
    """The error as a client is told of it; the only list of the errors that are foreseen.

    Any other is logged and becomes a 500 without a word of its own text.
    """
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
