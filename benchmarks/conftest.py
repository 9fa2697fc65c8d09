import pytest

# The real data sets' frame size (width, height) and length in frames.
FORMATS = {
    "ssv2": ((427, 240), (36, 48)),
    "ssv1": ((176, 100), (36, 48)),
    "diving48": ((1280, 720), (60, 80)),
}


@pytest.fixture(params=FORMATS)
def video_format(request) -> tuple[str, tuple[int, int], tuple[int, int]]:
    """Name, frame size and length of synthetic videos to write."""
    return request.param, *FORMATS[request.param]


@pytest.hookimpl(tryfirst=True)
def pytest_benchmark_generate_json(benchmarks):
    """An interrupt leaves the benchmark it falls into without a time: pytest-benchmark would fail on that one
    and write none."""
    benchmarks[:] = filter(None, benchmarks)
