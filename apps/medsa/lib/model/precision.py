"""Which arithmetic a device is good at."""

import torch


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device computes bfloat16 in hardware; emulated, it would be slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
