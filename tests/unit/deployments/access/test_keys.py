"""API keys: where they come from, what is told of wrong ones, and how a changed file is read again."""

import hashlib
import os
import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deployments.access import keys
from deployments.access.keys import Key, KeyStore, digest, exposed, make, open_store
from deployments.errors import SettingsError
from deployments.settings import HttpSettings

SECRET = "sk-satori-" + "S" * 43


def entry(name: str, secret: str, **limits: Any) -> dict[str, Any]:
    return {"name": name, "sha256": hashlib.sha256(secret.encode()).hexdigest(), **limits}


class File:
    """A file of keys, and a store of it whose clock the test moves."""

    def __init__(self, path: Path, *entries: dict[str, Any]) -> None:
        self.path, self.now = path, 0.0
        self.write(*entries)
        self.store = KeyStore(str(path), None, lambda: self.now)

    def write(self, *entries: dict[str, Any]) -> None:
        self.path.write_text(yaml.safe_dump({"keys": list(entries)}))

    def name_of(self, secret: str) -> str | None:
        """Return whose key this is, after the file has been looked at again."""
        self.now += 1
        found = self.store.find(secret)
        return found and found.name


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "keys.yaml", entry("alice", "a"), entry("bob", "b", requests_per_minute=5))


def test_a_key_is_found_by_what_it_hashes_to_wherever_it_stands(file: File) -> None:
    assert [file.name_of(secret) for secret in ("a", "b", "c", "", digest("a"), "A")] == ["alice", "bob", None, None, None, None]


@given(st.text(alphabet=st.characters()))
def test_nothing_else_is_a_key(presented: str) -> None:
    store = KeyStore(None, f"alice:{digest(SECRET)}")
    assert (store.find(presented) is None) == (presented != SECRET)


def test_limits_come_with_the_key(file: File) -> None:
    bob = file.store.get("bob")
    assert bob is not None
    assert (bob.concurrent_requests, bob.requests_per_minute, bob.tokens_per_minute) == (None, 5, None)


def test_keys_come_from_file_and_environment(file: File) -> None:
    store = KeyStore(str(file.path), f" carol:{digest('c').upper()} ,, dave:{digest('d')}")
    assert [getattr(store.find(secret), "name", None) for secret in "abcde"] == ["alice", "bob", "carol", "dave", None]


def test_what_is_guarded(file: File) -> None:
    assert open_store(None, None) is None
    for store in (open_store(str(file.path), None), open_store(None, f"alice:{digest('a')}")):
        assert store is not None
        assert store.find("a") is not None
    nobodys = open_store(None, "")
    assert nobodys is not None
    assert nobodys.find("") is None


