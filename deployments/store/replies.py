"""What is written and read of stored responses. Each function is part of a transaction, and may be repeated with it.

A response is written to by the holder of its lease alone. The lease's epoch rises with each claim, so a holder that comes back late
writes nothing. A commit whose confirmation was lost is repeated: a write that is there already counts as accepted.

Rows are locked in one order, the lease first, so that no two transactions wait for each other.
"""

import sys
from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from deployments.store import leases as held
from deployments.store.schema import leases, responses, tokens
from deployments.store.values import Append, End, Lease, Progress, Stored

EXPIRED_AT_ONCE = 500
"""How many expired responses are removed in one transaction."""
MOVE = """
UPDATE satori_leases SET position = new.column4, expires_at = {mark} FROM (VALUES {rows}) AS new
WHERE response = new.column1 AND epoch = new.column2 AND position = new.column3
"""
WRITE = "INSERT INTO satori_tokens (response, start, tokens) VALUES {rows}"
"""What most of a transaction is. As one statement for all rows it holds Python's lock once, and not for each row."""
BEGIN = update(responses).where(responses.c.id.in_(bindparam("all")), responses.c.status == "queued").values(status="in_progress")
END = update(responses).where(responses.c.id == bindparam("of")).values(ended=bindparam("end"))
ADD = insert(responses)
OVER = (
    select(responses.c.id)
    .outerjoin(leases, leases.c.response == responses.c.id)
    .where(
        responses.c.expires_at <= bindparam("now"),
        leases.c.response.is_(None) | (leases.c.expires_at < bindparam("now")),
    )
)
OVER_ONE = OVER.where(responses.c.id == bindparam("of"))
OVER_MANY = OVER.limit(bindparam("most"))
UNLEASE = delete(leases).where(leases.c.response == bindparam("of"), leases.c.epoch == bindparam("under"))
FINISH = (
    update(responses)
    .where(responses.c.id == bindparam("of"))
    .values(status=bindparam("now"), result=bindparam("told"), last_event=bindparam("last"))
)


def create(connection: Connection, response: Stored, holder: str, now: float, lease_s: float) -> Lease:
    """Add a response, and its first lease. One with the same id whose time is over goes first."""
    _remove(connection, list(connection.execute(OVER_ONE, {"now": now, "of": response.id}).scalars()))
    lease = held.create(connection, response.id, holder, now + lease_s)
    connection.execute(ADD, asdict(response))
    return lease


def load(connection: Connection, response: str, owner: str | None, now: float) -> Stored | None:
    """Return a response; None if there is none, it has expired, or it is another owner's (None: anybody's)."""
    row = connection.execute(select(responses).where(responses.c.id == response)).one_or_none()
    if row is None or (owner is not None and row.owner != owner):
        return None
    found = Stored(**row._mapping)
    return found if found.running or found.expires_at > now else None


def append(
    connection: Connection, lease: Lease, start: int, new: Sequence[int], end: End | None, now: float, lease_s: float
) -> bool:
    """Write the tokens from position `start` on, and extend the lease; return whether its holder may still write."""
    after = start + len(new)
    mine = held.by(lease)
    moved = update(leases).where(mine, leases.c.position == start).values(position=after, expires_at=now + lease_s)
    if not connection.execute(moved).rowcount:
        there = connection.execute(select(leases.c.position).where(mine)).scalar_one_or_none()
        return there is not None and there >= after  # under this epoch nobody else has written
    if new:
        connection.execute(insert(tokens).values(response=lease.response, start=start, tokens=packed(new)))
    here = responses.c.id == lease.response
    if start == 0:
        connection.execute(update(responses).where(here, responses.c.status == "queued").values(status="in_progress"))
    if end is not None:
        connection.execute(update(responses).where(here).values(ended=end.written()))
    return True


def append_all(connection: Connection, appends: Sequence[Append], now: float, lease_s: float) -> list[bool]:
    """Do what `append` does for each, with few statements where all are accepted, as nearly always."""
    with suppress(_RefusedError), connection.begin_nested():
        _append_at_once(connection, appends, now + lease_s)
        return [True] * len(appends)
    return [append(connection, one.lease, one.start, one.tokens, one.end, now, lease_s) for one in appends]


def claimable(connection: Connection, model: str, now: float, most: int) -> list[str]:
    """Return the ids of a model's responses that have not ended and whose leases have run out, the oldest first."""
    orphans = select(responses.c.id).join(leases, leases.c.response == responses.c.id)
    orphans = orphans.where(leases.c.expires_at < now, responses.c.model == model)
    return list(connection.execute(orphans.order_by(responses.c.created_at).limit(most)).scalars())


def claim(connection: Connection, response: str, holder: str, now: float, lease_s: float) -> tuple[Lease, Stored, list[int]] | None:
    """Take over a response whose lease has run out; return the new lease, the response and its tokens so far."""
    lease = held.claim(connection, response, holder, now, lease_s)
    if lease is None or (stored := load(connection, response, None, now)) is None:
        return None
    return lease, stored, read_tokens(connection, response, 0)


