"""The kernels of `deployments.engine.drafts`, in Triton.

They have no annotations, because Triton's compiler (3.7.1) reads them. `tests/v2/test_drafts.py` compiles them for a GPU, and
compares what they do with the same in Python.
"""

from vllm.triton_utils import tl, triton

BLOCK = tl.constexpr(1024)
"""Places that a program looks at."""


@triton.jit
def look(tokens, stride, slots, lengths, temperatures, sampled, best, all_slots, span, shortest, longest: tl.constexpr):
    """Raise `best` of a request to the score of the best place of one block of one slot. With a temperature, only its own counts.

    A place is good if the tokens before it are the last ones of the request. More such tokens are better (`longest` count at most;
    fewer than `shortest` score 0), then the request's own slot, then the slots before it, nearest first, then later places.
    """
    request, other, block = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    length = tl.load(lengths + other)
    own = tl.load(slots + request).to(tl.int64)
    looked_through = (tl.load(temperatures + own) == 0) | (other == own)
    if (tl.load(sampled + request) > 0) & looked_through & (block * BLOCK < length):
        end = tl.load(lengths + own)
        places = block * BLOCK + tl.arange(0, BLOCK)
        alike = (places < length) & (places > 0)
        count = places * 0
        for back in tl.static_range(1, longest + 1):
            wanted = tl.load(tokens + own * stride + end - back, mask=end >= back, other=-1)
            alike = alike & (places >= back)
            alike = alike & (tl.load(tokens + other * stride + places - back, mask=alike, other=-2) == wanted)
            count += alike.to(tl.int32)
        near = all_slots - 1 - (all_slots + own - other) % all_slots
        scores = (count.to(tl.int64) * all_slots + near) * span + places
        tl.atomic_max(best + request, tl.max(tl.where(count >= shortest, scores, 0), axis=0))


@triton.jit
def take(tokens, stride, slots, lengths, last, best, drafts, all_slots, span, most: tl.constexpr, width: tl.constexpr):
    """Write a request's drafts: the tokens from its best place on; where there are none, its last token."""
    request = tl.program_id(0).to(tl.int64)
    own = tl.load(slots + request).to(tl.int64)
    score = tl.load(best + request)
    other = (own + 1 + (score // span) % all_slots) % all_slots
    places = score % span + tl.arange(0, width)
    found = (score > 0) & (places < tl.load(lengths + other))
    chosen = tl.load(tokens + other * stride + places, mask=found, other=0).to(tl.int64)
    chosen = tl.where(found, chosen, tl.load(last + own))
    tl.store(drafts + request * most + tl.arange(0, width), chosen, mask=tl.arange(0, width) < most)
