"""The ways to choose a replica that are compared: ours, which is the application's own placement, and others' in our own words.

- `ray-prefix`: `PrefixCacheAffinityRouter` of Ray 2.60.0 with its defaults
  (`ray/llm/_internal/serve/routing_policies/prefix_aware`): the replicas that were sent the longest beginning of the prompt, and of
  two of them at random the one with fewer requests; where that is below a tenth of the prompt, a replica that was sent the least
  text. Load does not count by default, and nothing is forgotten.
- `aibrix`: `prefix-cache` of AIBrix with its defaults (https://github.com/vllm-project/aibrix, e3e10f9, 2026-08-23,
  `pkg/plugins/gateway/algorithms/prefix_cache.go`): with more than 8 requests between the fullest and the emptiest replica only the
  emptiest ones; of those the one that was sent the longest beginning, if its requests are within a standard deviation of the mean;
  else the one with the fewest. It remembers 200,000 blocks of four characters, here taken as 200,000 tokens.
- `oracle`: the score with all that can be known: how long each reply will be, what is cached this moment, and what will be, because
  a request on its way has the same beginning.
"""

import itertools
import math
import random
import statistics
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

from cluster.simulate.routing.replica import BLOCK, Replica, Request
from deployments.routing.cache_index import Coming
from deployments.routing.placement import Placement
from deployments.routing.score import Load, Work, choose

LAG_S = 0.1
"""How late an ingress hears of what a replica has cached, and of the requests of others there."""
NEWS_S = 1.0
"""How often the expected rest of each request is looked at again."""
AIBRIX_BLOCKS = 200_000 // BLOCK


class Policy(Protocol):
    """Chooses a replica for each request."""

    def route(self, request: Request, now_s: float, replicas: list[Replica]) -> Replica:
        """Return one of the replicas that are up."""

    def begun(self, request: Request) -> None:
        """Hear that a request has its first token."""

    def ended(self, request: Request) -> None:
        """Hear that a request has ended, or that its replica was lost."""

    def lost(self, replica: Replica) -> None:
        """Hear that a replica is gone."""


class Simple:
    """What needs no memory."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def route(self, request: Request, now_s: float, replicas: list[Replica]) -> Replica:
        """Return any."""
        return self.rng.choice(replicas)

    def begun(self, request: Request) -> None:
        """Do nothing."""

    def ended(self, request: Request) -> None:
        """Do nothing."""

    def lost(self, replica: Replica) -> None:
        """Do nothing."""


class RoundRobin(Simple):
    """One after the other."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._next = 0

    def route(self, request: Request, now_s: float, replicas: list[Replica]) -> Replica:
        """Return the next."""
        self._next += 1
        return replicas[self._next % len(replicas)]


class TwoChoices(Simple):
    """Of two at random the one with fewer requests (Ray Serve's default)."""

    def route(self, request: Request, now_s: float, replicas: list[Replica]) -> Replica:
        """Return one."""
        return min(self.rng.sample(replicas, min(2, len(replicas))), key=lambda replica: replica.ongoing)


