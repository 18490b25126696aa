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
    Column("response", String(64), primary_key=True),  # or the batch
    Column("holder", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("position", BigInteger, nullable=False),  # the position of the next token
    Column("expires_at", Float, nullable=False),
    Index("satori_leases_expiry", "expires_at"),
)
"""A response or batch has a lease until it has ended. Whoever claims it raises the epoch, which fences off the holder before."""
files = Table(
    "satori_files",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", Text, nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("filename", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("complete", Boolean, nullable=False),  # else it is being uploaded, or removed
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("batch", String(64)),  # the batch whose lines it has, None for an upload
    Column("failed", Boolean, nullable=False),  # which of the batch's lines it has
    Index("satori_files_expiry", "expires_at"),
    Index("satori_files_owner", "owner", "created_at"),
)
pieces = Table(
    "satori_pieces",
    metadata,
    Column("file", String(64), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
)
"""The content of uploads."""
batches = Table(
    "satori_batches",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("input_file", String(64), nullable=False),
    Column("window", Text, nullable=False),  # in which it is to be completed, as it was asked for
    Column("details", Text, nullable=False),  # JSON: metadata, the times of its states, errors, its files
    Column("total", BigInteger, nullable=False),
    Column("completed", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("deadline", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Index("satori_batches_expiry", "expires_at"),
    Index("satori_batches_owner", "owner", "created_at"),
)
lines = Table(
    "satori_lines",
    metadata,
    Column("batch", String(64), primary_key=True),
    Column("line", BigInteger, primary_key=True, autoincrement=False),
    Column("failed", Boolean, nullable=False),
    Column("result", LargeBinary, nullable=False),  # a line of JSON
)
"""What the lines of batches came to. The files that a batch has written are made of these."""
