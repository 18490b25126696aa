"""Which replica a request goes to, on simulated replicas with KV caches: `python -m cluster.simulate routing`."""
