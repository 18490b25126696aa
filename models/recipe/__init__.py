"""The recipe of the nano model: problems, traces in Chain of Action-Thought, tokenizer, imitation, reinforcement, packaging."""
