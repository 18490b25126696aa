"""Typed settings of the application: `key=value` words or YAML, laid over a preset, make one frozen object.

A setting is named by its path (`llm.num_replicas`, `engine.max_model_len`). `engine.*` are vLLM's engine arguments and
`api.*` its API server's, under their own names; `engine_arguments.json` lists them. Nothing here imports Ray or vLLM.
"""

import ipaddress
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from deployments.engine_arguments import check_arguments
from deployments.errors import SettingsError

ROOT = Path(__file__).parent.parent
PRESETS = Path(__file__).parent / "presets"
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model")
"""The files of a Hugging Face model that are downloaded."""
BEATS = 5
"""How many polls in a row may find no sign of life of a replica. After one more, the replica is given up."""
ROOT_PATH = r"(/[\w.~-]+)+"
"""A path without a slash at its end."""
SECRET = ("access.store", "store.url")
"""The settings that may hold a password."""
WEIGHT_FILES = ("*.safetensors",)
"""The ones of `MODEL_FILES` that an ingress does not need."""


class Section(BaseModel):
    """Base of the settings' sections: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class HttpSettings(Section):
    """Where the application listens, and how large requests may be.

    `root_path` is the path below which a proxy shows the application, where the proxy does not say so itself (X-Forwarded-Prefix).
    `allowed_hosts` are the names by which clients may ask for it, beside addresses, localhost and `host`: `*.example.com` is all
    below a domain, `*` is any. `max_body_bytes` limits the body of one request, `max_bodies_bytes` all bodies that an ingress holds
    at a time, and `max_choices` the choices (`n`) of one request.
    """

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    allowed_hosts: list[str] = []
    root_path: str | None = None
    max_body_bytes: int = Field(4 * 2**20, ge=1)
    max_bodies_bytes: int = Field(256 * 2**20, ge=1)
    max_choices: int = Field(128, ge=1)

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _in_words(cls, hosts: Any) -> Any:
        """Take `a.example,b.example` for a list of the two, and a list as it is, also in JSON."""
        if not isinstance(hosts, str):
            return hosts
        return json.loads(hosts) if hosts.startswith("[") else [host.strip() for host in hosts.split(",") if host.strip()]

    @field_validator("allowed_hosts")
    @classmethod
    def _are_names(cls, hosts: list[str]) -> list[str]:
        for host in hosts:
            if not re.fullmatch(r"\*|(\*\.)?[\w-]+(\.[\w-]+)*", host):
                raise ValueError(f"{host!r}: allowed: names without a port, such as chat.example.com or *.example.com, and *")
        return hosts

    @field_validator("root_path")
    @classmethod
    def _is_a_path(cls, root_path: str | None) -> str | None:
        if root_path is not None and (not re.fullmatch(ROOT_PATH, root_path) or root_path.split("/")[1] in ("ui", "v1")):
            raise ValueError("allowed: a path such as /satori, without a slash at its end, that begins with neither /ui nor /v1")
        return root_path

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the application."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:  # another name
            return False


class IngressSettings(Section):
    """The ingress deployment: vLLM's API server, without an engine.

    A replica that stops gets `graceful_shutdown_timeout_s` to finish the replies that it streams, because a client's connection
    cannot move. Replicas run on nodes with the Ray labels of `label_selector`, at most `max_replicas_per_node` on each.
    With `direct_streams`, tokens of plain streams pass by vLLM's chunks and all middleware (see `deployments.ingress.direct`).
    """

    num_replicas: int = Field(1, ge=1)
    max_replicas_per_node: int | None = Field(None, ge=1, le=100)
    label_selector: dict[str, str] = {}
    num_cpus: float = Field(1, ge=0)
    max_ongoing_requests: int = Field(10_000, ge=1)
    graceful_shutdown_timeout_s: float = Field(600, ge=0)
    direct_streams: bool = True


class LLMSettings(Section):
    """The LLM deployment: one vLLM EngineCore per replica.

    `num_gpus` is the number of GPUs of one replica. `accelerator_type`, if given, is their type as Ray names it. `env` is set in
    the replica's process, and so in its engine's, before vLLM is imported.

    A replica that stops gets `graceful_shutdown_timeout_s` to finish its requests; those left then move to other replicas. A
    replica that holds requests while its engine does nothing for `hung_after_s` is replaced, and its requests move. Requests also
    move when their replica reports nothing of them for `silent_after_s`: its host is cut off. A request waits at most `wait_s`
    for a replica. With `max_ongoing_requests`, each request has a Serve call of its own (see
    `deployments.engine_client.carrier`).
    """

    num_replicas: int = Field(1, ge=1)
    num_cpus: float = Field(1, ge=0)
    num_gpus: float = Field(0, ge=0)
    accelerator_type: str | None = None
    max_ongoing_requests: int | None = Field(None, ge=1)
    graceful_shutdown_timeout_s: float = Field(60, ge=0)
    hung_after_s: float = Field(60, gt=0)
    silent_after_s: float = Field(10, gt=0)
    wait_s: float = Field(600, gt=0)
    env: dict[str, str] = {}

    @property
    def beat_s(self) -> float:
        """Seconds between two signs of life of a replica, and between two polls for them."""
        return self.silent_after_s / BEATS


class RoutingSettings(Section):
    """Which LLM replica a request goes to (see `deployments.routing.score`).

    With the policy `tokens`, it is that on which it costs the least time, by tokens to read, to generate and cached, as far as
    caches are known; else, and with `requests`, that with the fewest requests. With `cache_events`, ingresses follow what each
    replica has in its KV cache, where it caches prefixes and there are several replicas; an ingress knows of at most
    `cache_index_blocks` blocks (see `deployments.routing.cache_index`).
    """

    policy: Literal["tokens", "requests"] = "tokens"
    cache_events: bool = True
    cache_index_blocks: int = Field(2**20, ge=1)


class PortSettings(Section):
    """The ports that replicas listen on, as `first-last`, for a firewall between hosts.

    An ingress receives tokens on one of `tokens`; every replica serves Prometheus on one of `metrics`. A host uses as many ports of
    each as it has such replicas.
    """

    tokens: str = "21000-21099"
    metrics: str = "21100-21299"

    @field_validator("tokens", "metrics")
    @classmethod
    def _in_order(cls, ports: str) -> str:
        first, _, last = ports.partition("-")
        if not (first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last) <= 65535):
            raise ValueError("not a range of ports; allowed: first-last, such as 21000-21099")
        return ports


def port_range(ports: str) -> range:
    """Return the ports that `first-last` stands for."""
    first, _, last = ports.partition("-")
    return range(int(first), int(last) + 1)


class AutoscalingSettings(Section):
    """How many LLM replicas there are; while not `enabled`, always `llm.num_replicas`. See `deployments.autoscaling.policy`.

    The goal: 95 % of the requests have their first token within `ttft_p95_s`, and a mean time per token after it within
    `tpot_p95_s`. Spare replicas are kept for arrivals to rise, during one start-up, by the factor that `burst_share` of the last
    hour's moments did not exceed. Replicas are removed when the load of the last `downscale_hold_s` fits into fewer (of twice that
    time, if only one or a tenth would go). Where `min_replicas` is 0, the last one is removed after `idle_s` without requests. For
    lines of batches alone there are at most `batch_replicas`.

    The other settings say what a replica can do (defaults: a 7B model in bfloat16 on an RTX 4090; sources in
    `cluster/simulate/replica_model.py`): `startup_s` to start, `step_s` for a token and `step_per_request_s` more for each running
    request, `prefill_tokens_per_s` prompt tokens read, `tokens_per_request` tokens of a reply. Measured values take their place,
    but for `prefill_tokens_per_s` only where routes are chosen. `max_num_seqs` is the engine's; `kv_cache_target` is the share of
    its KV cache to use.
    """

    enabled: bool = False
    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(8, ge=1)
    batch_replicas: int = Field(1, ge=1)
    ttft_p95_s: float = Field(2.0, gt=0)
    tpot_p95_s: float = Field(0.05, gt=0)
    burst_share: float = Field(0.98, gt=0, le=1)
    downscale_hold_s: float = Field(60, ge=0, le=1200)
    idle_s: float = Field(600, ge=0)
    startup_s: float = Field(90, gt=0)
    step_s: float = Field(0.018, gt=0)
    step_per_request_s: float = Field(0.00015, gt=0)
    prefill_tokens_per_s: float = Field(8000, gt=0)
    tokens_per_request: float = Field(1000, gt=0)
    max_num_seqs: int = Field(256, ge=1)
    kv_cache_target: float = Field(0.85, gt=0, le=1)

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"min_replicas={self.min_replicas} is above max_replicas={self.max_replicas}; allowed: at most that")
        return self


class UISettings(Section):
    """The UI deployment. `api_url` is the API that it uses; by default this application's, on the UI's own host.

    Replicas run on nodes with the Ray labels of `label_selector`.
    """

    enabled: bool = True
    num_replicas: int = Field(1, ge=1)
    label_selector: dict[str, str] = {}
    num_cpus: float = Field(0.1, ge=0)
    max_ongoing_requests: int = Field(10_000, ge=1)
    api_url: str | None = None


class CoatSettings(Section):
    """Chain of Action-Thought, for models whose tokenizer has its actions; other models are served without it.

    `answer` is the text that the engine forces once a request's reasoning tokens are spent. A text in `openings` begins a closing
    statement: the engine turns it into a reflection until the request's `min_reflections` are reached.

    A reply in a format (`response_format`) is a thought, `separator`, and the answer. The separator begins with a special token, at
    which a thought ends also where the model writes it; by default it is `<|im_start|>assistant` and a line break. `copy_weight` is
    the share of probability that goes to the boxed result where it fits into the format: 1 for a model that knows no JSON, 0 for
    one that needs no help. Between them the model has its way where it is sure (at 0.4, of a token with over two thirds of its
    probability).
    """

    answer: str = "\n\nThe final answer is: $\\boxed{"
    openings: list[str] = ["The final answer", "the final answer"]
    separator: str | None = Field(None, min_length=1)
    copy_weight: float = Field(0.4, ge=0, le=1)


class StoreSettings(Section):
    """Stored responses (`store`, `background`), while `enabled`.

    `url` is the path (made absolute) of a SQLite file for the ingresses of one host, or begins with `postgresql://`. By default
    `make serve` has a file of its own, and other applications have none. A response or file is kept for `ttl_s`; all together take
    at most `max_bytes`. An ingress that has not written to a running response for `lease_s` loses it to another one.
    """

    enabled: bool = True
    url: str | None = Field(None, repr=False)
    ttl_s: float = Field(30 * 86400, ge=60)
    max_bytes: int = Field(2**30, ge=2**20)
    lease_s: float = Field(10, ge=1)

    @field_validator("url")
    @classmethod
    def _is_known(cls, url: str | None) -> str | None:
        if not url:
            return None
        path = (ROOT / Path(url).expanduser()).absolute()
        if "://" not in url and not os.path.isdir(path):  # noqa: PTH112
            return str(path)
        try:
            parts = urlsplit(url)
            known = parts.scheme == "postgresql" and parts.port != 0 and re.fullmatch("/[^/]+", parts.path)
        except ValueError:  # of the port
            known = False
        if not known:
            raise ValueError("allowed: the path of a SQLite file, or postgresql://USER:PASSWORD@HOST/DATABASE")
        return url


class BatchSettings(Section):
    """Batches (`/v1/batches`), which are kept in the store.

    An ingress runs at most `max_lines` of their lines at a time, and fewer as soon as one of them waits for longer than `queue_s`
    in an engine's queue, or is refused.
    """

    max_lines: int = Field(256, ge=1)
    queue_s: float = Field(0.2, gt=0)


class WeightsSettings(Section):
    """The source of the files of a Hugging Face model: the hub (or HF_ENDPOINT), or the `mirror` of it at this URL."""

    mirror: str | None = Field(None, pattern=r"^https?://\S+[^/\s]$")


class SloSettings(Section):
    """The limits of a good request (`satori_slo_requests_total`): seconds to its first token, and seconds per token after it."""

    ttft_s: float = Field(2.0, gt=0)
    tpot_s: float = Field(0.1, gt=0)


class MeasuringSettings(Section):
    """Whether requests are measured, for our metrics, traces and request log. (For vLLM's metrics: `engine.disable_log_stats`.)"""

    enabled: bool = True


class TracingSettings(Section):
    """OpenTelemetry traces of a share `sample` of the requests.

    They are sent to the collector at `otlp_endpoint` (OTLP over HTTP, such as http://127.0.0.1:4318). Without an endpoint there are
    no traces.
    """

    otlp_endpoint: str | None = None
    sample: float = Field(1.0, ge=0, le=1)


class AccessSettings(Section):
    """Who may use the API. `keys` is a YAML file (made absolute) of API keys and their limits; see `deployments.access.keys`.

    `open` says that anybody who reaches it may, where it listens for other hosts and asks for no key. `store` is a Redis
    (`redis://`, with TLS `rediss://`) in which all ingresses count what keys use; by default each counts for itself.
    """

    keys: str | None = None
    open: bool = False
    store: str | None = Field(None, repr=False)

    @field_validator("store")
    @classmethod
    def _is_redis(cls, store: str | None) -> str | None:
        if not store:
            return None
        try:
            url = urlsplit(store)
            known = url.scheme in ("redis", "rediss") and url.hostname and url.port != 0 and re.fullmatch(r"(/\d*)?", url.path)
        except ValueError:  # of the port
            known = False
        if not known or url.query or url.fragment:
            raise ValueError("allowed: redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE], or rediss:// with TLS")
        return store

    @field_validator("keys")
    @classmethod
    def _keys_exist(cls, keys: str | None) -> str | None:
        if keys is None:
            return None
        path = (ROOT / Path(keys).expanduser()).absolute()  # links stay: a new version of the file may come by changing one
        if not path.is_file():
            raise ValueError(
                f"no file there ({path}); allowed: a YAML file of keys, as `python -m deployments.access NAME` shows it"
            )
        return str(path)


class Settings(Section):
    """All settings of one application. `model` is a local directory (made absolute) or a Hugging Face model id."""

    preset: str
    model: str
    served_model_name: str
    http: HttpSettings = HttpSettings()
    ports: PortSettings = PortSettings()
    ingress: IngressSettings = IngressSettings()
    llm: LLMSettings = LLMSettings()
    routing: RoutingSettings = RoutingSettings()
    autoscaling: AutoscalingSettings = AutoscalingSettings()
    ui: UISettings = UISettings()
    coat: CoatSettings = CoatSettings()
    access: AccessSettings = AccessSettings()
    store: StoreSettings = StoreSettings()
    batches: BatchSettings = BatchSettings()
    weights: WeightsSettings = WeightsSettings()
    slo: SloSettings = SloSettings()
    measuring: MeasuringSettings = MeasuringSettings()
    tracing: TracingSettings = TracingSettings()
    engine: dict[str, Any] = {}
    api: dict[str, Any] = {}

    @field_validator("model")
    @classmethod
    def _model_exists(cls, model: str) -> str:
        if not is_path(model):
            return model
        path = (ROOT / Path(model).expanduser()).resolve()
        if not (path / "config.json").is_file():
            raise ValueError(
                f"no model there ({path} has no config.json); allowed: a directory with config.json and weights, or a"
                " Hugging Face id such as Satori-reasoning/Satori-7B-Round2"
            )
        return str(path)


def is_path(model: str) -> bool:
    """Whether `model` names a local directory; otherwise it is a Hugging Face id (`owner/name`)."""
    if model.startswith((".", "/", "~")) or model.count("/") != 1 or model.endswith("/"):
        return True
    return (ROOT / model).parent.is_dir()


def presets() -> list[str]:
    """Return the names of the presets, sorted."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def default_preset() -> str:
    """Return the preset for this machine: Satori-7B-Round2 with an NVIDIA GPU, the nano model without."""
    return "satori-7b-4090" if any(Path("/dev").glob("nvidia[0-9]*")) else "nano-cpu"


def load(arguments: Mapping[str, Any]) -> Settings:
    """Return the settings of a preset with `arguments` (flat dotted names, nested mappings, or both) laid over it.

    Raises SettingsError, naming every wrong key with its value and what is allowed.
    """
    given = _nest(arguments)
    preset = given.get("preset", default_preset())
    if preset not in presets():
        raise SettingsError(f"preset={preset!r}: no such preset; allowed: {', '.join(presets())}")
    values = _merge(yaml.safe_load((PRESETS / f"{preset}.yaml").read_text()), given) | {"preset": preset}
    if "model" in given and "served_model_name" not in given:
        values["served_model_name"] = Path(str(given["model"])).name
    problems = []
    for section in ("engine", "api"):
        checked, wrong = check_arguments(section, values.get(section) or {})
        values[section] = checked
        problems += wrong
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        problems += [_describe(detail) for detail in error.errors()]
    else:
        problems += _check_gpus(settings)
    if problems:
        raise SettingsError("\n".join(problems))
    return settings


def _check_gpus(settings: Settings) -> list[str]:
    """Return a line if a replica's GPUs are not those that its engine splits the model over, or if it has a GPU type but no GPU."""
    sizes = {name: settings.engine.get(name) or 1 for name in ("tensor_parallel_size", "pipeline_parallel_size")}
    wanted, given = sizes["tensor_parallel_size"] * sizes["pipeline_parallel_size"], settings.llm.num_gpus
    if given and given != wanted and (wanted > 1 or given > 1):  # a replica that needs one GPU may take a part of it
        split = " and ".join(f"engine.{name}={size}" for name, size in sizes.items() if size > 1 or name.startswith("tensor"))
        return [f"llm.num_gpus={given:g} with {split}: allowed: llm.num_gpus={wanted}, a GPU for each part of the model"]
    if settings.llm.accelerator_type is not None and not given:
        return [f"llm.accelerator_type={settings.llm.accelerator_type!r} with llm.num_gpus=0: allowed: llm.num_gpus of {wanted}"]
    return []


def _nest(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Turn {"llm.num_cpus": 1} into {"llm": {"num_cpus": 1}}, at any depth."""
    nested: dict[str, Any] = {}
    for key, value in arguments.items():
        value = _nest(value) if isinstance(value, Mapping) else value
        for name in reversed(key.split(".")):
            value = {name: value}
        nested = _merge(nested, value)
    return nested


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _describe(detail: Any) -> str:
    """Return a line for one of pydantic's errors: key, value, what is allowed."""
    key = ".".join(str(part) for part in detail["loc"])
    if key in SECRET:
        return f"{key} (its value is not shown): {detail['msg'].removeprefix('Value error, ')}"
    if detail["type"] == "extra_forbidden":
        section: type[BaseModel] = Settings
        for part in detail["loc"][:-1]:
            section = section.model_fields[str(part)].annotation  # type: ignore[assignment]
        return f"{key}={detail['input']!r}: unknown key; allowed: {', '.join(section.model_fields)}"
    return f"{key}={detail['input']!r}: {detail['msg'].removeprefix('Value error, ')}"
