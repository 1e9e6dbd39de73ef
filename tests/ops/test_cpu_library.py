"""Compiling, keeping and loading the CPU kernels; mostly with sources that are compiled in a moment."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from infoprune_rt.errors import InfopruneError
from infoprune_rt.ops import cpu_library
from infoprune_rt.ops.cpu_library import cached_library, compiled_library


def python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two small sources in place of the kernels', and a cache of their own; both paths with blanks."""
    here = tmp_path / "the sources"
    here.mkdir()
    (here / "kernels.h").write_text("int one();\n")
    (here / "one.cpp").write_text("int one() { return 1; }\n")
    (here / "two.cpp").write_text('#include "kernels.h"\nint two() { return one() + one(); }\n')
    monkeypatch.setattr(cpu_library, "SOURCES", here)
    monkeypatch.setenv("INFOPRUNE_CACHE", str(tmp_path / "the cache"))
    return here


def test_what_a_killed_compile_left_is_no_hindrance(sources: Path) -> None:
    half = cached_library().parent / "build"
    half.mkdir(parents=True)
    (half / "infoprune_cpu.so").touch()
    assert compiled_library().stat().st_size > 0
    assert {path.name for path in half.parent.iterdir()} == {"infoprune_cpu.so", "infoprune_cpu.sha256", "lock"}


def test_several_that_start_together_compile_once(sources: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: compiled_library(), range(4)))) == 1
    assert capfd.readouterr().err.count("compiling") == 1


def test_sources_that_do_not_compile_say_why(sources: Path) -> None:
    (sources / "two.cpp").write_text("#error nothing works\n")
    with pytest.raises(InfopruneError, match=r"(?s)did not compile.*nothing works"):
        compiled_library()
    assert {path.name for path in cached_library().parent.iterdir()} == {"lock"}


