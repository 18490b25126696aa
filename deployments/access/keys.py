"""API keys: who may use the API, and how much of it. `python -m deployments.access NAME` makes one.

Keys come from a YAML file (setting `access.keys`), the environment variable SATORI_API_KEYS (`name:sha256`, separated by commas),
or both. The file:

    keys:
    - name: alice
      sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
      concurrent_requests: 8        # the limits are optional
      requests_per_minute: 60
      tokens_per_minute: 20000
      tokens_per_day: 1000000
      prompt_price: 0.15            # of a million tokens, in any currency; either, both or none
      completion_price: 0.6

Only SHA-256 digests are kept. Keys are 256 random bits: they cannot be guessed, so salt or a slow hash would protect nothing.
No message and no log line contains a key, or a value from a place where a key may have been put by mistake.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from deployments.errors import SettingsError
from deployments.observability import logs
from deployments.settings import HttpSettings

ENVIRONMENT = "SATORI_API_KEYS"
PREFIX = "sk-satori-"
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
NAMES = f"1 to 64 of the characters A-Z a-z 0-9 _ . -, not beginning with {PREFIX} as keys do"
# The file is checked at most this often.
CHECK_S = 1.0
logger = logs.logger("access")


class Key(BaseModel):
    """The name, the digest, the limits and the prices of one key; None is no limit, or no price."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    sha256: str = Field(pattern="^[0-9A-Fa-f]{64}$", repr=False)
    concurrent_requests: int | None = Field(None, ge=1)
    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)
    tokens_per_day: int | None = Field(None, ge=1)

    prompt_price: float | None = Field(None, ge=0, allow_inf_nan=False)
    completion_price: float | None = Field(None, ge=0, allow_inf_nan=False)

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """Return what these tokens cost; None without a price."""
        if self.prompt_price is None and self.completion_price is None:
            return None
        millionths = prompt_tokens * (self.prompt_price or 0) + completion_tokens * (self.completion_price or 0)
        return round(millionths / 1_000_000, 12)

    @property
    def counts_requests(self) -> bool:
        """Whether a limit of its requests is to be kept."""
        return self.requests_per_minute is not None or self.concurrent_requests is not None

    @property
    def counts_tokens(self) -> bool:
        """Whether a limit of its tokens is to be kept."""
        return self.tokens_per_minute is not None or self.tokens_per_day is not None

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not is_name(name):
            raise ValueError
        return name

    @field_validator("sha256")
    @classmethod
    def _in_lower_case(cls, digest: str) -> str:
        return digest.lower()


def is_name(name: str) -> bool:
    """Whether a key may have this name."""
    return NAME.fullmatch(name) is not None and not name.startswith(PREFIX)


def digest(key: str) -> str:
    """Return the SHA-256 of a key in the clear, in hexadecimal."""
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


def make(name: str) -> tuple[str, Key]:
    """Return a new key in the clear, and the `Key` that is kept of it."""
    secret = PREFIX + secrets.token_urlsafe(32)
    return secret, Key(name=name, sha256=digest(secret))


class KeyStore:
    """The keys that are valid now. A file that changes is read again; if it is then wrong or gone, the keys stay as they were.

    Raises SettingsError when the file or the environment variable is wrong at the start.
    """

    def __init__(self, file: str | None, environment: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = None if file is None else Path(file)
        self._environment_keys = _from_environment(environment or "")
        self._clock = clock
        self._checked_s = clock()
        self._version = self._stat()
        self._keys = self._read()

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, presented: str) -> Key | None:
        """Return the key that is presented in the clear, None if it is not valid. Every key and every guess takes the same time."""
        self._refresh()
        given, found = digest(presented), None
        for key in self._keys.values():
            if hmac.compare_digest(given, key.sha256):
                found = key
        return found

    def get(self, name: str) -> Key | None:
        """Return the key of this name, as of the file's last check; None if there is none."""
        return self._keys.get(name)

    def _refresh(self) -> None:
        if self._file is None or (now := self._clock()) - self._checked_s < CHECK_S:
            return
        self._checked_s = now
        if (version := self._stat()) == self._version:
            return
        self._version = version
        try:
            self._keys = self._read()
        except SettingsError as error:
            logger.error("the keys stay as they were: %s", error)
        else:
            logger.info("%s was read again: %d keys are valid", self._file, len(self))

    def _stat(self) -> tuple[int, ...] | None:
        """Return the times, size and inode that identify the file's version; None without a file."""
        try:
            found = None if self._file is None else self._file.stat()
        except OSError:
            found = None
        return None if found is None else (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)

    def _read(self) -> dict[str, Key]:
        file_keys = [] if self._file is None else _from_file(self._file)
        source = ENVIRONMENT if self._file is None else str(self._file)
        by_name: dict[str, Key] = {}
        by_digest: dict[str, Key] = {}
        for key in [*self._environment_keys, *file_keys]:
            if key.name in by_name:
                raise SettingsError(f"{source}: two keys are named {key.name!r}; allowed: each name once (also in {ENVIRONMENT})")
            if (other := by_digest.get(key.sha256)) is not None:
                raise SettingsError(f"{source}: {other.name!r} and {key.name!r} are the same key; allowed: one entry a key")
            by_name[key.name] = by_digest[key.sha256] = key
        return by_name


