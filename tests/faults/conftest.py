"""Faults of every kind, and a table of how many were tried, held and failed.

``make test`` tries a few of each kind, ``make faults`` many: see :func:`faults.commands.often`.
"""

import time
from collections import Counter

import pytest
from faults.commands import Commands, Tally
from run_command import finetune_arguments

_FOUND = "faults"


@pytest.fixture
def fault(request):
    """``with fault(kind):`` counts a fault, which held unless the block raises."""
    tally = Tally()
    yield tally
    request.node.user_properties.append((_FOUND, [dict(tally.tried), dict(tally.failed)]))


class _Table:
    """The counts of all tests; those of workers come with their reports."""

    def __init__(self):
        self.tried: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report):
        if report.when == "teardown":
            for name, found in report.user_properties:
                if name == _FOUND:
                    self.tried.update(found[0])
                    self.failed.update(found[1])

    def pytest_terminal_summary(self, terminalreporter):
        if not self.tried:
            return
        terminalreporter.section("faults")
        row = "{:42} {:>7} {:>7} {:>7}".format
        terminalreporter.line(row("kind", "tried", "held", "failed"))
        for kind, tried in [*sorted(self.tried.items()), ("all", self.tried.total())]:
            failed = self.failed.total() if kind == "all" else self.failed[kind]
            terminalreporter.line(row(kind, tried, tried - failed, failed))


def pytest_configure(config):
    config.pluginmanager.register(_Table())


@pytest.fixture(scope="session")
def commands():
    with Commands() as commands:
        yield commands


@pytest.fixture(scope="session")
def dataset(dataset, tmp_path_factory):
    """A link to the small data set, so that a run can meet other data where it began. Read only."""
    link = tmp_path_factory.mktemp("link") / "data"
    link.symlink_to(dataset)
    return link


@pytest.fixture(scope="session")
def options():
    """A run of three steps, each of which is saved."""
    return dict(epochs=1, batch_size=8, checkpoint_every=1, ema=0.5, keep_best="loss")


@pytest.fixture(scope="session")
def _whole(commands, dataset, options, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    commands.succeed(finetune_arguments(dataset, out, **options), folder=out)
    return out, commands.steps()


@pytest.fixture(scope="session")
def whole(_whole):
    """The folder of a run that was never interrupted. Read only."""
    return _whole[0]


@pytest.fixture(scope="session")
def half(commands, dataset, options, _whole, tmp_path_factory):
    """The folder of a run that was killed while it saved its third step, or near it. Read only."""
    out = tmp_path_factory.mktemp("runs") / "half"
    at = int(0.6 * _whole[1])
    ended = commands.run(finetune_arguments(dataset, out, **options), folder=out, at=at, signal=9)
    assert ended.status == -9 and (out / "state.safetensors").exists()
    assert not (out / "model.safetensors").exists()
    return out


@pytest.fixture(scope="session")
def finished(commands, dataset, whole, options, tmp_path_factory):
    """A function: what a command of :mod:`faults.test_kills` leaves that nothing disturbs, its steps of
    writing and its seconds."""
    from faults.test_kills import job_of

    known = {}

    def finish(name):
        if name not in known:
            job = job_of(name, tmp_path_factory.mktemp("finished") / "work", dataset, whole, options)
            started = time.monotonic()
            commands.succeed(job.arguments, folder=job.folder)
            known[name] = job.left(job.folder), commands.steps(), time.monotonic() - started
        return known[name]

    return finish
