"""The LLM replica: one engine core, and nothing else."""
