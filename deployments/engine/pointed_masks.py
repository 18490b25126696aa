"""What a pointer prefers (`deployments.reasoning.pointer`), sent to the workers of vLLM's Model Runner V2 with the grammar's masks.

Only the engine's own process can say it. It needs the text of all tokens so far, which V2's workers have on the device alone, and
which the engine waits for anyway where a grammar has to follow them. So a step's masks get further columns there: for each row the
group of tokens to prefer, as a mask, and its weight. A worker takes them off again, and the logits processor uses them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from deployments.engine.vocabulary import ModelVocabulary
from deployments.patching import patch
from deployments.reasoning.limits import Constraint
from deployments.reasoning.pointer import Vocabulary
from deployments.reasoning.rules import rules_of
from deployments.reasoning.thought import Thought

Words = npt.NDArray[np.int32]
"""Masks of tokens, 32 to an integer, as vLLM's grammars have them; shape (rows, integers)."""


class Pointers:
    """The rules of the requests that answer in a format, and what they say of a step's rows."""

    def __init__(self, vocabulary: Callable[[], Vocabulary]) -> None:
        self._vocabulary = vocabulary
        self._thoughts: WeakKeyDictionary[Any, Thought | None] = WeakKeyDictionary()

    def added(self, masks: Words, requests: Mapping[str, Any], ids: Iterable[str], drafts: Mapping[str, Sequence[int]]) -> Words:
        """Return a step's masks with what is preferred; ban in them, in place, what an answer may not hold.

        A request has a row for each of its draft tokens, which are -1 behind the last that its grammar takes, and one more.
        """
        groups = np.zeros((len(masks), masks.shape[1] + 1), dtype=np.int32)
        pointed, row = False, 0
        for name in ids:
            tokens = drafts.get(name, ())
            if (thought := self._thought(requests[name])) is not None:
                for place, constraint in enumerate(thought.answer_after(tokens)):
                    if constraint is not None:
                        pointed |= _point(masks[row + place], groups[row + place], constraint)
            row += len(tokens) + 1
        return np.concatenate((masks, groups), axis=1) if pointed else masks

    def _thought(self, request: Any) -> Thought | None:
        """Return a request's rule, made once; None where it does not think first."""
        if request not in self._thoughts:
            params = request.sampling_params
            rules = rules_of(params.extra_args, request.output_token_ids, sorted(params.all_stop_token_ids), self._vocabulary)
            self._thoughts[request] = next((rule for rule in rules if isinstance(rule, Thought)), None)
        return self._thoughts[request]


def _point(mask: Words, group: Words, constraint: Constraint) -> bool:
    """Apply a constraint to a row: its `mask`, and the `group` of tokens that it prefers, with the weight behind.

    Return whether it prefers any.
    """
    words, preferred = mask.view(np.uint32), group[:-1].view(np.uint32)
    words &= ~_mask(constraint.banned, len(words))
    for tokens in constraint.preferred:
        possible = _mask(tokens, len(words)) & words
        if possible.any():
            preferred[:] = possible
            group[-1:].view(np.float32)[0] = constraint.weight
            return True
    return False


def _mask(tokens: Sequence[int], length: int) -> npt.NDArray[np.uint32]:
    """Return tokens as a mask of so many integers; what does not fit is left out."""
    mask = np.zeros(length, dtype=np.uint32)
    ids = np.asarray(tokens, dtype=np.int64)
    ids = ids[ids < 32 * length]
    np.bitwise_or.at(mask, ids >> 5, (np.uint32(1) << (ids & 31).astype(np.uint32)))
    return mask


def install(config: Any) -> None:
    """Have the engine's process send what is preferred; `config` is vLLM's configuration."""
    from vllm.v1.structured_output import StructuredOutputManager

    pointers = Pointers(partial(ModelVocabulary.of, config))

    def masks(self: Any, requests: Any, ids: Any, drafts: Any) -> Any:
        made = original(self, requests, ids, drafts)
        return None if made is None else pointers.added(made, requests, ids, drafts)

    original = patch(
        StructuredOutputManager,
        "grammar_bitmask",
        masks,
        why="only this process knows what a pointer prefers, and vLLM (0.32.0) sends workers nothing of ours at each step",
        until="a logits processor can have a part in the scheduler's process",
    )


@dataclass(frozen=True)
class Preferred:
    """What is preferred in a step: for each group its request's slot, the place among the request's rows, mask and weight."""

    slots: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    groups: Words
    weights: npt.NDArray[np.float32]


class Inbox:
    """A worker's end: what came with a step's masks."""

    def __init__(self) -> None:
        self.preferred: Preferred | None = None
        self.installed = False

    def open(self, masks: Words, width: int, rows: Sequence[tuple[int, int]]) -> Words:
        """Return the masks alone, `width` integers a row, and keep the rest. `rows` has slot and place of each."""
        groups, weights = masks[:, width : 2 * width], np.ascontiguousarray(masks[:, 2 * width :]).view(np.float32)[:, 0]
        chosen = np.flatnonzero(weights)
        slots, places = np.array(rows, dtype=np.int64)[chosen].T
        self.preferred = Preferred(slots, places, groups[chosen], weights[chosen])
        return np.ascontiguousarray(masks[:, :width])


INBOX = Inbox()
"""This worker's."""


def install_inbox() -> None:
    """Have this worker take off its masks what came with them. Does nothing the second time."""
    from vllm.v1.worker.gpu import structured_outputs

    if INBOX.installed:
        return
    INBOX.installed = True

    def apply(self: Any, logits: Any, batch: Any, ids: Sequence[str], masks: Any) -> None:
        if masks.shape[1] > (width := self.grammar_bitmask.shape[1]):
            masks = INBOX.open(masks, width, _rows(batch, ids, self.num_bonus_tokens))
        original(self, logits, batch, ids, masks)

    original = patch(
        structured_outputs.StructuredOutputsWorker,
        "apply_grammar_bitmask",
        apply,
        why="masks come with what a pointer prefers (see `install`)",
        until="a logits processor can have a part in the scheduler's process",
    )


def _rows(batch: Any, ids: Sequence[str], bonus: int) -> list[tuple[int, int]]:
    """Return slot and place of each mask: those of the requests `ids`, in the layout that vLLM has scheduled."""
    at = {name: index for index, name in enumerate(batch.req_ids)}
    made = []
    for name in ids:
        index = at[name]
        if batch.num_draft_tokens_per_req is None:
            count = int(batch.cu_num_logits_np[index + 1] - batch.cu_num_logits_np[index])
        else:
            count = int(batch.num_draft_tokens_per_req[index]) + bonus
        made += [(int(batch.idx_mapping_np[index]), place) for place in range(count)]
    return made
