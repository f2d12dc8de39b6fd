"""Generate slabd_proto.v1 from slabd/v1/*.proto.

The output is committed, so that installing slabd needs no compiler. It is made with the oldest toolchain that slabd
supports, because protobuf's runtime accepts code from older compilers and refuses code from newer ones. The toolchain
is installed into a virtual environment of its own: it pins versions that slabd itself does not.

    python proto/generate.py            write the generated files
    python proto/generate.py --check    compare them with what is committed; exit status 1 when they differ
"""

from __future__ import annotations

import argparse
import filecmp
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

PROTO = Path(__file__).resolve().parent
PACKAGE = Path("slabd_proto/v1")
TOOLCHAIN = ("grpcio-tools==1.76.0", "protobuf==6.31.1", "grpcio==1.76.0", "mypy-protobuf==3.7.0", "setuptools<81")
HAND_WRITTEN = {"__init__.py"}


def install_toolchain(directory: Path) -> Path:
    """Install the pinned toolchain below `directory` and return its Python."""
    venv.create(directory, with_pip=True)
    python = directory / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *TOOLCHAIN], check=True)
    return python


def generate(python: Path, output: Path) -> None:
    """Run protoc. The virtual include path makes the generated imports read `slabd_proto.v1` without rewriting."""
    sources = sorted((PROTO / "slabd/v1").glob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        virtual = Path(scratch)
        for source in sources:
            text = source.read_text().replace('import "slabd/v1/', 'import "slabd_proto/v1/')
            target = virtual / PACKAGE / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        bin_path = python.parent
        subprocess.run(
            [
                python,
                "-m",
                "grpc_tools.protoc",
                f"-I{virtual}",
                f"--plugin=protoc-gen-mypy={bin_path / 'protoc-gen-mypy'}",
                f"--plugin=protoc-gen-mypy_grpc={bin_path / 'protoc-gen-mypy_grpc'}",
                f"--python_out={output}",
                f"--grpc_python_out={output}",
                f"--mypy_out=quiet:{output}",
                f"--mypy_grpc_out=quiet:{output}",
                *(str(virtual / PACKAGE / source.name) for source in sources),
            ],
            check=True,
        )


def differences(fresh: Path, committed: Path) -> list[str]:
    """Name the files that are missing, superfluous or different."""
    names = {path.name for path in fresh.iterdir()}
    present = {path.name for path in committed.iterdir() if path.is_file()} - HAND_WRITTEN
    _, mismatch, errors = filecmp.cmpfiles(fresh, committed, sorted(names & present), shallow=False)
    return sorted((names ^ present) | set(mismatch) | set(errors))


def main() -> int:
    """Generate or check, and return the exit status."""
    parser = argparse.ArgumentParser(description="Generate slabd_proto.v1 from the .proto files.")
    parser.add_argument("--check", action="store_true", help="compare only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        python = install_toolchain(Path(scratch) / "venv")
        output = Path(scratch) / "out"
        output.mkdir()
        generate(python, output)
        fresh, committed = output / PACKAGE, PROTO / PACKAGE
        changed = differences(fresh, committed)
        if options.check:
            print(f"generated code differs: {', '.join(changed)}" if changed else "generated code is up to date")
            return 1 if changed else 0
        for name in changed:
            source, target = fresh / name, committed / name
            if source.exists():
                target.write_bytes(source.read_bytes())
            else:
                target.unlink()
            print(f"wrote {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
