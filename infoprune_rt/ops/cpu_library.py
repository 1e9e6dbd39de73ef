"""The CPU kernels of ``csrc``, loaded as ``torch.ops.infoprune_cpu``: out of the wheel, or compiled on first use.

The compiled library is kept in the user's cache directory under a name that follows from the sources, the compiler and
its flags, so that a change of any of them compiles anew and nothing stale is ever loaded. It uses PyTorch's stable ABI
alone: a new torch needs no new library.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from infoprune_rt.errors import InfopruneError

_PACKAGE = Path(__file__).parents[1]
# Installed packages bring the sources along; a checkout has them beside the package.
SOURCES = next((path for path in (_PACKAGE / "csrc", _PACKAGE.parent / "csrc") if path.is_dir()), _PACKAGE / "csrc")
SHIPPED = _PACKAGE / "ops" / "lib" / "infoprune_cpu.so"  # only in wheels that `make wheel` built
FLAGS = ["-O3", "-std=c++20", "-fPIC", "-fno-math-errno", "-Wno-psabi"]
# Threads are torch's: no OpenMP of the compiler's own.
LINK_FLAGS = ["-shared", *(["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else [])]
ISA_VARIABLE = "INFOPRUNE_CPU_ISA"
CACHE_VARIABLE = "INFOPRUNE_CACHE"
FLAGS_VARIABLE = "INFOPRUNE_CXXFLAGS"  # after our own, when compiling and when linking


@cache
def load_library() -> None:
    """Load the kernels: the wheel's, else the cache's, else compiled for it first (a line on stderr says so).

    Who sets INFOPRUNE_CXXFLAGS gets kernels that were compiled with them. Raises InfopruneError where the kernels
    cannot be compiled, kept or loaded (no compiler, no place to write).
    """
    if _wheel_serves() and _wheel_loads():
        return
    library = compiled_library()
    try:
        _load(library)
    except OSError as error:
        raise InfopruneError(
            f"the compiled CPU kernels do not load: {_cause(error)}; remove {library.parent} to compile them again"
        ) from error


def origin() -> str:
    """Where the kernels will come from, in words; nothing is compiled for the answer.

    Raises InfopruneError where it is already seen that they cannot be had.
    """
    if _wheel_serves():
        return "of the wheel"
    return "compiled" if cached_library().exists() else "compiled on first use"


def _wheel_serves() -> bool:
    return SHIPPED.exists() and not _extra_flags()


def _wheel_loads() -> bool:
    """Load the wheel's kernels; where that fails, a line on stderr says why."""
    try:
        if not _is_whole(SHIPPED):
            raise OSError(f"{SHIPPED} is damaged")
        _load(SHIPPED)
    except OSError as error:
        print(f"infoprune: the wheel's CPU kernels do not load: {_cause(error)}; compiled ones serve", file=sys.stderr)
        return False
    return True


def _is_whole(library: Path) -> bool:
    """By the hash beside it. Asked before loading: the system's loader ends the process over one that is cut short."""
    try:
        return _sha256(library) == library.with_suffix(".sha256").read_text()
    except FileNotFoundError:
        return False


