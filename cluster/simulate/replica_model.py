"""A model of one replica's continuous batching, calibrated to published measurements of a 7B model on an RTX 4090.

An engine step gives each running request a token. It takes `step_s + running * step_per_request_s + tokens in the KV cache *
step_per_kv_token_s`, and longer for the prompt tokens that it prefills (at `prefill_tokens_per_s`, at most `chunk_tokens` a step).

Sources of the defaults:
- `step_s`: 18.2 ms a token with few requests, Qwen2.5-7B-Instruct, vLLM, RTX 4090
  (https://stackbytes.beehiiv.com/p/why-your-gpu-is-idle-but-your-requests-are-queued). Reading its 15.2 GB of weights takes 15.1
  ms.
- `step_per_kv_token_s`: 56 KiB a token (Qwen2.5-7B, bfloat16) at 80 % of 1,008 GB/s.
- `step_per_request_s`: fitted to 300 requests at once of 100 prompt and 539 reply tokens, which took 48.35 s (3,345 tokens/s) with
  DeepSeek-R1-Distill-Qwen-7B, vLLM, on one RTX 4090
  (https://www.databasemart.com/blog/vllm-distributed-inference-optimization-guide).
- `prefill_tokens_per_s`: 48 prompts of 256 tokens at once had a 99th percentile of TTFT of 1.48 s, Mistral-7B, vLLM, RTX 4090
  (https://mushfiqrahman.dev/benchmarking-mistral-7b-on-rtx-4090-vllm-concurrency-latency-and-capacity-planning/).
- `kv_tokens`: computed, as 92 % of 24 GB less weights and activations. Start-up time and price are assumptions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ReplicaModel:
    """The figures of a replica. Its start-up takes `startup_s`, plus or minus a share of up to `startup_spread`.

    `sharing` is for replicas that share a machine's cores: the factor on the time of a step with one busy replica, with two, ...
    """

    step_s: float = 0.018
    step_per_request_s: float = 0.00009
    step_per_kv_token_s: float = 7.1e-8
    prefill_tokens_per_s: float = 8300.0
    chunk_tokens: int = 2048
    kv_tokens: int = 100_000
    max_num_seqs: int = 256
    startup_s: float = 90.0
    startup_spread: float = 0.2
    drain_s: float = 60.0
    usd_per_hour: float = 0.35
    sharing: tuple[float, ...] = (1.0,)

    def step(self, running: Floats, kv: Floats) -> Floats:
        """Return for each replica the seconds of a step without prefill."""
        step_s = self.step_s + self.step_per_request_s * running + self.step_per_kv_token_s * kv
        busy = int(np.count_nonzero(running)) if len(self.sharing) > 1 else 1
        return step_s * self.sharing[min(max(busy, 1), len(self.sharing)) - 1]
