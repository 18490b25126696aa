"""The kernels of `deployments.engine.logits_v2`, in Triton.

They have no annotations, because Triton's compiler (3.7.1) reads them. `tests/v2/test_logits.py` compiles them for a GPU, and
compares what they do with what `deployments.reasoning.limits` says.
"""

from vllm.triton_utils import tl, triton

# A request's rules are a row of integers: this header, and then lists. Each list begins where the one before it ends.
LIMITED = tl.constexpr(0)
PLANTED = tl.constexpr(1)
BEFORE = tl.constexpr(2)
MOST_TOKENS = tl.constexpr(3)
MOST_REFLECTIONS = tl.constexpr(4)
MOST_EXPLORATIONS = tl.constexpr(5)
LEAST_REFLECTIONS = tl.constexpr(6)
REFLECT = tl.constexpr(7)
EXPLORE = tl.constexpr(8)
CLOSING_ENDS = tl.constexpr(9)
MARKS_END = tl.constexpr(10)
ACTIONS_END = tl.constexpr(11)
OPENINGS_END = tl.constexpr(12)
ANSWER_ENDS = tl.constexpr(13)
SEPARATOR_ENDS = tl.constexpr(14)
STOPS_END = tl.constexpr(15)
REPEATED_ENDS = tl.constexpr(16)
LISTS_COUNT = 8
HEADER = 17
LISTS = tl.constexpr(HEADER)

NO_RULES = [0] * (HEADER - LISTS_COUNT) + [HEADER] * LISTS_COUNT
UNLIMITED = 2**31 - 1
BEGINNING = (0, 0, 0, 0, -1, 0)
"""A chain's state: tokens followed, reflections, explorations, whether an answer has begun, tokens of the forced answer or -1, and
tokens from the separator's first on (0 while a request that answers in a format still thinks)."""
STATE = tl.constexpr(len(BEGINNING))
BLOCK = tl.constexpr(4096)


@triton.jit
def _contains(rule, begin, end, token):
    """Return whether a list of `rule` has this token."""
    found = token != token
    for i in range(begin, end):
        found = found | (tl.load(rule + i) == token)
    return found


@triton.jit
def _must_answer(rule, length, answering, written):
    """Return whether the token at place `length` of a chain is one of the forced answer."""
    answer_length = tl.load(rule + ANSWER_ENDS) - tl.load(rule + OPENINGS_END)
    spent = (length - tl.load(rule + PLANTED) >= tl.load(rule + MOST_TOKENS)) & (answering == 0)
    return tl.where(written >= 0, written < answer_length, spent)


@triton.jit
def _follow(rule, token, length, reflections, explorations, answering, written, ended):
    """Return a chain's state after a token at place `length`, which is also the number of tokens before it."""
    written = tl.where(_must_answer(rule, length, answering, written), tl.maximum(written, 0) + 1, written)
    action = _contains(rule, tl.load(rule + MARKS_END), tl.load(rule + ACTIONS_END), token)
    mark = _contains(rule, tl.load(rule + CLOSING_ENDS), tl.load(rule + MARKS_END), token)
    reflections += (action & (token == tl.load(rule + REFLECT))).to(tl.int32)
    explorations += (action & (token == tl.load(rule + EXPLORE))).to(tl.int32)
    answering = tl.where(action, 0, tl.where(mark, 1, answering))
    separator, separator_ends = tl.load(rule + ANSWER_ENDS), tl.load(rule + SEPARATOR_ENDS)
    marker = tl.load(rule + separator, mask=separator < separator_ends, other=-2)  # no token, not even that of a draft that is none
    own = length >= tl.load(rule + PLANTED) + tl.load(rule + BEFORE)
    ended = tl.where((ended > 0) | (own & (token == marker)), ended + 1, 0)
    return reflections, explorations, answering, written, ended


