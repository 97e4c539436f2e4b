"""The processor of this machine."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Collection
from pathlib import Path

import torch

LINUX_FILE = Path("/proc/cpuinfo")


def processor_field(name: str) -> str | None:
    """Return a field of the first processor as Linux tells it, None where it does not."""
    if not LINUX_FILE.is_file():
        return None
    match = re.search(rf"^{name}\s*: (.+)$", LINUX_FILE.read_text(), re.MULTILINE)
    return match[1] if match else None


def processor_name() -> str:
    """Return the model of the processor, or its architecture where that is unknown."""
    # On Linux, platform knows the architecture only; on ARM, the file has no such line.
    return processor_field("model name") or platform.processor() or platform.machine()


def has_instructions(names: Collection[str]) -> bool:
    """Return whether the processor has one of these instruction sets; True where it is unknown.

    Args:
        names: as Linux names them, such as avx512_vnni.
    """
    # The field is called so on ARM.
    flags = processor_field("flags") or processor_field("Features")
    return flags is None or not set(names).isdisjoint(flags.split())


def computes_bfloat16() -> bool:
    """Return whether oneDNN computes in bfloat16 on this processor; True where it is unknown.

    Without AVX-512, or the bf16 instructions of ARM, convolutions take ten times as long in
    bfloat16 as in float32.
    """
    is_supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return is_supported is None or bool(is_supported())


def is_emulated(dtype: torch.dtype | None, device: torch.device) -> bool:
    """Return whether this is bfloat16 on a processor that has none."""
    return device.type == "cpu" and dtype == torch.bfloat16 and not computes_bfloat16()


def is_amd() -> bool:
    """Return whether the processor is one of AMD's."""
    # Windows tells it in its environment.
    vendor = processor_field("vendor_id") or os.environ.get("PROCESSOR_IDENTIFIER", "")
    return "AuthenticAMD" in vendor