GOOD = digest("good")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["no list", "allowed: `keys:`"]),
        ("keys:", ["no list", "[] for none"]),
        (f"- name: {SECRET}", ["no list"]),
        (f"keys: [\n{{name: {SECRET}", ["not YAML (line"]),
        ("keys: []\nkey: x", ["'key': unknown field", "allowed: keys"]),
        (f"keys: [{SECRET}]", ["keys.0: not a mapping", "allowed: the fields name, sha256"]),
        (f"keys: [{{name: bob, sha256: {SECRET}}}]", ["keys.0.sha256 of 'bob': wrong (not shown)", "64 hexadecimal digits"]),
        (f"keys: [{{name: bob, sha256: {GOOD}, key: {SECRET}}}]", ["keys.0.key of 'bob': unknown field", "allowed: name, sha256"]),
        ("keys: [{name: bob}]", ["keys.0 of 'bob': sha256 is missing", "allowed: name and sha256"]),
        (f"keys: [{{sha256: {GOOD}}}]", ["keys.0: name is missing"]),
        (f"keys: [{{name: b b, sha256: {GOOD}}}]", ["keys.0.name='b b': allowed: 1 to 64 of the characters"]),
        (f"keys: [{{name: 7, sha256: {GOOD}}}]", ["keys.0.name=7: allowed:", "in quotes"]),
        (f"keys: [{{name: {SECRET}, sha256: {GOOD}}}]", ["keys.0.name: allowed:", "not beginning with sk-satori-"]),
        (
            f"keys: [{{name: bob, sha256: {GOOD}, requests_per_minute: 0}}]",
            ["keys.0.requests_per_minute=0 of 'bob': allowed: a"],
        ),
        (f"keys: [{{name: bob, sha256: {GOOD}, tokens_per_day: 1.5}}]", ["keys.0.tokens_per_day=1.5 of 'bob'"]),
        (
            f"keys: [{{name: bob, sha256: {GOOD}, prompt_price: -1}}]",
            ["keys.0.prompt_price=-1 of 'bob': allowed: a number of at least 0"],
        ),
        (f"keys: [{{name: bob, sha256: {GOOD}, completion_price: .inf}}]", ["keys.0.completion_price=inf of 'bob'"]),
        (f"keys: [{{name: bob, sha256: {GOOD}, tokens_per_minute: 1k}}]", ["keys.0.tokens_per_minute='1k' of 'bob'"]),
        (f"keys: [{{name: bob, sha256: {GOOD}, concurrent_requests: true}}]", ["keys.0.concurrent_requests=True of 'bob'"]),
        (f"keys: [{{name: bob, sha256: {GOOD}}}, {{name: bob, sha256: {digest('x')}}}]", ["two keys are named 'bob'"]),
        (f"keys: [{{name: a, sha256: {GOOD}}}, {{name: b, sha256: {GOOD.upper()}}}]", ["'a' and 'b' are the same key"]),
    ],
)
def test_a_wrong_file_is_told_without_secrets(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "keys.yaml").write_text(text)
    with pytest.raises(SettingsError) as error:
        KeyStore(str(tmp_path / "keys.yaml"), None)
    assert str(error.value).startswith(f"{tmp_path}/keys.yaml: ")
    for word in words:
        assert word in str(error.value)
    assert SECRET not in str(error.value)
    assert GOOD not in str(error.value).lower()


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "keys.yaml").write_text("keys: [1, {name: bob, sha256: x, color: red}]\nmore: x")
    with pytest.raises(SettingsError) as error:
        KeyStore(str(tmp_path / "keys.yaml"), None)
    assert len(str(error.value).splitlines()) == 4


@pytest.mark.parametrize("content", [b"\xff\xfe", b"keys: \x00", b"[" * 5000])
def test_a_file_that_is_no_text_is_an_error_as_well(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "keys.yaml").write_bytes(content)
    with pytest.raises(SettingsError, match="not YAML"):
        KeyStore(str(tmp_path / "keys.yaml"), None)


