"""Two runs of seconds on a small data set, and the command line in this process."""

import pytest
from report.run_files import report_in_a_process
from run.conftest import dataset, error, output

from taf_fast.run.config import FinetuneConfig
from taf_fast.run.finetune import finetune

__all__ = ["dataset", "error", "output"]


@pytest.fixture(scope="session")
def runs(dataset, tmp_path_factory):
    """A baseline of two epochs and one fine-tuned with TAF, on frames of 64 pixels (of which features have
    2 x 2): the folders of the runs."""
    folder = tmp_path_factory.mktemp("runs")
    common = dict(data=str(dataset), model="tsm_resnet18", size=64, batch_size=8, lr=0.01)
    baseline = FinetuneConfig(out=str(folder / "baseline"), augment="none", epochs=2, **common)
    weights = finetune(baseline).weights
    finetune(FinetuneConfig(out=str(folder / "taf"), checkpoint=str(weights), epochs=1, **common))
    return folder / "baseline", folder / "taf"


@pytest.fixture(scope="session")
def real_page(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    report_in_a_process(runs, path, "1")
    return path
