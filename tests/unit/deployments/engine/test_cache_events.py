"""Cache events of vLLM's own cache manager, as our publisher sends them, and the hashes of prompts that are made here."""

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
import zmq
from vllm.distributed import kv_events
from vllm.distributed.kv_events import BlockRemoved, BlockStored, EventPublisherFactory, KVEventBatch
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core import kv_cache_utils
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import Request

from deployments.engine import cache_events
from deployments.engine_client.block_hashes import Prompt
from deployments.routing.cache_index import Blocks, CacheIndex
from deployments.transport.cache_events import EngineBatch

BLOCK, CAPACITY = 4, 40


class Engine:
    """vLLM's cache manager with our publisher, as a scheduler has them; an index that follows; and requests that come and go."""

    def __init__(self, folder: Path, function: str = "sha256") -> None:
        self.cache = SimpleNamespace(
            enable_prefix_caching=True, prefix_caching_hash_algo=function, block_size=BLOCK, num_gpu_blocks=CAPACITY
        )
        config: Any = SimpleNamespace(cache_config=self.cache, kv_events_config=None)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.bind(address := f"ipc://{folder}/cache")
        cache_events.install(config, address)
        self.publisher = EventPublisherFactory.create(config.kv_events_config)
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=8, dtype=torch.float32)
        self.manager = KVCacheManager(
            KVCacheConfig(num_blocks=CAPACITY, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["0"], spec)]),
            max_model_len=10_000,
            scheduler_block_size=BLOCK,
            hash_block_size=BLOCK,
            enable_kv_cache_events=True,
        )
        hash_function = get_hash_fn_by_name(function)
        kv_cache_utils.init_none_hash(hash_function)
        self._hasher = kv_cache_utils.get_request_block_hasher(BLOCK, hash_function)
        self.index = CacheIndex()
        self._batches = 0
        first = self.batch()
        assert first.scheme is not None
        self.index.replace("a", first.scheme, first.capacity, first.after, b"")

    def batch(self) -> EngineBatch:
        assert self._socket.poll(10_000)
        return msgspec.msgpack.decode(self._socket.recv(), type=EngineBatch)

    def run(self, request: EngineCoreRequest) -> int:
        """Give a request to the manager, let it end, and return how many of its tokens were cached."""
        ours = Request.from_engine_core_request(request, self._hasher)
        blocks, cached, *_ = self.manager.get_computed_blocks(ours)
        if self.manager.allocate_slots(ours, ours.num_tokens - cached, cached, blocks) is None:
            return cached
        self.manager.free(ours)
        return cached

    def step(self) -> None:
        """Publish what has happened, and have the index follow."""
        if events := self.manager.take_events():
            self.publisher.publish(KVEventBatch(ts=0.0, events=events))
            batch = self.batch()
            assert batch.scheme is not None
            if not self._batches:  # before, the root was not known
                self.index.replace("a", batch.scheme, batch.capacity, batch.before, b"")
            self._batches = batch.after
            assert self.index.apply("a", batch.before, batch.after, batch.operations)

    def expected(self, prompt: Prompt) -> int | None:
        [scheme] = self.index.known()
        blocks = self.index.cached_blocks("a", prompt.hashes(scheme))
        return None if blocks is None else blocks * BLOCK

    def held(self) -> Counter[int]:
        """Return what the cache holds, with copies."""
        cached = self.manager.block_pool.cached_block_hash_to_block
        blocks = {key: 1 if not isinstance(value, dict) else len(value) for key, value in vars(cached)["_cache"].items()}
        return Counter({int.from_bytes(key[:-4][-8:], "big"): copies for key, copies in blocks.items()})

    def close(self) -> None:
        self.publisher.shutdown()
        self._context.destroy(linger=0)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's registry and classes, as they were before."""
    monkeypatch.setattr(EventPublisherFactory, "_registry", dict(vars(EventPublisherFactory)["_registry"]))
    monkeypatch.setattr(BlockPool, "emit_cached_block_events", BlockPool.emit_cached_block_events)


@pytest.fixture(params=["sha256", "sha256_cbor"])
def engine(request: pytest.FixtureRequest, tmp_path: Path, vllm: None) -> Iterator[Engine]:
    engine = Engine(tmp_path, request.param)
    yield engine
    engine.close()


def request_of(tokens: list[int], salt: str | None = None, **params: Any) -> EngineCoreRequest:
    return EngineCoreRequest("r", tokens, None, SamplingParams(max_tokens=1, **params), None, 0.0, None, salt, None)


