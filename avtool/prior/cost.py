"""What a training step costs: milliseconds and memory, for the log."""

from __future__ import annotations

import sys
import time

import torch


class StepCost:
    """Counts the time of steps, without that of what is written between them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.mark, self.seconds, self.steps = time.perf_counter(), 0.0, 0

    def step_done(self) -> None:
        """A step has ended; the time until go_on() does not count."""
        self.seconds += time.perf_counter() - self.mark
        self.steps += 1

    def go_on(self) -> None:
        """The next step begins."""
        self.mark = time.perf_counter()

    def figures(self) -> dict[str, float]:
        """Milliseconds a step since the last call, and the peak of memory in GB (2^30 bytes) where it can be asked for."""
        figures = {"ms": 1000 * self.seconds / max(1, self.steps)}
        self.seconds, self.steps = 0.0, 0
        peak = peak_memory(self.device)
        return figures if peak is None else {**figures, "memory_gb": peak / 2**30}


def peak_memory(device: torch.device) -> int | None:
    """Most bytes that tensors took on a CUDA device, or that the process had in memory; None where nobody counts them."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