@triton.jit
def advance(
    slots,
    rules,
    rules_stride,
    states,
    tokens,
    tokens_stride,
    prompt_lengths,
    lengths,
):
    """Follow the committed tokens of one request that have not been followed yet. Grid: (requests,)."""
    slot = tl.load(slots + tl.program_id(0)).to(tl.int64)
    rule = rules + slot * rules_stride
    if tl.load(rule + LIMITED) == 0:
        return
    state = states + slot * STATE
    first = tl.load(prompt_lengths + slot) - tl.load(rule + BEFORE) - tl.load(rule + PLANTED)
    committed = tl.load(lengths + slot) - first
    chain = tokens + slot * tokens_stride + first
    reflections, explorations = tl.load(state + 1), tl.load(state + 2)
    answering, written, ended = tl.load(state + 3), tl.load(state + 4), tl.load(state + 5)
    for i in range(tl.load(state), committed):
        reflections, explorations, answering, written, ended = _follow(
            rule, tl.load(chain + i), i, reflections, explorations, answering, written, ended
        )
    tl.store(state, committed)
    tl.store(state + 1, reflections)
    tl.store(state + 2, explorations)
    tl.store(state + 3, answering)
    tl.store(state + 4, written)
    tl.store(state + 5, ended)


@triton.jit
def apply(
    logits,
    logits_stride,
    vocabulary,
    row_slots,
    places,
    inputs,
    rules,
    rules_stride,
    states,
    tokens,
    tokens_stride,
    prompt_lengths,
    lengths,
):
    """Apply the rules to one row of logits. Grid: (rows,). `places` has each row's place among the rows of its request.

    `inputs` has the token that the model was fed for a row: at place 0 the last committed one, then the drafts.
    """
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(row_slots + row).to(tl.int64)
    rule = rules + slot * rules_stride
    limited, repeated_ends = tl.load(rule + LIMITED), tl.load(rule + REPEATED_ENDS)
    if (limited == 0) & (repeated_ends <= LISTS):
        return
    values = logits + row * logits_stride
    place = tl.load(places + row)
    drafts = inputs + row - place + 1
    prompt_length, committed = tl.load(prompt_lengths + slot), tl.load(lengths + slot)
    forced = tl.full((), -1, tl.int32)
    repeated = tl.load(rule + STOPS_END) + committed + place - prompt_length
    if repeated < repeated_ends:
        forced = tl.load(rule + repeated)
    elif limited == 1:
        state = states + slot * STATE
        reflections, explorations = tl.load(state + 1), tl.load(state + 2)
        answering, written, ended = tl.load(state + 3), tl.load(state + 4), tl.load(state + 5)
        first = prompt_length - tl.load(rule + BEFORE) - tl.load(rule + PLANTED)
        length = committed - first
        for i in range(place):
            reflections, explorations, answering, written, ended = _follow(
                rule, tl.load(drafts + i), length + i, reflections, explorations, answering, written, ended
            )
        separator, separator_ends = tl.load(rule + ANSWER_ENDS), tl.load(rule + SEPARATOR_ENDS)
        if ended > 0:
            if separator + ended < separator_ends:
                forced = tl.load(rule + separator + ended)
        elif _must_answer(rule, length + place, answering, written):
            forced = tl.load(rule + tl.load(rule + OPENINGS_END) + tl.maximum(written, 0))
        else:
            missing = (written < 0) & (reflections < tl.load(rule + LEAST_REFLECTIONS))
            if written >= 0:
                for i in range(tl.load(rule + MARKS_END), tl.load(rule + ACTIONS_END)):
                    tl.store(values + tl.load(rule + i), float("-inf"))
            else:
                if reflections >= tl.load(rule + MOST_REFLECTIONS):
                    tl.store(values + tl.load(rule + REFLECT), float("-inf"))
                if explorations >= tl.load(rule + MOST_EXPLORATIONS):
                    tl.store(values + tl.load(rule + EXPLORE), float("-inf"))
            thinking = separator < separator_ends
            if missing:
                if thinking:
                    tl.store(values + tl.load(rule + separator), float("-inf"))
                    tl.debug_barrier()
                _redirect(rule, values, tokens + slot * tokens_stride + first, drafts, length, place)
            elif thinking:
                _end_thought(rule, values, values + tl.load(rule + separator))
    if forced >= 0:
        kept = tl.load(values + forced)
        kept = tl.where((kept > float("-inf")) & (kept < float("inf")), kept, 0.0)
        for begin in range(0, vocabulary, BLOCK):
            token = begin + tl.arange(0, BLOCK)
            tl.store(values + token, tl.where(token == forced, kept, float("-inf")), mask=token < vocabulary)


