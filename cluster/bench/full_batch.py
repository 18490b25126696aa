"""What speculation costs where nothing is drafted: `python dev/v2.py python -m cluster.bench.full_batch`, on a host without a GPU.

Two engines are in this process, both with vLLM's Model Runner V2, one with n-gram speculation whose schedule drafts nothing at this
batch size. They take turns, step by step, the first one changing, with the same greedy requests. So the steps of a pair are a
fraction of a second apart. Printed are the median ratio of their CPU times, with the range of nine tenths of the pairs, and the
kernels launched in a step: Triton's interpreter makes these far dearer than a GPU does, so their number says more than their time.
"""

import argparse
import importlib
import json
import os
import statistics
import time
from collections import Counter
from typing import Any

from deployments.settings import ROOT

RAMP = 5
"""Steps at the beginning and at the end that are not compared."""
KV_BYTES = 1 << 28


def engine(speculation: dict[str, Any] | None, requests: int, tokens: int) -> Any:
    """Return vLLM's engine of nano, in this process, with these requests."""
    from vllm import EngineArgs, LLMEngine, SamplingParams

    import deployments.engine.drafts  # noqa: F401  the speculator of the presets

    arguments = EngineArgs(
        model=str(ROOT / "models" / "nano"),
        max_num_seqs=requests,
        max_model_len=1024,
        kv_cache_memory_bytes=KV_BYTES,
        speculative_config=speculation,
    )
    made = LLMEngine.from_engine_args(arguments)
    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    for number in range(requests):
        made.add_request(str(number), f"<|im_start|>user\nWhat is {number} + 3?<|im_end|>\n<|im_start|>assistant\n", sampling)
    return made


def step(made: Any, launched: Counter[str], texts: dict[str, list[int]]) -> tuple[float, dict[str, int]]:
    """Take one step; return its CPU seconds and the kernels that it launched, and note the tokens."""
    launched.clear()
    began = time.process_time()
    outputs = made.step()
    seconds = time.process_time() - began
    texts.update({output.request_id: list(output.outputs[0].token_ids) for output in outputs})
    return seconds, dict(launched)


def measure(requests: int, tokens: int, drafts: int) -> dict[str, Any]:
    """Return ratios of the steps' CPU times, with speculation to without; a step's kernels; whether kernels and texts are equal.

    The test and the command have this in a process of its own: Triton's interpreter is changed, so that it counts.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    interpreter = importlib.import_module("triton.runtime.interpreter")  # of dev/v2.py: this project's packages have no Triton
    launched: Counter[str] = Counter()
    run = interpreter.GridExecutor.__call__

    def counted(executor: Any, *arguments: Any, **options: Any) -> Any:
        launched[executor.fn.__name__] += 1
        return run(executor, *arguments, **options)

    interpreter.GridExecutor.__call__ = counted
    batch_sizes = [[1, requests - 1, drafts], [requests, requests, 0]]
    lengths = {"prompt_lookup_min": 1, "prompt_lookup_max": 3}
    speculation = {"method": "ngram_gpu", **lengths, "num_speculative_tokens": drafts}
    engines = [
        engine(None, requests, tokens),
        engine(speculation | {"num_speculative_tokens_per_batch_size": batch_sizes}, requests, tokens),
    ]
    texts: list[dict[str, list[int]]] = [{}, {}]
    pairs: list[tuple[tuple[float, dict[str, int]], ...]] = []
    while all(made.has_unfinished_requests() for made in engines):
        turns = [0, 1] if len(pairs) % 2 else [1, 0]
        taken = {which: step(engines[which], launched, texts[which]) for which in turns}
        pairs.append((taken[0], taken[1]))
    compared = pairs[RAMP:-RAMP]
    return {
        "ratios": sorted(speculating[0] / plain[0] for plain, speculating in compared),
        "kernels": compared[len(compared) // 2][0][1],
        "equal kernels": all(plain[1] == speculating[1] for plain, speculating in compared),
        "equal texts": texts[0] == texts[1],
    }


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="What speculation costs where nothing is drafted (Model Runner V2 on a CPU).")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=120, help="of each request")
    parser.add_argument("--drafts", type=int, default=5, help="of smaller batches")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.requests, options.tokens, options.drafts)
    if options.json:
        print(json.dumps(found))
        return
    ratios = found["ratios"]
    low, high = ratios[len(ratios) // 20], ratios[-1 - len(ratios) // 20]
    print(f"CPU of a step with {options.requests} requests, with speculation to without: {statistics.median(ratios):.3f}", end=" ")
    print(f"({low:.3f} to {high:.3f} in nine tenths of {len(ratios)} pairs)")
    print(f"kernels of a step: {sum(found['kernels'].values())}, {'equal' if found['equal kernels'] else 'different'} in all pairs")
    print(f"texts: {'equal' if found['equal texts'] else 'different'}")


if __name__ == "__main__":
    main()
