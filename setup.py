"""Packaging of taf_fast.

The Triton kernels live in the top-level folder ``kernels/`` and are installed as
``taf_fast.kernels``: a top-level package named ``kernels`` would shadow Hugging Face's.
The symlink ``taf_fast/kernels`` makes the same import work from a source tree and in an
editable install.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
INIT = (ROOT / "taf_fast" / "__init__.py").read_text(encoding="utf-8")

setup(
    name="taf_fast",
    version=re.search(r'^__version__ = "(.+)"$', INIT, re.MULTILINE)[1],
    description="Temporal Adversarial Fine-tuning (TAF, IJCAI 2023) for video models",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    packages=[*find_packages(include=["taf_fast", "taf_fast.*"]), "taf_fast.kernels"],
    package_dir={"taf_fast.kernels": "kernels"},
    package_data={
        "taf_fast": [
            "recipes/*.yaml",
            "recipes/base/*.yaml",
            "sweeps/*.yaml",
            "report/*.yaml",
            "report/*.css",
        ]
    },
    install_requires=[
        "torch>=2.11",
        "triton>=3.6",
        "numpy",
        "safetensors",
        "typer",
        "rich",
        "pyyaml",
        "pillow",
        "matplotlib",
        "av>=18",
    ],
    extras_require={
        # DALI's wheels name the CUDA version they were built for; their CPU operators need no GPU.
        "dali": ["nvidia-dali-cuda130"],
        # What reading video takes on a machine with a GPU: torch's own wheels bring the rest of CUDA.
        "cuda": ["nvidia-dali-cuda130"],
        "cuda12": ["nvidia-dali-cuda120"],
        # To look at reports with in the tests, which do without where there is none.
        "browser": ["PyQt6", "PyQt6-WebEngine"],
        # scipy is there for torchattacks, which is installed without its requirements (see Makefile).
        "dev": [
            "accelerate",
            "captum",
            "hypothesis",
            "lightning",
            "pytest",
            "pytest-benchmark",
            "ruff",
            "scipy",
            "setuptools",
            "transformers",
        ],
    },
    entry_points={"console_scripts": ["taf-fast = taf_fast.cli:main"]},
)
