"""Put the best of the stages into `models/nano/`, with its model card: `python -m models.recipe.export OUT [DIRECTORY]`.

Weights are stored in bfloat16 and loaded in float32. The best model has the highest mean accuracy over all kinds and repairs,
which all count the same. `models.recipe.measure` measures them.
"""

import argparse
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import Qwen2ForCausalLM

from models.recipe import tokenizer

NAMES = {
    "one": "expressions, 1 operation",
    "two": "expressions, 2 operations",
    "three": "expressions, 3 operations",
    "comparison": "comparisons of decimals",
    "equation": "linear equations",
    "word": "word problems",
    "unknown": "questions to turn down",
    "repair": "planted mistakes repaired",
    "forms": "expressions, comparisons and equations in held-out ways of asking",
    "follow-up": "follow-ups in held-out words",
    "outside": "other questions to turn down",
}
STAGES = {"templates": "after templates", "imitated": "after all ways of asking", "reinforced": "after reinforcement"}
CARD = Path(__file__).parent / "card.md"


def mean(stage: dict[str, float]) -> float:
    """Return the mean accuracy over kinds and repairs."""
    return sum(stage.values()) / len(stage)


def table(stages: dict[str, dict[str, float]]) -> str:
    """Return the accuracies of the stages as a Markdown table, in percent."""
    lines = ["| held-out problems | " + " | ".join(STAGES[stage] for stage in stages) + " |", "|---" * (len(stages) + 1) + "|"]
    for kind, name in NAMES.items():
        shown = " | ".join(f"{100 * found[kind]:.1f} %" for found in stages.values())
        lines.append(f"| {name} | {shown} |")
    return "\n".join(lines)


def main(out: Path, directory: Path) -> None:
    """Write the model directory."""
    stages = json.loads((out / "stages.json").read_text())
    chosen = max(stages, key=lambda stage: mean(stages[stage]))
    words = Tokenizer.from_file(str(out / chosen / "tokenizer.json"))
    model = Qwen2ForCausalLM.from_pretrained(out / chosen)
    model.to(torch.bfloat16).save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")
    end, pad = words.token_to_id("<|im_end|>"), words.token_to_id("<|endoftext|>")
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": end, "pad_token_id": pad}, indent=2) + "\n")
    tokenizer.save(words, directory)
    size = sum(tensor.numel() for tensor in model.parameters())
    card = CARD.read_text().format(size=size / 1e6, chosen=STAGES[chosen], table=table(stages), tokens=words.get_vocab_size())
    (directory / "README.md").write_text(card)
    print(f"{directory}: {chosen} model, {size / 1e6:.1f} M parameters")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m models.recipe.export", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of checkpoints")
    parser.add_argument(
        "directory", type=Path, nargs="?", default=Path("models/nano"), metavar="DIRECTORY", help="(default: %(default)s)"
    )
    arguments = parser.parse_args()
    main(arguments.out, arguments.directory)