def _sha256(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()


def _load(library: Path) -> None:
    torch.ops.load_library(library)  # type: ignore[no-untyped-call]


def _cause(error: OSError) -> BaseException:
    """What the system's loader said; torch says only that it failed."""
    return error.__cause__ or error


def isa() -> str:
    """The instruction set the kernels use here: the best one, or what INFOPRUNE_CPU_ISA demands."""
    load_library()
    found: list[str] = torch.ops.infoprune_cpu.instruction_sets().split(",")
    wanted = os.environ.get(ISA_VARIABLE) or found[0]
    if wanted not in found:
        raise InfopruneError(f"{ISA_VARIABLE} is {wanted!r}, but this machine has {', '.join(found)}")
    return wanted


def compiled_library() -> Path:
    """Where the cache's compiled kernels are, once they are there.

    Safe when several processes start together: one compiles, the others wait for it.
    """
    library = cached_library()
    try:
        if not _is_whole(library):
            library.parent.mkdir(parents=True, exist_ok=True)
            with _locked(library.parent / "lock"):
                if not _is_whole(library):
                    _compile(library)
    except OSError as error:
        raise InfopruneError(
            f"the CPU kernels cannot be kept in {library.parent} ({error}); set {CACHE_VARIABLE} to another directory"
        ) from error
    return library


def cached_library() -> Path:
    """Where the compiled kernels are, or will be. Raises InfopruneError where they cannot be compiled."""
    if not (SOURCES / "kernels.h").is_file():
        raise InfopruneError(f"the CPU kernels' sources are not at {SOURCES}; install infoprune-rt again")
    compiler = _compiler()
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False).stdout
    # The machine too: a home directory may be shared by several kinds.
    made_by = [platform.machine(), *compiler, version, *FLAGS, *LINK_FLAGS, *_extra_flags()]
    digest = hashlib.sha256("\0".join(made_by).encode())
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in (".cpp", ".h", ".inl"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return _cache_dir() / f"infoprune_cpu-{digest.hexdigest()[:16]}" / "infoprune_cpu.so"


def _compiler() -> list[str]:
    """CXX, which may bring arguments or a launcher ("ccache g++"), else g++."""
    command = _words("CXX") or ["g++"]
    program = shutil.which(command[0]) if command else None
    if program is None:
        raise InfopruneError("no C++ compiler was found for the CPU kernels; install g++ (or set CXX)")
    return [program, *command[1:]]


def _extra_flags() -> list[str]:
    return _words(FLAGS_VARIABLE)


def _words(variable: str) -> list[str]:
    """What an environment variable holds, split as a shell would."""
    try:
        return shlex.split(os.environ.get(variable) or "")
    except ValueError as error:
        raise InfopruneError(f"{variable} is no command line: {error}") from error


def _cache_dir() -> Path:
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen)
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen) / "infoprune_rt"
    try:
        return Path.home() / ".cache" / "infoprune_rt"
    except RuntimeError as error:
        raise InfopruneError(f"no home directory to keep the CPU kernels in; set {CACHE_VARIABLE}") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among processes. The lock is the operating system's: it goes with its process, however that ended."""
    try:
        import fcntl  # not at the top: the package must import on Windows, too
    except ImportError as error:
        raise InfopruneError("the CPU kernels are not built on this operating system") from error
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compile(library: Path) -> None:
    """Called by one process at a time."""
    from torch.utils.cpp_extension import include_paths, library_paths

    print(
        "infoprune: compiling the CPU kernels, once for this machine (half a minute or so) ...",
        file=sys.stderr,
        flush=True,
    )
    aside = library.parent / "build"
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
    aside.mkdir()
    try:
        command, flags = _compiler(), [*FLAGS, *_extra_flags()]
        for path in include_paths():
            flags += ["-isystem", path]
        for path in (str(SOURCES), *include_paths()):
            flags.append(f"-fmacro-prefix-map={path}=.")  # no library says on which machine it was made
        sources = sorted(SOURCES.glob("*.cpp"))
        objects = [aside / f"{source.stem}.o" for source in sources]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(lambda s, o: _run([*command, *flags, "-c", str(s), "-o", str(o)]), sources, objects):
                pass
        torch_is_at = [f"-L{path}" for path in library_paths()]
        made = aside / library.name
        link = [*command, *LINK_FLAGS, *_extra_flags(), *map(str, objects), *torch_is_at]
        _run([*link, "-ltorch_cpu", "-o", str(made)])
        library.unlink(missing_ok=True)  # the hash of one never lies beside the other
        library.with_suffix(".sha256").write_text(_sha256(made))
        made.replace(library)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), "no word of why")
        raise InfopruneError(f"the CPU kernels did not compile: {first}\n{shlex.join(command)}\n{done.stderr}")
