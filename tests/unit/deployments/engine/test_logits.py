"""The rules of requests on logits, without a model: a vocabulary of ten tokens."""

import pytest
import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from deployments.engine.logits import CoatLimits, constrain
from deployments.reasoning.limits import ARGUMENT, REPEAT, Constraint
from tests.support.vocabulary import BOXED, CONTINUE, END, EXPLORE, NEWLINE, REFLECT, SIZE, THE, TOKENS, WORD


def processor(**rows):
    """Return the processor with requests in rows 0, 1, ...; each is (limits, output)."""
    made = CoatLimits(None, torch.device("cpu"), False)
    added = [(row, params(limits), None, output) for row, (limits, output) in enumerate(rows.values())]
    made.update_state(BatchUpdate(batch_size=len(added), removed=[], added=added, moved=[]))
    return made


def params(limits):
    return SamplingParams(extra_args={ARGUMENT: TOKENS | limits} if limits is not None else None)


def choose(made, favourite, rows=1):
    """Return the greedy choice in each row where `favourite` is the likeliest token and WORD the next."""
    logits = torch.zeros(rows, SIZE)
    logits[:, favourite], logits[:, WORD] = 9.0, 5.0
    return made.apply(logits).argmax(-1).tolist()


def test_no_limits_leave_logits_alone():
    made = processor(a=(None, []), b=({}, [REFLECT]))
    logits = torch.randn(2, SIZE)
    assert torch.equal(made.apply(logits.clone()), logits)


@pytest.mark.parametrize("other", ["text", 3, [1]])
def test_foreign_arguments_are_not_read(other):
    made = CoatLimits(None, torch.device("cpu"), False)
    foreign = SamplingParams(extra_args={ARGUMENT: other})
    made.update_state(BatchUpdate(batch_size=1, removed=[], added=[(0, foreign, None, [])], moved=[]))
    assert choose(made, REFLECT) == [REFLECT]


@pytest.mark.parametrize(("limit", "token"), [("max_reflections", REFLECT), ("max_explorations", EXPLORE)])
def test_an_action_is_banned_when_used_up(limit, token):
    output = [CONTINUE]
    made = processor(a=({limit: 2}, output))
    for _ in range(2):
        assert choose(made, token) == [token]
        output.append(token)
    assert choose(made, token) == [WORD]
    assert choose(processor(a=({limit: 0}, [])), token) == [WORD]


def test_an_answer_before_enough_reflections_becomes_one():
    output = [CONTINUE, WORD]
    made = processor(a=({"min_reflections": 1}, output))
    assert choose(made, END) == [REFLECT]
    assert choose(made, BOXED) == [REFLECT]
    assert choose(made, THE) == [THE]  # in the middle of a line it opens nothing
    output.append(NEWLINE)
    assert choose(made, THE) == [REFLECT]
    assert choose(made, WORD) == [WORD]
    output.append(REFLECT)
    assert choose(made, END) == [END]


def test_reasoning_ends_when_its_tokens_are_spent():
    output = [CONTINUE, WORD]
    made = processor(a=({"max_reasoning_tokens": 3}, output))
    assert choose(made, WORD) == [WORD]
    output.append(WORD)
    for wanted in TOKENS["answer"]:
        assert choose(made, REFLECT) == [wanted]
        output.append(wanted)
    assert choose(made, REFLECT) == [WORD]  # no action any more
    assert choose(made, END) == [END]


def test_an_answer_that_has_begun_is_not_begun_again():
    made = processor(a=({"max_reasoning_tokens": 4}, [CONTINUE, NEWLINE, THE, BOXED]))
    assert choose(made, WORD) == [WORD]


def test_requests_keep_their_limits_when_they_move():
    made = processor(a=({"max_reflections": 0}, []), b=(None, []), c=({"max_explorations": 0}, []))
    made.update_state(BatchUpdate(batch_size=3, removed=[], added=[], moved=[(0, 1, MoveDirectionality.SWAP)]))
    assert choose(made, REFLECT, rows=3) == [REFLECT, WORD, REFLECT]
    made.update_state(BatchUpdate(batch_size=2, removed=[0], added=[], moved=[(2, 0, MoveDirectionality.UNIDIRECTIONAL)]))
    assert choose(made, EXPLORE, rows=2) == [WORD, EXPLORE]
    made.update_state(BatchUpdate(batch_size=2, removed=[], added=[(0, params(None), None, [])], moved=[]))
    assert choose(made, EXPLORE, rows=2) == [EXPLORE, EXPLORE]


@pytest.mark.parametrize("cut", range(9))
def test_a_chain_goes_on_the_same_from_any_token_of_it(cut):
    limits = {"max_reasoning_tokens": 4, "min_reflections": 1, "max_reflections": 1, "max_explorations": 0}
    output = []
    whole = processor(a=(limits, output))
    for favourite in (CONTINUE, END, REFLECT, EXPLORE, WORD, WORD, WORD, EXPLORE, END):
        output.append(choose(whole, favourite)[0])
    assert output == [CONTINUE, REFLECT, WORD, WORD, NEWLINE, THE, BOXED, WORD, END]
    rest = []
    moved = processor(a=(limits | {"before": output[:cut]}, rest))
    for favourite in (CONTINUE, END, REFLECT, EXPLORE, WORD, WORD, WORD, EXPLORE, END)[cut:]:
        rest.append(choose(moved, favourite)[0])
    assert output[:cut] + rest == output


def test_a_moved_request_writes_its_tokens_again():
    output = []
    made = CoatLimits(None, torch.device("cpu"), False)
    moved = SamplingParams(extra_args={REPEAT: {"tokens": [THE, BOXED]}})
    made.update_state(BatchUpdate(batch_size=1, removed=[], added=[(0, moved, None, output)], moved=[]))
    for wanted in (THE, BOXED, END):
        assert choose(made, END) == [wanted]
        output.append(wanted)


def test_what_is_redirected_gives_its_probability_to_the_target():
    logits = torch.tensor([0.0, 1.0, 2.0, 3.0])
    before = logits.softmax(0)
    constrain(logits, Constraint(banned=[0], redirected=[2, 3], target=1))
    assert logits[[0, 2, 3]].tolist() == [float("-inf")] * 3
    assert logits.exp()[1] / torch.tensor([0.0, 1.0, 2.0, 3.0]).exp().sum() == pytest.approx(before[1:].sum())


@pytest.mark.parametrize("own", [5.0, float("-inf"), float("nan")])
def test_a_forced_token_has_the_log_probability_zero(own):
    logits = torch.tensor([0.0, own, 2.0])
    constrain(logits, Constraint(forced=1, banned=[1]))
    assert logits.log_softmax(0).tolist() == [float("-inf"), 0.0, float("-inf")]


def test_a_constraint_without_anything_changes_nothing():
    logits = torch.randn(4)
    before = logits.clone()
    constrain(logits, Constraint())
    assert torch.equal(logits, before)
