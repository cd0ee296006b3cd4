import pytest

from tilus.runtime.cpu_features import Cpu, cache_tag, host_cpu

AVX512 = "+avx2,+avx512f,+avx512bw,+avx512dq,+avx512vl"


@pytest.mark.parametrize(
    ("name", "features", "bits"),
    [
        ("x86-64", "+sse2,-avx2", 128),
        ("sandybridge", "+avx,-avx2", 128),
        ("znver3", "+avx,+avx2,-avx512f", 256),
        ("knl", "+avx2,+avx512f", 256),  # no instructions on bytes and words at 512 bits
        ("znver5", AVX512, 512),
        ("skylake-avx512", AVX512, 256),
        ("neoverse-n1", "+neon", 128),
    ],
)
def test_vector_width(name, features, bits):
    assert Cpu(name, features).simd_bits == bits


def test_a_feature_is_a_whole_name():
    cpu = Cpu("x", "+avx512vl,-avx2")
    assert cpu.has("avx512vl")
    assert not cpu.has("avx512")
    assert not cpu.has("avx2")


def test_the_tag_names_all_that_object_code_depends_on():
    import llvmlite

    tag = cache_tag()
    assert tag == cache_tag()
    for part in (host_cpu().name, host_cpu().features, llvmlite.__version__):
        assert part
        assert part in tag
