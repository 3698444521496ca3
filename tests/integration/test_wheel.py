"""What is built is complete: the wheel and the source distribution, and a wheel installed where nothing else is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from replicator.config.templates import TEMPLATE_NAMES

ROOT = Path(__file__).resolve().parents[2]
INSTALL_SECONDS = 600


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel, made from the source distribution as a packager would, and that."""
    target = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=target)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(target.glob("*.whl")), next(target.glob("*.tar.gz"))


def test_the_wheel_holds_everything_the_package_reads(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        held = set(wheel.namelist())
    kinds = (".py", ".sql", ".html", ".js", ".css", ".svg", ".LICENSE")
    code = {p.relative_to(ROOT).as_posix() for p in (ROOT / "replicator").rglob("*") if p.suffix in kinds}
    templates = {f"replicator/_config/{name}" for name in TEMPLATE_NAMES}
    migrations = {
        f"replicator/_migrations/{p.relative_to(ROOT / 'migrations').as_posix()}"
        for p in (ROOT / "migrations").rglob("*.sql")
    }
    assert code | templates | migrations <= held
    assert any(name.endswith("licenses/LICENSE") for name in held)


def test_the_wheel_holds_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        tops = {name.split("/")[0] for name in wheel.namelist()}
        secrets = [name for name in wheel.namelist() if name.endswith(("/secrets.toml", "/.env"))]
    assert len(tops) == 2 and "replicator" in tops, tops
    assert secrets == []


def test_the_source_distribution_can_be_tested(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {"Makefile", "ci.lock", "LICENSE", "README.md", "CHANGELOG.md", "tests/conftest.py", ".ci/run"} <= held
    assert "config/secrets.toml" not in held


def needed(requirement: Requirement, extras: frozenset[str] = frozenset()) -> dict[str, Distribution]:
    """What pip would install for a requirement, by the metadata of what is installed here."""
    dist = distribution(requirement.name)
    assert requirement.specifier.contains(dist.version, prereleases=True), f"{requirement}, and {dist.version} is here"
    found = {dist.name: dist}
    for text in dist.requires or ():
        each = Requirement(text)
        wanted = not each.marker or any(each.marker.evaluate({"extra": extra}) for extra in extras or {""})
        if wanted and each.name not in found:
            found |= needed(each, frozenset(each.extras))
    return found


def link_into(site: Path, dist: Distribution) -> None:
    """As if it were installed there. Unpacking a gigabyte anew shows nothing about our wheel."""
    for file in dist.files or ():
        if ".." not in file.parts:
            target = site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(str(file.locate()), target)
            except (FileNotFoundError, FileExistsError):  # bytecode that was never made; what two of them have
                continue
            except OSError:  # another file system
                shutil.copy2(str(file.locate()), target)


@pytest.mark.slow
@pytest.mark.timeout(INSTALL_SECONDS)
def test_the_wheel_plays_the_demo_in_an_environment_with_nothing_else_and_an_empty_directory(
    built: tuple[Path, Path], tmp_path: Path
) -> None:
    """Nothing else than what its metadata asks for."""
    place, directory = tmp_path / "venv", tmp_path / "empty"
    directory.mkdir()
    venv.create(place)
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environ["TMPDIR"] = str(directory)
    python = str(place / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "--quiet"]
    install = [*pip, "install", "--no-deps", "--no-index", str(built[0])]
    done = subprocess.run(install, cwd=directory, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    site = next(place.glob("lib/python*/site-packages"))
    [ours] = distributions(path=[str(site)])
    asked = [Requirement(text) for text in ours.requires or ()]
    asked = [each for each in asked if not each.marker or each.marker.evaluate({"extra": "embedded"})]
    for dist in {name: dist for each in asked for name, dist in needed(each, frozenset(each.extras)).items()}.values():
        link_into(site, dist)
    command = [str(place / "bin" / "replicator"), "demo", "--changes", "2500", "--seconds", "2"]
    environ["PYTHONIOENCODING"] = "ascii"  # a terminal that knows no ✓ is no reason to fail
    demo = subprocess.run(command, cwd=directory, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "? 2,500 changes in" in demo.stdout
    assert list(directory.iterdir()) == [], "it left something behind"
