"""A cluster of several hosts, as network namespaces: a head and two workers with a GPU each (as far as Ray knows), then one more.

Three LLM replicas are asked for, so the third starts when its host comes. Each of the head's streams crosses hosts.

The tests go on from each other: the later ones take hosts away.
"""

import asyncio
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from cluster.bench import chaos
from deployments.host.environment import SERVING
from tests.support import hosts
from tests.support.paths import ROOT
from tests.support.until import until, until_async

RAY = Path(sys.executable).with_name("ray")
REDIS_PORT = 6390
GPU = "GeForce-RTX-4090"
ENVIRONMENT = os.environ | SERVING | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
ENVIRONMENT |= {"RAY_REDIS_ADDRESS": f"{hosts.Network.address}:{REDIS_PORT}", "RAY_external_storage_namespace": "satori"}
SETTINGS: dict[str, Any] = {"preset": "nano-cpu", "http.host": "0.0.0.0", "ui.label_selector": {"satori-role": "front"}}
SETTINGS |= {"llm.num_replicas": 3, "llm.num_gpus": 1, "llm.num_cpus": 0.5, "llm.accelerator_type": GPU, "llm.silent_after_s": 5}
SETTINGS |= {"ingress.num_replicas": 3, "ingress.max_replicas_per_node": 1, "ingress.num_cpus": 0.1}
SMALL = ["--num-cpus=2", "--object-store-memory=100000000", "--block"]
STAY = (("LLM", "second"), ("LLM", "third"), ("Ingress", "second"))
STARTED_S = 120
MOMENT = 600  # of some 8,000 chunks; the engines are several times as far

REASON = hosts.lacking()
pytestmark = [pytest.mark.long, pytest.mark.skipif(REASON is not None, reason=str(REASON)), pytest.mark.timeout(240)]


def ports() -> list[str]:
    """Return the options with which `4090.yaml` chooses the ports of a worker."""
    [_, command] = yaml.safe_load((ROOT / "cluster" / "4090.yaml").read_text())["worker_start_ray_commands"]
    return re.findall(r"--\S+-port=\d+", command)


class Cluster:
    """The hosts by name, Ray on them, and Redis beside them."""

    def __init__(self, network: hosts.Network, folder: Path) -> None:
        command = ["redis-server", "--bind", network.address, "--port", str(REDIS_PORT), "--save", "", "--protected-mode", "no"]
        self.redis = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
        self.hosts = {
            name: hosts.Host(name, number, folder / name, slow_link=name == "second")
            for number, name in enumerate(("head", "first", "second", "third"), 11)
        }
        self.head, self.first, self.second, self.third = self.hosts.values()

    def start_head(self) -> None:
        """Start Ray's head; with what Redis has it goes on where the last one ended."""
        self._ray(self.head, "--head", "--port=6379", "--num-gpus=0", "--dashboard-host=0.0.0.0", "--labels=satori-role=front")

    def join(self, host: hosts.Host) -> None:
        """Start Ray on a worker."""
        self._ray(host, f"--address={self.head.address}:6379", "--num-gpus=1", f'--resources={{"accelerator_type:{GPU}": 1}}')

    def _ray(self, host: hosts.Host, *words: str) -> None:
        words = (str(RAY), "start", f"--node-ip-address={host.address}", *words, *ports(), *SMALL)
        host.start(*words, said="Ray runtime started", cwd=ROOT, environment=ENVIRONMENT)

    def deploy(self) -> None:
        """Deploy the application on all hosts, through Ray's REST API."""
        config = yaml.safe_load((ROOT / "cluster" / "serve-4090.yaml").read_text())
        config["applications"][0]["args"] = SETTINGS
        httpx.put(f"{self._dashboard}/api/serve/applications/", json=config, timeout=60).raise_for_status()

    @property
    def _dashboard(self) -> str:
        return f"http://{self.head.address}:8265"

    def replicas(self) -> dict[tuple[str, str], str]:
        """Return the ids of the running replicas by deployment and host; nothing while nobody can tell."""
        try:
            told = httpx.get(f"{self._dashboard}/api/serve/applications/", timeout=5).json()
            deployments = told["applications"]["default"]["deployments"]
        except (httpx.HTTPError, ValueError, KeyError):
            return {}
        names = {host.address: name for name, host in self.hosts.items()}
        running = [
            (name, replica) for name, it in deployments.items() for replica in it["replicas"] if replica["state"] == "RUNNING"
        ]
        return {(name, names[replica["node_ip"]]): replica["replica_id"] for name, replica in running}

    async def until(self, what: str, holds: Callable[[dict[tuple[str, str], str]], object]) -> dict[tuple[str, str], str]:
        """Return the first running replicas of which `holds` is true."""
        return await until_async(self.replicas, what, STARTED_S, holds=holds, every_s=0.2)

    def client(self, host: hosts.Host) -> httpx.AsyncClient:
        """Return a client of a host's proxy, which passes requests to the ingresses of all hosts."""
        return chaos.client(f"http://{host.address}:8000")

    def own(self, host: hosts.Host) -> httpx.AsyncClient:
        """Return a client of a host's own ingress: its streams end with no other host."""
        [port] = [port for _, port, name in host.listening() if "Ingress" in name and 30000 <= port <= 31000]
        return chaos.client(f"http://{host.address}:{port}")

    def close(self) -> None:
        """End everything."""
        for host in self.hosts.values():
            host.close()
        self.redis.kill()
        self.redis.wait()


