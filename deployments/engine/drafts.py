"""Drafts from the texts of all requests of an engine, for vLLM's Model Runner V2: n-grams, as vLLM's, but not of one text alone.

vLLM's `ngram_gpu` looks for a request's last tokens in the text of this request. Chains also repeat each other: their turns of
phrase are those of the chains before them. All tokens lie in one table on the device, a row for each slot of a request, and rows of
requests that have ended stay until the slot is used again. So here all rows are looked through; the device is not waited for.

A draft changes no greedy token. It does change a sampled one, so sampled requests draft from their own text: what a seed gives must
not depend on what was asked before. How soon tokens come can tell a client that a text like its own was written before, as a shared
prefix cache can.
"""

from collections import deque
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.triton_utils import triton
from vllm.v1.worker.gpu.spec_decode.ngram import speculator as ngram

from deployments.engine.draft_kernels import BLOCK, look, take
from deployments.patching import patch


class OldestFirst(deque[int]):
    """vLLM's free slots. It takes the slot that was freed last, so a lone request would always overwrite the one before it."""

    def pop(self) -> int:  # type: ignore[override]
        """Remove and return the slot that was freed first."""
        return self.popleft()


class SharedNgrams(ngram.NgramGPUSpeculator):
    """vLLM's speculator with n-grams of all slots."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, req_states: Any) -> None:
        super().__init__(vllm_config, device, req_states)
        req_states.free_indices = OldestFirst(req_states.free_indices)
        self._best = torch.zeros(self.max_num_reqs, dtype=torch.int64, device=device)
        self._blocks = triton.cdiv(self.max_model_len, BLOCK.value)
        self._width = triton.next_power_of_2(self.num_speculative_steps)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def propose(
        self,
        input_batch: Any,
        attn_metadata: Any,
        slot_mappings: Any,
        last_hidden_states: Any,
        aux_hidden_states: Any,
        num_sampled: torch.Tensor,
        num_rejected: torch.Tensor,
        last_sampled: torch.Tensor,
        next_prefill_tokens: Any,
        temperature: torch.Tensor,
        *_: Any,
        dummy_run: bool = False,
        num_speculative_tokens: int | None = None,
        **__: Any,
    ) -> torch.Tensor:
        """Return drafts, shape (requests, drafts). Where none are wanted, as with large batches, nothing is looked for."""
        count, span = input_batch.num_reqs, self.max_model_len + 1
        if dummy_run or num_speculative_tokens == 0:
            return self.drafts[:count]
        rows, lengths, slots = self.req_states.all_token_ids.gpu, self.req_states.total_len.gpu, input_batch.idx_mapping
        best = self._best[:count].zero_()
        look[count, self.max_num_reqs, self._blocks](
            rows, rows.stride(0), slots, lengths, temperature, num_sampled, best, self.max_num_reqs, span, self.min_n, self.max_n
        )
        most, width = self.num_speculative_steps, self._width
        take[count,](rows, rows.stride(0), slots, lengths, last_sampled, best, self.drafts, self.max_num_reqs, span, most, width)
        return self.drafts[:count]


class Extension:
    """Adds nothing to vLLM's worker, which imports its module before its runner is made: so the patch below comes first."""


patch(
    ngram,
    "NgramGPUSpeculator",
    SharedNgrams,
    why="its drafts are from the request's own text only; for each `method` vLLM has one speculator",
    until="vLLM takes a speculator of ours on Model Runner V2 (`custom_class` is for the first runner)",
)
