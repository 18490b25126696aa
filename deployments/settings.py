"""Typed settings of the application: from `key=value` words or YAML, over a preset, to one frozen object.

A setting is named by its path (`llm.num_replicas`, `engine.max_model_len`). `engine.*` are vLLM's engine arguments and
`api.*` its API server's, under their own names; `engine_arguments.json` lists them. Nothing here imports Ray or vLLM.
"""

import difflib
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from deployments.errors import SettingsError

ROOT = Path(__file__).parent.parent
PRESETS = Path(__file__).parent / "presets"
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model")
"""What is downloaded of a model on the Hugging Face hub."""
BEATS = 5
"""Signs of life of a replica that must be missed before it is given up."""
WEIGHT_FILES = ("*.safetensors",)
"""Of these, what an ingress needs not."""
ARGUMENTS = Path(__file__).parent / "engine_arguments.json"


class Section(BaseModel):
    """Base of the settings' sections: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class HttpSettings(Section):
    """Where the application listens, and how large requests may be: one's body, all bodies that an ingress holds at a time, and the
    choices (`n`) of a request.
    """

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    max_body_bytes: int = Field(4 * 2**20, ge=1)
    max_bodies_bytes: int = Field(256 * 2**20, ge=1)
    max_choices: int = Field(128, ge=1)


class IngressSettings(Section):
    """The ingress deployment: vLLM's API server, without an engine.

    A replica that leaves gets `graceful_shutdown_timeout_s` for the replies it streams: a client's connection cannot move. Replicas
    are on nodes with the Ray labels of `label_selector`, at most `max_replicas_per_node` on each.
    """

    num_replicas: int = Field(1, ge=1)
    max_replicas_per_node: int | None = Field(None, ge=1, le=100)
    label_selector: dict[str, str] = {}
    num_cpus: float = Field(1, ge=0)
    max_ongoing_requests: int = Field(10_000, ge=1)
    graceful_shutdown_timeout_s: float = Field(600, ge=0)


class LLMSettings(Section):
    """The LLM deployment: one vLLM EngineCore a replica.

    `num_gpus` is the GPUs of one replica, of the type `accelerator_type` as Ray names it, where that is given. `env` is set in the
    replica's process, and so in its engine's, before vLLM is imported. A replica that leaves gets `graceful_shutdown_timeout_s` to
    finish the requests it holds; those left then move to others. One that holds requests and whose engine does nothing for
    `hung_after_s` is replaced, and its requests move. So do those of which a replica tells nothing for `silent_after_s`: its host
    is cut off. A request waits at most `wait_s` for a replica. With `max_ongoing_requests` it has a call (`deployments.carrier`).
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
        """Seconds between two signs of life of a replica, and between two looks for them."""
        return self.silent_after_s / BEATS


class PortSettings(Section):
    """The ports that replicas listen on, as `first-last`, for a firewall between hosts: an ingress for tokens, all for Prometheus.

    A host has as many of each as it has replicas.
    """

    tokens: str = "21000-21099"
    metrics: str = "21100-21299"

    @field_validator("tokens", "metrics")
    @classmethod
    def _in_order(cls, ports: str) -> str:
        first, _, last = ports.partition("-")
        if not (first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last) <= 65535):
            raise ValueError("no such ports; allowed: first-last, such as 21000-21099")
        return ports


def port_range(ports: str) -> range:
    """Return the ports that `first-last` stands for."""
    first, _, last = ports.partition("-")
    return range(int(first), int(last) + 1)


class AutoscalingSettings(Section):
    """How many LLM replicas there are; while not `enabled`, always `llm.num_replicas`. See `deployments.autoscaling`.

    95 % of the requests are to have their first token within `ttft_p95_s`, and a mean time per token after it within
    `tpot_p95_s`. There are replicas for arrivals to rise, while a replica starts, as they did in `burst_share` of the last hour's
    moments. Replicas leave when the load of `downscale_hold_s` fits into fewer (of twice that time, if only one or a tenth would
    go), and the last one after `idle_s` without requests where `min_replicas` is 0.

    The others say what a replica can do (defaults: a 7B model in bfloat16 on an RTX 4090; sources in `cluster/replicas.py`):
    seconds to start, seconds for a token and more for each running request, prompt tokens read in a second, tokens of a reply.
    What is measured takes their place. `max_num_seqs` is the engine's, and of its KV cache `kv_cache_target` is used.
    """

    enabled: bool = False
    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(8, ge=1)
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
    """The UI deployment. `api_url` is where it finds the API; by default this application, on the UI's own host.

    Replicas are on nodes with the Ray labels of `label_selector`.
    """

    enabled: bool = True
    num_replicas: int = Field(1, ge=1)
    label_selector: dict[str, str] = {}
    num_cpus: float = Field(0.1, ge=0)
    max_ongoing_requests: int = Field(10_000, ge=1)
    api_url: str | None = None


class CoatSettings(Section):
    """Chain of Action-Thought, for models whose tokenizer has its actions; others are served without.

    `answer` is written for a model whose reasoning tokens are spent. A text in `openings` begins a closing statement: the engine
    turns it into a reflection while a request's `min_reflections` are not reached.
    """

    answer: str = "\n\nThe final answer is: $\\boxed{"
    openings: list[str] = ["The final answer", "the final answer"]


