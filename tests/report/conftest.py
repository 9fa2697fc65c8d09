import pytest
from report.run_files import report_in_a_process


@pytest.fixture(scope="session")
def real_page(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    report_in_a_process(runs, path, "1")
    return path
