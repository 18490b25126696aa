"""The engine as vLLM's frontend sees it: requests to LLM replicas, their tokens back, and fail-over."""
