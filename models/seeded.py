"""Write a small model with seeded random weights: the real path (tokenizer, weights, engine) with no meaning in its words.

    python -m models.seeded models/nano

Qwen2 architecture, 0.86 M parameters in float32, the same bytes on every run. Its tokenizer has one token a byte and Satori's
special tokens. Only printable ASCII, `<|continue|>`, `<|reflect|>`, `<|explore|>` and the end of the turn can be generated: the
rows of all other tokens in the output layer are zero, and never the largest.
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SEED = 20250204
HIDDEN, LAYERS, HEADS, KV_HEADS, MLP = 128, 4, 4, 2, 384
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|continue|>", "<|reflect|>", "<|explore|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer() -> Tokenizer:
    """Return a tokenizer with a token for each of the 256 bytes (ids 0 to 255) and Satori's special tokens after them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return made


def weights(vocabulary: Tokenizer) -> dict[str, np.ndarray]:
    """Return the named tensors of a Qwen2ForCausalLM, float32."""
    rng = np.random.default_rng(SEED)
    size = vocabulary.get_vocab_size()

    def matrix(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (rng.standard_normal(shape) * scale / np.sqrt(shape[-1])).astype(np.float32)

    kv = HIDDEN // HEADS * KV_HEADS
    tensors = {"model.embed_tokens.weight": matrix(size, HIDDEN, scale=8), "model.norm.weight": np.ones(HIDDEN, np.float32)}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        for projection, rows in (("q", HIDDEN), ("k", kv), ("v", kv)):
            tensors[f"{name}self_attn.{projection}_proj.weight"] = matrix(rows, HIDDEN, scale=2)
            tensors[f"{name}self_attn.{projection}_proj.bias"] = matrix(1, rows)[0]
        tensors[name + "self_attn.o_proj.weight"] = matrix(HIDDEN, HIDDEN, scale=2)
        tensors[name + "mlp.gate_proj.weight"] = matrix(MLP, HIDDEN, scale=2)
        tensors[name + "mlp.up_proj.weight"] = matrix(MLP, HIDDEN, scale=2)
        tensors[name + "mlp.down_proj.weight"] = matrix(HIDDEN, MLP, scale=2)
        tensors[name + "input_layernorm.weight"] = np.ones(HIDDEN, np.float32)
        tensors[name + "post_attention_layernorm.weight"] = np.ones(HIDDEN, np.float32)
    head = matrix(size, HIDDEN, scale=4)
    allowed = {vocabulary.token_to_id(token) for token in [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ", *SPECIAL[2:]]}
    head[[row for row in range(size) if row not in allowed]] = 0
    return tensors | {"lm_head.weight": head}


def write(directory: Path) -> None:
    """Write a Hugging Face model directory."""
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = tokenizer()
    end = vocabulary.token_to_id("<|im_end|>")
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "dtype": "float32",
        "vocab_size": vocabulary.get_vocab_size(),
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": vocabulary.token_to_id("<|endoftext|>"),
        "eos_token_id": end,
    }
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    tokenizer_config = special | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
    }
    vocabulary.save(str(directory / "tokenizer.json"))
    for name, content in (
        ("config.json", config),
        ("generation_config.json", {"eos_token_id": end, "pad_token_id": config["bos_token_id"]}),
        ("tokenizer_config.json", tokenizer_config),
    ):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n")
    save_file(weights(vocabulary), directory / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    write(Path(sys.argv[1]))
