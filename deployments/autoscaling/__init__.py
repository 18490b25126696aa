"""How many LLM replicas there are."""
