"""The Chain of Action-Thought: reading it, steering it, and voting over several."""