def told(host: hosts.Host, words: str) -> bool:
    """Return whether a process of a host has logged these words."""
    logs = (host.folder / "ray").glob("session_2*/logs/**/*")
    return any(words in log.read_text(errors="replace") for log in logs if log.is_file())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head and two workers, with the application on them."""
    with hosts.Network() as network:
        network.up()
        made = Cluster(network, tmp_path_factory.mktemp("hosts"))
        try:
            made.start_head()
            assert made.redis.poll() is None, "another Redis has its port"
            made.deploy()
            lack = f"llm.accelerator_type='{GPU}': the cluster has no such GPU"
            until(lambda: told(made.head, lack), "the head's log names the GPU that is not there", STARTED_S, every_s=0.2)
            with ThreadPoolExecutor() as pool:
                list(pool.map(made.join, (made.first, made.second)))
            yield made
        finally:
            made.close()


@pytest.fixture(scope="module")
def wanted(cluster: Cluster) -> list[chaos.Reply]:
    """The replies of undisturbed streams."""

    async def calm() -> list[chaos.Reply]:
        async with cluster.own(cluster.head) as http:
            return await chaos.calm(http)

    return asyncio.run(calm())


def same(replies: list[chaos.Reply], wanted: list[chaos.Reply]) -> None:
    """Assert that all streams are complete and say what they should."""
    different = [number for number, (reply, other) in enumerate(zip(replies, wanted, strict=True)) if not reply.same(other)]
    assert not different, [replies[number] for number in different[:2]]


async def answering(http: httpx.AsyncClient) -> dict[str, Any]:
    """Return what the LLM replica says of itself that a proxy's ingress asks; any host may be away for a moment."""

    async def ask() -> httpx.Response | httpx.HTTPError:
        try:
            return await http.get("/ready", timeout=10)
        except httpx.HTTPError as error:
            return error

    def answered(found: httpx.Response | httpx.HTTPError) -> bool:
        return isinstance(found, httpx.Response) and found.status_code == 200

    response = await until_async(ask, "an LLM replica answers", STARTED_S, holds=answered, every_s=0.1)
    assert isinstance(response, httpx.Response)
    return dict(response.json()["replica"])


async def test_every_host_has_what_it_should(cluster: Cluster) -> None:
    ingresses = {("Ingress", name) for name in ("head", "first", "second")}
    wanted = ingresses | {("LLM", "first"), ("LLM", "second"), ("UI", "head")}
    await cluster.until("these replicas run, and no others", lambda running: running.keys() == wanted)


