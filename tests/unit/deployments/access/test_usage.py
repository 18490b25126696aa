"""What a key uses, against its limits: how long who is over one has to wait, and that counts outlive a change of the limit."""

import math
from typing import Any

import pytest

from deployments.access import usage as usage_module
from deployments.access.keys import Key, digest
from deployments.access.usage import Usage, client_name
from deployments.errors import LimitExceededError
from tests.support.clock import Clock


def key(name: str = "alice", **limits: int) -> Key:
    return Key(name=name, sha256=digest(name), **limits)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time by which the limits go. It begins at the start of a minute."""
    clock = Clock(60_000_000.0)
    monkeypatch.setattr("time.time", clock)
    return clock


class Client:
    """Somebody with a key, whose limits may change."""

    def __init__(self, **limits: int) -> None:
        self.usage, self.key = Usage(), key(**limits)

    def ask(self) -> None:
        """Have a request served, which has to be let in."""
        self.usage.begin(self.key)
        self.usage.end(self.key)

    def wait(self, limit: str) -> int:
        """Return the whole seconds to wait of a request that is refused by this limit."""
        with pytest.raises(LimitExceededError, match=f"this API key's limit {limit}.* is reached") as refused:
            self.usage.begin(self.key)
        assert (refused.value.status, refused.value.retryable) == (429, True)
        return math.ceil(refused.value.retry_after_s)


def test_without_limits_everything_is_let_in(clock: Clock) -> None:
    client = Client()
    for _ in range(1000):
        client.usage.begin(client.key)
        client.usage.charge("alice", 1_000_000)


def test_concurrent_requests_are_those_that_have_not_ended() -> None:
    client = Client(concurrent_requests=2)
    client.usage.begin(client.key)
    client.usage.begin(client.key)
    assert client.wait("concurrent_requests=2") == 1
    client.usage.begin(key("bob", concurrent_requests=1))
    client.usage.end(client.key)
    client.usage.begin(client.key)
    assert client.wait("concurrent_requests=2") == 1


def test_requests_a_minute_are_counted_over_any_sixty_seconds(clock: Clock) -> None:
    client = Client(requests_per_minute=2)
    clock.now_s += 50
    client.ask()
    clock.now_s += 20.5
    client.ask()
    assert client.wait("requests_per_minute=2") == 40
    clock.now_s += 39
    assert client.wait("requests_per_minute=2") == 1, "those refused do not count"
    client.usage.begin(key("bob", requests_per_minute=2))
    clock.now_s += 1
    client.ask()


def test_tokens_a_minute_may_be_overdrawn_and_are_worked_off(clock: Clock) -> None:
    client = Client(tokens_per_minute=100)
    client.usage.charge("alice", 99)
    client.ask()
    client.usage.charge("alice", 301)
    # 400: in the second minute after this one, no more than 100 are in the window when it is 3/4 over.
    wait = client.wait("tokens_per_minute=100")
    assert wait == 60 + 45
    clock.now_s += wait - 0.5
    assert client.wait("tokens_per_minute=100") == 1
    clock.now_s += 0.6
    client.ask()


def test_tokens_of_the_last_minute_count_by_their_share(clock: Clock) -> None:
    client = Client(tokens_per_minute=100)
    client.usage.charge("alice", 120)
    clock.now_s += 60
    client.usage.charge("alice", 60)
    assert client.wait("tokens_per_minute") == 40, "when a third of 120, and 60, are in the window"
    clock.now_s += 40.1
    client.ask()


def test_each_charge_counts_when_a_request_begins_or_ends(clock: Clock) -> None:
    client = Client(tokens_per_minute=100)
    for _ in range(100):
        client.ask()
        client.usage.charge("alice", 1)
    client.wait("tokens_per_minute")


def test_tokens_of_a_request_belong_to_the_minute_in_which_it_ended(clock: Clock) -> None:
    client = Client(tokens_per_minute=100)
    client.usage.begin(client.key)
    client.usage.charge("alice", 1)
    client.usage.charge("alice", 200)
    client.usage.end(client.key)
    clock.now_s += 150
    client.ask()


def test_a_new_limit_holds_at_once_and_for_what_was_counted_before(clock: Clock) -> None:
    client = Client(requests_per_minute=10, tokens_per_minute=1000)
    for _ in range(5):
        client.ask()
    client.usage.charge("alice", 500)
    client.key = key(requests_per_minute=5)
    client.wait("requests_per_minute=5")
    client.key = key(requests_per_minute=6, tokens_per_minute=500)
    client.wait("tokens_per_minute=500")
    client.key = key(requests_per_minute=6, tokens_per_minute=501)
    client.ask()
    client.wait("requests_per_minute=6")
    client.key = key()
    client.ask()


def test_a_request_that_is_refused_leaves_nothing_behind(clock: Clock) -> None:
    client = Client(concurrent_requests=1, requests_per_minute=1)
    client.ask()
    for _ in range(3):
        client.wait("requests_per_minute=1")
    clock.now_s += 60.1
    client.ask()


def test_a_charge_is_cheap_until_a_request_begins_or_ends(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """What enters the window costs a thread of the library's, so many charges in a row enter it once."""
    client, entered = Client(tokens_per_minute=10_000), []
    increase = client.usage._storage.incr
    monkeypatch.setattr(client.usage._storage, "incr", lambda *given: (entered.append(given[-1]), increase(*given)))
    for _ in range(100):
        clock.now_s += 0.001
        client.usage.charge("alice", 2)
    assert entered == [2]
    client.ask()
    assert sum(entered) == 200
    assert len(entered) == 2


async def test_the_current_clients_name_is_that_of_its_key() -> None:
    assert client_name() == ""
    token = usage_module.client.set("alice")
    assert client_name() == "alice"
    usage_module.client.reset(token)
    assert client_name() == ""


def test_a_limit_is_told_with_its_value() -> None:
    client: Any = Client(concurrent_requests=1)
    client.usage.begin(client.key)
    with pytest.raises(LimitExceededError) as refused:
        client.usage.begin(client.key)
    assert str(refused.value) == "this API key's limit concurrent_requests=1 is reached"
    assert refused.value.code == "rate_limit_exceeded"
