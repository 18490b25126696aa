"""A Triton backend for hosts without a GPU, found by its entry point: enough for vLLM to load its kernels.

It compiles nothing. With TRITON_INTERPRET=1, Triton (3.7.1) runs kernels as Python on the CPU, and asks a backend only what its
device is. See `dev/v2.py`.
"""
