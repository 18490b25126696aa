"""The token channel between ingresses and LLM replicas."""
