"""Stage one, format tuning: a model from random weights imitates traces in Chain of Action-Thought.

    python -m models.recipe.sft OUT [--ways] [--steps 2800] [--seed 1] [--limit-s 7200]

It has two halves. The first one learns arithmetic, in the words of `phrases`, and writes `OUT/templates/`. The second one
(`--ways`) starts from those weights, learns all ways of asking, and writes `OUT/imitated/`. Each keeps a checkpoint every 250 steps
and continues from it when started again. A step is 8,192 tokens (about 36 traces): 1 s on 2 cores of an AMD EPYC with AVX512-BF16.
With a GPU it runs there.
"""

import argparse
import itertools
import random
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM

from models.recipe import dataset, tokenizer

HIDDEN, LAYERS, HEADS, MLP = 256, 4, 4, 704
TOKENS = 8192
WARM_UP = 100
CHECKPOINT = 250


def fresh(words: Tokenizer, seed: int) -> Qwen2ForCausalLM:
    """Return the untrained model: Qwen2 architecture, 3.5 M parameters, tied embeddings."""
    torch.manual_seed(seed)
    end = words.token_to_id("<|im_end|>")
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=words.get_vocab_size(),
            hidden_size=HIDDEN,
            intermediate_size=MLP,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=tokenizer.CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=words.token_to_id("<|endoftext|>"),
            pad_token_id=words.token_to_id("<|endoftext|>"),
            eos_token_id=end,
            attn_implementation="sdpa",
        )
    )


def optimizers(model: Qwen2ForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside the layers and AdamW for the rest (as Muon's authors advise)."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
    inside = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate_at(step: int, steps: int) -> float:
    """Return the share of the full learning rate: it rises for `WARM_UP` steps, and then falls linearly to nothing."""
    return min((step + 1) / WARM_UP, (steps - step) / (steps - WARM_UP))


def main() -> None:
    """Train, or continue training."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--ways", action="store_true", help="the second half")
    arguments.add_argument("--steps", type=int, help="(default: 2800, and 2400 in the second half)")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--rate", type=float, help="(default: 0.004, and 0.0025 in the second half)")
    arguments.add_argument("--limit-s", type=float, default=float("inf"), help="stop (with a checkpoint) after so many seconds")
    given = arguments.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps, rate, name = (2400, 2.5e-3, "imitated") if given.ways else (2800, 4e-3, "templates")
    steps, rate, finished = given.steps or steps, given.rate or rate, given.out / name
    if given.ways:
        words = Tokenizer.from_file(str(given.out / "templates" / "tokenizer.json"))
        model = Qwen2ForCausalLM.from_pretrained(given.out / "templates", dtype=torch.float32).to(device)
    else:
        words = tokenizer.train(given.seed)
        model = fresh(words, given.seed).to(device)
    model.train()
    tuned = optimizers(model, rate)
    kept = given.out / f"{name}.pt"
    first = 0
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(tuned, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first = state["step"]
    began, shown = time.monotonic(), []
    source = itertools.islice(dataset.batches(words, random.Random(given.seed), TOKENS, given.ways), first, None)
    for step in range(first, steps):
        for optimizer in tuned:
            for group in optimizer.param_groups:
                group["lr"] = rate * rate_at(step, steps)
        ids, labels = next(source)
        with torch.autocast(device, torch.bfloat16):
            loss = model(input_ids=ids.to(device), labels=labels.to(device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in tuned:
            optimizer.step()
            optimizer.zero_grad()
        shown.append(loss.item())
        if (step + 1) % 50 == 0:
            print(f"step {step + 1} loss {sum(shown) / len(shown):.4f} {time.monotonic() - began:.0f} s", flush=True)
            shown = []
        out_of_time = time.monotonic() - began > given.limit_s
        if (step + 1) % CHECKPOINT == 0 or out_of_time:
            torch.save({"model": model.state_dict(), "optimizers": [o.state_dict() for o in tuned], "step": step + 1}, kept)
        if out_of_time:
            return
    model.save_pretrained(finished)
    tokenizer.save(words, finished)


if __name__ == "__main__":
    main()
