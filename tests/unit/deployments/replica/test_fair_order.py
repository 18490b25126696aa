"""The fair order of waiting requests."""

import heapq

from hypothesis import given
from hypothesis import strategies as st

from deployments.replica.fair_order import FIRST, KEPT, FairOrder
from deployments.transport.channel import DEFERRED


class Engine:
    """Starts the waiting request with the lowest tag, one at a time, first come first served among equals."""

    def __init__(self) -> None:
        self.order = FairOrder()
        self._waiting: list[tuple[int, int, str]] = []
        self._arrived = 0

    def arrive(self, client: str) -> None:
        self._arrived += 1
        heapq.heappush(self._waiting, (self.order.tag(client), self._arrived, client))

    def start(self) -> tuple[str, int]:
        tag, number, client = heapq.heappop(self._waiting)
        self.order.started(tag)
        return client, number

    @property
    def waiting(self) -> int:
        return len(self._waiting)


def test_a_single_request_starts_before_two_more_of_a_crowd() -> None:
    engine = Engine()
    for _ in range(100):
        engine.arrive("crowd")
    for _ in range(37):
        engine.start()
    engine.arrive("single")
    assert "single" in [engine.start()[0] for _ in range(2)]


def test_two_crowds_take_turns() -> None:
    engine = Engine()
    for _ in range(20):
        engine.arrive("first")
    for _ in range(20):
        engine.arrive("second")
    started = [engine.start()[0] for _ in range(40)]
    assert all({*started[at : at + 2]} == {"first", "second"} for at in range(0, 40, 2))


def test_who_was_quiet_has_saved_up_nothing() -> None:
    engine = Engine()
    engine.arrive("quiet")
    for _ in range(50):
        engine.arrive("busy")
    for _ in range(40):
        engine.start()
    for _ in range(10):
        engine.arrive("quiet")
    started = [engine.start()[0] for _ in range(20)]
    assert 9 <= started.count("busy") <= 11


@given(st.lists(st.sampled_from(["a", "b", "c", None])))
def test_each_client_is_served_in_its_own_order(arrivals: list[str | None]) -> None:
    engine, started = Engine(), []
    for client in arrivals:
        if client is not None:
            engine.arrive(client)
        elif engine.waiting:
            started.append(engine.start())
    while engine.waiting:
        started.append(engine.start())
    for name in "abc":
        numbers = [number for client, number in started if client == name]
        assert numbers == sorted(numbers)


def test_lines_of_batches_start_after_all_others_and_take_turns() -> None:
    engine = Engine()
    for client in (DEFERRED + "a", DEFERRED + "a", DEFERRED + "b"):
        engine.arrive(client)
    assert engine.start()[0] == DEFERRED + "a"
    engine.arrive("a")
    engine.arrive("c")
    assert [engine.start()[0] for _ in range(4)] == ["a", "c", DEFERRED + "b", DEFERRED + "a"]
    engine.arrive("c")
    engine.arrive("a")
    assert [engine.start()[0] for _ in range(2)] == ["c", "a"], "lines do not count for who is next among the others"


def test_clients_that_have_gone_are_forgotten() -> None:
    order = FairOrder()
    for number in range(KEPT * 3):
        order.started(order.tag(f"client {number}"))
    assert len(order._last) <= KEPT
    assert order.tag("client 0") > FIRST
