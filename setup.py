"""Packaging. The top-level folder `data/` is installed as `minilm.datasets`."""

from setuptools import setup

rooms = ["text", "model", "decoding", "evaluation", "training"]
extras = {
    "test": ["pytest>=8", "hypothesis>=6.100", "transformers>=4.57"],
    "lab": ["matplotlib>=3.8"],
    "dev": ["ruff==0.17.6", "mypy==2.4.1"],
}

setup(
    name="minilm",
    version="0.1.0",
    description="A minimal transformer library and finetuning lab for GPT-2-class language models",
    license="MIT",
    python_requires=">=3.11",
    packages=["minilm", *(f"minilm.{room}" for room in rooms), "minilm.datasets"],
    package_dir={"minilm": "minilm", "minilm.datasets": "data"},
    package_data={"minilm": ["presets/*.toml", "text/*.toml", "py.typed"]},
    install_requires=[
        "torch>=2.9",
        "numpy>=1.26",
        "tiktoken>=0.7",
        "requests>=2.31",
        "safetensors>=0.4.3",
        "tokenizers>=0.20",
        "huggingface_hub>=0.26",
        "tqdm>=4.66",
        "tyro>=0.9.10",
    ],
    extras_require=extras,
    entry_points={"console_scripts": ["minilm = minilm.cli:main"]},
)
