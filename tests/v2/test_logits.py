"""The kernels that follow the rules of requests: as the rules in Python say, whatever drafts there are; and compiled for a GPU."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import vllm.v1.worker.cpu.shm  # noqa: F401  as vLLM's worker for CPUs does: buffers without pinned memory
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.sampling_params import SamplingParams
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcRequestState
from vllm.v1.worker.gpu.states import RequestState

from deployments.engine.logits import NEVER, constrain
from deployments.engine.logits_v2 import CoatLimits
from deployments.engine.pointed_masks import INBOX
from deployments.reasoning.limits import ARGUMENT, REPEAT, Constraint
from deployments.reasoning.rules import rules_of
from deployments.reasoning.thought import ARGUMENT as THOUGHT
from tests.support.kernels import sizes
from tests.support.vocabulary import BOXED, END, NEWLINE, SIZE, THE, TOKENS

SLOTS, LONGEST, DRAFTS = 3, 64, 3
CPU = torch.device("cpu")

TOKEN = st.integers(0, SIZE - 1)
LIMITS = st.fixed_dictionaries(
    {},
    optional={
        "max_reasoning_tokens": st.integers(0, 12),
        "max_reflections": st.integers(0, 3),
        "max_explorations": st.integers(0, 3),
        "min_reflections": st.integers(0, 3),
        "marks": st.sampled_from([[BOXED], [BOXED, 9], []]),
        "openings": st.sampled_from([[], [[THE]], [[NEWLINE, THE], [THE]], [[NEWLINE, NEWLINE, THE], [NEWLINE, END]]]),
    },
)
MARKER = 9
"""The first token of a separator, which no prompt holds: vLLM's chat template writes it as text."""


class Rows:
    """Requests as vLLM's runner has them, and the processor under test."""

    def __init__(self) -> None:
        self.state = RequestState(SLOTS, LONGEST, LONGEST, DRAFTS, SIZE, CPU)
        config = SimpleNamespace(num_speculative_tokens=DRAFTS)
        self.processor = CoatLimits(config, LogitsProcRequestState.from_request_state(self.state))
        self.requests: dict[int, tuple[dict, list[int], list[int]]] = {}

    def add(self, name: str, arguments: dict, prompt: list[int], output: list[int]) -> int:
        """Add a request, or one that was preempted after some output; return its slot."""
        self.state.add_request(name, len(prompt), [*prompt, *output], 0, LONGEST)
        slot = self.state.req_id_to_index[name]
        ruled = self.processor.add_request(slot, params(arguments))
        assert ruled == bool(rules_of(arguments, []))
        self.state.apply_staged_writes()
        self.processor.apply_staged_writes()
        self.requests[slot] = (arguments, prompt, output)
        return slot

    def remove(self, name: str) -> None:
        del self.requests[self.state.remove_request(name)]

    def check(
        self, drafts: dict[int, list[int]], logits: torch.Tensor, further: dict[tuple[int, int], Constraint] | None = None
    ) -> None:
        """Compare a step's distributions with those of the rules in Python. `drafts` has the slots in the step.

        `further` are constraints besides, by slot and place.
        """
        places = [place for tokens in drafts.values() for place in range(len(tokens) + 1)]
        row_slots = [slot for slot, tokens in drafts.items() for _ in range(len(tokens) + 1)]
        inputs = [token for slot, tokens in drafts.items() for token in (self._last(slot), *tokens)]
        slots = np.array(list(drafts))
        context = LogitsContext(
            expanded_idx_mapping=torch.tensor(row_slots),
            idx_mapping=torch.from_numpy(slots),
            idx_mapping_np=slots,
            expanded_local_pos=torch.tensor(places, dtype=torch.int32),
            input_ids=torch.tensor(inputs, dtype=torch.int32),
            pos=torch.zeros(len(places)),
            seq_lens_upper_bound_np=slots,
        )
        made = self.processor.apply(logits[: len(places)].clone(), context)
        for row, (slot, place) in enumerate(zip(row_slots, places, strict=True)):
            arguments, _, output = self.requests[slot]
            wanted = logits[row].clone()
            for rule in rules_of(arguments, output + drafts[slot][:place], [END]):
                constrain(wanted, rule.constraint())
            if further and (slot, place) in further:
                constrain(wanted, further[slot, place])
            # What is banned is the same. A share of the probability is the rest of another one, so that of a token which has
            # some 1e-6 of it differs by rounding.
            assert torch.equal(made[row].isneginf(), wanted.isneginf())
            torch.testing.assert_close(made[row].softmax(0), wanted.softmax(0), rtol=1e-4, atol=1e-6, equal_nan=True)

    def _last(self, slot: int) -> int:
        _, prompt, output = self.requests[slot]
        return (prompt + output)[-1]

    def commit(self, slot: int, tokens: list[int]) -> None:
        """Append tokens to a request's output, as the runner does on the device after a step."""
        _, prompt, output = self.requests[slot]
        output += tokens
        self.state.all_token_ids.stage_write(slot, 0, prompt + output)
        self.state.total_len.stage_write_elem(slot, len(prompt + output))
        self.state.apply_staged_writes()


def params(arguments: dict) -> SamplingParams:
    """Return the parameters of a request whose turn ends with END."""
    made = SamplingParams(extra_args=arguments)
    made._all_stop_token_ids = {END}
    return made


