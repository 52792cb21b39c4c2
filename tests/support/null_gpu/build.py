"""Compile the stand-ins for the CUDA build of torch in a virtual environment."""

from __future__ import annotations

import contextlib
import hashlib
import re
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
RUNTIME = "libnullgpu.so"
DRIVER = "libcuda.so.1"
MANAGEMENT = "libnvidia-ml.so.1"
PRODUCT = re.compile(r"emm|Matmul$|emv|dot|DotEx|gemm", re.IGNORECASE)
"""Functions of cuBLAS that multiply."""
BLAS = re.compile(r"^(cublas|cusparse|cusolver)")


def build(site_packages: Path, folder: Path) -> Path:
    """The folder of the compiled stand-ins, inside `folder`; compiled anew when a source changes."""
    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    built = folder / digest.hexdigest()[:16]
    if built.exists():
        return built
    folder.mkdir(parents=True, exist_ok=True)
    # Complete or not there at all, also where several processes compile at once.
    with tempfile.TemporaryDirectory(dir=folder) as parent:
        _compile_all(site_packages, Path(parent) / "built")
        with contextlib.suppress(OSError):
            (Path(parent) / "built").rename(built)
    return built


def _compile_all(site_packages: Path, built: Path) -> None:
    built.mkdir()
    (built / "blas_stubs.h").write_text("\n".join(blas_stubs(site_packages)) + "\n")
    # Libraries of their own, since they are loaded by name.
    by_name = {DRIVER: SOURCES / "driver.c", MANAGEMENT: SOURCES / "management.c"}
    runtime = sorted(set(SOURCES.glob("*.c")) - set(by_name.values()))
    _compile(site_packages, built, RUNTIME, runtime, [])
    for name, source in by_name.items():
        _compile(site_packages, built, name, [source], [f"-Wl,-soname,{name}"])
    # Triton looks for this name.
    (built / "libcuda.so").symlink_to(DRIVER)


def blas_stubs(site_packages: Path) -> list[str]:
    """A line for each function of cuBLAS, cuSPARSE and cuSOLVER that torch calls and `blas.c` lacks."""
    library = site_packages / "torch" / "lib" / "libtorch_cuda.so"
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", str(library)], check=True, capture_output=True, text=True
    ).stdout
    wanted = {line.split()[-1].partition("@")[0] for line in listing.splitlines()}
    written = set(re.findall(r"\b(cu\w+)\(", (SOURCES / "blas.c").read_text()))
    missing = sorted(name for name in wanted - written if BLAS.match(name))
    return [f"{'PRODUCT' if PRODUCT.search(name) else 'NOTHING'}({name})" for name in missing]


def _compile(
    site_packages: Path, built: Path, name: str, sources: list[Path], options: list[str]
) -> None:
    headers = [
        site_packages / "nvidia" / "cu13" / "include",
        site_packages / "nvidia" / "nccl" / "include",
        # Has the headers' folder `crt`, which pip's CUDA lacks.
        site_packages / "triton" / "backends" / "nvidia" / "include",
        built,
    ]
    command = ["gcc", "-O1", "-g", "-Wall", "-fPIC", "-shared"]
    command += [f"-I{header}" for header in headers]
    command += [str(source) for source in sources]
    command += ["-o", str(built / name), *options, "-ldl", "-lpthread"]
    subprocess.run(command, check=True)
