"""The web UI: a Gradio app that knows nothing of the platform but its public HTTP API."""