@st.composite
def arguments(draw: st.DrawFn) -> dict:
    given = {}
    if draw(st.booleans()):
        given[ARGUMENT] = TOKENS | draw(LIMITS)
    if draw(st.booleans()):
        separator = [MARKER, *draw(st.lists(TOKEN, max_size=2))]
        given[THOUGHT] = {"separator": separator, "special": [], "copy": 0.0, "is_json": True}
    if draw(st.booleans()):
        given[REPEAT] = {"tokens": draw(st.lists(TOKEN, min_size=1, max_size=6))}
    return given


@st.composite
def logits_of(draw: st.DrawFn) -> torch.Tensor:
    """Logits of a step, some of them forbidden already, as by a grammar."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    made = torch.randn((SLOTS * (DRAFTS + 1), SIZE), generator=generator) * 5
    for token in draw(st.lists(TOKEN, max_size=4)):
        made[:, token] = float("-inf")
    return made


@settings(max_examples=40)  # an example takes Triton's interpreter half a second
@given(data=st.data())
def test_the_kernels_do_what_the_rules_say(data: st.DataObject) -> None:
    rows, requests = Rows(), 0
    for _ in range(data.draw(st.integers(1, 6))):
        while len(rows.requests) < data.draw(st.integers(1, SLOTS)):
            requests += 1
            given = data.draw(arguments())
            planted, before = (data.draw(st.lists(TOKEN, max_size=size)) for size in (3, 5))
            if ARGUMENT in given:
                before = [] if {THOUGHT, REPEAT} & given.keys() else before
                given[ARGUMENT] = given[ARGUMENT] | {"planted": planted, "before": before}
            rows.add(str(requests), given, [0, *planted, *before], data.draw(st.lists(TOKEN, max_size=3)))
        slots = data.draw(st.permutations(sorted(rows.requests)))
        drafts = {slot: data.draw(st.lists(TOKEN, max_size=DRAFTS)) for slot in slots}
        rows.check(drafts, data.draw(logits_of()))
        for slot in slots:
            accepted = drafts[slot][: data.draw(st.integers(0, DRAFTS))]
            rows.commit(slot, [*accepted, data.draw(TOKEN)])
        if data.draw(st.booleans()):
            slot = slots[0]
            name = rows.state.index_to_req_id[slot]
            kept = rows.requests[slot]
            rows.remove(name)
            if data.draw(st.booleans()):
                rows.add(name, *kept)


@settings(max_examples=15)
@given(data=st.data())
def test_what_is_preferred_gets_its_share(data: st.DataObject) -> None:
    """It comes as columns of the masks that the engine sends, and holds for one step."""
    rows, thought = Rows(), {THOUGHT: {"separator": [MARKER], "special": [], "copy": 0.0, "is_json": True}}
    drafts = {rows.add(name, thought, [0], [MARKER]): data.draw(st.lists(TOKEN, max_size=DRAFTS)) for name in "ab"}
    places = [(slot, place) for slot, tokens in drafts.items() for place in range(len(tokens) + 1)]
    logits = data.draw(logits_of())
    masks, wanted = np.full((len(places), 3), -1, dtype=np.int32), {}
    masks[:, 1:] = 0
    for row in range(len(places)):
        possible = [token for token in range(SIZE) if logits[row][token] > NEVER]
        if group := data.draw(st.lists(st.sampled_from(possible), unique=True)):
            weight = np.float32(data.draw(st.sampled_from([0.4, 1.0])))
            masks[row, 1:] = sum(1 << token for token in group), weight.view(np.int32)
            wanted[places[row]] = Constraint(preferred=[group], weight=float(weight))
    assert (INBOX.open(masks, 1, places) == -1).all()
    rows.check(drafts, logits, wanted)
    rows.processor.apply_staged_writes()
    rows.check(drafts, logits)


def test_nothing_is_launched_without_rules() -> None:
    rows = Rows()
    slot = rows.add("a", {}, [0], [])
    rows.processor._launch = None  # type: ignore[method-assign]
    context = SimpleNamespace(idx_mapping_np=np.array([slot]))
    logits = torch.randn(1, SIZE)
    assert rows.processor.apply(logits, context) is logits


def test_rules_longer_than_the_table_move_the_others_along() -> None:
    rows = Rows()
    few = rows.add("few", {ARGUMENT: TOKENS | {"max_reflections": 0}}, [0], [])
    width = rows.processor._rules.gpu.shape[1]
    many = rows.add("many", {REPEAT: {"tokens": [THE] * width}}, [0], [])
    assert rows.processor._rules.gpu.shape[1] > width
    rows.check({few: [], many: [THE, THE]}, torch.randn(4, SIZE))


COMPILE = """
from deployments.engine.logits_kernels import advance, apply, prefer

integers, number = "*i32", "i32"
shared = {"rules": integers, "rules_stride": number, "states": integers, "tokens": integers, "tokens_stride": number}
shared |= {"prompt_lengths": integers, "lengths": integers}
rows = {"logits": "*fp32", "logits_stride": number, "vocabulary": number, "row_slots": "*i64"}
rows |= {"places": integers, "inputs": integers}
groups = {"indices": integers, "indices_stride": number, "groups": integers, "groups_stride": number, "weights": "*fp32"}
preferring = {name: kind for name, kind in rows.items() if name != "inputs"} | groups
for kernel, arguments in ((advance, {"slots": "*i64"} | shared), (apply, rows | shared), (prefer, preferring)):
    compiled(kernel, arguments)
"""


def test_the_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    """Triton's interpreter takes what its compiler refuses, as annotations."""
    found = sizes(COMPILE, tmp_path)
    assert len(found) == 3
    assert all(size > 1000 for size in found)
