"""Settings -> a worker that will load the model, for a server of its own and for a replica among others."""

import gc
from functools import partial
from typing import TYPE_CHECKING

from pydantic_settings import SettingsError

from server.engine import EngineConfig, Wishes
from server.served_model import ServedModel, Source, load
from server.settings import Settings
from server.telemetry.metrics import Metrics
from server.worker import Worker

if TYPE_CHECKING:
    from server.telemetry.traces import Traces


def new_worker(settings: Settings, source: Source, traces: "Traces | None") -> Worker:
    """A worker that has not been started; `source` may differ from that of the settings in what it may take."""
    loader = partial(load_for_long, source, settings.engine_config, settings.wishes)
    return Worker(loader, settings.queue_limits, Metrics(), traces.observe if traces else None)


def load_for_long(source: Source, config: EngineConfig, wishes: Wishes) -> ServedModel:
    """Loads a model, and has garbage collections pass over all that is there by now.

    One that walks through it, some 700,000 objects of torch and transformers, holds up every thread for a third of a
    second.
    """
    served = load(source, config, wishes)
    gc.collect()
    gc.freeze()
    # How many objects a collection finds decides when the next one comes.
    gc.collect()
    return served


def open_traces(settings: Settings) -> "Traces | None":
    """Raises `SettingsError` where traces are asked for and their packages are not installed."""
    if settings.otlp_endpoint is None:
        return None
    try:
        from server.telemetry.traces import to_collector
    except ModuleNotFoundError as error:
        raise SettingsError("--otlp-endpoint needs the extra otel: pip install 'knn-ssd-server[otel]'") from error
    return to_collector(settings.source.name, settings.otlp_endpoint)