def open_store(file: str | None, environment: str | None) -> KeyStore | None:
    """Return the store of a file and of the environment variable's value; None (open to everybody) if there is neither.

    With either of them, nobody gets in without a key, even if it lists none. Raises SettingsError.
    """
    return None if file is None and environment is None else KeyStore(file, environment)


def exposed(http: HttpSettings, guarded: bool) -> list[str]:
    """Return the lines of a warning if anybody on the network could use the API; otherwise none."""
    if guarded or http.is_loopback:
        return []
    return [
        f"anyone who can reach {http.host}:{http.port} can use it: no API key is required.",
        "Set access.keys=FILE (see docs/security.md), or http.host=127.0.0.1.",
    ]


def _from_file(file: Path) -> list[Key]:
    try:
        loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{file}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # without the errors' own texts, which quote the file
        mark = getattr(error, "problem_mark", None)
        at = "" if mark is None else f" (line {mark.line + 1})"
        raise SettingsError(f"{file}: not YAML{at}") from None
    entries = loaded.get("keys") if isinstance(loaded, dict) else None
    if not isinstance(entries, list):
        raise SettingsError(f"{file}: it has no list; allowed: `keys:` and a list of keys below it, [] for none")
    problems = [f"{file}: {name!r}: unknown field; allowed: keys" for name in loaded if name != "keys"]
    found = []
    for place, entry in enumerate(entries):
        where = f"{file}: keys.{place}"
        if not isinstance(entry, dict):
            problems.append(f"{where}: not a mapping; allowed: the fields {', '.join(Key.model_fields)}")
            continue
        try:
            found.append(Key.model_validate(entry))
        except ValidationError as error:
            named = f" of {entry['name']!r}" if isinstance(entry.get("name"), str) and is_name(entry["name"]) else ""
            problems += [_describe(where, named, detail) for detail in error.errors()]
    if problems:
        raise SettingsError("\n".join(problems))
    return found


def _from_environment(value: str) -> list[Key]:
    found, problems = [], []
    for place, entry in enumerate(filter(None, (part.strip() for part in value.split(",")))):
        name, _, sha256 = entry.partition(":")
        try:
            found.append(Key(name=name.strip(), sha256=sha256.strip()))
        except ValidationError:
            # The entry may be a key, put there by mistake.
            problems.append(
                f"{ENVIRONMENT}: entry {place + 1} is wrong (not shown); allowed: name:sha256, a name of {NAMES}, and 64"
                " hexadecimal digits"
            )
    if problems:
        raise SettingsError("\n".join(problems))
    return found


def _describe(where: str, named: str, detail: Any) -> str:
    """Return a line for one of pydantic's errors in a key: file, place, key, value, what is allowed."""
    field, given = str(detail["loc"][0]), detail["input"]
    if detail["type"] == "extra_forbidden":
        return f"{where}.{field}{named}: unknown field (its value is not shown); allowed: {', '.join(Key.model_fields)}"
    if detail["type"] == "missing":
        return f"{where}{named}: {field} is missing; allowed: name and sha256, and optional limits"
    if field == "sha256":
        return f"{where}.{field}{named}: wrong (not shown); allowed: the 64 hexadecimal digits of the key's SHA-256, in quotes"
    if field == "name":
        shown = "" if str(given).startswith(PREFIX) else f"={given!r}"
        return f"{where}.{field}{shown}: allowed: {NAMES}; in quotes where YAML would read a number or a word of its own"
    if field.endswith("_price"):
        return f"{where}.{field}={given!r}{named}: allowed: a number of at least 0"
    return f"{where}.{field}={given!r}{named}: allowed: a whole number of at least 1"
