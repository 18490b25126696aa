"""What a pointer prefers, sent with the masks of a grammar: which rows get it, and that a worker gets the same again."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm.sampling_params import SamplingParams

from deployments.engine.pointed_masks import INBOX, Pointers, _rows
from deployments.engine.vocabulary import ModelVocabulary
from deployments.reasoning.thought import ARGUMENT as THOUGHT

TEXTS = [b"<c>", b"<end>", b"<s>", b"\\boxed{", b"7", b"}", b'"', b"8", *(b"%d" % number for number in range(100, 140))]
CONTINUE, END, MARKER, BOX, SEVEN, BRACE, QUOTE, EIGHT = range(8)
RULE = {"separator": [MARKER], "special": [CONTINUE, END, MARKER], "copy": 0.4, "is_json": True}
ALL = -1


class Request:
    """A request as vLLM's engine has it, as far as it is read."""

    def __init__(self, output: list[int], rule: dict[str, Any] | None = RULE) -> None:
        self.output_token_ids = output
        self.sampling_params = SamplingParams(extra_args={THOUGHT: rule} if rule else None)
        self.sampling_params._all_stop_token_ids = {END}


def tokens(words: Any) -> list[int]:
    """Return the tokens of a mask."""
    return [token for token in range(32 * len(words)) if int(words[token // 32]) >> token % 32 & 1]


def pointers() -> Pointers:
    return Pointers(lambda: ModelVocabulary(TEXTS, [CONTINUE, END, MARKER]))


BOXED_SEVEN = [CONTINUE, BOX, SEVEN, BRACE]


def test_an_answer_prefers_what_the_grammar_allows_of_the_box() -> None:
    masks = np.full((1, 2), ALL, dtype=np.int32)
    made = pointers().added(masks, {"a": Request([*BOXED_SEVEN, MARKER])}, ["a"], {})
    assert made.shape == (1, 2 + 2 + 1)
    assert tokens(made[0, 2:4]) == [SEVEN]
    assert made[0, 4:].view(np.float32)[0] == np.float32(0.4)
    assert set(range(64)) - set(tokens(made[0, :2])) == {CONTINUE, MARKER}, "no special token but the end"
    quote_alone = np.array([[1 << QUOTE, 0]], dtype=np.int32)
    made = pointers().added(quote_alone, {"a": Request([*BOXED_SEVEN, MARKER])}, ["a"], {})
    assert tokens(made[0, 2:4]) == [QUOTE], "the number is forbidden, the string's beginning is not"


@pytest.mark.parametrize("request_", [Request(BOXED_SEVEN), Request([*BOXED_SEVEN, MARKER], None)], ids=["thinking", "ruleless"])
def test_masks_without_an_answer_stay_as_they_are(request_: Request) -> None:
    masks = np.full((1, 2), ALL, dtype=np.int32)
    made = pointers().added(masks, {"a": request_}, ["a"], {})
    assert made is masks
    assert (masks == ALL).all()


def test_each_draft_has_a_row_and_is_not_remembered() -> None:
    request, pointing = Request(BOXED_SEVEN), pointers()
    masks = np.full((5, 2), ALL, dtype=np.int32)
    drafts = {"a": [MARKER, SEVEN, -1]}
    made = pointing.added(masks, {"b": Request([], None), "a": request}, ["b", "a"], drafts)
    assert [tokens(row[2:4]) for row in made] == [[], [], [SEVEN], [END, BRACE], []], "behind the copy, it may end"
    assert pointing.added(np.full((1, 2), ALL, dtype=np.int32), {"a": request}, ["a"], {}).shape == (1, 2)
    request.output_token_ids += [MARKER, EIGHT]
    made = pointing.added(np.full((1, 2), ALL, dtype=np.int32), {"a": request}, ["a"], {})
    assert made.shape == (1, 2), "8 is no part of 7"


def test_a_worker_gets_masks_and_preferences_apart() -> None:
    masks = np.array([[1, 0, 0, 0, 0], [2, 0, 16, 0, np.float32(0.4).view(np.int32)]], dtype=np.int32)
    batch = SimpleNamespace(
        req_ids=["a", "b"],
        idx_mapping_np=np.array([7, 3]),
        cu_num_logits_np=np.array([0, 1, 3]),
        num_draft_tokens_per_req=None,
    )
    assert _rows(batch, ["b"], 1) == [(3, 0), (3, 1)]
    drafted = SimpleNamespace(**vars(batch) | {"num_draft_tokens_per_req": np.array([0, 1])})
    assert _rows(drafted, ["b", "a"], 1) == [(3, 0), (3, 1), (7, 0)]
    assert INBOX.open(masks, 2, _rows(batch, ["b"], 1)).tolist() == [[1, 0], [2, 0]]
    preferred = INBOX.preferred
    INBOX.preferred = None
    assert preferred is not None
    assert (preferred.slots.tolist(), preferred.places.tolist()) == ([3], [1])
    assert preferred.groups.tolist() == [[16, 0]]
    assert preferred.weights.tolist() == [np.float32(0.4)]
