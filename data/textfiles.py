"""Your own text: any folder or file, read recursively; one file, one line of jsonl or one row of csv is a document.

txt, md, html, jsonl, csv, each also .gz, in whatever encoding. A tenth is held out to validate, by document. Options:
`--field` (jsonl key, csv column), `--separator` (between a plain file's documents), `--encoding` (else detected).
"""

from minilm.text.scripts import Dataset, Documents, Files, script_main
from minilm.text.userfiles import read_documents


def documents(files: Files, split: str, *, field: str = "", separator: str = "", encoding: str = "") -> Documents:
    return read_documents(files, field=field, separator=separator, encoding=encoding)


DATASET = Dataset(
    name="textfiles",
    description="A folder or file of your own text.",
    licence="your own",
    citation="",
    documents=documents,
    splits=("train",),
    parts="files",
)

if __name__ == "__main__":
    script_main(DATASET)
