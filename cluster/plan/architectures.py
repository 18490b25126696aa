"""A model's shape, from its config.json: the size of its weights and of its KV cache. Loads no weights, imports nothing heavy.

The model is a local directory or a Hugging Face id. The headers of its safetensors, if there are any, give the number of
parameters; a number computed from config.json that differs is reported.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from deployments.errors import SatoriError
from deployments.settings import ROOT, is_path

QKV_BIAS = {"Qwen2ForCausalLM"}
QK_NORM = {"Qwen3ForCausalLM"}
KNOWN = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Dense decoders with grouped-query attention and a gated MLP; they differ in biases and norms only."""


class PlanError(SatoriError):
    """A plan cannot be made. The message names key, value and what is allowed."""

    code: ClassVar[str] = "invalid_plan"


@dataclass(frozen=True)
class Shape:
    """The dimensions of a model that decide its memory and speed. `windowed_layers` of the `layers` see `window` tokens only.

    `source` tells where the number of parameters comes from.
    """

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    context: int
    window: int
    windowed_layers: int
    parameters: int
    source: str

    @property
    def matrices(self) -> int:
        """The parameters of the layers' matrices, which FP8 quantization makes smaller."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head(self) -> int:
        """The parameters of the output layer, and of the embedding. Tied ones share them."""
        return self.vocabulary * self.hidden

    def kv_values(self, tokens: int) -> int:
        """Return how many numbers the KV cache holds for a request of that many tokens."""
        full = (self.layers - self.windowed_layers) * tokens
        return 2 * self.kv_heads * self.head_dim * (full + self.windowed_layers * min(tokens, self.window or tokens))


def load(model: str) -> Shape:
    """Return the shape of a model, by its directory or Hugging Face id. Raises PlanError."""
    if is_path(model):
        folder = (ROOT / Path(model).expanduser()).resolve()
        if not (folder / "config.json").is_file():
            raise PlanError(f"model={model!r}: {folder} has no config.json; allowed: a model's directory, or a Hugging Face id")
        config, stored = (folder / "config.json").read_text(), local_parameters(folder)
    else:
        config, stored = fetch(model)
    try:
        return shape(json.loads(config), stored)
    except json.JSONDecodeError as error:
        raise PlanError(f"model={model!r}: its config.json is no JSON: {error}") from error


def fetch(model: str) -> tuple[str, int | None]:
    """Return the config.json of a Hugging Face id, as text, and its number of parameters; None if it has no safetensors."""
    import httpx
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, NotASafetensorsRepoError, OfflineModeIsEnabled

    try:
        config = Path(hf_hub_download(model, "config.json")).read_text()
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise PlanError(
            f"model={model!r}: its config.json could not be had from the Hugging Face hub or its cache"
            f" ({type(error).__name__}: {str(error).split('. ')[0]}); offline, give the model's directory"
        ) from error
    try:
        return config, sum(HfApi().get_safetensors_metadata(model).parameter_count.values())
    except (HfHubHTTPError, httpx.HTTPError, NotASafetensorsRepoError, OfflineModeIsEnabled, OSError):
        return config, None


def local_parameters(folder: Path) -> int | None:
    """Return the number of parameters in a directory's safetensors, from their headers; None where there are none."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        total += sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    return total or None


def shape(config: Mapping[str, Any], stored: int | None = None) -> Shape:
    """Return the shape that a config.json describes; `stored` is the number of parameters in the checkpoint, where known.

    Raises PlanError, which names what the config lacks, or has and is not supported.
    """
    architecture = (config.get("architectures") or [None])[0]
    if architecture not in KNOWN:
        raise PlanError(f"architectures={architecture!r}: its layers are not known here; allowed: {', '.join(KNOWN)}")
    if method := (config.get("quantization_config") or {}).get("quant_method"):
        raise PlanError(f"quantization_config={method!r}: weights that are stored quantized are not planned; allowed: none")
    heads = _number(config, "num_attention_heads")
    kv_heads = _number(config, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise PlanError(f"num_key_value_heads={kv_heads}: allowed: a divisor of num_attention_heads={heads}")
    hidden, layers = _number(config, "hidden_size"), _number(config, "num_hidden_layers")
    head_dim = _number(config, "head_dim", hidden // heads)
    if architecture == "Qwen2ForCausalLM" and head_dim != hidden // heads:  # which vLLM 0.32 does not read
        raise PlanError(f"head_dim={head_dim}: allowed for {architecture}: hidden_size / num_attention_heads = {hidden // heads}")
    window = config.get("sliding_window") or 0
    found = Shape(
        architecture=architecture,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=_number(config, "intermediate_size"),
        vocabulary=_number(config, "vocab_size"),
        tied=bool(config.get("tie_word_embeddings", False)),
        context=_number(config, "max_position_embeddings"),
        window=window,
        windowed_layers=_windowed(config, architecture, layers) if window else 0,
        parameters=0,
        source="",
    )
    counted = _parameters(found, config)
    values = vars(found)
    if stored is None:
        return Shape(**values | {"parameters": counted, "source": "computed from config.json"})
    note = "from the safetensors' headers"
    if stored != counted:
        note += f" (config.json's arithmetic gives {counted:,})"
    return Shape(**values | {"parameters": stored, "source": note})


def _number(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or value < 1:
        raise PlanError(f"{key}={value!r} in config.json; allowed: a whole number above 0")
    return value


def _windowed(config: Mapping[str, Any], architecture: str, layers: int) -> int:
    """Return the number of layers with the sliding window."""
    if types := config.get("layer_types"):
        return int(types.count("sliding_attention"))
    if architecture == "MistralForCausalLM":
        return layers
    return max(0, layers - _number(config, "max_window_layers", layers)) if config.get("use_sliding_window") else 0


def _parameters(shape: Shape, config: Mapping[str, Any]) -> int:
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    small = 2 * shape.hidden  # the norms
    if shape.architecture in QKV_BIAS:
        small += queries + 2 * keys
    elif config.get("attention_bias"):
        small += queries + 2 * keys + shape.hidden
    if shape.architecture in QK_NORM:
        small += 2 * shape.head_dim
    if config.get("mlp_bias"):
        small += 2 * shape.intermediate + shape.hidden
    ends = shape.head * (1 if shape.tied else 2) + shape.hidden
    return shape.matrices + shape.layers * small + ends
