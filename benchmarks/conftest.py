import pytest

# Frame size (width, height) and length in frames (from, to) of the real data sets.
FORMATS = {
    "ssv2": ((427, 240), (36, 48)),
    "ssv1": ((176, 100), (36, 48)),
    "diving48": ((1280, 720), (60, 80)),
}


@pytest.fixture(params=FORMATS)
def video_format(request) -> tuple[str, tuple[int, int], tuple[int, int]]:
    """The name, frame size and length of the synthetic videos to write."""
    return request.param, *FORMATS[request.param]


@pytest.hookimpl(tryfirst=True)
def pytest_benchmark_generate_json(benchmarks):
    """Drop a benchmark that an interrupt left without a time: pytest-benchmark would fail on it and write no
    results at all."""
    benchmarks[:] = filter(None, benchmarks)
