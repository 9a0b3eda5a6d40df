"""`minilm train --discriminator DATASET`: PPLM's attribute head for a trained model, saved beside its weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minilm.command_line import Parser
from minilm.errors import UsageError
from minilm.log import quoted, say

MAX_DOCS = 20_000


def main(argv: Sequence[str]) -> int:
    """Trains and saves the head; returns the exit code."""
    parser = Parser(prog="train.py --discriminator", description=__doc__)
    add = parser.add_argument
    add("--discriminator", required=True, metavar="DATASET", help="a labelled data set: ag_news, imdb, yelp, ..")
    add("--init", metavar="X", help="run, step folder or Hugging Face folder (the newest run); its weights stay")
    add("--source", type=Path, metavar="PATH", help="a local copy of the data set in upstream form")
    add("--max_docs", type=int, default=MAX_DOCS, metavar="N", help="documents, drawn evenly; 0: all (%(default)s)")
    add("--seed", type=int, default=0, help="decides which documents are taken, and held out (%(default)s)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps (the fastest there is)")
    add("--tokenizer", metavar="X", help="gpt2, bytes or a folder (the one beside the weights)")
    options = parser.parse_words(argv)
    if options.max_docs < 0:
        raise UsageError(f"--max_docs must be 0 (all) or more, not {options.max_docs}")
    from minilm import runtime
    from minilm.model.weights import find_checkpoint, load_pretrained
    from minilm.sample_cli import tokenizer_of
    from minilm.training.discriminator import labelled, train_discriminator

    folder = find_checkpoint(options.init)
    if not folder.is_dir():
        raise UsageError(f"{folder} is a single file: name the folder of a checkpoint, where the head can be saved")
    documents = labelled(options.discriminator, options.source, options.max_docs, options.seed)
    model = load_pretrained(folder)[0].eval().to(runtime.pick_device(options.device))
    name = options.discriminator.partition(":")[0]
    trained = train_discriminator(model, tokenizer_of(options.tokenizer, folder, model), name, documents, options.seed)
    path = trained.head.save(folder)
    say(str(trained))
    print(f"{path}\nnext: python sample.py --checkpoint {quoted(folder)} --attribute {name}:{trained.head.labels[0]}")
    return 0
