"""A fleet of replicas that advances in steps of a fraction of a second: all replicas at once, and each request by itself.

Within a step, a replica's batch is processor sharing: every running request gets the same number of tokens. So one clock for each
replica counts them (`clock`), and a request ends when the clock passes its mark, which is known when the request starts. Prefill is
first come, first served (Lindley's recursion, exact within a step). A request starts when it fits into the KV cache and
`max_num_seqs`. When the cache is full, the newest requests start over with the tokens they have (vLLM's preemption).
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cluster.simulate.replica_model import Floats, ReplicaModel

Rows = NDArray[np.int64]

OFF, STARTING, UP, DRAINING = range(4)
ARRIVED, PROMPT, LEFT, TOTAL, FIRST, TTFT = range(6)  # columns of a waiting request
SINCE = 0  # column of a running request: the time of its first token; then come TTFT, KV tokens at its end, tokens in all
EMPTY = np.empty((0, 6))


@dataclass
class Period:
    """Counts and tokens since the last report."""

    arrived: int = 0
    ended: int = 0
    preempted: int = 0
    generated: float = 0.0
    prefilled: float = 0.0
    queue_s: float = 0.0
    started: int = 0


@dataclass
class Ended:
    """The requests that ended in a step."""

    ttft_s: Floats = field(default_factory=lambda: np.empty(0))
    tpot_s: Floats = field(default_factory=lambda: np.empty(0))
    tokens: Floats = field(default_factory=lambda: np.empty(0))


class Fleet:
    """Replicas, each in a row of the arrays. `step` advances all of them; `scale` starts and stops some."""

    def __init__(self, model: ReplicaModel, rng: np.random.Generator, rows: int = 16, max_ongoing_requests: int = 10_000) -> None:
        self.model, self.rng, self.max_ongoing = model, rng, max_ongoing_requests
        self.state = np.zeros(0, np.int8)
        self.ready_at, self.clock, self.kv, self.debt, self.cursor = (np.zeros(0) for _ in range(5))
        self.running = np.zeros(0, np.int64)
        self.waiting = np.zeros(0, np.int64)
        self.mark = np.zeros((0, model.max_num_seqs))
        self.placed = np.zeros((0, model.max_num_seqs, 4))  # one array, so that a request is in one line of the CPU's cache
        self.free = np.zeros((0, model.max_num_seqs), np.int16)  # each row is a stack of its free places, the last one first
        self.widest = 0  # the most places that any row has had in use
        self.queue, self.queue_row = EMPTY, np.zeros(0, np.int64)
        self.unplaced = EMPTY
        self.period = Period()
        self.queue_times: list[Floats] = []
        self._grow(rows)

    def _grow(self, rows: int) -> None:
        def longer(array: NDArray, fill: float = 0.0) -> NDArray:  # type: ignore[type-arg]
            return np.concatenate([array, np.full((rows, *array.shape[1:]), fill, array.dtype)])

        self.state, self.running, self.waiting = longer(self.state), longer(self.running), longer(self.waiting)
        for name in ("ready_at", "clock", "kv", "debt", "cursor"):
            setattr(self, name, longer(getattr(self, name)))
        self.mark, self.placed = longer(self.mark, np.inf), longer(self.placed)
        places = np.arange(self.model.max_num_seqs, dtype=np.int16)
        self.free = np.concatenate([self.free, np.tile(places, (rows, 1))])

    def count(self, *states: int) -> int:
        """Return the number of replicas in one of the states."""
        return int(sum(np.count_nonzero(self.state == state) for state in states))

    @property
    def ongoing(self) -> int:
        """The number of requests that have arrived and not ended."""
        return int(self.running.sum()) + len(self.queue) + len(self.unplaced)

    def scale(self, target: int, now_s: float, warm: bool = False) -> None:
        """Start or stop replicas until `target` are up or starting; with `warm` they are up at once.

        Starting replicas leave first, then those with the fewest requests. A replica that leaves has `drain_s` to finish its
        requests; the rest then move to others.
        """
        more = target - self.count(STARTING, UP)
        if more > 0:
            if (short := more - self.count(OFF)) > 0:
                self._grow(max(short, len(self.state)))
            rows = np.flatnonzero(self.state == OFF)[:more]
            spread = self.model.startup_spread * (2 * self.rng.random(more) - 1)
            self.ready_at[rows] = now_s + (0.0 if warm else self.model.startup_s * (1 + spread))
            self.state[rows] = UP if warm else STARTING
            self.clock[rows] = self.kv[rows] = self.debt[rows] = self.cursor[rows] = 0.0
        elif more < 0:
            starting = np.flatnonzero(self.state == STARTING)
            newest = starting[np.argsort(-self.ready_at[starting])][:-more]
            self.state[newest] = OFF
            up = np.flatnonzero(self.state == UP)
            emptiest = up[np.argsort((self.running + self.waiting)[up], kind="stable")][: -more - len(newest)]
            self.state[emptiest] = DRAINING
            self.ready_at[emptiest] = now_s  # when draining began

    def step(self, now_s: float, dt: float, arrivals: Floats) -> Ended:
        """Advance by `dt` seconds with `arrivals`: rows of (time, prompt tokens, reply tokens). Return the requests that ended."""
        up = (self.state == STARTING) & (self.ready_at <= now_s)
        self.state[up] = UP
        self.cursor[up] = now_s
        self._drain(now_s)
        self._place(now_s, arrivals)
        step_s = self.model.step(self.running.astype(float), self.kv)
        new = self._admit(now_s, dt, step_s)
        longest = self.model.chunk_tokens / self.model.prefill_tokens_per_s
        reading_s = np.minimum(self.debt, dt * longest / (longest + step_s))
        self.debt -= reading_s
        advance = (dt - reading_s) / step_s
        self._start(now_s, dt, advance, *new)
        ended = self._finish(now_s, dt, advance)
        self.clock += advance
        self._preempt(advance)
        return ended

    def _place(self, now_s: float, arrivals: Floats) -> None:
        """Give each request to the replica with the fewest requests."""
        self.period.arrived += len(arrivals)
        if len(arrivals):
            fresh = np.zeros((len(arrivals), 6))
            fresh[:, :3] = arrivals
            fresh[:, TOTAL] = arrivals[:, 2]
            fresh[:, FIRST] = np.nan
            self.unplaced = np.concatenate([self.unplaced, fresh]) if len(self.unplaced) else fresh
        if not len(self.unplaced):
            return
        up = np.flatnonzero(self.state == UP)
        if not len(up):
            return
        load = (self.running + self.waiting)[up]
        room = int(np.maximum(self.max_ongoing - load, 0).sum())
        placed, self.unplaced = self.unplaced[:room], self.unplaced[room:]
        if len(placed):
            rows = up[_spread(load, len(placed), self.rng)]
            self.waiting += np.bincount(rows, minlength=len(self.waiting))
            self._enqueue(placed, rows, front=False)

    def _enqueue(self, requests: Floats, rows: Rows, front: bool) -> None:
        parts = [(requests, rows), (self.queue, self.queue_row)]
        (a, a_row), (b, b_row) = parts if front else parts[::-1]
        row = np.concatenate([a_row, b_row])
        order = np.argsort(row, kind="stable")
        self.queue, self.queue_row = np.concatenate([a, b])[order], row[order]

    def _admit(self, now_s: float, dt: float, step_s: Floats) -> tuple[Floats, Rows, Floats]:
        """Take the requests that start in this step off the queues. Return them, their rows, and when their first tokens come."""
        if not len(self.queue):
            return EMPTY, np.zeros(0, np.int64), np.empty(0)
        requests, rows = self.queue, self.queue_row
        head = np.flatnonzero(np.diff(rows, prepend=-1))
        group = np.repeat(np.arange(len(head)), np.diff(head, append=len(rows)))
        position = np.arange(len(rows)) - head[group]
        prompt = requests[:, PROMPT]
        tokens = _cumulate(prompt, head, group)
        cost = prompt * (1 / self.model.prefill_tokens_per_s + step_s[rows] / self.model.chunk_tokens)
        spent = _cumulate(cost, head, group)
        # A request that waited for room, not for other prompts, begins now.
        ready = np.maximum(np.maximum(requests[:, ARRIVED], self.cursor[rows]) - now_s, 0.0) - (spent - cost)
        # The running maximum within a row: an offset that grows from row to row keeps the rows apart.
        apart = group * 1e7
        begun = np.maximum.accumulate(ready + apart) - apart
        read_at = begun + spent + now_s
        fits = (self.running[rows] + position < self.model.max_num_seqs) & (self.kv[rows] + tokens <= self.model.kv_tokens)
        taken = fits & (read_at - cost < now_s + dt)
        if not taken.any():
            return EMPTY, np.zeros(0, np.int64), np.empty(0)
        self.queue, self.queue_row = requests[~taken], rows[~taken]
        taken_rows = rows[taken]
        np.maximum.at(self.cursor, taken_rows, read_at[taken])
        self.waiting -= np.bincount(taken_rows, minlength=len(self.waiting))
        self.debt += np.bincount(taken_rows, prompt[taken] / self.model.prefill_tokens_per_s, minlength=len(self.debt))
        waited = (read_at - cost)[taken] - requests[taken, ARRIVED]
        self._note_starts(requests[taken], waited)
        # A prompt waits for the step that is running, and is prefilled in the next one, which also gives the others a token.
        return requests[taken], taken_rows, read_at[taken] + step_s[taken_rows] * (1 + self.rng.random(len(taken_rows)))

    def _note_starts(self, requests: Floats, waited: Floats) -> None:
        fresh = waited[np.isnan(requests[:, FIRST])]
        self.queue_times.append(fresh)
        self.period.queue_s += float(fresh.sum())
        self.period.started += len(fresh)
        self.period.prefilled += float(requests[:, PROMPT].sum())

    def _start(self, now_s: float, dt: float, advance: Floats, requests: Floats, rows: Rows, first_at: Floats) -> None:
        """Put the requests into free places, with marks counted from their first tokens."""
        grown = self.running * advance
        if len(rows):
            order = np.arange(len(rows)) - np.searchsorted(rows, rows)
            place = self.free[rows, self.model.max_num_seqs - 1 - self.running[rows] - order]
            begin = self.clock[rows] + (first_at - now_s) / dt * advance[rows]
            known = ~np.isnan(requests[:, FIRST])
            self.mark[rows, place] = begin + requests[:, LEFT] - 1
            since = np.where(known, requests[:, FIRST], first_at)
            waited = np.where(known, requests[:, TTFT], first_at - requests[:, ARRIVED])
            end_kv = requests[:, PROMPT] + requests[:, LEFT] - 1
            self.placed[rows, place] = np.stack([since, waited, end_kv, requests[:, TOTAL]], axis=1)
            self.running += np.bincount(rows, minlength=len(self.running))
            self.widest = max(self.widest, int(self.running.max()))
            late = (self.clock + advance)[rows] - begin  # tokens since the first one; negative before it
            grown += np.bincount(rows, requests[:, PROMPT] + late, minlength=len(grown))
        self.kv += grown
        self.period.generated += float(self.running @ advance)

    def _finish(self, now_s: float, dt: float, advance: Floats) -> Ended:
        row, place = self._passed(advance)
        if not len(row):
            return Ended()
        mark = self.mark[row, place]
        since, ttft, end_kv, total = self.placed[row, place].T
        end_at = now_s + (mark - self.clock[row]) / advance[row] * dt
        tpot = np.maximum(end_at - since, 0.0) / np.maximum(total - 1, 1)
        self.kv -= np.bincount(row, end_kv + (self.clock + advance)[row] - mark, minlength=len(self.kv))
        self._release(row, place)
        self.kv[self.running == 0] = 0.0
        self.period.ended += len(row)
        return Ended(ttft, tpot, total)

    def _passed(self, advance: Floats) -> tuple[Rows, Rows]:
        """Return the rows and places whose marks the clock passes. Places that were never in use are skipped, for speed."""
        rows = int(np.flatnonzero(self.state)[-1]) + 1 if self.state.any() else 0
        unused = self.model.max_num_seqs - self.widest
        passed = self.mark[:rows, unused:] <= (self.clock + advance)[:rows, None]
        at = np.flatnonzero(passed)  # many times as fast as np.nonzero on two dimensions
        return at // max(self.widest, 1), at % max(self.widest, 1) + unused

    def _preempt(self, advance: Floats) -> None:
        """Send the newest request of a KV cache back to the queue, as long as the cache would overflow in the next step."""
        while len(rows := np.flatnonzero((self.kv + self.running * advance / 2 > self.model.kv_tokens) & (self.running > 1))):
            place = np.argmax(np.where(np.isinf(self.mark[rows]), -np.inf, self.placed[rows, :, SINCE]), axis=1)
            requests = self._take_out(rows, place)
            self.waiting[rows] += 1
            self.period.preempted += len(rows)
            self._enqueue(requests, rows, front=True)

    def _take_out(self, rows: Rows, place: Rows) -> Floats:
        """Take running requests out of their places, and return them as requests that start over with the tokens they have."""
        left = np.maximum(self.mark[rows, place] - self.clock[rows], 1.0)
        requests = np.empty((len(rows), 6))
        since, waited, end_kv, total = self.placed[rows, place].T
        requests[:, PROMPT] = np.maximum(end_kv - left, 1.0)
        requests[:, LEFT], requests[:, TOTAL] = left, total
        requests[:, FIRST], requests[:, TTFT], requests[:, ARRIVED] = since, waited, since
        self.kv -= np.bincount(rows, requests[:, PROMPT], minlength=len(self.kv))
        self._release(rows, place)
        return requests

    def _release(self, rows: Rows, place: Rows) -> None:
        """Free places, which are given in the order of their rows."""
        order = np.arange(len(rows)) - np.searchsorted(rows, rows)
        self.free[rows, self.model.max_num_seqs - self.running[rows] + order] = place
        self.running -= np.bincount(rows, minlength=len(self.running))
        self.mark[rows, place] = np.inf

    def _drain(self, now_s: float) -> None:
        draining = self.state == DRAINING
        if not draining.any():
            return
        late = draining & (self.ready_at + self.model.drain_s <= now_s)
        if late.any():
            row, place = np.nonzero(~np.isinf(self.mark) & late[:, None])
            moved = self._take_out(row, place)
            queued = late[self.queue_row]
            self.unplaced = np.concatenate([moved, self.queue[queued], self.unplaced])
            self.queue, self.queue_row = self.queue[~queued], self.queue_row[~queued]
            self.waiting[late] = 0
        self.state[draining & (self.running + self.waiting == 0)] = OFF


def _cumulate(values: Floats, head: Rows, group: Rows) -> Floats:
    """Return the cumulative sums within each group."""
    sums = np.cumsum(values)
    return sums - (sums - values)[head][group]


def _spread(load: Rows, count: int, rng: np.random.Generator) -> Rows:
    """Return for each of `count` requests an index of `load`, so that the smallest loads are filled first; in random order."""
    if len(load) == 1:
        return np.zeros(count, np.int64)
    if count <= 4:
        now = load + rng.random(len(load))  # a random choice among equals
        chosen = np.empty(count, np.int64)
        for at in range(count):
            chosen[at] = np.argmin(now)
            now[chosen[at]] += 1
        return chosen
    order = np.argsort(load + rng.random(len(load)))
    levels = load[order].astype(float)
    # With the k smallest filled up to one level, that level is (their sum + count) / k.
    level = (np.cumsum(levels) + count) / np.arange(1, len(levels) + 1)
    used = int(np.argmax(np.append(levels[1:], np.inf) >= level)) + 1
    fill = np.maximum(np.floor(level[used - 1]) - levels[:used], 0).astype(np.int64)
    rest = count - int(fill.sum())
    fill[:rest] += 1
    chosen = np.repeat(order[:used], fill)
    return rng.permutation(chosen)
