"""The ingress: vLLM's own API server in front of the LLM replicas."""