async def test_the_ports_in_use_are_the_documented_ones(cluster: Cluster) -> None:
    text = (ROOT / "cluster" / "README.md").read_text().split("## Ports")[1]
    documented: set[int] = set()
    for row in re.findall(r"^\| ([\d, -]+) \|", text, re.MULTILINE):
        for part in row.split(", "):
            first, _, last = part.partition("-")
            documented |= set(range(int(first), int(last or first) + 1))
    used = [(name, *found) for name, host in cluster.hosts.items() for found in host.listening()]
    outside = [found for found in used if not found[1].strip("[]").removeprefix("::ffff:").startswith("127.")]
    assert [found for found in outside if found[2] not in documented] == []
    tokens = {(name, port) for name, _, port, what in outside if "Ingress" in what and 21000 <= port <= 21099}
    assert {name for name, _ in tokens} == {"head", "first", "second"}
    free = {what.split()[0] for _, _, port, what in outside if port >= 32768}
    assert all(name.startswith("ray::ServeReplica:") or "python" in name for name in free), free


async def test_load_through_every_proxy_is_answered(cluster: Cluster, wanted: list[chaos.Reply]) -> None:
    replies = [chaos.Reply() for _ in wanted]
    async with contextlib.AsyncExitStack() as stack:
        doors = [await stack.enter_async_context(cluster.client(host)) for host in (cluster.head, cluster.first, cluster.second)]
        await asyncio.gather(*(reply.read(doors[n % 3], chaos.question(n)) for n, reply in enumerate(replies)))
        served: dict[str, int] = {}

        async def ask() -> dict[str, int]:
            says = await answering(doors[1])
            served[says["id"]] = says["served"]
            return served

        await until_async(ask, "both LLM replicas answer", holds=lambda found: len(found) == 2)
    same(replies, wanted)
    assert set(served) == {replica for (name, _), replica in cluster.replicas().items() if name == "LLM"}
    assert all(served.values()), "both replicas had requests, and so tokens went from host to host"


async def test_a_slow_link_loses_no_stream(cluster: Cluster, wanted: list[chaos.Reply]) -> None:
    async with cluster.own(cluster.head) as http:
        same(await chaos.struck(http, MOMENT, lambda: cluster.second.slow(0.1, 0.01)), wanted)
        cluster.second.slow(0, 0)


async def test_a_host_that_is_cut_off_loses_no_stream_and_comes_back(cluster: Cluster, wanted: list[chaos.Reply]) -> None:
    away = cluster.replicas()["LLM", "second"]
    joining = asyncio.create_task(asyncio.to_thread(cluster.join, cluster.third))  # for the next test
    async with cluster.own(cluster.head) as http, cluster.client(cluster.first) as proxy, cluster.own(cluster.first) as other:
        moved, _ = await chaos.counted(http)
        same(await chaos.struck(http, MOMENT, cluster.second.cut), wanted)
        assert (await chaos.counted(http))[0] > moved
        assert (await answering(proxy))["id"] != away
        cluster.second.mend()
        what = "the replica comes back and drops what went on elsewhere"
        await until_async(lambda: answering(other), what, STARTED_S, holds=lambda says: says["id"] == away and not says["open"])
    await joining


async def test_a_new_host_is_used_and_a_killed_one_loses_no_stream(cluster: Cluster, wanted: list[chaos.Reply]) -> None:
    new = (await cluster.until("the new host's LLM replica runs", lambda running: ("LLM", "third") in running))["LLM", "third"]
    async with cluster.own(cluster.head) as http:
        moved, _ = await chaos.counted(http)
        same(await chaos.struck(http, MOMENT, cluster.first.kill), wanted)
        assert (await chaos.counted(http))[0] > moved
        says = await until_async(lambda: answering(http), "the new replica answers", holds=lambda says: says["id"] == new)
        assert says["served"]


async def test_the_head_may_be_lost_and_come_back(cluster: Cluster, wanted: list[chaos.Reply]) -> None:
    # On a busy machine, one that was cut off may have been replaced.
    there = await cluster.until("those that stay run", lambda running: running.keys() >= set(STAY))
    before = {place: there[place] for place in STAY}
    async with cluster.own(cluster.second) as http, cluster.client(cluster.third) as proxy:
        same(await chaos.struck(http, MOMENT, cluster.head.kill), wanted)
        starting = asyncio.create_task(asyncio.to_thread(cluster.start_head))
        same(await chaos.calm(http), wanted)
        await answering(proxy)
        await starting
    after = await cluster.until("those that stay run", lambda running: running.keys() >= set(STAY))
    assert {place: after[place] for place in STAY} == before, "the controller has found them again"
    async with cluster.client(cluster.head) as http:
        await answering(http)
