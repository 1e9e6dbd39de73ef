"""What pyproject.toml cannot say: csrc goes into the package, and with it the compiled kernels that `make wheel` names.

Nothing is compiled here and torch is not imported, so that a build in isolation needs no torch of its own.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

LIBRARY = os.environ.get("INFOPRUNE_WHEEL_LIBRARY")
# glibc 2.x, and the newest libstdc++ 3.4.y that every distribution with it has: what a manylinux tag promises.
MANYLINUX = ((28, 24), (31, 28), (34, 29), (35, 30), (39, 33))


class BuildPy(build_py):
    """Puts the kernels' sources, and the compiled library where there is one, into the package."""

    def run(self) -> None:
        """An editable install finds the sources in the checkout and compiles them by itself."""
        if self.editable_mode:
            return super().run()
        for name in ("infoprune_rt", "infoprune_kernels"):  # nothing of an earlier build
            shutil.rmtree(Path(self.build_lib) / name, ignore_errors=True)
        package = Path(self.build_lib) / "infoprune_rt"
        super().run()
        sources, library = package / "csrc", package / "ops" / "lib" / "infoprune_cpu.so"
        sources.mkdir()
        for source in Path("csrc").iterdir():
            if source.suffix in (".cpp", ".h", ".inl"):
                shutil.copy2(source, sources)
        if LIBRARY:
            library.parent.mkdir()
            shutil.copy2(LIBRARY, library)
            library.with_suffix(".sha256").write_text(hashlib.sha256(library.read_bytes()).hexdigest())


class Platform(Distribution):
    """Of one platform where a compiled library comes along."""

    def has_ext_modules(self) -> bool:
        """What setuptools takes for that."""
        return bool(LIBRARY)


class BdistWheel(bdist_wheel):
    """For any Python: neither the package nor the library depends on its version."""

    def get_tag(self) -> tuple[str, str, str]:
        """As wheels are named: Python, its ABI, platform."""
        *_, platform = super().get_tag()
        return "py3", "none", manylinux(platform, Path(LIBRARY).read_bytes()) if LIBRARY else platform


def manylinux(platform: str, library: bytes) -> str:
    """The oldest manylinux on which all versioned symbols of a library are there; else the platform as it is."""
    glibc, libstdcxx = (
        max((int(number) for number in re.findall(name + rb"\.(\d+)", library)), default=99)
        for name in (rb"GLIBC_2", rb"GLIBCXX_3\.4")
    )
    for has_glibc, has_libstdcxx in MANYLINUX:
        if glibc <= has_glibc and libstdcxx <= has_libstdcxx:
            return platform.replace("linux_", f"manylinux_2_{has_glibc}_", 1)
    return platform


setup(distclass=Platform, cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel})
