"""What Triton asks of a backend's device before a kernel is run."""

from collections.abc import Callable
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase


class Driver(DriverBase):
    """The host's CPU as a device."""

    @classmethod
    def is_active(cls) -> bool:
        """Return True: there always is a CPU."""
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        """Return the type as it is: nothing is compiled."""
        return ty

    def get_current_target(self) -> GPUTarget:
        """Return the only target."""
        return GPUTarget("cpu", 0, 1)

    def get_active_torch_device(self) -> torch.device:
        """Return torch's CPU."""
        return torch.device("cpu")

    def get_current_device(self) -> int:
        """Return the only device."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Return the only stream of a device."""
        return 0

    def get_benchmarker(self) -> Callable[..., list[float]]:
        """Return a benchmark by which all variants of a kernel are equally fast: the first one is taken."""

        def equally_fast(kernel: Callable[[], Any], *, quantiles: list[float], **_: Any) -> list[float]:
            return [0.0] * len(quantiles)

        return equally_fast
