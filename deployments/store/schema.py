"""The tables. All times are seconds since the epoch."""

from sqlalchemy import BigInteger, Boolean, Column, Float, Index, LargeBinary, MetaData, String, Table, Text

metadata = MetaData()

responses = Table(
    "satori_responses",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", Text, nullable=False),  # the name of the API key, "" where none is needed
    Column("model", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("background", Boolean, nullable=False),
    Column("request", Text, nullable=False),  # JSON, self-contained: with the input of the responses before it
    Column("input", Text, nullable=False),  # JSON, the input's items
    Column("result", Text, nullable=False),  # JSON, the response as clients see it
    Column("ended", Text),  # JSON, how the tokens ended
    Column("last_event", BigInteger),  # the sequence number of the last event
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Index("satori_responses_expiry", "expires_at"),
)
tokens = Table(
    "satori_tokens",
    metadata,
    Column("response", String(64), primary_key=True),
    Column("start", BigInteger, primary_key=True, autoincrement=False),  # the position of the first of these tokens
    Column("tokens", LargeBinary, nullable=False),  # 4 bytes each, little-endian
)
leases = Table(
    "satori_leases",
    metadata,
    Column("response", String(64), primary_key=True),
    Column("holder", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("position", BigInteger, nullable=False),  # the position of the next token
    Column("expires_at", Float, nullable=False),
    Index("satori_leases_expiry", "expires_at"),
)
"""A response has a lease until it has ended. Whoever claims it raises the epoch, which fences off the holder before."""