class RayPrefix(Simple):
    """Ray's prefix tree."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._sent: dict[int, set[str]] = defaultdict(set)
        self._tokens: dict[str, int] = defaultdict(int)

    def route(self, request: Request, now_s: float, replicas: list[Replica]) -> Replica:
        """Return one that was sent the longest beginning."""
        there, matched, owners = {replica.name for replica in replicas}, 0, set[str]()
        for block in request.prompt_blocks:
            if not (here := self._sent[block] & there):
                break
            matched, owners = matched + 1, here
        if matched * BLOCK < 0.1 * request.prompt_tokens:
            least = min(self._tokens[name] for name in there)
            owners = {name for name in there if self._tokens[name] == least}
        among = [replica for replica in replicas if replica.name in owners]
        chosen = min(self.rng.sample(among, min(2, len(among))), key=lambda replica: replica.ongoing)
        new = 0
        for block in request.prompt_blocks:
            new += chosen.name not in self._sent[block]
            self._sent[block].add(chosen.name)
        self._tokens[chosen.name] += new * BLOCK + request.prompt_tokens % BLOCK
        return chosen


class AIBrix(Simple):
    """AIBrix' table of prefixes."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._sent: OrderedDict[int, set[str]] = OrderedDict()

    def route(self, request: Request, now_s: float, replicas: list[Replica]) -> Replica:
        """Return one that was sent the longest beginning, unless it is too busy."""
        counts = {replica.name: replica.ongoing for replica in replicas}
        lowest = min(counts.values())
        emptiest = [replica for replica in replicas if counts[replica.name] == lowest]
        left = {replica.name for replica in (emptiest if max(counts.values()) - lowest > 8 else replicas)}
        matched: dict[str, int] = {}
        for place, block in enumerate(request.prompt_blocks):
            left = left & self._sent.get(block, set())
            if not left:
                break
            matched |= dict.fromkeys(sorted(left), place)
        most = statistics.fmean(counts.values()) + statistics.pstdev(counts.values())
        names = sorted(matched, key=lambda name: (-matched[name], counts[name], self.rng.random()))
        name = next((name for name in names if counts[name] <= most), self.rng.choice(emptiest).name)
        for block in request.prompt_blocks:
            self._sent.setdefault(block, set()).add(name)
            self._sent.move_to_end(block)
        while len(self._sent) > AIBRIX_BLOCKS:
            self._sent.popitem(last=False)
        return next(replica for replica in replicas if replica.name == name)


class Name(str):
    """A replica's name, as the placement asks for it."""

    @property
    def unique_id(self) -> str:
        """The name itself."""
        return str(self)


@dataclass
class Index:
    """What is cached on each replica, as told `LAG_S` late."""

    blocks: dict[str, set[int]]

    def __post_init__(self) -> None:
        self.coming = Coming()

    def hear(self, now_s: float, replicas: Iterable[Replica]) -> None:
        """Take what was told until now."""
        for replica in replicas:
            there = self.blocks.setdefault(replica.name, set())
            events = replica.events
            while events and events[0][0] <= now_s - LAG_S:
                _, block, is_there = events.popleft()
                if is_there:
                    there.add(block)
                else:
                    there.discard(block)

    def cached(self, blocks: list[int]) -> dict[str, float]:
        """Return how many tokens of a prompt each replica has or will have."""
        found = {}
        for name, there in self.blocks.items():
            count, coming = 0, self.coming.of(name)
            for block in blocks:
                if block not in there and block not in coming:
                    break
                count += 1
            found[name] = float(count * BLOCK)
        return found


def rest(request: Request, generated: float, known: bool = True) -> float:
    """Return how many tokens a reply is expected to have still: the mean of those of its kind that are as long already.

    A log-normal length above g has a mean of exp(m + s**2 / 2) N(s - z) / N(-z), where z is how many standard deviations the
    logarithm of g is above its mean. With `known` false, the prompt tells nothing of a length.
    """
    spread, logarithm = request.spread, request.logarithm
    if not known:
        spread, logarithm = 1.1, math.log(350)
    if generated < 1:
        return math.exp(logarithm + spread**2 / 2)
    z = (math.log(generated) - logarithm) / spread
    longer = math.erfc(z / math.sqrt(2))
    if longer < 1e-9:
        return generated
    return math.exp(logarithm + spread**2 / 2) * math.erfc((z - spread) / math.sqrt(2)) / longer - generated


