"""The database: SQLite in a file of this host, or PostgreSQL for ingresses on several hosts."""

import os
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, func, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, ProgrammingError

from deployments.store.schema import metadata

POSTGRESQL = "postgresql://"
READS = "reads"
"""The option of a connection that does not write: it then waits for no writer."""
BUSY_S = 10
FOLDER_MODE, FILE_MODE = 0o700, 0o600


def connect(url: str) -> Engine:
    """Return the engine of a database, whose tables are made if they are missing.

    `url` is the path of a SQLite file, which only its user can read, or begins with `postgresql://`. Raises SQLAlchemy's DBAPIError
    where the database cannot be reached, OSError where there can be no such file.
    """
    engine = _postgresql(url) if url.startswith(POSTGRESQL) else _sqlite(Path(url))
    try:
        metadata.create_all(engine)
    except (IntegrityError, ProgrammingError, OperationalError):
        metadata.create_all(engine)  # another process was making them at the same moment
    return engine


def reading(engine: Engine) -> Engine:
    """Return the engine for transactions that only read. They wait for no writer, and see one moment."""
    options = {READS: True} | ({"isolation_level": "REPEATABLE READ"} if engine.dialect.name == "postgresql" else {})
    return engine.execution_options(**options)


def bytes_used(connection: Connection) -> int:
    """Return how many bytes the stored responses take."""
    if connection.dialect.name == "postgresql":
        tables = (func.pg_total_relation_size(text(f"'{name}'")) for name in metadata.tables)
        return sum(connection.execute(select(size)).scalar_one() for size in tables)
    pages = [connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in ("page_count", "freelist_count", "page_size")]
    return (pages[0] - pages[1]) * pages[2]


def is_full(error: DBAPIError) -> bool:
    """Return whether a write failed because the disk is full."""
    return "disk is full" in str(error.orig) or getattr(error.orig, "sqlstate", None) == "53100"


def _postgresql(url: str) -> Engine:
    return create_engine(
        url.replace(POSTGRESQL, "postgresql+psycopg://", 1),
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={"connect_timeout": BUSY_S},
    )


def _sqlite(path: Path) -> Engine:
    path.parent.mkdir(FOLDER_MODE, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, FILE_MODE))  # SQLite gives the files beside it the same mode
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_S}, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver begins no transaction of its own
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")  # a commit outlives the host, too

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that begins with a read cannot always become a writing one.
        connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get(READS) else "BEGIN IMMEDIATE")

    return engine
