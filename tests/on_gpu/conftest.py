"""The device of these tests: `make test-gpu` gives cuda; M3AE_TEST_DEVICE=cpu rehearses them."""

import os

import pytest
import torch

from m3ae.training.distributed import choose_device


@pytest.fixture()
def device() -> torch.device:
    """ValueError where there is no GPU: a test that passes without one would say nothing."""
    return choose_device(os.environ.get("M3AE_TEST_DEVICE", "cuda"), 0)
