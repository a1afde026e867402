"""The web application: a worker, endpoints, errors and middleware put together. No module state."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from server.api.http.auth import KeyGuard
from server.api.http.client_limits import ClientGuard, ClientLimits
from server.api.http.error_handlers import install_handlers
from server.api.http.middleware import BodyLimit, Exchange
from server.api.messages.errors import AnthropicErrors
from server.api.prepare.lanes import Lanes
from server.api.routes import Api, RequestRules
from server.page.page import add_page
from server.tickets import FailureReason
from server.worker import Worker


@dataclass(frozen=True)
class AppConfig:
    """Keys, origins and limits of the HTTP side; `request_timeout` is in seconds."""

    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 4 * 1024 * 1024
    max_choices: int = 8
    max_sequences: int = 64
    request_timeout: float = 600.0
    shares_history: bool = False
    shows_tokenizer: bool = False
    grafana_url: str | None = None
    client_limits: ClientLimits = field(default_factory=ClientLimits)


def create_app(worker: Worker, config: AppConfig) -> FastAPI:
    """An application that starts the worker and stops it; requests are served as soon as the model is loaded."""

    lanes = Lanes()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await worker.stop()
        lanes.close()

    on_internal_error = partial(worker.metrics.observe_error, FailureReason.INTERNAL)
    on_client_limit = partial(worker.metrics.observe_rejection, FailureReason.CLIENT_LIMIT)
    app = FastAPI(
        title="KNN-SSD Server",
        lifespan=lifespan,
        docs_url="/docs",
        redoc_url=None,
        middleware=layers(config, on_internal_error, on_client_limit),
    )
    rules = RequestRules(
        config.max_choices,
        config.max_sequences,
        config.request_timeout,
        config.shares_history,
        config.shows_tokenizer,
        config.grafana_url,
    )
    app.include_router(Api(worker, rules, lanes).router)
    add_page(app)
    install_handlers(app)
    return app


def layers(
    config: AppConfig, on_internal_error: Callable[[], None], on_client_limit: Callable[[], None]
) -> list[Middleware]:
    """What every request passes, the outermost first: what is refused is logged too, and browsers may read it."""
    allowed = Middleware(
        CORSMiddleware,
        allow_origins=list(config.cors_origins),
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after", "retry-after-ms", "x-should-retry"],
    )
    limits = config.client_limits
    return [
        *([allowed] if config.cors_origins else []),
        Middleware(AnthropicErrors),
        Middleware(Exchange, on_internal_error=on_internal_error),
        *([Middleware(KeyGuard, keys=config.api_keys)] if config.api_keys else []),
        *([Middleware(ClientGuard, limits=limits, on_full=on_client_limit)] if limits else []),
        Middleware(BodyLimit, max_bytes=config.max_body_bytes),
    ]
