"""What the loops of both run scripts share."""

import torch

# Dense bf16 FLOP/s of one device, by a part of its name (vendors' data sheets).
_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A6000": 155e12}


def peak_flops(device: torch.device) -> float | None:
    """Peak bf16 FLOP/s of a device; None where it is not known (a CPU, another GPU)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAKS.items() if part in name), None)