@pytest.fixture
def shipped(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library as a wheel brings it, and an empty cache."""
    library = tmp_path / "the wheel" / "infoprune_cpu.so"
    library.parent.mkdir()
    compiled_library().rename(library)
    shutil.rmtree(tmp_path / "the cache")
    library.with_suffix(".sha256").write_text(hashlib.sha256(library.read_bytes()).hexdigest())
    monkeypatch.setattr(cpu_library, "SHIPPED", library)
    return library


def load() -> None:
    """Anew: what was loaded before does not count, nor does this for others."""
    cpu_library.load_library.__wrapped__()


def test_the_wheel_s_library_needs_no_compiler(
    shipped: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/nowhere/at-all")
    assert cpu_library.origin() == "of the wheel"
    load()
    assert capfd.readouterr().err == ""
    assert not (tmp_path / "the cache").exists()
    assert str(shipped) in torch.ops.loaded_libraries


def test_flags_of_the_user_s_own_are_compiled_with(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFOPRUNE_CXXFLAGS", "-O1")
    assert cpu_library.origin() == "compiled on first use"
    load()
    assert cached_library().exists()
    assert cpu_library.origin() == "compiled"


@pytest.mark.parametrize("harm", ["cut short", "another file", "no checksum"])
def test_a_wheel_s_library_that_does_not_load_is_told_and_replaced(
    shipped: Path, harm: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if harm == "cut short":
        os.truncate(shipped, shipped.stat().st_size // 2)
    elif harm == "another file":
        shipped.write_bytes(b"no library")
        shipped.with_suffix(".sha256").write_text(hashlib.sha256(b"no library").hexdigest())
    else:
        shipped.with_suffix(".sha256").unlink()
    load()
    told = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"infoprune: the wheel's CPU kernels do not load: .*; compiled ones serve", told[0])
    assert str(shipped.parent) in told[0]
    assert "compiling" in told[1]
    assert str(cached_library()) in torch.ops.loaded_libraries


def test_what_does_not_load_is_told(sources: Path) -> None:
    library = compiled_library()
    library.write_bytes(b"no library")
    library.with_suffix(".sha256").write_text(hashlib.sha256(b"no library").hexdigest())
    cpu_library.load_library.cache_clear()
    with pytest.raises(InfopruneError, match="do not load"):
        cpu_library.load_library()


def test_a_library_that_was_cut_short_is_compiled_again(sources: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The system's loader would end the process over it."""
    library = compiled_library()
    whole = library.read_bytes()
    library.write_bytes(whole[: len(whole) // 2])
    assert compiled_library().stat().st_size == len(whole)
    assert capfd.readouterr().err.count("compiling") == 2


@pytest.mark.parametrize("variable", ["CXX", "INFOPRUNE_CXXFLAGS"])
def test_a_variable_that_is_no_command_line_is_told(
    variable: str, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "g++ 'half a quote")
    with pytest.raises(InfopruneError, match=f"{variable} is no command line: No closing quotation"):
        compiled_library()


def test_the_name_follows_from_all_that_made_it(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [cached_library()]
    (sources / "one.cpp").write_text("int one() { return 2; }\n")
    paths.append(cached_library())
    monkeypatch.setenv("INFOPRUNE_CXXFLAGS", "-g -O1")
    paths.append(cached_library())
    monkeypatch.setenv("CXX", "g++ -pipe")
    paths.append(cached_library())
    monkeypatch.setattr(platform, "machine", lambda: "abacus")
    paths.append(cached_library())
    assert len(set(paths)) == len(paths)


def test_a_compiler_with_arguments_serves(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++ -DONE=1")
    (sources / "one.cpp").write_text("int one() { return ONE; }\n")
    assert compiled_library().exists()


def test_no_place_to_keep_the_kernels_is_told(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("INFOPRUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(InfopruneError, match="set INFOPRUNE_CACHE to another directory"):
        compiled_library()

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("INFOPRUNE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(InfopruneError, match="set INFOPRUNE_CACHE"):
        compiled_library()


def test_the_package_imports_where_there_are_no_file_locks(tmp_path: Path) -> None:
    found = python(
        "import sys, torch, transformers  # they find other ways there\n"
        "sys.modules['fcntl'] = None\n"
        "import infoprune_rt.runtime.encoder\n"
        "print('imported')\n"
        "infoprune_rt.ops.cpu_library.load_library()",
        INFOPRUNE_CACHE=str(tmp_path),
    )
    assert found.stdout == "imported\n"
    assert "InfopruneError: the CPU kernels are not built on this operating system" in found.stderr


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_the_kernels_work_on_the_threads_of_torch() -> None:
    """As many as torch.set_num_threads says, and none beside those of torch's own operators."""
    found = python(
        "import torch; from pathlib import Path; from infoprune_rt.ops.cpu_library import isa\n"
        "threads = lambda: len(list(Path('/proc/self/task').iterdir()))\n"
        "torch.set_num_threads(3)\n"
        "best, q = isa(), torch.ones(400, 4, 8)\n"
        "counts = [threads()]\n"
        "torch.ops.infoprune_cpu.attention_(q, q.clone(), q.clone(), torch.tensor([0, 400]), 1.0, best)\n"
        "counts.append(threads())\n"
        "torch.ones(10_000_000).add(1)\n"
        "counts.append(threads())\n"
        "print(counts[1] - counts[0], counts[2] - counts[1])"
    )
    assert found.stdout == "2 0\n", found.stderr


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_no_function_of_one_instruction_set_can_replace_another_s(isa: str, tmp_path: Path) -> None:
    """Nothing in a kernel's object is for the linker to merge (a weak symbol), even where nothing was inlined."""
    source, made = cpu_library.SOURCES / f"isa_{isa}.cpp", tmp_path / "made.o"
    subprocess.run(["g++", "-std=c++20", "-O0", "-Wno-psabi", "-c", str(source), "-o", str(made)], check=True)
    symbols = subprocess.run(["nm", str(made)], capture_output=True, text=True, check=True).stdout
    assert not [line for line in symbols.splitlines() if line.split()[-2] in "WwVvu"]
