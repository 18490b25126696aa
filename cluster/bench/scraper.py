"""A stand-in for an operator's Prometheus and trace collector, for `make bench ARGS=--measuring`.

Prometheus and a collector themselves would take CPU that is not the application's.
"""

import contextlib
import http.client
import http.server
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

SCRAPE_S = 5.0
KINDS = {"unmeasured": ["measuring.enabled=false", "engine.disable_log_stats=true"], "measured": []}
"""The names of an application of ours without and with all of its measuring, and its settings for that."""


class _Sink(http.server.BaseHTTPRequestHandler):
    """Accepts every request and reads none."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


@contextlib.contextmanager
def sink() -> Iterator[str]:
    """Accept traces until the block ends; yield the setting that sends them here."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Sink) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"tracing.otlp_endpoint=http://127.0.0.1:{server.server_port}"
        server.shutdown()


def scrape(url: str) -> int:
    """Scrape all processes of the application at `url`; return how many answered."""
    answered = 0
    with urllib.request.urlopen(f"{url}/metrics/targets", timeout=10) as response:
        targets = json.load(response)
    for target in targets:
        with (
            contextlib.suppress(urllib.error.URLError, http.client.HTTPException),
            urllib.request.urlopen(f"http://{target['targets'][0]}/metrics", timeout=10) as response,
        ):
            answered += bool(response.read())
    return answered


def samples(url: str) -> dict[str, list[Sample]]:
    """Return all samples of the metrics of the application at `url`, by the address of the process; one that just ends has none."""
    found = {}
    for target in httpx.get(f"{url}/metrics/targets", timeout=10, trust_env=False).json():
        address = target["targets"][0]
        with contextlib.suppress(httpx.TransportError):
            text = httpx.get(f"http://{address}/metrics", timeout=10, trust_env=False).text
            found[address] = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return found


@contextlib.contextmanager
def scraped(url: str) -> Iterator[None]:
    """Scrape every `SCRAPE_S`, as monitoring/prometheus.yml does, until the block ends."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(SCRAPE_S):
            scrape(url)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
