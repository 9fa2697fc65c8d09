"""Names of runs that are as short as they can be."""

from pathlib import Path

from taf_fast.report.names import short_names


def test_as_many_parts_as_it_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert short_names([Path("runs/plain"), Path("runs/taf/")]) == ["plain", "taf"]
    assert short_names([Path("a/plain/seed0"), Path("a/taf/seed0")]) == ["plain/seed0", "taf/seed0"]
    assert short_names([Path("a/x/seed0"), Path("b/x/seed0"), Path("c")]) == [
        "a/x/seed0",
        "b/x/seed0",
        "/".join((tmp_path / "c").parts[-3:]),
    ]
    assert short_names([Path("."), Path("..")]) == [tmp_path.name, tmp_path.parent.name]
    assert short_names([Path("a"), Path("a")]) == ["a", "a"]
    assert short_names([Path("/")]) == ["/"]
