"""What stands beside a measured application in the bench: it asks and takes as an operator's servers do."""

import http.server
import itertools
import json
import threading
import time
import urllib.request
from collections.abc import Iterator

import pytest

from cluster.bench import scraper
from deployments.settings import load
from tests.support.until import until


class Application(http.server.BaseHTTPRequestHandler):
    """Has two processes, of which one is gone."""

    def do_GET(self) -> None:
        here = f"127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]
        body = json.dumps([{"targets": [here]}, {"targets": ["127.0.0.1:9"]}]) if self.path == "/metrics/targets" else "up 1"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Application) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_all_that_answer_are_scraped(url: str) -> None:
    assert scraper.scrape(url) == 1


def test_an_application_is_scraped_until_the_block_ends(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[float] = []
    monkeypatch.setattr(scraper, "SCRAPE_S", 0.05)
    monkeypatch.setattr(scraper, "scrape", lambda of: times.append(time.monotonic()) if of == url else None)
    begin = time.monotonic()
    with scraper.scraped(url):
        until(lambda: len(times), "three scrapes", holds=lambda count: count >= 3)
    assert all(late - early >= 0.05 for early, late in itertools.pairwise([begin, *times]))
    count = len(times)
    time.sleep(0.2)
    assert len(times) == count


def test_traces_are_taken() -> None:
    with scraper.sink() as setting:
        endpoint = load({"preset": "nano-cpu"} | dict([setting.split("=", 1)])).tracing.otlp_endpoint
        with urllib.request.urlopen(f"{endpoint}/v1/traces", data=b"spans") as response:
            assert response.status == 200


@pytest.mark.parametrize("kind", scraper.KINDS)
def test_the_kinds_are_settings(kind: str) -> None:
    settings = load({"preset": "nano-cpu"} | dict(word.split("=", 1) for word in scraper.KINDS[kind]))
    assert settings.measuring.enabled == (kind == "measured")
