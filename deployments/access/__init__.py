"""API keys and their usage. `python -m deployments.access NAME` makes a key."""
