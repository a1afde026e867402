"""Errors in Anthropic's form, for the paths of its interface."""

import json
from typing import Any, Literal

from pydantic import BaseModel
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PREFIX = "/v1/messages"
KINDS = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class MessagesErrorDetail(BaseModel):
    type: str
    message: str


class MessagesErrorBody(BaseModel):
    """Anthropic's error body."""

    type: Literal["error"]
    error: MessagesErrorDetail
    request_id: str | None


def anthropic_error(status: int, message: str) -> dict[str, Any]:
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


class AnthropicErrors:
    """Middleware that turns an error's body in OpenAI's form into one in Anthropic's; its status stays."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self.app(scope, receive, send)
            return
        begun: Message | None = None
        body = b""

        async def send_translated(message: Message) -> None:
            nonlocal begun, body
            if message["type"] == "http.response.start" and message["status"] >= 400:
                begun = message
            elif begun is None:
                await send(message)
            else:
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    await send_error(begun, body, send)

        await self.app(scope, receive, send_translated)


async def send_error(begun: Message, body: bytes, send: Send) -> None:
    error = anthropic_error(begun["status"], json.loads(body)["error"]["message"])
    headers = MutableHeaders(scope=begun)
    translated = json.dumps(error | {"request_id": headers.get("x-request-id")}).encode()
    headers["content-length"] = str(len(translated))
    headers["request-id"] = headers.get("x-request-id", "")
    await send(begun)
    await send({"type": "http.response.body", "body": translated})
