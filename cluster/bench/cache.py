"""What following the replicas' KV caches costs: the engine's step, and the index of an ingress.

An engine of nano is in this process, with requests of long prompts. In each pair of its steps, one has cache events as a replica
has them, the other has none; which one comes first changes. Printed are the ratio of the CPU times of all steps, with events to
without, and the median of the pairs with the range of nine tenths of them. The time of the thread that sends events is counted.
Then the index is filled with a million blocks of `--replicas` replicas: its size, and how long a look-up of a prompt takes, where
all replicas have it and where none has.

    python -m cluster.bench.cache [--requests 32] [--tokens 300] [--prompt 1000] [--replicas 100] [--only index]
"""

import argparse
import os
import random
import statistics
import tempfile
import time
import tracemalloc
from array import array
from collections.abc import Callable
from typing import Any

from deployments.routing.cache_index import STORED, CacheIndex, Scheme
from deployments.settings import ROOT

RAMP = 3
"""Steps at the beginning and at the end that are not compared."""
SENT_S = 0.001
"""How long is waited until a step's events are sent."""
KV_BYTES = 1 << 28
BLOCKS = 1_000_000
PROMPT_TOKENS = 6000
BLOCK_SIZE = 16


def engine(requests: int, prompt: int, tokens: int) -> Any:
    """Return vLLM's engine of nano, in this process, with these requests."""
    from vllm import EngineArgs, LLMEngine, SamplingParams

    arguments = EngineArgs(
        model=str(ROOT / "models" / "nano"),
        dtype="float32",
        max_num_seqs=requests,
        max_model_len=2048,
        kv_cache_memory_bytes=KV_BYTES,
        enforce_eager=True,
        distributed_executor_backend="uni",
    )
    made = LLMEngine.from_engine_args(arguments)
    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    for number in range(requests):
        made.add_request(str(number), {"prompt_token_ids": [5 + (number + place) % 400 for place in range(prompt)]}, sampling)
    return made


def with_events(made: Any, address: str) -> Callable[[bool], None]:
    """Have an engine that has not taken a step yet send its cache events to `address`. Return what turns that on and off."""
    from vllm.distributed.kv_events import EventPublisherFactory

    from deployments.engine import cache_events

    config = made.vllm_config
    cache_events.install(config, address)
    scheduler = made.engine_core.engine_core.scheduler
    manager = scheduler.kv_cache_manager
    scheduler.kv_event_publisher = EventPublisherFactory.create(config.kv_events_config)

    def turn(on: bool) -> None:
        manager.enable_kv_cache_events = manager.block_pool.enable_kv_cache_events = on

    return turn


def steps(requests: int, prompt: int, tokens: int) -> list[tuple[float, float]]:
    """Return the CPU seconds of each step, without events and with them."""
    import zmq

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    made = engine(requests, prompt, tokens)
    taken: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder, zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.bind(address := f"ipc://{folder}/cache")
        turn = with_events(made, address)
        while made.has_unfinished_requests():
            seconds = [0.0, 0.0]
            for on in (False, True) if len(taken) % 2 else (True, False):
                turn(on)
                began = time.process_time()
                made.step()
                time.sleep(SENT_S)
                seconds[on] = time.process_time() - began
            taken.append((seconds[0], seconds[1]))
        made.engine_core.engine_core.scheduler.kv_event_publisher.shutdown()
        told = 0
        while socket.poll(0):
            socket.recv()
            told += 1
    print(f"{len(taken)} pairs of steps; {told} batches of events")
    return taken[RAMP:-RAMP]


def hashes_of(rng: random.Random, count: int) -> bytes:
    """Return hashes, packed as a replica tells them."""
    return array("Q", (rng.getrandbits(64) for _ in range(count))).tobytes()


def index(replicas: int) -> None:
    """Fill an index, and print its bytes and how long it takes to look prompts up."""
    rng, each = random.Random(1), BLOCKS // replicas
    contents = [hashes_of(rng, each - PROMPT_TOKENS // BLOCK_SIZE) for _ in range(replicas)]
    shared = list(array("Q", hashes_of(rng, PROMPT_TOKENS // BLOCK_SIZE)))
    scheme = Scheme("sha256", BLOCK_SIZE, b"root")
    tracemalloc.start()
    made = CacheIndex()
    for number, content in enumerate(contents):
        made.replace(str(number), scheme, each, 0, content)
        made.apply(str(number), 0, 1, [(STORED, array("Q", shared).tobytes())])
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    print(f"{made.blocks} blocks of {replicas} replicas: {taken / 2**20:.1f} MiB")
    prompts = {"all have": shared, "none has": list(array("Q", hashes_of(rng, len(shared))))}
    for name, prompt in prompts.items():
        seconds = []
        for _ in range(200):
            began, found = time.perf_counter(), 0
            for number in range(replicas):
                found = made.cached_blocks(str(number), prompt, near=found) or 0
            seconds.append(time.perf_counter() - began)
        print(f"a prompt of {PROMPT_TOKENS} tokens that {name}: {1e6 * statistics.median(seconds):.0f} µs for all replicas")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=300, help="of each reply")
    parser.add_argument("--prompt", type=int, default=1000, help="tokens of each prompt")
    parser.add_argument("--replicas", type=int, default=100)
    parser.add_argument("--only", choices=["index", "step"])
    options = parser.parse_args()
    if options.only != "index":
        pairs = steps(options.requests, options.prompt, options.tokens)
        ratios = sorted(events / plain for plain, events in pairs)
        low, high = ratios[len(ratios) // 20], ratios[-1 - len(ratios) // 20]
        whole = sum(events for _, events in pairs) / sum(plain for plain, _ in pairs)
        print(f"CPU of all steps, with events to without: {whole:.4f}; of a pair {statistics.median(ratios):.4f}", end=" ")
        print(f"({low:.3f} to {high:.3f} in nine tenths)")
    if options.only != "step":
        index(options.replicas)


if __name__ == "__main__":
    main()
