"""What is packaged of taf_fast; everything else about it stands in pyproject.toml.

The Triton kernels live in the top-level folder ``kernels/`` and are installed as
``taf_fast.kernels``: a top-level package named ``kernels`` would shadow Hugging Face's.
The symlink ``taf_fast/kernels`` makes the same import work from a source tree and in an
editable install.
"""

from setuptools import find_packages, setup

setup(
    packages=sorted({*find_packages(include=["taf_fast", "taf_fast.*"]), "taf_fast.kernels"}),
    package_dir={"taf_fast.kernels": "kernels"},
    package_data={
        "taf_fast": [
            "py.typed",
            "recipes/*.yaml",
            "recipes/base/*.yaml",
            "sweeps/*.yaml",
            "report/*.yaml",
            "report/*.css",
        ]
    },
)
