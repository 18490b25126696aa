"""Leases: who may write to a response or a batch. Each function is part of a transaction.

The epoch rises with each claim, so a holder that comes back late writes nothing. What has ended has no lease.
"""

import secrets

from sqlalchemy import ColumnElement, Connection, insert, update

from deployments.store.schema import leases
from deployments.store.values import Lease

EPOCH_BITS = 48
ADD = insert(leases)


def create(connection: Connection, of: str, holder: str, expires_at: float) -> Lease:
    """Add the first lease of a response or batch. Its epoch is none that another one under the same id, since removed, has had."""
    epoch = secrets.randbits(EPOCH_BITS)
    connection.execute(ADD, {"response": of, "holder": holder, "epoch": epoch, "position": 0, "expires_at": expires_at})
    return Lease(of, epoch)


def by(lease: Lease) -> ColumnElement[bool]:
    """Return the condition for the row of a lease: there is none once its response has ended, or another holder's epoch."""
    return (leases.c.response == lease.response) & (leases.c.epoch == lease.epoch)


def renew(connection: Connection, lease: Lease, now: float, lease_s: float) -> bool:
    """Extend a lease; return whether it is still held."""
    return bool(connection.execute(update(leases).where(by(lease)).values(expires_at=now + lease_s)).rowcount)


def claim(connection: Connection, of: str, holder: str, now: float, lease_s: float) -> Lease | None:
    """Return a new lease of what has one that has run out; None where another holder was quicker."""
    free = update(leases).where(leases.c.response == of, leases.c.expires_at < now)
    taken = free.values(holder=holder, epoch=leases.c.epoch + 1, expires_at=now + lease_s).returning(leases.c.epoch)
    epoch = connection.execute(taken).scalar_one_or_none()
    return None if epoch is None else Lease(of, epoch)


def release(connection: Connection, lease: Lease) -> None:
    """Let a lease run out at once, so that anybody may claim it."""
    connection.execute(update(leases).where(by(lease)).values(expires_at=0))