class WeightsSettings(Section):
    """Where the files of a model come from that is named by its Hugging Face id: the hub (or HF_ENDPOINT), or the `mirror` of it at
    this URL.
    """

    mirror: str | None = Field(None, pattern=r"^https?://\S+[^/\s]$")


class SloSettings(Section):
    """What a request must keep to be good (`satori_slo_requests_total`): seconds to its first token, and for each after it."""

    ttft_s: float = Field(2.0, gt=0)
    tpot_s: float = Field(0.1, gt=0)


class MeasuringSettings(Section):
    """Whether requests are measured, for our metrics, traces and the log of requests. (vLLM's: `engine.disable_log_stats`.)"""

    enabled: bool = True


class TracingSettings(Section):
    """OpenTelemetry traces: sent to the collector at `otlp_endpoint` (OTLP over HTTP, such as http://127.0.0.1:4318), of the share
    `sample` of requests. Without an endpoint there are none.
    """

    otlp_endpoint: str | None = None
    sample: float = Field(1.0, ge=0, le=1)


class AccessSettings(Section):
    """Who may use the API. `keys` is a YAML file (made absolute) of API keys and their limits; see `deployments.keys`."""

    keys: str | None = None

    @field_validator("keys")
    @classmethod
    def _keys_exist(cls, keys: str | None) -> str | None:
        if keys is None:
            return None
        path = (ROOT / Path(keys).expanduser()).absolute()  # links stay: a new version may come by turning one
        if not path.is_file():
            raise ValueError(f"no file there ({path}); allowed: a YAML file of keys, as `python -m deployments.keys NAME` shows it")
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
    autoscaling: AutoscalingSettings = AutoscalingSettings()
    ui: UISettings = UISettings()
    coat: CoatSettings = CoatSettings()
    access: AccessSettings = AccessSettings()
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
    """Return the settings that `arguments` (flat dotted names, nested mappings, or both) make over their preset.

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
        checked, wrong = _check_arguments(section, values.get(section) or {})
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
    """Return a line where the GPUs of a replica are not those that its engine splits the model over."""
    sizes = {name: settings.engine.get(name) or 1 for name in ("tensor_parallel_size", "pipeline_parallel_size")}
    wanted, given = sizes["tensor_parallel_size"] * sizes["pipeline_parallel_size"], settings.llm.num_gpus
    if given and given != wanted and (wanted > 1 or given > 1):  # a part of a GPU is enough for a replica of one
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


@cache
def _catalogue() -> dict[str, dict[str, dict[str, Any]]]:
    loaded: dict[str, dict[str, dict[str, Any]]] = json.loads(ARGUMENTS.read_text())
    return loaded


def _check_arguments(section: str, given: Any) -> tuple[dict[str, Any], list[str]]:
    """Return vLLM's arguments with typed values, and a line for each that is unknown or has a wrong value."""
    if not isinstance(given, Mapping):
        return {}, [f"{section}={given!r}: not a mapping; allowed: {section}.NAME=VALUE"]
    known, checked, problems = _catalogue()[section], {}, []
    for name, value in given.items():
        near = [] if name in known else difflib.get_close_matches(name, known, n=3)
        if "api_key" in (name, *near):  # a secret: not shown
            problems.append(
                f"{section}.{name}: vLLM would keep and log keys in the clear; allowed: access.keys, a file of keys' digests"
            )
            continue
        if name not in known:
            hint = f"near: {', '.join(near)}; " if near else ""
            problems.append(f"{section}.{name}={value!r}: unknown key; {hint}allowed: vLLM's {section} arguments")
            continue
        try:
            checked[name] = _convert(value, **known[name])
        except ValueError as error:
            problems.append(f"{section}.{name}={value!r}: {error}")
    return checked, problems


def _convert(value: Any, type: str, choices: list[str] | None = None) -> Any:
    """Return `value` as vLLM's argument type; a word from the command line is read as one. Raises ValueError."""
    if value is None or value == "None":
        return None
    word = str(value)
    if choices and word not in choices:
        raise ValueError(f"allowed: {', '.join(choices)}")
    if type == "bool":
        if word.lower() not in ("true", "false"):
            raise ValueError("allowed: true or false")
        return word.lower() == "true"
    if type == "int" and not re.fullmatch(r"[+-]?\d+", word):
        raise ValueError("allowed: a whole number")
    if type == "float":
        try:
            return float(word)
        except ValueError:
            raise ValueError("allowed: a number") from None
    if type == "size_or_auto" and word in ("auto", "-1"):
        return value
    if type.startswith("size") and not re.fullmatch(r"\d+|\d+(\.\d+)?[kKmMgGtT]", word):
        raise ValueError("allowed: a whole number, or one with a unit such as 32k" + (", or auto" * (type != "size")))
    if type == "any" and isinstance(value, str) and value[:1] in "[{":
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError(f"not valid JSON ({error}); allowed: JSON") from None
    return int(word) if type != "any" and re.fullmatch(r"[+-]?\d+", word) else value


def _describe(detail: Any) -> str:
    """Return one line for one of pydantic's errors: key, value, what is allowed."""
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        section: type[BaseModel] = Settings
        for part in detail["loc"][:-1]:
            section = section.model_fields[str(part)].annotation  # type: ignore[assignment]
        return f"{key}={detail['input']!r}: unknown key; allowed: {', '.join(section.model_fields)}"
    return f"{key}={detail['input']!r}: {detail['msg'].removeprefix('Value error, ')}"
