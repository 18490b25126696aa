"""Two ingresses race for the lease of a response, with faults between any two writes; and what is stored is read back."""

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection, Engine, StaticPool, create_engine, event

from deployments.store import leases, replies
from deployments.store.schema import metadata
from deployments.store.values import Append, End, Lease, Stored

T = TypeVar("T")
LEASE_S = 10.0
RUNS, LENGTH = 1000, 6
RESPONSE = Stored("resp_1", "ada", "nano", "queued", True, "{}", "[]", "{}", created_at=0, expires_at=1e9)


class CrashError(Exception):
    """The process, or its connection, is gone."""


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    made = create_engine("sqlite://", poolclass=StaticPool)
    metadata.create_all(made)
    yield made
    made.dispose()


class World:
    """A database, a clock, and faults: a transaction is cut off before a statement, or nobody hears of its commit."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine, self.random, self.now = engine, random.Random(seed), 0.0
        self._cut: int | None = None
        event.listen(engine, "before_cursor_execute", self._fault)

    def _fault(self, *_: Any) -> None:
        if self._cut is not None:
            self._cut -= 1
            if self._cut < 0:
                raise CrashError

    def transaction(self, operation: Callable[[Connection], T]) -> T:
        """Run a transaction, or raise CrashError: it was rolled back then, or its confirmation was lost."""
        self._cut = self.random.randrange(4) if self.random.random() < 0.25 else None
        try:
            with self.engine.begin() as connection:
                done = operation(connection)
        finally:
            self._cut = None
        if self.random.random() < 0.1:
            raise CrashError
        return done

    def close(self) -> None:
        event.remove(self.engine, "before_cursor_execute", self._fault)


@dataclass
class Ingress:
    """A holder. `seen` are the tokens that its clients have been shown, with position; `next` is what it will write next."""

    name: str
    response: str
    lease: Lease | None = None
    position: int = 0
    waiting: list[int] = field(default_factory=list)
    seen: list[tuple[int, int]] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)

    def step(self, world: World, tokens: Iterator[int]) -> None:
        if world.random.random() < 0.08:
            self.lease, self.waiting = None, []  # killed, and started anew
        with suppress(CrashError):
            if self.lease is None:
                self.claim(world)
            elif self.position >= LENGTH:
                lease, result = self.lease, f'"{self.name}"'
                if not world.transaction(lambda connection: replies.finish(connection, lease, "completed", result, 9)):
                    self.lease = None
            else:
                self.append(world, tokens)

    def claim(self, world: World) -> None:
        taken = world.transaction(lambda connection: replies.claim(connection, self.response, self.name, world.now, LEASE_S))
        if taken is not None:
            self.lease, _, before = taken
            self.position, self.waiting = len(before), []

    def append(self, world: World, tokens: Iterator[int]) -> None:
        lease, start = self.lease, self.position
        assert lease is not None
        self.waiting = self.waiting or [next(tokens) for _ in range(world.random.randint(1, 3))]
        appends = [Append(lease, start, self.waiting, None)]
        if world.transaction(lambda connection: replies.append_all(connection, appends, world.now, LEASE_S)) == [True]:
            self.seen += enumerate(self.waiting, start)
            self.accepted.append(lease.epoch)
            self.position, self.waiting = start + len(self.waiting), []
        else:
            self.lease, self.waiting = None, []


@pytest.mark.timeout(600)  # 10 s of CPU, of which a busy machine gives a background job a tenth
def test_of_two_racing_ingresses_one_writes_and_no_token_is_lost(engine: Engine) -> None:
    claims = faults = 0
    for seed in range(RUNS):
        world, response = World(engine, seed), f"resp_{seed}"
        tokens = iter(range(10**6))  # no token is generated twice, so that each tells who wrote it
        with engine.begin() as connection:
            lease = replies.create(connection, replace(RESPONSE, id=response), "a", 0.0, LEASE_S)
        both = [Ingress("a", response, lease), Ingress("b", response)]
        last_epoch, done = lease.epoch, False
        for _ in range(400):
            one = world.random.choice(both)
            world.now += world.random.choice((0.0, 1.0, 1.0, 6.0, 11.0))
            before, ending = len(one.accepted), one.position >= LENGTH
            one.step(world, tokens)
            if len(one.accepted) > before:
                assert one.accepted[-1] >= last_epoch, f"seed {seed}: an old holder has written"
                last_epoch = one.accepted[-1]
            if ending:
                with engine.begin() as connection:
                    found = replies.load(connection, response, None, world.now)
                if done := found is not None and not found.running:
                    break
        assert done, f"seed {seed}: it does not end"
        with engine.begin() as connection:
            written = replies.read_tokens(connection, response, 0)
        seen = [pair for one in both for pair in one.seen]
        assert len(set(written)) == len(written) >= LENGTH
        assert {pair for pair in seen if written[pair[0]] != pair[1]} == set(), (
            f"seed {seed}: clients saw other tokens than are kept"
        )
        assert len({position for position, _ in seen}) == len(seen), f"seed {seed}: two ingresses delivered one position"
        claims, faults = claims + last_epoch - lease.epoch, faults + len(written) - len(seen)
        world.close()
    assert claims > RUNS  # leases were lost, and
    assert faults > 0  # commits whose writer never heard of them


def made(engine: Engine, **changes: Any) -> tuple[Stored, Lease]:
    stored = replace(RESPONSE, **changes)
    with engine.begin() as connection:
        return stored, replies.create(connection, stored, "a", 0.0, LEASE_S)


def test_a_transaction_whose_confirmation_was_lost_is_repeated(engine: Engine) -> None:
    """Its writes are there, several of a response among them, so all count as accepted; a later holder has fenced them off."""
    _, lease = made(engine, id="resp_twice")
    group = [Append(lease, start, [start], None) for start in range(3)]
    for _ in range(2):
        with engine.begin() as connection:
            assert replies.append_all(connection, group, 0.0, LEASE_S) == [True] * 3
    with engine.begin() as connection:
        assert replies.read_tokens(connection, "resp_twice", 0) == [0, 1, 2]
        assert replies.claim(connection, "resp_twice", "b", LEASE_S + 1, LEASE_S) is not None
        assert replies.append_all(connection, group, LEASE_S + 1, LEASE_S) == [False] * 3


def test_a_response_is_read_back_by_its_owner_alone(engine: Engine) -> None:
    stored, lease = made(engine, id="resp_read", expires_at=50.0)
    end = End("length", 3)
    with engine.begin() as connection:
        assert replies.load(connection, stored.id, "ada", 0.0) == stored
        assert replies.load(connection, stored.id, "bob", 0.0) is None
        assert replies.append(connection, lease, 0, [7, 151646], None, 1.0, LEASE_S)
        assert replies.progress(connection, stored.id, 0) == replies.Progress([7, 151646], None, "in_progress")
        assert replies.append(connection, lease, 2, [9], end, 1.0, LEASE_S)
        assert replies.progress(connection, stored.id, 2) == replies.Progress([9], end, "in_progress")
        assert replies.finish(connection, lease, "incomplete", '{"x": 1}', 17)
        done = replies.load(connection, stored.id, "ada", 49.0)
        assert done is not None
        assert (done.status, done.result, done.end, done.last_event) == ("incomplete", '{"x": 1}', end, 17)
        assert replies.load(connection, stored.id, "ada", 50.0) is None, "expired"


def test_what_was_cancelled_or_removed_is_not_written(engine: Engine) -> None:
    for number, end in enumerate((replies.cancel, replies.remove)):
        stored, lease = made(engine, id=f"resp_ended_{number}")
        with engine.begin() as connection:
            assert replies.append(connection, lease, 0, [1, 2], None, 0.0, LEASE_S)
            end(connection, stored.id)
            assert not replies.append(connection, lease, 2, [3], None, 0.0, LEASE_S)
            assert not leases.renew(connection, lease, 0.0, LEASE_S)
            assert not replies.finish(connection, lease, "completed", "{}", 1)
            assert replies.claim(connection, stored.id, "b", 1e6, LEASE_S) is None
            found = replies.progress(connection, stored.id, 0)
            assert found == (
                replies.Progress([1, 2], End("abort", 2), "cancelled") if number == 0 else replies.Progress([], None, None)
            )


def test_expired_responses_go_unless_they_are_being_written(engine: Engine) -> None:
    gone, lease = made(engine, id="resp_gone", expires_at=5.0)
    running, _ = made(engine, id="resp_running", expires_at=5.0)
    with engine.begin() as connection:
        replies.finish(connection, lease, "completed", "{}", 1)
        assert replies.expire(connection, 6.0) == 1
        assert replies.load(connection, gone.id, None, 0.0) is None
        assert replies.load(connection, running.id, None, 6.0) is not None
        assert replies.claimable(connection, "nano", 6.0, 9) == []
        assert replies.claimable(connection, "nano", 11.0, 9) == ["resp_running"]
        assert replies.claimable(connection, "other", 11.0, 9) == []
        assert replies.expire(connection, 11.0) == 1
