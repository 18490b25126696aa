"""What one host gives a process: cores, GPUs, environment."""