class Ours(Simple):
    """The application's own: a placement in each ingress, and requests come to one at random.

    `index` is whether caches are known, `lengths` whether prompts tell of lengths.
    """

    def __init__(self, seed: int, ingresses: int = 1, index: bool = True, lengths: bool = True) -> None:
        super().__init__(seed)
        self._now_s = 0.0
        self.placements = [Placement(lambda: self._now_s, self.rng.random) for _ in range(ingresses)]
        self._own: list[dict[str, tuple[Request, Replica]]] = [{} for _ in range(ingresses)]
        self._index, self._lengths = Index({}), lengths
        self._told_s = self._news_s = -math.inf
        self._handles: dict[str, Any] = {}
        self._of: dict[str, int] = {}
        for placement in self.placements:
            if index:
                placement.cached = self._index.cached
                placement.coming = lambda blocks, replica: self._index.coming.expect(replica, blocks)

    def _handle(self, replica: Replica) -> Any:
        if replica.name not in self._handles:
            self._handles[replica.name] = SimpleNamespace(replica_id=Name(replica.name))
        return self._handles[replica.name]

    def route(self, request: Request, now_s: float, replicas: list[Replica]) -> Replica:
        """Have an ingress choose."""
        self._now_s = now_s
        self._index.hear(now_s, replicas)
        handles = [self._handle(replica) for replica in replicas]
        if now_s - self._told_s >= LAG_S:
            self._tell(now_s, replicas, handles)
        if request.group not in self._of:  # the samples of a request are made by the ingress that it came to
            self._of[request.group] = self.rng.randrange(len(self.placements))
        ingress = self._of[request.group]
        placement, request_id = self.placements[ingress], str(request.number)
        placement.expect(
            request_id,
            Work(request.prompt_tokens, rest(request, request.generated, self._lengths), request.prompt_blocks),
        )
        chosen = placement.choose(request.group, handles, request_id)
        assert chosen is not None
        replica = next(replica for replica in replicas if replica.name == chosen.replica_id)
        placement.assign(request_id, chosen.replica_id, request.group)
        request.ingress, request.unread = ingress, placement.unread(request_id)
        self._own[ingress][request_id] = request, replica
        return replica

    def _tell(self, now_s: float, replicas: list[Replica], handles: list[Any]) -> None:
        self._told_s = now_s
        news = now_s - self._news_s >= NEWS_S
        if news:
            self._news_s = now_s
        for number, placement in enumerate(self.placements):
            if len(placement.known) != len(handles) or any(handle.replica_id not in placement.known for handle in handles):
                placement.update(handles)
            for request_id, (request, replica) in self._own[number].items():
                if news and request.first_s:
                    generated = replica.generated(request) if request.started_at else request.generated
                    placement.progressed(request_id, rest(request, generated, self._lengths))
            if len(self.placements) > 1:
                for replica in replicas:
                    others = sum(one.ingress != number for one in replica.requests)
                    placement.told(replica.name, others, sum(one.unread for one in replica.unread if one.ingress != number))

    def begun(self, request: Request) -> None:
        """Tell the placement."""
        self.placements[request.ingress].progressed(str(request.number), rest(request, request.generated + 1, self._lengths))

    def ended(self, request: Request) -> None:
        """Count it no more."""
        request_id = str(request.number)
        self.placements[request.ingress].left(request_id)
        self._own[request.ingress].pop(request_id, None)

    def lost(self, replica: Replica) -> None:
        """Forget what it had cached."""
        self._index.blocks.pop(replica.name, None)


def alike(one: list[int], other: list[int]) -> int:
    """Return how many blocks two prompts begin with alike."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


class Oracle(Simple):
    """The score with all that can be known."""

    def route(self, request: Request, now_s: float, replicas: list[Replica]) -> Replica:
        """Return the best."""
        loads, cached, group, blocks = [], [], None, request.prompt_blocks
        for place, replica in enumerate(replicas):
            left, coming = 0.0, 0
            for one in replica.requests:
                if one.group == request.group:
                    group = place
                left += one.reply_tokens - (replica.generated(one) if one.started_at else one.generated)
                if not one.started_at and blocks and one.blocks[:1] == blocks[:1]:
                    coming = max(coming, alike(one.prompt_blocks, blocks))
            loads.append(Load(replica.ongoing, replica.unread_tokens, left))
            cached.append(float(max(replica.cached(blocks), coming) * BLOCK))
        work = Work(request.prompt_tokens, request.reply_tokens - request.generated)
        return replicas[choose(work, loads, cached, group=group, random=self.rng.random).replica]


POLICIES: dict[str, Any] = {
    "ours": Ours,
    "ours, lengths unknown": lambda seed: Ours(seed, lengths=False),
    "least requests": lambda seed: Ours(seed, index=False),
    "round robin": RoundRobin,
    "random": Simple,
    "two choices": TwoChoices,
    "ray-prefix": RayPrefix,
    "aibrix": AIBrix,
    "oracle": Oracle,
}
