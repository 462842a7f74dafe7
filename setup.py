"""Packaging of keras_selfdistill."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"', (ROOT / "keras_selfdistill" / "__init__.py").read_text()
).group(1)


def long_description() -> str:
    """Return the README without what lies in the repository, which an index has not.

    Pictures go with their captions, the line in italics below; of links the text stays.
    """
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    here = r"\[([^\]]*)\]\((?!https?://|#)[^)]*\)"
    text = re.sub(rf"!{here}(\n\n\*[^*]+\*$)?", "", text, flags=re.MULTILINE)
    return re.sub(here, r"\1", text)


TENSORFLOW = ["tensorflow>=2.20"]
JAX = ["jax>=0.7"]
PLOT = ["matplotlib>=3.8"]
EXPORT = [
    "ai-edge-litert>=2.0",
    "flatbuffers>=24.3.25",
    "onnx>=1.18",
    "onnxruntime>=1.20",
    "openvino>=2025.0",
    "tf2onnx>=1.16",
]
DOCS = [
    "latex2mathml>=3.78",
    "mkdocs>=1.6,<2",
    "mkdocs-material>=9.6",
    "mkdocstrings[python]>=1.0",
    "ruff>=0.9",  # breaks the lines of long signatures
]
IMAGES = ["scikit-learn>=1.4", "tensorflow-datasets>=4.9.7", "pillow>=10"]
DATA = ["array_record>=0.8.6", "grain>=0.2.18", "pillow>=10"]
SERVE = ["ray[serve]>=2.60", "onnxruntime>=1.20"]
TUNE = ["keras-tuner>=1.4.8"]
WANDB = ["wandb>=0.26"]
MLFLOW = ["mlflow-skinny>=3.0"]
TUTORIALS = ["ipykernel>=6.29", "jupytext>=1.16", "nbclient>=0.10"]

setup(
    name="keras-selfdistill",
    version=VERSION,
    description="Self-distillation and early exits for any Keras 3 classifier",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["keras_selfdistill", "keras_selfdistill.*"]),
    package_data={"keras_selfdistill": ["py.typed"]},
    python_requires=">=3.11",
    install_requires=["keras>=3.15.1", "numpy>=1.26", "absl-py>=2.0", "h5py>=3.11"],
    extras_require={
        "tensorflow": TENSORFLOW,
        "jax": JAX,
        "torch": ["torch>=2.13"],
        "plot": PLOT,
        "export": [*TENSORFLOW, *EXPORT],
        "data": DATA,
        "docs": DOCS,
        "demo": [*TENSORFLOW, *PLOT, *IMAGES],
        "mlflow": MLFLOW,
        "serve": SERVE,
        "tune": TUNE,
        "tutorials": [*TENSORFLOW, *PLOT, *IMAGES, *TUTORIALS],
        "wandb": WANDB,
        # One version of torch, because each has wheels of its own for every kind of
        # machine: install the fitting one beforehand, and this keeps it.
        "test": [
            *TENSORFLOW,
            *JAX,
            "torch==2.13.0",
            *PLOT,
            *IMAGES,
            *DATA,
            *EXPORT,
            *SERVE,
            *TUTORIALS,
            *TUNE,
            *WANDB,
            *MLFLOW,
            "keras-hub>=0.32",
            "hypothesis>=6.130",
            "onnxscript>=0.5",  # Keras on PyTorch exports ONNX by it
            "mypy>=1.15",
            "psutil>=5.9",  # kills a replica of examples/serve.py
            "pytest>=8.3",
            "pytest-xdist>=3.6.1",
            "ruff>=0.9",
            "scipy>=1.13",
            "tensorboard>=2.18",
        ],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
