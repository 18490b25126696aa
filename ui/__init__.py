"""The web UI: a Gradio app that uses only the public HTTP API of the platform."""