def finish(connection: Connection, lease: Lease, status: str, result: str, last_event: int) -> bool:
    """End a response, as the holder of its lease; return whether it has this result now."""
    if not connection.execute(UNLEASE, {"of": lease.response, "under": lease.epoch}).rowcount:
        here = responses.c.id == lease.response
        found = connection.execute(select(responses.c.status, responses.c.result).where(here)).one_or_none()
        return found is not None and tuple(found) == (status, result)
    connection.execute(FINISH, {"of": lease.response, "now": status, "told": result, "last": last_event})
    return True


def cancel(connection: Connection, response: str) -> bool:
    """Cancel a response that has not ended; return whether it had not. Its tokens so far stay."""
    position = _fence_off(connection, response)
    if position is None:
        return False
    ended = End("abort", position).written()
    connection.execute(update(responses).where(responses.c.id == response).values(status="cancelled", ended=ended))
    return True


def remove(connection: Connection, response: str) -> None:
    """Remove a response and all of it."""
    _remove(connection, [response])


def expire(connection: Connection, now: float, most: int = EXPIRED_AT_ONCE) -> int:
    """Remove responses whose time is over, unless somebody is writing them; return how many."""
    found = list(connection.execute(OVER_MANY, {"now": now, "most": most}).scalars())
    _remove(connection, found)
    return len(found)


def progress(connection: Connection, response: str, start: int) -> Progress:
    """Return what there is of a response from the token at `start` on, at which a group of tokens begins."""
    row = connection.execute(select(responses.c.ended, responses.c.status).where(responses.c.id == response)).one_or_none()
    if row is None:
        return Progress([], None, None)
    return Progress(read_tokens(connection, response, start), End.read(row.ended), row.status)


def read_tokens(connection: Connection, response: str, start: int) -> list[int]:
    """Return a response's tokens from a position on, at which a group of tokens begins."""
    rows = select(tokens.c.tokens).where(tokens.c.response == response, tokens.c.start >= start).order_by(tokens.c.start)
    return unpacked(b"".join(connection.execute(rows).scalars()))


def count(connection: Connection) -> int:
    """Return how many responses there are."""
    return connection.execute(select(func.count()).select_from(responses)).scalar_one()


def packed(numbers: Sequence[int]) -> bytes:
    """Return tokens as bytes, 4 each, little-endian."""
    return _little_endian(array("I", numbers)).tobytes()


def unpacked(data: bytes) -> list[int]:
    """Return the tokens of `packed`."""
    return _little_endian(array("I", data)).tolist()


def _little_endian(numbers: Any) -> Any:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _remove(connection: Connection, ids: list[str]) -> None:
    if not ids:
        return
    for column in (leases.c.response, tokens.c.response, responses.c.id):
        connection.execute(delete(column.table).where(column.in_(ids)))


class _RefusedError(Exception):
    """Not all of these appends are accepted."""


def _append_at_once(connection: Connection, appends: Sequence[Append], expires_at: float) -> None:
    """Do all appends, those of a response as one. Raises _RefusedError, having done some, where one is not accepted."""
    of_each: dict[Lease, list[Append]] = {}
    for one in appends:
        of_each.setdefault(one.lease, []).append(one)
    moves: list[Any] = []
    new: list[Any] = []
    for lease, own in of_each.items():
        start = after = own[0].start
        for one in own:
            if one.start != after:
                raise _RefusedError
            after += len(one.tokens)
        moves += lease.response, lease.epoch, start, after
        if after > start:
            new += lease.response, start, packed([token for one in own for token in one.tokens])
    mark, rows = _marks(connection, len(of_each), 4)
    moved = connection.exec_driver_sql(MOVE.format(mark=mark, rows=rows), (expires_at, *moves))
    if moved.rowcount != len(of_each):
        raise _RefusedError
    if new:
        connection.exec_driver_sql(WRITE.format(rows=_marks(connection, len(new) // 3, 3)[1]), tuple(new))
    if begun := [one.lease.response for one in appends if one.start == 0]:
        connection.execute(BEGIN, {"all": begun})
    if ended := [{"of": one.lease.response, "end": one.end.written()} for one in appends if one.end is not None]:
        connection.execute(END, ended)


def _marks(connection: Connection, rows: int, columns: int) -> tuple[str, str]:
    """Return the mark of a value in the SQL of this database's driver, and those of so many rows of them."""
    mark = "?" if connection.dialect.paramstyle == "qmark" else "%s"
    row = f"({', '.join([mark] * columns)})"
    return mark, ", ".join([row] * rows)


def _fence_off(connection: Connection, response: str) -> int | None:
    """Take the lease from its holder, for good; return the position of the next token, None where there was no lease."""
    gone = delete(leases).where(leases.c.response == response).returning(leases.c.position)
    return connection.execute(gone).scalar_one_or_none()
