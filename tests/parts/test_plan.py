"""The plan's KV cache is what vLLM's own CPU engine makes: for the embedded model, and for a larger one without real weights."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.plan import architectures, capacity
from tests.support.paths import ROOT

SPACE_GIB = 1
# In a process of its own, one engine after the other: blocks, tokens a block, and bytes of a block of all layers.
ENGINES = """
import json, sys
from deployments.engine.arguments import server_arguments
from deployments.engine.config import engine_config, prepare
from deployments.settings import load
made = []
for arguments, tokenizer in json.loads(sys.argv[1]):
    settings = load({"preset": "nano-cpu"} | arguments)
    prepare(settings.llm.env)
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.executor import Executor
    parsed = server_arguments(settings)
    parsed.skip_tokenizer_init = not tokenizer
    config = engine_config(parsed)
    core = EngineCore(config, Executor.get_class(config), log_stats=False)
    cache = core.scheduler.kv_cache_config
    held = sum(tensor.size for tensor in cache.kv_cache_tensors)
    made.append([cache.num_blocks, config.cache_config.block_size, held // cache.num_blocks])
    core.shutdown()
print(json.dumps(made))
"""
LARGER: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 896,
    "num_hidden_layers": 12,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 2432,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "dtype": "float32",
}


@pytest.fixture(scope="module")
def models(nano: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    larger = tmp_path_factory.mktemp("larger")
    (larger / "config.json").write_text(json.dumps(LARGER))
    return {"nano": nano, "larger": larger}


@pytest.fixture(scope="module")
def reported(models: dict[str, Path]) -> dict[str, list[int]]:
    """What vLLM makes of `SPACE_GIB` for each model."""
    arguments = [
        (
            {
                "model": str(folder),
                "llm.env": {"VLLM_CPU_KVCACHE_SPACE": str(SPACE_GIB)},
                "engine.load_format": "auto" if name == "nano" else "dummy",
            },
            name == "nano",  # the other has no tokenizer
        )
        for name, folder in models.items()
    ]
    command = [sys.executable, "-c", ENGINES, json.dumps(arguments)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(zip(models, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("name", ["nano", "larger"])
def test_the_plan_counts_the_blocks_that_vllm_makes(name: str, models: dict[str, Path], reported: dict[str, list[int]]) -> None:
    blocks, block_tokens, block_bytes = reported[name]
    shape = architectures.load(str(models[name]))
    assert block_bytes == shape.kv_values(block_tokens) * 4, "in float32"
    assert blocks == capacity.blocks(shape, 4, SPACE_GIB * 2**30, block_tokens)
