"""The wheels: built as a user builds them, installed beside nothing else of ours, and run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from infoprune_rt.ops.cpu_library import compiled_library

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip"]
FOLDERS = ("csrc", "infoprune_rt")
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "Makefile", "constraints.txt", "README.md", "LICENSE")
KERNELS = {path.name for path in ROOT.glob("csrc/*") if path.suffix in (".cpp", ".h", ".inl")}
ASSETS = {path.name for path in ROOT.glob("infoprune_rt/demo/assets/tiny-vlm/*")}
LIBRARY = "infoprune_rt/ops/lib/infoprune_cpu.so"

# A compact tower's pass on the backend that serves by default, held against PyTorch's operators.
PASS = """
import torch, infoprune_rt
from transformers import AutoModel
from transformers.models.clip.configuration_clip import CLIPVisionConfig
from infoprune_rt.towers import adapter_by_name
config = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
                          image_size=16, patch_size=8)
block = {"num_heads": 3, "ffn": "lowrank", "size": 5}
tower = AutoModel.from_config(adapter_by_name("clip").compact_config(config, [block])).eval()
x = torch.randn(2, 3, 16, 16)
with torch.no_grad():
    mine = tower(x).last_hidden_state
    served = tower.backend
    tower.backend = "plain"
    torch.testing.assert_close(mine, tower(x).last_hidden_state, rtol=1e-4, atol=1e-5)
print(infoprune_rt.__file__, served)
"""


def run(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return done


def install(wheel: Path, target: Path) -> Path:
    run([*PIP, "install", "-q", "--no-deps", "--target", str(target), str(wheel)])
    return target


def served(installed: Path, **variables: str) -> tuple[str, str]:
    """What serves a tower of the installed package by default, and what was said about it."""
    done = run([sys.executable, "-P", "-c", PASS], PYTHONPATH=str(installed), **variables)
    package, backend = done.stdout.split()
    assert Path(package).is_relative_to(installed)
    return backend, done.stderr


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build sees of the checkout, where it may leave what builds leave."""
    copy = tmp_path_factory.mktemp("tree")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy2(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make wheel` builds; the kernels are compiled only where the cache has none of these sources."""
    out, stamp = tmp_path_factory.mktemp("dist"), tree / "stamp"
    stamp.touch()  # newer than what it depends on, so that nothing is installed
    os.utime(stamp, (2**32, 2**32))
    settings = [f"BIN={Path(sys.executable).parent}", f"STAMP={stamp}", f"DIST={out}"]
    run(["make", "-C", str(tree), "wheel", *settings])
    (made,) = out.iterdir()
    return made


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.skipif(sys.platform != "linux", reason="the names of Linux's wheels")
def test_a_wheel_with_the_kernels_is_for_this_platform_and_any_python(wheel: Path) -> None:
    package, _, python, abi, platform = wheel.stem.split("-")
    assert (package, python, abi) == ("infoprune_rt", "py3", "none")
    assert platform.startswith(("manylinux_2_", "linux_"))
    names = zipfile.ZipFile(wheel).namelist()
    assert LIBRARY in names
    assert_holds_sources_and_assets(names)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_a_wheel_with_the_kernels_needs_no_compiler(wheel: Path, tmp_path: Path) -> None:
    installed, cache, nothing = install(wheel, tmp_path / "site"), tmp_path / "cache", tmp_path / "bin"
    nothing.mkdir()
    without = {"PATH": str(nothing), "CXX": "", "INFOPRUNE_CACHE": str(cache), "INFOPRUNE_CXXFLAGS": ""}
    assert served(installed, **without) == ("csrc", "")
    assert not cache.exists()
    # The same without its library: nothing else could have served.
    shutil.rmtree((installed / LIBRARY).parent)
    backend, told = served(installed, **without)
    assert backend == "plain"
    assert "install g++" in told


def test_a_build_without_torch_carries_the_sources(tree: Path, tmp_path: Path) -> None:
    """From the source distribution, as an index would have it, and where importing torch ends the build."""
    (tmp_path / "torch.py").write_text("raise SystemExit('no build needs torch')\n")
    build = f"import os, setuptools.build_meta as b; os.chdir({str(tree)!r}); b.build_sdist({str(tmp_path)!r})"
    run([sys.executable, "-c", build], PYTHONPATH=str(tmp_path))
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as packed:
        names = packed.getnames()
    assert not [name for name in names if "/tests" in name]
    out = tmp_path / "dist"
    command = [*PIP, "wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(sdist)]
    run(command, PYTHONPATH=str(tmp_path))
    (pure,) = out.iterdir()
    assert pure.name.endswith("-py3-none-any.whl")
    assert_holds_sources_and_assets(zipfile.ZipFile(pure).namelist())
    # The sources are those of the checkout, so that what was compiled from those serves.
    compiled_library()
    assert served(install(pure, tmp_path / "site")) == ("csrc", "")


def assert_holds_sources_and_assets(names: list[str]) -> None:
    assert {Path(name).name for name in names if name.startswith("infoprune_rt/csrc/")} == KERNELS
    assert {Path(name).name for name in names if "/assets/tiny-vlm/" in name} == ASSETS
    assert not [name for name in names if "tests" in name]
