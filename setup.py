"""Packaging. The top-level folder `data/` is installed as `minilm.datasets`."""

from setuptools import setup

rooms = ["text", "text.tales", "model", "decoding", "evaluation", "training", "lab"]
extras = {
    # Reading parquet and zstd, cleaning, deduplicating, and a tokenizer that is faster than tiktoken with equal ids.
    "data": [
        "pyarrow>=17",
        "zstandard>=0.22",
        "ftfy>=6.2",
        "langdetect>=1.0.9",
        "datasketch>=1.6",
        "trafilatura>=2.0",
        "lxml_html_clean>=0.4",  # trafilatura's, by a name of lxml's extra that pip 23 does not know
        "mwparserfromhell>=0.6",
        "gigatoken>=0.10; platform_machine == 'x86_64'",
    ],
    # Quality of generated text; other people's benchmarks.
    "eval": ["sacrebleu>=2.4", "scikit-learn>=1.4", "scipy>=1.11", "mauve-text>=0.4", "lm-eval>=0.4.5"],
    # The light ones of what tests compare with or read; a test that needs more says so and is skipped.
    "test": [
        *("pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100"),
        *("transformers>=4.57", "matplotlib>=3.8", "pyarrow>=17", "zstandard>=0.22"),
        *("ftfy>=6.2", "langdetect>=1.0.9", "datasketch>=1.6", "mwparserfromhell>=0.6"),
        *("sacrebleu>=2.4", "scikit-learn>=1.4", "scipy>=1.11", "optuna>=4", "peft>=0.13"),
    ],
    # Building a corpus: data sets' steps on one machine, Slurm or Ray. Ray needs its cluster's Python on every machine.
    "cluster": ["datatrove>=0.10", "orjson>=3.10", "ray>=2.40"],
    "log": ["tensorboard>=2.16", "wandb>=0.17"],
    "lab": ["matplotlib>=3.8", "optuna>=4"],
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
    package_data={
        "minilm": [
            "presets/*.toml",
            "presets/*.json",
            "decoding/*.cpp",
            "text/*.txt",
            "text/tales/*.toml",
            "evaluation/*.toml",
            "lab/*.toml",
            "py.typed",
        ]
    },
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
