"""What the benchmarks say of the machine and of the work done: the CPU's kind, operations by shape, where a pass's time goes."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from benchmarks.cpu_kind import cpu_kind
from benchmarks.profile_window import GROUPS, group_of
from benchmarks.window_flops import checked_window_flops, window_flops
from tests.unit.test_core_families import FAMILIES, SMALL


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ("fpu avx2 avx512f avx512_bf16 amx_bf16 amx_tile amx_int8", "AMX"),
        ("fpu avx2 avx512f avx512_bf16", "AVX-512 bf16"),
        ("fpu avx2 avx512f", "AVX-512"),
        ("fpu sse4_2 avx2 fma", "AVX2"),
    ],
)
def test_the_best_of_a_cpus_kinds_is_named(tmp_path: Path, flags: str, kind: str) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: {flags}\n", encoding="utf-8")
    assert cpu_kind(path) == kind


def test_a_cpu_that_reports_nothing_is_named_by_its_architecture(tmp_path: Path) -> None:
    assert cpu_kind(tmp_path / "missing")
    assert "AVX" not in cpu_kind(tmp_path / "missing")


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Qwen3", "Mistral"])
def test_operations_by_shape_are_those_that_pytorch_counts(name: str) -> None:
    config = getattr(transformers, f"{name.split('-')[0]}Config")(**SMALL, **FAMILIES[name])
    alone, behind = checked_window_flops(config, 24, 0, 0), checked_window_flops(config, 24, 8, 10)
    assert 0 < alone < behind
    assert checked_window_flops(config, 48, 0, 0) > 2 * alone, "attention grows with the square"


def test_a_wrong_count_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    config = transformers.LlamaConfig(**SMALL)
    monkeypatch.setattr("benchmarks.window_flops.window_flops", lambda *shape: 1.1 * window_flops(*shape))
    with pytest.raises(RuntimeError, match="one of the counts is wrong"):
        checked_window_flops(config, 24, 0, 0)


@pytest.mark.parametrize(
    ("operation", "group"),
    [
        ("aten::addmm", "matrix products"),
        ("mkldnn::_linear_pointwise", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::linalg_vector_norm", "norms"),
        ("aten::silu_", "elementwise"),
        ("aten::mul", "elementwise"),
        ("aten::copy_", "copies"),
        ("aten::cat", "copies"),
        ("aten::embedding", "other"),
    ],
)
def test_operations_are_told_by_kind(operation: str, group: str) -> None:
    assert group_of(operation) == group
    assert group in {*GROUPS, "other"}