def test_without_its_file_nothing_starts(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        KeyStore(str(tmp_path / "keys.yaml"), None)


@pytest.mark.parametrize("value", [SECRET, f"a:{GOOD},{SECRET}:{digest('x')}", f"bob:{SECRET}", f"a:{GOOD},bob:abc", f"b b:{GOOD}"])
def test_a_wrong_environment_is_told_without_secrets(value: str) -> None:
    with pytest.raises(SettingsError) as error:
        open_store(None, value)
    assert f"SATORI_API_KEYS: entry {value.count(',') + 1} is wrong" in str(error.value)
    assert "allowed: name:sha256" in str(error.value)
    assert SECRET not in str(error.value)
    assert GOOD not in str(error.value)


def test_a_key_may_not_be_in_both_places(file: File) -> None:
    for environment in (f"bob:{digest('x')}", f"carol:{digest('b')}"):
        with pytest.raises(SettingsError, match=r"two keys are named 'bob'|'carol' and 'bob' are the same key"):
            KeyStore(str(file.path), environment)


def test_a_digest_is_not_shown_with_its_key() -> None:
    assert GOOD not in repr(Key(name="bob", sha256=GOOD))


def test_a_changed_file_is_read_again(file: File, capfd: pytest.CaptureFixture[str]) -> None:
    file.write(entry("carol", "c"), entry("bob", "b", requests_per_minute=6))
    assert [file.name_of(secret) for secret in "abc"] == [None, "bob", "carol"]
    assert file.store.get("bob") == Key(**entry("bob", "b", requests_per_minute=6))
    [line] = capfd.readouterr().err.splitlines()
    assert line.endswith(f"{file.path} was read again: 2 keys are valid")


def test_the_file_is_looked_at_once_a_second(file: File) -> None:
    file.write(entry("carol", "c"))
    file.now = 0.99
    assert file.store.find("a") is not None
    file.now = 1.0
    assert file.store.find("a") is None


def test_a_file_of_the_same_size_and_time_in_its_place_is_another(file: File) -> None:
    before = file.path.stat()
    fresh = file.path.with_name("fresh")
    fresh.write_text(file.path.read_text().replace("alice", "carol"))
    os.utime(fresh, ns=(before.st_atime_ns, before.st_mtime_ns))
    fresh.replace(file.path)
    assert file.path.stat().st_size == before.st_size
    assert file.name_of("a") == "carol"


def test_a_link_that_is_turned_is_followed(tmp_path: Path) -> None:
    for name, secret in (("old", "a"), ("new", "b")):
        (tmp_path / name).write_text(yaml.safe_dump({"keys": [entry("alice", secret)]}))
    link = tmp_path / "keys.yaml"
    link.symlink_to(tmp_path / "old")
    now = 0.0
    store = KeyStore(str(link), None, lambda: now)
    (tmp_path / "turned").symlink_to(tmp_path / "new")
    (tmp_path / "turned").replace(link)
    now = 1.0
    assert (store.find("a"), getattr(store.find("b"), "name", None)) == (None, "alice")


@pytest.mark.parametrize("broken", [b"", b"keys: {", f"keys: [{{name: bob, sha256: {SECRET}}}]".encode(), None])
def test_a_broken_or_missing_new_version_leaves_the_keys_and_is_told_once(
    file: File, broken: bytes | None, capfd: pytest.CaptureFixture[str]
) -> None:
    if broken is None:
        file.path.unlink()
    else:
        file.path.write_bytes(broken)
    assert [file.name_of("a") for _ in range(3)] == ["alice"] * 3
    [line] = capfd.readouterr().err.splitlines()
    assert "ERROR" in line
    assert "satori.access: the keys stay as they were: " in line
    assert str(file.path) in line
    assert SECRET not in line
    file.write(entry("carol", "c"))
    assert [file.name_of(secret) for secret in "ac"] == [None, "carol"]


def test_every_key_is_another_one() -> None:
    assert len({make("alice")[0] for _ in range(10)}) == 10
    made, key = make("alice")
    assert (key.name, key.sha256) == ("alice", digest(made))


@given(st.text(alphabet=string.ascii_letters + string.digits + "_.-", min_size=1, max_size=64))
def test_other_names_are_good(name: str) -> None:
    assert keys.is_name(name) != name.startswith("sk-satori-")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "", "localhost.example.org"])
def test_an_open_port_without_keys_is_warned_of(host: str) -> None:
    warning = "\n".join(exposed(HttpSettings(host=host, port=8001), guarded=False))
    assert f"anyone who can reach {host}:8001 can use it" in warning
    assert "access.keys" in warning
    assert not exposed(HttpSettings(host=host, port=8001), guarded=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.1.1", "localhost", "::1", "[::1]"])
def test_a_port_for_this_host_alone_is_not(host: str) -> None:
    assert not exposed(HttpSettings(host=host), guarded=False)


@pytest.mark.parametrize(
    ("prices", "cost"),
    [
        ({}, None),
        ({"prompt_price": 0}, 0.0),
        ({"prompt_price": 1}, 0.003),
        ({"prompt_price": 0.1, "completion_price": 0.2}, 0.0013),
    ],
)
def test_what_tokens_cost(prices: dict[str, float], cost: float | None) -> None:
    assert Key(name="bob", sha256=GOOD, **prices).cost(3000, 5000) == cost
