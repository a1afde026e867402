"""A collector of traces, as far as an exporter needs one."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Received = list[tuple[str, bytes]]
"""Path and body of each export."""


@contextmanager
def collecting() -> Iterator[tuple[Received, str]]:
    """What it is sent, as that comes, and its address."""
    received: Received = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield received, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def spans_of(received: Received) -> list[dict[str, Any]]:
    resources = [resource for _, content in received for resource in json.loads(content)["resourceSpans"]]
    return [span for resource in resources for scope in resource["scopeSpans"] for span in scope["spans"]]
