"""The nano model's tokenizer: byte-pair pieces learned from its own traces, digits one by one, Satori's special tokens."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from models.recipe import problems, traces

SIZE = 1024
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|continue|>", "<|reflect|>", "<|explore|>"]
CONTEXT = 4096
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train(seed: int) -> Tokenizer:
    """Return a tokenizer of `SIZE` tokens learned from 30,000 questions and traces; the special tokens come first."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(_texts(random.Random(seed), 30_000), trainer)
    return made


def _texts(rng: random.Random, count: int) -> Iterator[str]:
    for index in range(count):
        kinds = (*problems.KINDS, "unknown")
        kind = kinds[index % len(kinds)]
        problem = problems.draw_unknown(rng) if kind == "unknown" else problems.draw(rng, kind, evaluation=False)
        text = problems.dressed(rng, problem.question) + "\n" + traces.write(problem, rng, traces.Style.drawn(rng)).text
        for action in (traces.CONTINUE, traces.REFLECT, traces.EXPLORE):
            text = text.replace(action, "\n")
        yield f"user\n{text}\nassistant\nsystem\n"


def save(vocabulary: Tokenizer, directory: Path) -> None:
    """Write the tokenizer's files of a Hugging Face model directory."""
    vocabulary.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