def test_what_is_expected_of_any_prompt_is_what_vllm_finds(engine: Engine) -> None:
    rng = random.Random(3)
    documents = [[rng.randrange(9) for _ in range(rng.randrange(1, 60))] for _ in range(12)]
    found, copies = Counter[bool](), 0
    for _ in range(400):
        request = request_of(rng.choice(documents)[: rng.randrange(1, 60)], rng.choice([None, None, "salt"]))
        expected = engine.expected(Prompt(request))
        assert engine.run(request) == expected
        found[bool(expected)] += 1
        engine.step()
        held = engine.held()
        assert engine.index.blocks == held.total() <= CAPACITY
        copies = max(copies, 0, *held.values())
    assert min(found[True], found[False]) > 50
    assert copies > 1


def test_tokens_after_a_prompt_are_part_of_it(engine: Engine) -> None:
    engine.run(request_of([1, 2, 3, 4, 5, 6, 7, 8, 9]))
    engine.step()
    assert engine.expected(Prompt(request_of([1, 2, 3, 4, 5]), [6, 7, 8, 9, 10])) == 8
    assert engine.expected(Prompt(request_of([1, 2, 3, 4, 5, 6, 7, 8]))) == 4, "vLLM computes at least one token"


def test_a_salt_keeps_prompts_apart(engine: Engine) -> None:
    tokens = list(range(20))
    engine.run(request_of(tokens, "mine"))
    engine.step()
    assert [engine.expected(Prompt(request_of(tokens, salt))) for salt in ("mine", "other", None)] == [16, 0, 0]


def test_a_prompt_that_vllm_does_not_look_for_has_no_blocks(engine: Engine) -> None:
    tokens = list(range(20))
    engine.run(request_of(tokens))
    engine.step()
    request = request_of(tokens, prompt_logprobs=1)
    assert engine.expected(Prompt(request)) == engine.run(request) == 0


def test_a_cleared_cache_is_empty(engine: Engine) -> None:
    engine.run(request_of(list(range(20))))
    engine.step()
    assert engine.manager.reset_prefix_cache()
    engine.run(request_of([5] * 9))
    engine.step()
    assert engine.expected(Prompt(request_of(list(range(20))))) == 0
    assert engine.expected(Prompt(request_of([5] * 9))) == 8


def test_a_request_cannot_have_blocks_announced_that_are_not_stored_again(engine: Engine) -> None:
    request = request_of(list(range(20)), extra_args={"kv_cache_report_mode": "full"})
    for _ in range(5):
        engine.run(request)
        engine.step()
    assert engine.index.blocks == engine.held().total()


def test_a_cache_of_several_kinds_is_not_followed(engine: Engine) -> None:
    stored = BlockStored([1], None, [1, 2, 3, 4], BLOCK, None, kv_events.MEDIUM_GPU, None, group_idx=1)
    engine.publisher.publish(KVEventBatch(ts=0.0, events=[stored]))
    assert engine.batch().scheme is None


def test_blocks_of_a_connector_are_elsewhere(engine: Engine) -> None:
    stored = BlockStored([1], None, [1, 2, 3, 4], BLOCK, None, kv_events.MEDIUM_CPU, None, group_idx=0)
    engine.publisher.publish(KVEventBatch(ts=0.0, events=[stored]))
    assert engine.batch().operations == []


def test_hashes_may_be_bytes(engine: Engine) -> None:
    engine.publisher.publish(
        KVEventBatch(
            ts=0.0,
            events=[
                BlockStored([b"x" * 24 + (7).to_bytes(8, "big")], None, [1, 2, 3, 4], BLOCK, None, kv_events.MEDIUM_GPU, None),
                BlockRemoved([7], kv_events.MEDIUM_GPU),
            ],
        )
    )
    blocks = Blocks(3)
    blocks.apply(engine.batch().operations[:1])
    assert 7 in blocks


@pytest.mark.parametrize(("caching", "own"), [(False, None), (True, "vLLM's own")])
def test_without_a_cache_or_with_another_publisher_nothing_is_installed(caching: bool, own: Any) -> None:
    config: Any = SimpleNamespace(cache_config=SimpleNamespace(enable_prefix_caching=caching), kv_events_config=own)
    cache_events.install(config, "ipc://none")
    assert config.kv_events_config is own
    assert cache_events.NAME not in vars(EventPublisherFactory)["_registry"]
