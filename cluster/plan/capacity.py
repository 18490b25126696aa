"""The capacity and speed of a replica, computed from a model's shape, a card's figures and a precision.

A decode step reads the weights and the KV cache of all running requests once (memory bandwidth), or multiplies (FLOPs), whichever
takes longer. A prefill multiplies (Williams et al., Roofline, CACM 52(4), 2009; Pope et al., arXiv 2211.05102). The shares of a
card's figures that are reached in practice are fitted to published measurements, which are in published.yaml.
"""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from cluster.plan.architectures import PlanError, Shape

GIB = 2**30
BANDWIDTH_SHARE = 0.95
FLOPS_SHARE = 0.45
STEP_S = 0.002
"""The shares of a card's bandwidth and FLOPs that are reached, and the fixed time of a step (scheduling, launches, sampling).

Fitted on a grid to the single-card runs in published.yaml.
"""
DRAFT_PASSES = 8
"""How often the logits of a draft are read or written, in float32, when it is verified: assumed, from vLLM 0.32.0's source."""
OVERHEAD_BYTES = round(2.2 * GIB)
"""A card's memory for activations, CUDA graphs and libraries.

vLLM's logs on cards of 24 GB show 1.2 to 1.7 GiB without the graphs. Since vLLM 0.21 the graphs count too; 0.6 GiB is assumed.
"""
BLOCK_TOKENS = 16
"""Tokens of a KV block, vLLM's default on CUDA."""


@dataclass(frozen=True)
class Precision:
    """The bytes of a number in the layers' matrices and in the KV cache. Embeddings, output layer and norms stay in BF16."""

    name: str
    weights: int
    kv: int


PRECISIONS = (Precision("bf16", 2, 2), Precision("fp8-kv", 2, 1), Precision("fp8-weights", 1, 2), Precision("fp8", 1, 1))


@dataclass(frozen=True)
class Card:
    """A GPU's figures; see gpus.yaml."""

    name: str
    ray_type: str
    memory_gib: float
    bandwidth_bytes_s: float
    bf16_flops: float
    fp8_flops: float
    exchange_bytes_s: float


@cache
def cards() -> dict[str, Card]:
    """Return the known cards, by their names for `--gpu`."""
    found = yaml.safe_load(Path(__file__).with_name("gpus.yaml").read_text())
    return {name: Card(**figures) for name, figures in found.items()}


def blocks(shape: Shape, kv_bytes: int, space_bytes: int, block_tokens: int) -> int:
    """Return the number of KV blocks that vLLM fits into a space (`num_gpu_blocks`), for a model without windowed layers."""
    return space_bytes // (shape.kv_values(1) * kv_bytes * block_tokens)


@dataclass(frozen=True)
class Replica:
    """An LLM replica: a model in a precision, on `tp` cards that share every layer.

    `utilization` is vLLM's gpu_memory_utilization.
    """

    shape: Shape
    card: Card
    precision: Precision
    tp: int = 1
    utilization: float = 0.92

    def __post_init__(self) -> None:
        if self.shape.heads % self.tp:
            raise PlanError(f"tensor_parallel_size={self.tp}: allowed: a divisor of the model's {self.shape.heads} attention heads")

    @property
    def weights_bytes(self) -> int:
        """The size of the weights, over all cards."""
        return self.shape.matrices * self.precision.weights + (self.shape.parameters - self.shape.matrices) * 2

    @property
    def kv_copies(self) -> float:
        """The number of copies of the KV cache: each card holds at least one KV head."""
        return max(1.0, self.tp / self.shape.kv_heads)

    @property
    def kv_space_bytes(self) -> int:
        """The space for the KV cache, without copies; 0 if the weights do not fit."""
        room = self.tp * (self.card.memory_gib * GIB * self.utilization - OVERHEAD_BYTES) - self.weights_bytes
        return max(0, int(room / self.kv_copies))

    def kv_bytes(self, tokens: int) -> int:
        """Return the KV cache of a request of that many tokens, without copies."""
        return self.shape.kv_values(tokens) * self.precision.kv

    def fits(self, tokens: int) -> int:
        """Return how many requests of that many tokens fit at a time."""
        whole = math.ceil(tokens / BLOCK_TOKENS) * BLOCK_TOKENS
        return self.kv_space_bytes // self.kv_bytes(whole)

    def _flops(self) -> float:
        return (self.card.fp8_flops if self.precision.weights == 1 else self.card.bf16_flops) * FLOPS_SHARE * self.tp

    def _exchange_s(self, tokens: float) -> float:
        """Return the time of two all-reduces a layer for that many tokens, in a ring."""
        values = 2 * self.shape.layers * self.shape.hidden * tokens
        return values * 2 * 2 * (self.tp - 1) / self.tp / self.card.exchange_bytes_s

    def prefill_s(self, prompt_tokens: int) -> float:
        """Return the time that a prompt adds to the steps in which it is prefilled."""
        return 2 * self.shape.matrices * prompt_tokens / self._flops() + self._exchange_s(prompt_tokens)

    def step_s(self, batch: float, context_tokens: int, drafts: int = 0) -> float:
        """Return the time of a decode step of `batch` requests with `context_tokens` each, which verifies `drafts` of each."""
        rows = batch * (1 + drafts)
        bandwidth = self.card.bandwidth_bytes_s * BANDWIDTH_SHARE * self.tp
        read_s = (self.shape.matrices * self.precision.weights + self.shape.head * 2) / bandwidth
        multiply_s = 2 * (self.shape.matrices + self.shape.head) * rows / self._flops()
        kv_s = batch * self.kv_bytes(context_tokens) * self.kv_copies / bandwidth
        verify_s = batch * drafts * self.shape.vocabulary * 4 * DRAFT_PASSES / bandwidth
        return max(read_s, multiply_s) + kv_s + verify_s + STEP_S + self._exchange_s(rows)

    def request_s(self, batch: float, prompt_tokens: int, output_tokens: int) -> float:
        """Return the time of a request when `batch` requests run at any time and each waits for the prefill of the others."""
        decode_s = output_tokens * self.step_s(batch, prompt_tokens + output_tokens // 2)
        return decode_s + batch * self.prefill_s(prompt_tokens)

    def tokens_s(self, batch: float, prompt_tokens: int, output_tokens: int) -> float:
        """Return the output tokens a second with `batch` requests at a time."""
        return batch * output_tokens / self.request_s(batch, prompt_tokens, output_tokens)
