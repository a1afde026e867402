"""The endpoints: validate -> reserve a place -> encode -> submit -> reply. Also models, health and metrics."""

import asyncio
import time
import uuid
from dataclasses import dataclass

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from server.api.answers import ChatCompletion, ModelCard, ModelList, TextCompletion
from server.api.errors import BadRequestError, ErrorBody, NotFoundError
from server.api.schema import ChatBody, CompletionBody, GenerationBody
from server.api.stream import ChatTranscript, Reply, TextTranscript, Transcript
from server.deployment import Deployment
from server.engine import GenerationRequest, Method, Route, SamplingParams, StopConditions
from server.generation import Prompt
from server.worker import Worker

GREEDY_BELOW = 1e-4
"""Temperatures under this would overflow fp32 logits; the distribution is greedy long before."""
DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default for text completions; chat answers are bounded by the context only."""
TOKENS_PER_CHARACTER = 0.25
"""A rough size for a place in the queue, until the prompt is tokenised and counted."""


@dataclass(frozen=True)
class RequestLimits:
    """What one request may ask for."""

    max_choices: int
    timeout: float


class Api:
    """The endpoints over one worker; it holds no state of its own."""

    def __init__(self, worker: Worker, limits: RequestLimits) -> None:
        self.worker = worker
        self.limits = limits

    async def chat(self, body: ChatBody) -> Response:
        deployment = self.admit(body)
        messages = [message.for_template for message in body.messages]
        max_tokens = body.max_completion_tokens or body.max_tokens or deployment.max_length
        ...
