"""What a scrape gets, and where."""

import threading
import urllib.request
from collections.abc import Iterator

import psutil
import pytest
from prometheus_client import REGISTRY, Counter

from deployments.errors import PortInUseError
from deployments.observability import exposition
from tests.support.ports import free_ports

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"


@pytest.fixture
def counter() -> Iterator[str]:
    made = Counter("vllm:of_this_test", "With a colon, as vLLM's have.")
    yield "vllm:of_this_test_total"
    REGISTRY.unregister(made)


def test_names_keep_their_colons_in_whatever_format_is_asked_for(counter: str) -> None:
    serve = exposition._serve.__wrapped__  # not the one of this process, which is kept
    server = serve("127.0.0.1", range(49152, 65536))
    try:
        request = urllib.request.Request(f"http://127.0.0.1:{server.server_port}/metrics", headers={"accept": OPENMETRICS})
        with urllib.request.urlopen(request) as response:
            text = response.read().decode()
    finally:
        server.shutdown()
        server.server_close()
    assert f"\n{counter} 0.0\n" in text


def test_a_process_takes_the_first_free_port_or_tells_that_there_is_none() -> None:
    [port] = free_ports(1)
    serve = exposition._serve.__wrapped__
    server = serve("127.0.0.1", range(port, port + 1))
    try:
        assert server.server_port == port
        with pytest.raises(PortInUseError, match=rf"no port from {port} to {port} .* ports\.metrics"):
            serve("127.0.0.1", range(port, port + 1))
    finally:
        server.shutdown()
        server.server_close()


def test_the_share_of_cpu_time_is_that_since_the_last_look_whoever_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    times = psutil.cpu_times()._replace(
        user=10, nice=0, system=0, idle=90, iowait=0, irq=0, softirq=0, steal=0, guest=5, guest_nice=0
    )
    monkeypatch.setattr(exposition.psutil, "cpu_times", lambda: times)
    share = exposition.CpuShare()
    assert share() == 0.0
    times = times._replace(user=13, idle=90.5, iowait=0.5, guest=6)
    shares: list[float] = []
    thread = threading.Thread(target=lambda: shares.append(share()))
    thread.start()
    thread.join()
    assert shares == [0.75]
    assert share() == 0.75, "no time has passed"
