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
        client.usage.charge(client.key, 1_000_000)


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
    client.usage.charge(client.key, 99)
    client.ask()
    client.usage.charge(client.key, 301)
    wait = client.wait("tokens_per_minute=100")
    assert wait == 180, "three minutes' worth of 400 tokens; those of one may be owed"
    clock.now_s += wait - 0.5
    assert client.wait("tokens_per_minute=100") == 1
    clock.now_s += 0.6
    client.ask()


def test_tokens_a_day_are_those_until_midnight(clock: Clock) -> None:
    client = Client(tokens_per_day=100)
    for _ in range(2):
        client.ask()
        client.usage.charge(client.key, 50)
    with pytest.raises(LimitExceededError) as refused:
        client.usage.begin(client.key)
    assert str(refused.value) == "the API key 'alice' has used its tokens_per_day=100; they renew at 1971-11-27 00:00 UTC"
    assert refused.value.retry_after_s == 86400 - 60_000_000 % 86400
    clock.now_s += refused.value.retry_after_s - 1
    with pytest.raises(LimitExceededError):
        client.usage.begin(client.key)
    clock.now_s += 1
    client.ask()


def test_an_ingress_alone_lets_in_its_share(clock: Clock) -> None:
    client = Client(requests_per_minute=10, tokens_per_minute=300)
    for _ in range(3):
        client.usage.begin(client.key, 3)
    with pytest.raises(LimitExceededError, match="requests_per_minute=10 is"):
        client.usage.begin(client.key, 3)
    client.usage.charge(client.key, 100)
    clock.now_s += 30
    client.usage.charge(client.key, 50)
    with pytest.raises(LimitExceededError, match="tokens_per_minute=300 is"):
        client.usage.begin(client.key, 3)


def test_each_charge_counts_when_a_request_begins(clock: Clock) -> None:
    client = Client(tokens_per_minute=100)
    for _ in range(100):
        client.ask()
        client.usage.charge(client.key, 1)
    client.wait("tokens_per_minute")


@pytest.mark.parametrize("tokens", [10, 90, 400, 1300])
@pytest.mark.parametrize("every_s", [0.1, 7, 59.9, 61])
def test_no_way_of_asking_gets_more_than_the_limit(clock: Clock, tokens: int, every_s: float) -> None:
    """An hour of asking whenever it is let in: an hour's tokens, a minute's at the beginning, and what the last request took."""
    client, got, began = Client(tokens_per_minute=100), 0, clock.now_s
    while clock.now_s < began + 3600:
        try:
            client.usage.begin(client.key)
        except LimitExceededError as refused:
            clock.now_s += max(every_s, refused.retry_after_s)
            continue
        client.usage.charge(client.key, tokens)
        clock.now_s += every_s
        client.usage.end(client.key)
        got += tokens
    assert got <= 61 * 100 + tokens
    if every_s < 60 * tokens / 100:
        assert got >= 0.9 * 60 * 100, "it gets what it may"


def test_requests_at_the_same_time_are_expected_to_take_what_others_took(clock: Clock) -> None:
    """Otherwise any number could begin while nothing is owed yet."""
    client = Client(tokens_per_minute=100)
    for _ in range(30):
        client.usage.begin(client.key)
        client.usage.charge(client.key, 40)
        clock.now_s += 60
        client.usage.end(client.key)
    clock.now_s += 60
    for _ in range(3):
        client.usage.begin(client.key)
    client.wait("tokens_per_minute")
    client.usage.charge(client.key, 3)
    for _ in range(3):
        client.usage.end(client.key)
    client.ask()


def test_a_new_limit_holds_at_once_and_for_what_was_counted_before(clock: Clock) -> None:
    client = Client(requests_per_minute=10, tokens_per_minute=1000)
    for _ in range(5):
        client.ask()
    client.usage.charge(client.key, 500)
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
