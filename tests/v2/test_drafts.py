"""Drafts from all rows of vLLM's table of tokens: as the same in Python says, and compiled for a GPU."""

from pathlib import Path
from types import SimpleNamespace

import torch
import vllm.v1.worker.cpu.shm  # noqa: F401  as vLLM's worker for CPUs does: buffers without pinned memory
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.v1.worker.gpu.spec_decode import init_speculator
from vllm.v1.worker.gpu.states import RequestState

from deployments.engine import drafts
from deployments.engine.draft_kernels import BLOCK
from tests.support.kernels import sizes

SLOTS, LONGEST, SHORTEST_NGRAM, LONGEST_NGRAM, MOST = 3, BLOCK.value + 200, 1, 3, 5
TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=12)
STEPS = st.lists(st.tuples(st.integers(0, SLOTS - 1), TOKENS), min_size=1, max_size=12)


class Speculation(SimpleNamespace):
    """What the speculator reads of vLLM's configuration."""

    method = "ngram_gpu"
    prompt_lookup_min, prompt_lookup_max = SHORTEST_NGRAM, LONGEST_NGRAM
    num_speculative_tokens = MOST

    def __getattr__(self, name: str) -> object:
        """Answer that it is no other method."""
        return lambda: name == "use_ngram"


class Engine:
    """Requests as vLLM's runner has them, and its speculator; `texts` has the tokens in each slot that was ever used."""

    def __init__(self) -> None:
        self.states = RequestState(SLOTS, LONGEST, LONGEST, MOST, 8, torch.device("cpu"), use_dense_all_token_ids=True)
        config = SimpleNamespace(
            speculative_config=Speculation(),
            scheduler_config=SimpleNamespace(max_num_seqs=SLOTS),
            model_config=SimpleNamespace(max_model_len=LONGEST),
        )
        self.speculator = init_speculator(config, torch.device("cpu"), self.states)
        assert isinstance(self.speculator, drafts.SharedNgrams)
        self.temperatures = torch.zeros(SLOTS)
        self.texts: dict[int, list[int]] = {}

    def begin(self, name: str, tokens: list[int]) -> int:
        self.states.add_request(name, len(tokens), tokens, 0, LONGEST)
        self.states.apply_staged_writes()
        slot = self.states.req_id_to_index[name]
        self.states.last_sampled_tokens[slot] = tokens[-1]
        self.texts[slot] = tokens
        return slot

    def drafts(self, slots: list[int], sampled: list[int], most: int | None = None) -> list[list[int]]:
        batch = SimpleNamespace(num_reqs=len(slots), idx_mapping=torch.tensor(slots))
        last, given = self.states.last_sampled_tokens, torch.tensor(sampled, dtype=torch.int32)
        return self.speculator.propose(
            batch, None, None, None, None, given, None, last, None, self.temperatures, num_speculative_tokens=most
        ).tolist()

    def expected(self, slot: int) -> list[int]:
        """What follows the longest n-gram; of these, in the nearest slot before, and there the last."""
        text = self.texts[slot]
        best: tuple[int, int, int] | None = None
        for other, tokens in self.texts.items():
            for place in range(1, len(tokens)):
                count = 0
                while count < min(LONGEST_NGRAM, place, len(text)) and tokens[place - 1 - count] == text[-1 - count]:
                    count += 1
                score = (count, -((slot - other) % SLOTS), place)
                if count >= SHORTEST_NGRAM and (best is None or score > best):
                    best, found = score, tokens[place : place + MOST]
        return found + [text[-1]] * (MOST - len(found)) if best else [text[-1]] * MOST


@settings(max_examples=60)
@given(STEPS)
def test_drafts_are_what_followed_in_any_text(steps: list[tuple[int, list[int]]]) -> None:
    engine = Engine()
    running: dict[int, str] = {}
    for number, (ends, tokens) in enumerate(steps):
        if ends in running:  # its text stays
            engine.states.remove_request(running.pop(ends))
        if len(running) < SLOTS:
            running[engine.begin(str(number), tokens)] = str(number)
        slots = list(running)
        sampled = [slot % 2 for slot in slots]
        expected = [
            engine.expected(slot) if new else [engine.texts[slot][-1]] * MOST for slot, new in zip(slots, sampled, strict=True)
        ]
        assert engine.drafts(slots, sampled) == expected


def test_long_texts_are_looked_through_to_their_end() -> None:
    engine = Engine()
    long = [0] * (LONGEST - 10) + [1, 2, 3, 4, 5, 6]
    engine.begin("long", long)
    slot = engine.begin("new", [7, 1, 2])
    assert engine.drafts([slot], [1]) == [[3, 4, 5, 6, 2]]


def test_a_lone_request_has_the_texts_of_those_before_it() -> None:
    """vLLM gives the slot that was freed last."""
    engine = Engine()
    for number in range(SLOTS - 1):
        engine.begin(str(number), [number, 4, 5, 6])
        engine.states.remove_request(str(number))
    assert len(engine.texts) == SLOTS - 1
    slot = engine.begin("new", [0, 4])
    assert engine.drafts([slot], [1]) == [[5, 6, 4, 4, 4]]


def test_a_sampled_request_has_its_own_text_only() -> None:
    """What a seed gives does not depend on other requests."""
    engine = Engine()
    other = engine.begin("other", [1, 2, 3])
    slot = engine.begin("one", [2, 5, 1, 2])
    assert engine.drafts([slot], [1]) == [[3, 2, 2, 2, 2]]
    engine.temperatures[slot] = 0.5
    assert engine.drafts([slot, other], [1, 1])[0] == [5, 1, 2, 2, 2]


def test_where_no_drafts_are_wanted_none_are_looked_for() -> None:
    engine = Engine()
    slot = engine.begin("one", [1, 2, 3, 1])
    assert engine.drafts([slot], [1])[0][:2] == [2, 3]
    engine.speculator.drafts.fill_(-5)
    assert engine.drafts([slot], [1], most=0) == [[-5] * MOST]


COMPILE = """
from deployments.engine.draft_kernels import look, take

integers, longs, number = "*i32", "*i64", "i32"
rows = {"tokens": integers, "stride": number, "slots": longs, "lengths": integers}
sizes = {"all_slots": number, "span": number}
looking = rows | {"temperatures": "*fp32", "sampled": integers, "best": longs} | sizes | {"shortest": number}
taking = rows | {"last": longs, "best": longs, "drafts": longs} | sizes
compiled(look, looking, longest=3)
compiled(take, taking, most=5, width=8)
"""


def test_the_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    """Triton's interpreter takes what its compiler refuses."""
    found = sizes(COMPILE, tmp_path)
    assert len(found) == 2
    assert all(size > 1000 for size in found)
