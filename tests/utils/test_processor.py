"""What Linux and Windows tell of the processor."""

from __future__ import annotations

import pytest
import torch

from salience_detr.export.quantization import INT8_INSTRUCTIONS
from salience_detr.utils import processor
from salience_detr.utils.processor import (
    computes_bfloat16,
    has_instructions,
    is_amd,
    is_emulated,
    processor_name,
)

EPYC = """processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC
flags\t\t: fpu avx2 avx512_vnni

processor\t: 1
model name\t: another
"""


@pytest.fixture
def tell(monkeypatch, tmp_path):
    """Lets Linux tell a text; without one, there is no Linux."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "LINUX_FILE", path)
    return path.write_text


def test_linux_tells_name_vendor_and_instructions(tell):
    tell(EPYC)
    assert processor_name() == "AMD EPYC"
    assert is_amd()
    assert has_instructions(["avx512_vnni", "amx_int8"])


def test_another_vendor_is_not_amd(tell):
    tell(EPYC.replace("AuthenticAMD", "GenuineIntel"))
    assert not is_amd()


def test_windows_tells_the_vendor_in_its_environment(tell, monkeypatch):
    assert not is_amd()
    monkeypatch.setenv("PROCESSOR_IDENTIFIER", "AMD64 Family 25 Model 33, AuthenticAMD")
    assert is_amd()


def test_the_architecture_stands_for_an_unknown_name(tell, monkeypatch):
    monkeypatch.setattr(processor.platform, "processor", lambda: "")
    monkeypatch.setattr(processor.platform, "machine", lambda: "aarch64")
    assert processor_name() == "aarch64"


@pytest.mark.parametrize("supported", [True, False])
def test_bfloat16_is_emulated_on_processors_without_it_alone(monkeypatch, supported):
    monkeypatch.setattr(
        torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported, raising=False
    )
    assert computes_bfloat16() is supported
    assert is_emulated(torch.bfloat16, torch.device("cpu")) is not supported
    assert not is_emulated(torch.float32, torch.device("cpu"))
    assert not is_emulated(None, torch.device("cpu"))
    assert not is_emulated(torch.bfloat16, torch.device("cuda"))


def test_a_build_without_onednn_says_nothing_of_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert computes_bfloat16()


def test_a_processor_without_int8_instructions_is_told(tell):
    assert has_instructions(INT8_INSTRUCTIONS)  # unknown
    tell("flags : avx2 fma")
    assert not has_instructions(INT8_INSTRUCTIONS)
    tell("flags : avx2 avx512_vnni")
    assert has_instructions(INT8_INSTRUCTIONS)
    tell("Features : fp asimd i8mm")  # ARM
    assert has_instructions(INT8_INSTRUCTIONS)
