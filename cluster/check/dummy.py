"""A model of a real one's shape with random weights: what it takes and how fast it is needs no download."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from cluster.plan import architectures, capacity
from cluster.plan.capacity import PRECISIONS, Card, Replica
from deployments.settings import ROOT, Settings

QWEN2_7B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
"""Satori-7B's shape (Qwen2.5-Math-7B)."""
SMALL = QWEN2_7B | {"hidden_size": 448, "num_hidden_layers": 4, "num_attention_heads": 7, "num_key_value_heads": 1}
SMALL |= {"intermediate_size": 1216, "vocab_size": 32000, "dtype": "float32"}
"""The same in small, for a machine without a card."""


def make(folder: Path, config: Mapping[str, Any]) -> Path:
    """Make a model's directory: this config.json, and nano's tokenizer. vLLM makes its weights up (`engine.load_format=dummy`)."""
    folder.mkdir(parents=True, exist_ok=True)
    nano = ROOT / "models" / "nano"
    ends = json.loads((nano / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"eos_token_id": ends.get("eos_token_id")} | dict(config)))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(nano / name, folder / name)
    return folder


def kv_tokens(http: httpx.Client) -> int:
    """Return the tokens that the engine's KV cache holds, as vLLM reports it (`vllm:cache_config_info`)."""
    targets = http.get("/metrics/targets").json()
    for target in {address for group in targets for address in group["targets"]}:
        text = httpx.get(f"http://{target}/metrics", timeout=30).text
        if found := re.search(r"^vllm:cache_config_info\{(.*)\}", text, re.MULTILINE):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', found[1]))
            return int(labels["num_gpu_blocks"]) * int(labels["block_size"])
    raise LookupError("no engine reports vllm:cache_config_info")


def planned(folder: Path, settings: Settings, card: Card) -> int:
    """Return the same as the planner computes it."""
    weights = 1 if settings.engine.get("quantization") else 2
    kv = 1 if str(settings.engine.get("kv_cache_dtype")).startswith("fp8") else 2
    precision = next(one for one in PRECISIONS if (one.weights, one.kv) == (weights, kv))
    utilization = settings.engine.get("gpu_memory_utilization") or 0.92
    replica = Replica(architectures.load(str(folder)), card, precision, 1, utilization)
    return replica.kv_space_bytes // replica.kv_bytes(1)


def card_of(name: str, memory_mib: float) -> Card:
    """Return the planner's card of that name, else the RTX 4090, with the memory that it really has."""
    known = next((card for card in capacity.cards().values() if card.name.endswith(name.removeprefix("NVIDIA "))), None)
    like = known or capacity.cards()["rtx-4090"]
    return Card(**(vars(like) | {"name": name, "memory_gib": memory_mib / 1024}))
