"""The logits processor of `deployments.engine.logits` for vLLM's Model Runner V2, which vLLM takes on GPUs.

A row of logits is not a request here: with speculation, a request has a row for each draft token and one for the token after them.
What counts for a row are the tokens committed before this step, which only the device knows in time, and the drafts before the
row. So rules are followed on the device, by two kernels: `advance` follows the committed tokens of each request, and `apply` the
drafts of each row, and changes the row. They compute what `deployments.reasoning.limits` says in Python, which is the reference.

A step without a request that has rules launches nothing.
"""

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.triton_utils import triton
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.buffer_utils import StagedWriteTensor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcessor, LogitsProcRequestState

from deployments.engine.logits_kernels import BEGINNING, HEADER, NO_RULES, UNLIMITED, advance, apply, prefer
from deployments.engine.pointed_masks import INBOX, Preferred, install_inbox
from deployments.reasoning.limits import ARGUMENT, REPEAT, Limits
from deployments.reasoning.thought import ARGUMENT as THOUGHT

UNLIMITED_CHAIN = Limits(reflect=-1, explore=-1, actions=[], end=[], marks=[], openings=[], answer=[])


class CoatLimits(LogitsProcessor):
    """The rules of requests, by vLLM's request slot. Slots are used again, also by a request that was preempted and returns."""

    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState) -> None:
        """Compile the kernels, so that no request waits for that."""
        self._requests = req_states
        self._most_rows = 1 + (vllm_config.num_speculative_tokens if vllm_config else 0)
        self._rows: dict[int, list[int]] = {}
        self._ruled = np.zeros(req_states.max_num_reqs, dtype=bool)
        self._rules = self._staged(256)
        self._states = self._staged(len(BEGINNING))
        install_inbox()
        self._warm_up()

    def _staged(self, width: int) -> StagedWriteTensor:
        return StagedWriteTensor((self._requests.max_num_reqs, width), dtype=torch.int32, device=self._requests.device)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Set or clear a slot's rules; return whether it has any."""
        row = packed(sampling_params.extra_args, sampling_params.all_stop_token_ids)
        if row is not None:
            self._set(req_idx, row)
        elif self._ruled[req_idx]:
            self._rules.stage_write(req_idx, 0, NO_RULES)
            del self._rows[req_idx]
        self._ruled[req_idx] = row is not None
        return row is not None

    def _set(self, slot: int, row: list[int]) -> None:
        self._rows[slot] = row
        if len(row) > self._rules.gpu.shape[1]:
            self._rules = self._staged(triton.next_power_of_2(len(row)))
            for other, rules in self._rows.items():
                self._rules.stage_write(other, 0, rules)
        else:
            self._rules.stage_write(slot, 0, row)
        self._states.stage_write(slot, 0, BEGINNING)

    def apply_staged_writes(self) -> None:
        """Send the device what `add_request` has changed. A step begins: what the last one preferred is over."""
        INBOX.preferred = None
        self._rules.apply_write()
        self._states.apply_write()

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        """Return the logits, shape (rows, vocabulary), with the rules applied in place."""
        if self._ruled[ctx.idx_mapping_np].any():
            if INBOX.preferred is not None:
                self._prefer(logits, ctx.expanded_idx_mapping, ctx.expanded_local_pos, INBOX.preferred)
            self._launch(logits, ctx.idx_mapping, ctx.expanded_idx_mapping, ctx.expanded_local_pos, ctx.input_ids)
        return logits

    def _launch(
        self, logits: torch.Tensor, slots: torch.Tensor, row_slots: torch.Tensor, places: torch.Tensor, inputs: torch.Tensor
    ) -> None:
        requests, rules, states = self._requests, self._rules.gpu, self._states.gpu
        tokens = requests.all_token_ids.gpu
        shared = (rules, rules.stride(0), states, tokens, tokens.stride(0), requests.prompt_len.gpu, requests.total_len.gpu)
        advance[(slots.shape[0],)](slots, *shared)
        apply[(logits.shape[0],)](logits, logits.stride(0), logits.shape[1], row_slots, places, inputs, *shared)

    def _prefer(self, logits: torch.Tensor, row_slots: torch.Tensor, places: torch.Tensor, preferred: Preferred) -> None:
        indices = np.full((self._requests.max_num_reqs, self._most_rows), -1, dtype=np.int32)
        indices[preferred.slots, preferred.places] = np.arange(len(preferred.weights))
        sent = (indices, preferred.groups, preferred.weights)
        index, group, weight = (async_tensor_h2d(array, device=self._requests.device) for array in sent)
        strides = (index.stride(0), group, group.stride(0), weight)
        prefer[(logits.shape[0],)](logits, logits.stride(0), logits.shape[1], row_slots, places, index, *strides)

    def _warm_up(self) -> None:
        device = self._requests.device
        logits = torch.zeros((1, self._requests.vocab_size), dtype=torch.float32, device=device)
        slots, zeros = (torch.zeros(1, dtype=dtype, device=device) for dtype in (torch.int64, torch.int32))
        words = np.ones((1, -(-logits.shape[1] // 32)), dtype=np.int32)
        nothing = np.zeros(1, dtype=np.int64)
        self._prefer(logits, slots, zeros, Preferred(nothing, nothing, words, np.ones(1, dtype=np.float32)))
        self._launch(logits, slots, slots, zeros, zeros)


def packed(arguments: dict[str, Any] | None, stops: Iterable[int] = ()) -> list[int] | None:
    """Return the rules in a request's `extra_args` as the kernels read them: a header and lists. None if there are none.

    `stops` are the tokens that end its turn.
    """
    given = arguments or {}
    limits = Limits(**given[ARGUMENT]) if isinstance(given.get(ARGUMENT), dict) else None
    repeated = given[REPEAT]["tokens"] if isinstance(given.get(REPEAT), dict) else []
    separator = given[THOUGHT]["separator"] if isinstance(given.get(THOUGHT), dict) else []
    if limits is None:
        if not separator:
            return [*NO_RULES[:-1], HEADER + len(repeated), *repeated] if repeated else None
        limits = UNLIMITED_CHAIN
    openings = [value for opening in limits.openings for value in (len(opening), *opening)]
    ending = sorted(token for token in stops if token >= 0) if separator else []
    lists = (limits.end, limits.marks, limits.actions, openings, limits.answer, separator, ending, repeated)
    ends = itertools.islice(itertools.accumulate(map(len, lists), initial=HEADER), 1, None)
    most = (limits.max_reasoning_tokens, limits.max_reflections, limits.max_explorations)
    header = [1, len(limits.planted), len(limits.before), *(UNLIMITED if value is None else value for value in most)]
    return [*header, limits.min_reflections, limits.reflect, limits.explore, *ends, *itertools.chain(*lists)]
