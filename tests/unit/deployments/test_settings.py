"""Settings: presets, dotted names, and errors that name key, value and what is allowed."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from deployments.errors import SettingsError
from deployments.settings import ROOT, is_path, load, presets


def test_presets_all_load() -> None:
    assert {"nano-cpu", "satori-7b-4090", "satori-7b-4090-fp8"} <= set(presets())
    for name in presets():
        assert load({"preset": name}).preset == name


def test_dotted_names_and_nested_mappings_mean_the_same() -> None:
    dotted = load({"preset": "nano-cpu", "engine.max_model_len": "2048", "llm.num_replicas": "2"})
    nested = load({"preset": "nano-cpu", "engine": {"max_model_len": 2048}, "llm": {"num_replicas": 2}})
    assert dotted == nested
    assert dotted.engine["max_model_len"] == 2048
    assert dotted.engine["dtype"] == "float32", "the preset's other values stay"


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        load({"preset": "nano-cpu"}).llm.num_replicas = 3  # type: ignore[misc]


def test_values_get_their_types() -> None:
    engine = load(
        {
            "preset": "nano-cpu",
            "engine.enforce_eager": "false",
            "engine.gpu_memory_utilization": "0.5",
            "engine.max_num_seqs": "7",
            "engine.max_model_len": "4k",
            "engine.hf_overrides": '{"rope_theta": 1}',
            "engine.quantization": "None",
        }
    ).engine
    assert engine["enforce_eager"] is False
    assert engine["gpu_memory_utilization"] == 0.5
    assert engine["max_num_seqs"] == 7
    assert engine["max_model_len"] == "4k"
    assert engine["hf_overrides"] == {"rope_theta": 1}
    assert engine["quantization"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"preset": "nano"}, ["preset='nano'", "allowed: nano-cpu, nano-gpu, satori-7b-4090"]),
        ({"modle": "x"}, ["modle='x'", "unknown key", "allowed: preset, model"]),
        ({"llm.num_replica": "2"}, ["llm.num_replica='2'", "unknown key", "allowed: num_replicas"]),
        ({"llm.num_replicas": "two"}, ["llm.num_replicas='two'", "integer"]),
        ({"llm.num_replicas": "0"}, ["llm.num_replicas='0'", "greater than or equal to 1"]),
        ({"http.port": "99999"}, ["http.port='99999'", "less than or equal to 65535"]),
        ({"llm": "x"}, ["llm='x'"]),
        ({"engine": "x"}, ["engine='x'", "engine.NAME=VALUE"]),
        ({"engine.max_model_length": "1"}, ["engine.max_model_length='1'", "near: max_model_len"]),
        ({"engine.max_model_len": "long"}, ["engine.max_model_len='long'", "whole number", "auto"]),
        ({"engine.max_num_seqs": "1.5"}, ["engine.max_num_seqs='1.5'", "allowed: a whole number"]),
        ({"engine.gpu_memory_utilization": "all"}, ["engine.gpu_memory_utilization='all'", "allowed: a number"]),
        ({"engine.dtype": "float33"}, ["engine.dtype='float33'", "allowed: auto, bfloat16"]),
        ({"engine.enforce_eager": "yes"}, ["engine.enforce_eager='yes'", "true or false"]),
        ({"engine.hf_overrides": "{rope"}, ["engine.hf_overrides='{rope'", "allowed: JSON"]),
        ({"engine.data_parallel_size": "2"}, ["engine.data_parallel_size='2'", "unknown key"]),
        ({"api.ssl_keyfile": "x"}, ["api.ssl_keyfile='x'", "unknown key"]),
        ({"access.keys": "no/such.yaml"}, ["access.keys='no/such.yaml'", "no file there (/", "allowed: a YAML file of keys"]),
        ({"access.keys": "models"}, ["access.keys='models'", "no file there"]),
        ({"access.key": "keys.yaml"}, ["access.key='keys.yaml'", "unknown key", "allowed: keys"]),
        ({"access.store": "postgresql://x"}, ["access.store (", "allowed: redis://"]),
        ({"access.store": "redis://:6379"}, ["access.store ("]),
        ({"access.store": "redis://host:port"}, ["access.store ("]),
        ({"access.store": "redis://host/name"}, ["access.store ("]),
        ({"access.store": "redis://host/0?db=1"}, ["access.store ("]),
        ({"store.url": "mysql://host/name"}, ["store.url (", "allowed: the path of a SQLite file, or postgresql://"]),
        ({"store.url": "postgresql://host:port/name"}, ["store.url ("]),
        ({"store.url": "postgresql://host"}, ["store.url ("]),
        ({"store.url": "models"}, ["store.url (", "a SQLite file"]),
        ({"ports.tokens": "21099-21000"}, ["ports.tokens='21099-21000'", "allowed: first-last"]),
        ({"ports.metrics": "any"}, ["ports.metrics='any'", "allowed: first-last"]),
        ({"model": "models/nope"}, ["model='models/nope'", "no config.json", "Hugging Face id"]),
        ({"model": "/no/such/model"}, ["model='/no/such/model'", "no config.json"]),
    ],
)
def test_wrong_settings_name_key_value_and_allowed(arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SettingsError) as error:
        load({"preset": "nano-cpu"} | arguments)
    for word in words:
        assert word in str(error.value)


def test_all_wrong_settings_are_named_at_once() -> None:
    with pytest.raises(SettingsError) as error:
        load({"preset": "nano-cpu", "engine.dtype": "x", "llm.num_cpus": "y", "foo": "z"})
    assert len(str(error.value).splitlines()) == 3


def test_what_is_a_path() -> None:
    assert is_path("./nano")
    assert is_path("/models/nano")
    assert is_path("~/nano")
    assert is_path("models/nano"), "its parent directory exists"
    assert not is_path("Satori-reasoning/Satori-7B-Round2")


def test_a_model_of_ones_own_is_served_under_its_name(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    settings = load({"preset": "nano-cpu", "model": str(tmp_path / "mine")})
    assert settings.served_model_name == "mine"
    assert settings.model == str(tmp_path / "mine")


def test_the_file_of_keys_is_looked_for_from_the_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keys.yaml").symlink_to(ROOT / "README.md")
    assert load({"preset": "nano-cpu"}).access.keys is None
    assert load({"preset": "nano-cpu", "access.keys": "README.md"}).access.keys == str(ROOT / "README.md")
    linked = load({"preset": "nano-cpu", "access.keys": str(tmp_path / "keys.yaml")})
    assert linked.access.keys == str(tmp_path / "keys.yaml"), "a link that is turned later is followed then"


@pytest.mark.parametrize(
    ("key", "url"),
    [
        ("access.store", "redis://host"),
        ("access.store", "redis://:not-shown@host:6390/1"),
        ("access.store", "rediss://me:not-shown@[::1]:1/0"),
        ("store.url", "postgresql://me:not-shown@host/name"),
    ],
)
def test_a_stores_password_is_not_shown(key: str, url: str) -> None:
    section, _, name = key.partition(".")
    settings = load({"preset": "nano-cpu", key: url})
    assert getattr(getattr(settings, section), name) == url
    assert "not-shown" not in f"{settings!r} {settings}"
    with pytest.raises(SettingsError) as error:
        load({"preset": "nano-cpu", key: url + "/wrong", "llm.num_cpus": "x"})
    assert "not-shown" not in str(error.value)
    assert getattr(getattr(load({"preset": "nano-cpu", key: ""}), section), name) is None


@pytest.mark.parametrize("name", ["api.api_key", "api.api_keys", "api.apikey", "engine.api_key"])
def test_keys_in_the_clear_are_refused_and_not_shown(name: str) -> None:
    with pytest.raises(SettingsError) as error:
        load({"preset": "nano-cpu", name: "sk-secret"})
    assert f"{name}: " in str(error.value)
    assert "access.keys" in str(error.value)
    assert "sk-secret" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"engine.tensor_parallel_size": "2"}, "llm.num_gpus=1 with engine.tensor_parallel_size=2: allowed: llm.num_gpus=2"),
        ({"llm.num_gpus": "2"}, "llm.num_gpus=2 with engine.tensor_parallel_size=1: allowed: llm.num_gpus=1"),
        (
            {"engine.pipeline_parallel_size": "2", "engine.tensor_parallel_size": "2", "llm.num_gpus": "2"},
            "llm.num_gpus=2 with engine.tensor_parallel_size=2 and engine.pipeline_parallel_size=2: allowed: llm.num_gpus=4",
        ),
        ({"llm.num_gpus": "0", "llm.accelerator_type": "A100"}, "llm.accelerator_type='A100' with llm.num_gpus=0"),
        ({"ingress.max_replicas_per_node": "0"}, "ingress.max_replicas_per_node='0'"),
    ],
)
def test_gpus_that_do_not_match_the_engine_are_named(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as error:
        load({"preset": "satori-7b-4090"} | arguments)
    assert said in str(error.value)


def test_gpus_that_match_the_engine_are_fine() -> None:
    for arguments in ({"engine.tensor_parallel_size": "2", "llm.num_gpus": "2"}, {"llm.num_gpus": "0.5"}, {"llm.num_gpus": "0"}):
        load({"preset": "satori-7b-4090"} | arguments)
