"""The CPU kernels of ``csrc``: compiled on first use, kept, loaded as ``torch.ops.infoprune_cpu``.

The compiled library is kept in the user's cache directory under a name that follows from the sources, torch's
version and the compiler, so that a change of any of them compiles anew and nothing stale is ever loaded.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch

from infoprune_rt.errors import InfopruneError

SOURCES = Path(__file__).parents[2] / "csrc"
FLAGS = ["-O3", "-std=c++20", "-fno-math-errno", "-Wno-psabi"]
ISA_VARIABLE = "INFOPRUNE_CPU_ISA"
CACHE_VARIABLE = "INFOPRUNE_CACHE"


@cache
def load_library() -> None:
    """Load the kernels, compiling them first if need be (a line on stderr says so).

    Safe when several processes start together: one compiles, the others wait for it. Raises InfopruneError where
    they cannot be compiled (no sources, no compiler); the plain backend serves there.
    """
    library = cached_library()
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        # A lock of the kernel's own: it goes with the process that held it, however that ended.
        with (library.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not library.exists():
                _compile(library)
    torch.ops.load_library(library)  # type: ignore[no-untyped-call]


def isa() -> str:
    """The instruction set the kernels use here: the best one, or what INFOPRUNE_CPU_ISA demands."""
    load_library()
    found: list[str] = torch.ops.infoprune_cpu.instruction_sets()
    wanted = os.environ.get(ISA_VARIABLE) or found[0]
    if wanted not in found:
        raise InfopruneError(f"{ISA_VARIABLE} is {wanted!r}, but this machine has {', '.join(found)}")
    return wanted


def cached_library() -> Path:
    """Where the compiled kernels are, or will be. Raises InfopruneError where they cannot be compiled."""
    if not SOURCES.is_dir():
        raise InfopruneError(f"the CPU kernels' sources are not at {SOURCES}; install from a source checkout")
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise InfopruneError("no C++ compiler was found for the CPU kernels; install g++ (or set CXX)")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    digest = hashlib.sha256("\0".join([torch.__version__, compiler, version, *FLAGS]).encode())
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in (".cpp", ".h", ".inl"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return _cache_dir() / f"infoprune_cpu-{digest.hexdigest()[:16]}" / "infoprune_cpu.so"


def _cache_dir() -> Path:
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "infoprune_rt"


def _compile(library: Path) -> None:
    from torch.utils.cpp_extension import load

    print(
        "infoprune: compiling the CPU kernels, once for this machine (about a minute) ...", file=sys.stderr, flush=True
    )
    _put_ninja_on_path()
    with tempfile.TemporaryDirectory(dir=library.parent) as aside:
        try:
            load(
                "infoprune_cpu",
                [str(path) for path in sorted(SOURCES.glob("*.cpp"))],
                extra_cflags=FLAGS,
                build_directory=aside,
                is_python_module=False,
                keep_intermediates=False,
            )
        except (RuntimeError, OSError, ImportError) as error:
            raise InfopruneError(f"the CPU kernels did not compile: {error}") from error
        (Path(aside) / "infoprune_cpu.so").replace(library)


def _put_ninja_on_path() -> None:
    """ninja lies beside the interpreter in an environment that nobody activated."""
    here = str(Path(sys.executable).parent)
    if shutil.which("ninja") is None and here not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([here, os.environ["PATH"]])
