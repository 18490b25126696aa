"""Counts in Redis (5 or later), which all ingresses see. Redis' own clock is the only one, so those of hosts may differ.

Of a key there are four: the times of the last minute's requests (a moving window), the tokens that it owes (see
`deployments.access.usage.Debt`), the tokens of the day, and the running requests with the time until which each is held. Each
operation is one script, which Redis runs at once and alone.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from deployments.access.keys import Key
from deployments.access.shared import AwayError

WAIT_S = 0.25
CONNECTIONS = 32
PREFIX = "satori:access"
HELD_S = 30.0
"""How long a running request counts unless it is told of again: so those of an ingress that died are forgotten."""
SCRIPT = """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
local today = math.floor(clock[1] / 86400)
local requests, minute, daily, concurrent = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local tokens, request, estimate = tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7])
local held, ended = tonumber(ARGV[8]), tonumber(ARGV[9])
local admit = request ~= ''
local owed, used = 0, 0

-- What the ingress has to tell is counted first.
if minute > 0 then
    local found = redis.call('HMGET', KEYS[2], 'owed', 'at')
    owed = tonumber(found[1] or 0)
    owed = math.max(0, owed - math.max(0, now - tonumber(found[2] or now)) * minute / 60)
    owed = math.max(0, owed + tokens)
end
if daily > 0 then
    local found = redis.call('HMGET', KEYS[3], 'day', 'used')
    if tonumber(found[1] or 0) == today then used = tonumber(found[2]) end
    used = math.max(0, used + tokens)
end
for i = 10, 9 + ended do redis.call('ZREM', KEYS[4], ARGV[i]) end
for i = 10 + ended, #ARGV do redis.call('ZADD', KEYS[4], now + held, ARGV[i]) end
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now)

local limit, wait = '', 0
if admit then
    if concurrent > 0 and redis.call('ZCARD', KEYS[4]) >= concurrent then
        limit, wait = 'concurrent_requests', 1
    elseif minute > 0 and owed >= minute then
        limit, wait = 'tokens_per_minute', (owed - minute) * 60 / minute
    elseif daily > 0 and used >= daily then
        limit, wait = 'tokens_per_day', (today + 1) * 86400 - now
    elseif requests > 0 then
        redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 60)
        local count = redis.call('ZCARD', KEYS[1])
        if count >= requests then
            local first = redis.call('ZRANGE', KEYS[1], count - requests, count - requests, 'WITHSCORES')
            limit, wait = 'requests_per_minute', tonumber(first[2]) + 60 - now
        else
            redis.call('ZADD', KEYS[1], string.format('%.6f', now), request)
            redis.call('EXPIRE', KEYS[1], 61)
        end
    end
    if limit == '' then
        owed, used = owed + estimate, used + estimate
        if concurrent > 0 then redis.call('ZADD', KEYS[4], now + held, request) end
    end
end
redis.call('EXPIRE', KEYS[4], math.ceil(held) + 1)

if minute > 0 then
    redis.call('HSET', KEYS[2], 'owed', string.format('%.6f', owed), 'at', string.format('%.6f', now))
    redis.call('EXPIRE', KEYS[2], math.ceil(owed * 60 / minute) + 1)
end
if daily > 0 then
    redis.call('HSET', KEYS[3], 'day', today, 'used', string.format('%.6f', used))
    redis.call('EXPIRE', KEYS[3], 172800)
end
return {limit, string.format('%.6f', wait)}
"""


class Counts:
    """The counts in the Redis at `url`. Each operation takes at most `WAIT_S`; it raises AwayError where Redis does not do it."""

    def __init__(self, url: str) -> None:
        # With a time limit of its own, redis-py waits by `asyncio.wait_for`, which can lose a cancellation in Python 3.11.
        options: dict[str, Any] = {"socket_timeout": None, "retry": Retry(NoBackoff(), 0)}
        pool: Any = BlockingConnectionPool.from_url(url, max_connections=CONNECTIONS, timeout=WAIT_S, **options)
        self._redis: Any = Redis(connection_pool=pool)
        self._script = self._redis.register_script(SCRIPT)

    async def begin(self, key: Key, request: str, tokens: float, estimate: float) -> tuple[str, float] | None:
        """Count tokens of earlier requests, and then a request of this name that is expected to take `estimate` tokens.

        Returns the name of the limit that it exceeds, and the seconds to wait; the request is then not counted.
        """
        limit, wait = await self._run(key, tokens, request, estimate)
        return (limit.decode(), float(wait)) if limit else None

    async def settle(self, key: Key, tokens: float, ended: Iterable[str] = (), running: Iterable[str] = ()) -> None:
        """Count tokens; fewer than 0 take back what was expected. Forget requests that `ended`, and hold the `running` ones."""
        await self._run(key, tokens, "", 0, ended, running)

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()

    async def _run(
        self, key: Key, tokens: float, request: str, estimate: float, ended: Iterable[str] = (), running: Iterable[str] = ()
    ) -> Any:
        keys = [f"{PREFIX}:{{{key.name}}}:{count}" for count in ("requests", "owed", "day", "running")]
        over_time = (key.requests_per_minute, key.tokens_per_minute, key.tokens_per_day)
        limits = [limit or 0 for limit in (*over_time, key.concurrent_requests)]
        counts = [f"{tokens:.6f}", request, f"{estimate:.6f}", HELD_S, len(gone := list(ended)), *gone, *running]
        try:
            async with asyncio.timeout(WAIT_S):
                return await self._script(keys=keys, args=[*limits, *counts])
        except (RedisError, OSError) as error:  # a timeout, too
            raise AwayError(f"{type(error).__name__} {error}".strip()) from error
