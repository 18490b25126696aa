"""How many lines run at a time."""

import asyncio
import math

import pytest

from deployments.ingress.batch_pace import Pace
from deployments.observability.record import Record, Timeline, Visit
from tests.support.clock import Clock

QUEUE_S = 0.2


@pytest.fixture
def clock() -> Clock:
    return Clock(100.0)


@pytest.fixture
def pace(clock: Clock) -> Pace:
    return Pace(20, QUEUE_S, lambda kept: math.inf, clock)


def starts(record: Record, queue_s: float = 0.0) -> None:
    record.engine.append(Timeline("r", "ada", 3, 0.0, first_here=1.0, queue_s=queue_s))


async def full(pace: Pace) -> list[Record]:
    """Have as many lines running as may."""
    return [await pace.enter() for _ in range(pace.limit - pace.running)]


async def grown(pace: Pace, ticks: int) -> list[int]:
    limits = []
    for _ in range(ticks):
        for record in await full(pace):
            starts(record)
        pace.tick()
        limits.append(pace.limit)
    return limits


async def test_it_doubles_until_it_is_crowded_and_then_goes_up_by_one(pace: Pace) -> None:
    assert pace.limit == 1
    assert await grown(pace, 4) == [2, 4, 8, 16]
    [record, *_] = await full(pace)
    starts(record, queue_s=2 * QUEUE_S)
    pace.tick()
    assert pace.limit == 8
    for record in list(pace._running.values()):
        pace.leave(record)
    assert await grown(pace, 14) == [*range(9, 21), 20, 20]


async def test_it_is_never_less_than_one(pace: Pace) -> None:
    for _ in range(3):
        pace.leave(await pace.enter(), refused=True)
        pace.tick()
        assert pace.limit == 1


async def test_it_does_not_grow_while_lines_wait_or_none_is_wanted(pace: Pace, clock: Clock) -> None:
    assert await grown(pace, 2) == [2, 4]
    records = await full(pace)
    starts(records[0])
    clock.now_s += 2
    pace.tick()
    assert pace.limit == 4, "the other one has not started for 2 s"
    for record in list(pace._running.values()):
        pace.leave(record)
    starts(record := await pace.enter())
    pace.leave(record)
    pace.tick()
    assert pace.limit == 4, "a place was free"


async def test_lines_enter_in_turn_and_no_more_than_may(pace: Pace) -> None:
    entered: list[int] = []

    async def enter(number: int) -> Record:
        record = await pace.enter()
        entered.append(number)
        return record

    tasks = [asyncio.create_task(enter(number)) for number in range(5)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert entered == [0]
    tasks[1].cancel()
    pace.leave(await tasks[0])
    pace.leave(await tasks[2])
    assert pace.running == 1, "the next one's place is taken before it goes on"
    tasks[3].cancel()  # at that moment
    await asyncio.wait(tasks[3:])
    assert (entered, pace.running) == ([0, 2, 4], 1)


async def test_lines_leave_to_others_what_each_replica_keeps_free(clock: Clock) -> None:
    others = 0
    placed: list[Record] = []
    pace = Pace(20, QUEUE_S, lambda kept: 16 * (1 - kept) - others - len(placed), clock)
    pace.limit = 20

    async def next_ones(count: int) -> list[Record]:
        """Have so many lines come; return those that enter."""
        tasks = [asyncio.create_task(pace.enter()) for _ in range(count)]
        await asyncio.wait(tasks, timeout=0.01)
        for task in tasks:
            task.cancel()
        return [task.result() for task in tasks if task.done() and not task.cancelled()]

    records = await next_ones(20)
    assert len(records) == 14, "none has a replica yet, and all will"
    assert await next_ones(1) == []
    for record in records:
        starts(record)
        record.engine[0].visits.append(Visit())
        placed.append(record)
    assert await next_ones(1) == []
    pace.tick()
    assert pace.limit == 20, "nothing waited"
    others = 3
    pace.leave(placed.pop())
    assert await next_ones(1) == [], "others have come"
    while placed:
        pace.leave(placed.pop())
    others = 16
    assert len(await next_ones(2)) == 1, "one always runs"


async def test_it_does_not_grow_where_replicas_have_no_more_room(clock: Clock) -> None:
    pace = Pace(20, QUEUE_S, lambda kept: 0.0, clock)
    asked = [asyncio.create_task(pace.enter()) for _ in range(3)]
    await asyncio.sleep(0)
    starts(asked[0].result())
    pace.tick()
    assert pace.limit == 2
    await asyncio.sleep(0)
    assert not asked[1].done()
    pace.tick()
    assert pace.limit == 2
    for task in asked:
        task.cancel()
