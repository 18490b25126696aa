"""The process of an engine core, and vLLM's configuration."""
