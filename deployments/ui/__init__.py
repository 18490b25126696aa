"""The web UI as a deployment of its own."""