@triton.jit
def _end_thought(rule, values, marker):
    """Give the probability of what would end the turn to the token that ends the thought."""
    kept = tl.load(marker)
    if kept > float("-inf"):
        for i in range(tl.load(rule + SEPARATOR_ENDS), tl.load(rule + STOPS_END)):
            kept = _take(values + tl.load(rule + i), kept)
        tl.store(marker, kept)


@triton.jit
def _redirect(rule, values, chain, drafts, length, place):
    """Give the probability of what would begin the answer to a reflection, unless a grammar forbids that.

    The row's chain: `length` tokens at `chain`, and `place` drafts.
    """
    target = values + tl.load(rule + REFLECT)
    kept = tl.load(target)
    if kept > float("-inf"):
        for i in range(LISTS, tl.load(rule + MARKS_END)):
            kept = _take(values + tl.load(rule + i), kept)
        opening = tl.load(rule + ACTIONS_END)
        while opening < tl.load(rule + OPENINGS_END):
            last = tl.load(rule + opening)
            same = last <= length + place + 1
            for i in range(1, last):
                at = length + place - last + i
                committed = tl.load(chain + at, mask=(at >= 0) & (at < length), other=-1)
                token = tl.load(drafts + at - length, mask=at >= length, other=committed)
                same = same & (token == tl.load(rule + opening + i))
            if same:
                kept = _take(values + tl.load(rule + opening + last), kept)
            opening += last + 1
        tl.store(target, kept)


@triton.jit
def _take(value, kept):
    """Return `kept`, a logit, with the probability of another one added, which becomes 0. It may come twice."""
    taken = tl.load(value)
    tl.debug_barrier()
    tl.store(value, float("-inf"))
    tl.debug_barrier()
    most = tl.maximum(kept, taken)
    return most + tl.log(tl.exp(kept - most) + tl.exp(taken - most))


@triton.jit
def prefer(logits, logits_stride, vocabulary, row_slots, places, indices, indices_stride, groups, groups_stride, weights):
    """Give the tokens of a row's group the share of the probability that is its weight, and of the rest what they had.

    Grid: (rows,). `indices` says, by slot and place, which group is a row's, or -1. Groups are masks of 32 tokens an integer.
    """
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(row_slots + row).to(tl.int64)
    index = tl.load(indices + slot * indices_stride + tl.load(places + row)).to(tl.int64)
    if index < 0:
        return
    values, group = logits + row * logits_stride, groups + index * groups_stride
    weight = tl.load(weights + index)
    most = tl.full((), float("-inf"), tl.float32)
    for begin in range(0, vocabulary, BLOCK):
        token = begin + tl.arange(0, BLOCK)
        most = tl.maximum(most, tl.max(tl.load(values + token, mask=token < vocabulary, other=float("-inf")), 0))
    total, chosen = tl.full((), 0.0, tl.float32), tl.full((), 0.0, tl.float32)
    for begin in range(0, vocabulary, BLOCK):
        token = begin + tl.arange(0, BLOCK)
        inside = token < vocabulary
        member = ((tl.load(group + token // 32, mask=inside, other=0) >> (token % 32)) & 1) == 1
        mass = tl.exp(tl.load(values + token, mask=inside, other=float("-inf")) - most)
        total += tl.sum(mass, 0)
        chosen += tl.sum(tl.where(member, mass, 0.0), 0)
    share = tl.minimum(tl.maximum(chosen / total, 1e-30), 1 - 1e-6)
    rest = tl.maximum(1 - weight, 1e-30)  # 0 where the others are forbidden, and nothing is raised
    raised = tl.where(weight < 1, tl.log(weight + rest * share) - tl.log(share) - tl.log(rest), 0.0)
    for begin in range(0, vocabulary, BLOCK):
        token = begin + tl.arange(0, BLOCK)
        inside = token < vocabulary
        member = ((tl.load(group + token // 32, mask=inside, other=0) >> (token % 32)) & 1) == 1
        value = tl.load(values + token, mask=inside, other=float("-inf"))
        value = tl.where(member, value + raised, tl.where(weight < 1, value, float("-inf")))
        tl.store(values + token, value, mask=inside)
