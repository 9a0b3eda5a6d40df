"""Every data script on its real sample, its miniature archive, or a miniature in the form that its makers document."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from minilm.errors import MinilmError, UsageError
from minilm.text import download as downloads
from minilm.text import gutenberg
from minilm.text.hub_files import HubFiles
from minilm.text.prepare import prepare
from minilm.text.scripts import load_dataset
from minilm.text.shards import open_shards
from minilm.text.sources import Files


def read(name: str, source: Path, split: str = "train", **options: Any) -> list[tuple[str, str]]:
    """(text, label) of each document of a split."""
    dataset = load_dataset(name)
    documents = dataset.documents(Files.at(source), split, **dataset.check_options(options))
    return [(document, "") if isinstance(document, str) else document for document in documents]


def texts(name: str, source: Path, split: str = "train", **options: Any) -> list[str]:
    return [text for text, _ in read(name, source, split, **options)]


def write_parquet(path: Path, rows: Mapping[str, object]) -> Path:
    arrow = pytest.importorskip("pyarrow")
    path.parent.mkdir(parents=True, exist_ok=True)
    pytest.importorskip("pyarrow.parquet").write_table(arrow.table(dict(rows)), path)
    return path


# On real samples and the miniature archives

DUMMY = "hf_dummy/{}.zip"


def test_imdb(shared_data: Path, tmp_path: Path) -> None:
    reviews = read("imdb", shared_data / "imdb" / "aclImdb_sample.tar.gz")
    assert len(reviews) > 500
    assert {label for _, label in reviews} == {"neg", "pos"}
    assert sum("<br" in text for text, _ in reviews) == 0
    assert any("\n\n" in text for text, _ in reviews)
    mini = shared_data / "hf_dummy" / "imdb__plain_text.zip"
    assert len(read("imdb", mini)) == 5
    assert len(read("imdb", mini, "test")) == 4
    assert [label for _, label in read("imdb", mini, unlabelled=True)].count("") == 3
    write_parquet(
        tmp_path / "plain_text" / "train-00000-of-00001.parquet", {"text": ["a<br />b", "c"], "label": [0, 1]}
    )
    assert read("imdb", tmp_path) == [("a\nb", "neg"), ("c", "pos")]


def test_ag_news(shared_data: Path) -> None:
    items = read("ag_news", shared_data / "ag_news_csv", "test")
    assert len(items) == 7600
    assert items[0][0].startswith("Fears for T N pension after talks\nUnions representing workers at Turner   Newall")
    assert [sum(label == one for _, label in items) for one in ("world", "sports", "business", "science")] == [1900] * 4
    assert not [text for text, _ in items if "#39;" in text or "\\" in text]


def test_yahoo_answers(shared_data: Path) -> None:
    items = read("yahoo_answers", shared_data / "hf_dummy" / "yahoo_answers_topics__yahoo_answers_topics.zip", "test")
    assert items[0][1] == "family"
    assert items[0][0].startswith("What makes friendship click?\nHow does the spark keep going?\n\ngood communication")


def test_wikitexts(shared_data: Path, tmp_path: Path) -> None:
    raw = (shared_data / "wikitext-2-raw" / "wiki.valid.raw").read_text()
    assert "".join(texts("wikitext103", shared_data / "wikitext-2-raw", "val")) == raw
    tokenized = texts("wikitext2", shared_data / "wikitext-2", "val", form="tokenized")
    assert "".join(tokenized) == (shared_data / "wikitext-2" / "wiki.valid.tokens").read_text()
    assert len(tokenized) == 60
    plain = texts("wikitext2", shared_data / "wikitext-2-raw", "val", detokenize=True)
    assert len(plain) == 60
    assert " @-@ " not in "".join(plain)
    lines = [line if line.strip() else "" for line in raw.splitlines(keepends=True)]
    write_parquet(tmp_path / "wikitext-2-raw-v1" / "validation-00000-of-00001.parquet", {"text": lines})
    assert texts("wikitext2", tmp_path, "val") == texts("wikitext2", shared_data / "wikitext-2-raw", "val")
    for name, form in (("wikitext-2-v1", "tokenized"), ("wikitext-103-raw-v1", "raw")):
        packed = shared_data / "hf_dummy" / f"wikitext__{name}.zip"
        assert all(texts("wikitext103", packed, split, form=form) for split in ("train", "val", "test"))
    with pytest.raises(UsageError, match=r"form is 'tokenised': choose raw, tokenized \(did you mean tokenized\?\)"):
        read("wikitext2", shared_data / "wikitext-2", form="tokenised")


def test_ptb(shared_data: Path) -> None:
    (text,) = texts("ptb", shared_data / "ptb")
    assert len(text.splitlines()) == 42_068
    assert len(text.split()) == 887_521  # words without <eos>: Mikolov 2010's 929,589 less the lines
    (val,) = texts("ptb", shared_data / "ptb", "val")
    assert len(val.splitlines()) == 3370
    assert all(
        texts("ptb", shared_data / "hf_dummy" / "ptb_text_only__penn_treebank.zip", s) for s in ("train", "test")
    )


def test_lm1b(shared_data: Path) -> None:
    mini = shared_data / "hf_dummy" / "lm1b__plain_text.zip"
    assert len(texts("lm1b", mini)) == 15
    assert texts("lm1b", mini, "test") == []  # its part 00000 is not in the miniature
    assert len(texts("lm1b", mini, "val")) == 15
    assert "John O'Shea all pushing for a re-call." in " ".join(texts("lm1b", mini, detokenize=True))


def test_yelp(shared_data: Path) -> None:
    full = read("yelp", shared_data / "hf_dummy" / "yelp_review_full__yelp_review_full.zip", "test")
    assert full[0][1] == "1 star"
    assert "\nI took the tire over" in full[0][0]
    polar = read("yelp", shared_data / "hf_dummy" / "yelp_polarity__plain_text.zip", variant="polarity")
    assert {label for _, label in polar} <= {"neg", "pos"}
    assert polar


def test_amazon_reviews(shared_data: Path, tmp_path: Path) -> None:
    reviews = read("amazon_reviews", shared_data / "amazon_mcauley", category="AMAZON_FASHION", year=2018)
    assert len(reviews) == 3176
    assert reviews[0] == ("Five Stars\n\nGreat product and price!", "5 stars")
    rows = [{"rating": 4.0, "title": "Nice", "text": "It is <br />fine."}, {"rating": 1.0, "title": "", "text": "No."}]
    with gzip.open(tmp_path / "All_Beauty.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    assert read("amazon_reviews", tmp_path) == [("Nice\n\nIt is \nfine.", "4 stars"), ("No.", "1 stars")]


def test_cnn_dailymail(shared_data: Path, tmp_path: Path) -> None:
    stories = {
        split: texts("cnn_dailymail", shared_data / "cnn_dailymail", split) for split in ("train", "val", "test")
    }
    listed = [
        (shared_data / "cnn_dailymail" / "url_lists" / f"all_{s}.txt").read_text().split() for s in ("train", "val")
    ]
    names = {hashlib.sha1(url.encode()).hexdigest() for urls in listed for url in urls}
    there = {path.stem for path in (shared_data / "cnn_dailymail" / "cnn_stories").iterdir()}
    assert len(stories["train"]) + len(stories["val"]) == len(names & there)
    assert all("\n\nTL;DR:\n" in story and "@highlight" not in story for story in stories["train"] + stories["val"])
    mini = shared_data / "hf_dummy" / "cnn_dailymail__3.0.0.zip"
    assert [len(texts("cnn_dailymail", mini, split)) for split in ("train", "val", "test")] == [3, 2, 2]
    assert "TL;DR" not in texts("cnn_dailymail", mini, highlights=False)[0]
    row = {"article": ["A."], "highlights": ["B"]}
    write_parquet(tmp_path / "3.0.0" / "validation-00000-of-00001.parquet", row)
    assert texts("cnn_dailymail", tmp_path, "val") == ["A.\n\nTL;DR:\nB"]


def test_bookcorpus(shared_data: Path) -> None:
    mini = shared_data / "hf_dummy" / "bookcorpus__plain_text.zip"
    (book,) = texts("bookcorpus", mini)
    assert len(book.splitlines()) == len("\n".join(texts("bookcorpus", mini, sentences=3)).splitlines()) == 13


def test_writing_prompts(shared_data: Path, tmp_path: Path) -> None:
    stories = read("writing_prompts", shared_data / "writingPrompts", "val")
    prompts = (shared_data / "writingPrompts" / "valid.wp_source").read_text().splitlines()
    assert len(stories) == len(prompts)
    assert stories[0][1] == "ff"
    assert stories[1][0].startswith(prompts[1] + "\n\n")
    assert not any("<newline>" in text for text, _ in stories)
    write_parquet(tmp_path / "data" / "train-00000-of-00002-1.parquet", {"prompt": ["[ EU ] x"], "story": ["y"]})
    assert read("writing_prompts", tmp_path) == [("[ EU ] x\n\ny", "eu")]


def test_openwebtext(shared_data: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(shared_data / "hf_dummy" / "openwebtext__plain_text.zip") as archive:
        pages = {name: archive.read(name) for name in archive.namelist() if name.endswith(".txt")}
    expected = [page.decode().strip() for page in pages.values()]
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:xz") as tar:
        for name, page in pages.items():
            tar.addfile(_entry(name.rpartition("/")[2], page), io.BytesIO(page))
    with tarfile.open(
        tmp_path / "openwebtext.tar.xz", "w:xz"
    ) as tar:  # as on Zenodo: a tar of tars that are called .xz
        tar.addfile(_entry("openwebtext/urlsf_subset00-1_data.xz", inner.getvalue()), io.BytesIO(inner.getvalue()))
    for source in (shared_data / "hf_dummy" / "openwebtext__plain_text.zip", tmp_path):
        found = texts("openwebtext", source)
        assert len(found) == 4
        assert [text[:200] for text in found] == [text[:200] for text in expected]


def _entry(name: str, data: bytes) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    return entry


def test_pg19(shared_data: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(shared_data / "hf_dummy" / "pg19__0.1.0.zip") as archive:
        for split, number in (("train", 10006), ("validation", 28213), ("test", 12204)):
            (tmp_path / "books" / split).mkdir(parents=True)
            book = archive.read(f"dummy_data/{number}.txt")
            (tmp_path / "books" / split / f"{number}.txt").write_bytes(book)
            write_parquet(tmp_path / "hub" / f"{split}-00000-of-00001.parquet", {"text": [book.decode()]})
    for split in ("train", "val", "test"):
        assert texts("pg19", tmp_path / "books", split) == texts("pg19", tmp_path / "hub", split)
    assert len(texts("pg19", tmp_path / "hub")[0]) > 70_000


def test_lambada(shared_data: Path) -> None:
    passages = texts("lambada", shared_data / "lambada", "test")
    assert len(passages) == 500
    assert passages[0].endswith("I don't care about signs")
    assert len(texts("lambada", shared_data / "lambada", "val", variant="original")) == 4869
    mini = shared_data / "hf_dummy" / "lambada__plain_text.zip"
    assert all(texts("lambada", mini, split) for split in ("val", "test"))
    with zipfile.ZipFile(mini) as archive:
        novels_tar = io.BytesIO(archive.read("dummy_data/lambada-dataset.tar.gz/train-novels.tar"))
    with tarfile.open(fileobj=novels_tar) as tar:
        novels = [name for name in tar.getnames() if name.endswith(".txt")]
    assert len(texts("lambada", mini, "train")) == len(novels) > 0


def test_tinystories(shared_data: Path, tmp_path: Path) -> None:
    sample = (shared_data / "tinystories" / "tinystories_sample.txt").read_text()
    (tmp_path / "TinyStoriesV2-GPT4-train.txt").write_text(sample)
    stories = texts("tinystories", tmp_path)
    assert len(stories) == len([part for part in sample.split("<|endoftext|>") if part.strip("\n")])
    assert stories[0].startswith("Once upon a time there was a little boy named Ben.")
    assert texts("tinystories", tmp_path, version=1) == []


def test_fables_haiku_and_recipes(shared_data: Path) -> None:
    fables = texts("fables", shared_data / "style_fables")
    assert 280 < len(fables) < 330
    assert fables[0].startswith(
        "The Wolf and the Lamb\n\nWolf, meeting with a Lamb astray from the fold, resolved not to lay"
    )
    assert fables[1].endswith("It is wise to turn circumstances to good account.")
    assert sum(map(len, fables)) > 0.97 * (shared_data / "style_fables" / "aesop.txt").stat().st_size
    with (shared_data / "style_haiku" / "gutenberg.csv").open(newline="") as file:
        assert texts("haiku", shared_data / "style_haiku") == [row["haiku"] for row in csv.DictReader(file)]
    recipes = texts("recipes", shared_data / "style_recipes")
    assert len(recipes) > 380
    chaufa = next(text for text in recipes if text.startswith("# Arroz Chaufa\n"))
    assert "![" not in chaufa
    assert "## Directions\n\n1. Cut the chicken" in chaufa


# In the documented form


def test_text8_and_enwik8_are_cut_by_shares(shared_data: Path, tmp_path: Path) -> None:
    text = "anarchism originated as a term of abuse " * 25
    with zipfile.ZipFile(tmp_path / "text8.zip", "w") as archive:
        archive.writestr("text8", text)
    parts = [texts("text8", tmp_path, split)[0] for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [900, 50, 50]
    assert "".join(parts) == text
    wide = tmp_path / "enwik8"
    wide.write_text("\u00e9" * 1001)
    parts = [texts("enwik8", wide, split)[0] for split in ("train", "val", "test")]
    assert "".join(parts) == "\u00e9" * 1001  # no character is cut
    mini = shared_data / "hf_dummy" / "enwik8__enwik8-raw.zip"
    assert texts("enwik8", mini)[0].startswith("==Max Stirner's Egoism==")


def test_cc_stories_and_fineweb(tmp_path: Path) -> None:
    (tmp_path / "cc-stories.txt").write_text("One story.\nAnother.\n")
    assert texts("cc_stories", tmp_path) == ["One story.", "Another."]
    row = {"text": ["A page."], "language": ["en"], "token_count": [3]}
    write_parquet(tmp_path / "web" / "000_00000.parquet", row)
    assert texts("fineweb", tmp_path / "web") == texts("fineweb_edu", tmp_path / "web") == ["A page."]
    write_parquet(tmp_path / "wrong" / "000_00000.parquet", {"content": ["A page."]})
    with pytest.raises(UsageError, match="has no column 'text': it has content"):
        texts("fineweb", tmp_path / "wrong")
    whole = (tmp_path / "web" / "000_00000.parquet").read_bytes()
    (tmp_path / "web" / "000_00000.parquet").write_bytes(whole[:-20])
    with pytest.raises(MinilmError, match=r"000_00000\.parquet is damaged or cut short"):
        texts("fineweb", tmp_path / "web")


CATALOGUE = """Text#,Type,Issued,Title,Language,Authors,Subjects,LoCC,Bookshelves
11,Text,2008-06-27,Alice's Adventures in Wonderland,en,"Carroll, Lewis, 1832-1898",,PR,
84,Text,1993-10-01,Frankenstein,en,"Shelley, Mary Wollstonecraft, 1797-1851",,PR,
1342,Text,1998-06-01,Pride and Prejudice,en,"Austen, Jane, 1775-1817",,PR,
1259,Text,1998-04-01,Vingt ans apr\u00e8s,fr,"Dumas, Alexandre, 1802-1870",,PQ,
84001,Sound,2001-01-01,Frankenstein,en,"Shelley, Mary Wollstonecraft, 1797-1851",,PR,
"""


def test_gutenberg(shared_data: Path, tmp_path: Path) -> None:
    books = shared_data / "gutenberg"
    assert len(read("gutenberg", books)) == 9
    assert texts("gutenberg", books, ids="84")[0].startswith("Frankenstein;")
    with pytest.raises(UsageError, match=r"has no pg_catalog\.csv"):
        read("gutenberg", books, author="austen")
    (tmp_path / "pg_catalog.csv").write_text(CATALOGUE)
    for name in ("11-0.txt", "84-0.txt", "1342-0.txt", "pg1259.txt"):
        (tmp_path / name).symlink_to(books / name)
    assert [label for _, label in read("gutenberg", tmp_path, author="jane AUSTEN")] == ["Austen, Jane, 1775-1817"]
    assert len(read("gutenberg", tmp_path)) == 3
    assert len(read("gutenberg", tmp_path, language="fr")) == 1
    assert len(read("gutenberg", tmp_path, language="")) == 4
    assert len(read("gutenberg", tmp_path, ids="84,1259")) == 2
    with pytest.raises(UsageError, match="ids are numbers with commas"):
        read("gutenberg", books, ids="alice")


@pytest.mark.parametrize("name", ["11-0", "84-0", "1342-0", "1661", "345", "pg1259", "pg2641", "pg37106", "pg394"])
def test_gutenberg_boilerplate_goes_and_the_book_stays(shared_data: Path, name: str) -> None:
    whole = (shared_data / "gutenberg" / f"{name}.txt").read_text(encoding="utf-8-sig")
    book = gutenberg.strip_boilerplate(whole)
    for word in (
        "produced by david",
        "produced by an",
        "distributed proofread",
        "donations",
        "e-text prepared",
        "ebook of",
    ):
        assert word not in book.lower()
    # Two of the books have a transcriber's note of their own that tells of other editions.
    assert "gutenberg" not in book.lower() or name in ("pg1259", "pg37106")
    assert 0.9 * len(whole) < len(book) + 20_000 < len(whole) + 20_000
    assert book in whole.replace("\r\n", "\n")


EBOOK = "PROJECT GUTENBERG EBOOK"
SMALL = "THE SMALL PRINT! FOR PUBLIC DOMAIN"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f"*** START OF THE {EBOOK} A BOOK ***\n\n\n", f"\n\n*** END OF THE {EBOOK} A BOOK ***"),
        (f"***START OF THE {EBOOK} A BOOK***\n\n", f"\n\n***END OF THE {EBOOK} A BOOK***"),
        (f"*** START OF THIS {EBOOK} A VERY\nLONG TITLE ***\n\n", "\n\nEnd of Project Gutenberg's A Book"),
        (f"Print\n*END*{SMALL} ETEXTS*Ver.04.29.93*END*\n\n", "\n\nEnd of The Project Gutenberg Etext of A Book, by X"),
        (f"*END {SMALL} EBOOKS*Ver.02/11/02*END*\n\n", "\n\nEnd of the Project Gutenberg EBook"),
        (f"*** START OF THIS {EBOOK} X ***\n\nProduced by A. B.\nand C. D.\n\n\n", "\n\nEnd of this Etext"),
        (f"*** START OF THIS {EBOOK} X ***\n\nE-text prepared by E. F.\n\n", ""),
    ],
)
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_every_wording_of_the_boilerplate(before: str, after: str, ends: str) -> None:
    body = "CHAPTER I\n\nIt was the end of the project, and Gutenberg slept.\n" + "More. \n" * 200 + "The end."
    text = f"\ufeffHeader: Project Gutenberg\n\n{before}{body}{after}\nLicence of Project Gutenberg".replace("\n", ends)
    if not after:
        text = text.rpartition("Licence")[0]
    assert gutenberg.strip_boilerplate(text) == body
    assert gutenberg.strip_boilerplate(body) == body


def test_wikipedia_dump_and_parquet(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("mwparserfromhell")
    documents = load_dataset("wikipedia").documents(Files.at(shared_data / "wikipedia"), "train")
    articles = [str(article) for article in islice(documents, 12)]
    assert sum(map(len, articles)) > 300_000
    assert articles[0].startswith(
        "Anarchism\n\nAnarchism is a political philosophy that advocates self-governed societies"
    )
    joined = "\n".join(articles)
    for markup in ("[[", "]]", "{{", "}}", "<ref", "'''", "&nbsp;", "{|", "File:", "Category:"):
        assert joined.count(markup) < 4, markup
    write_parquet(
        tmp_path / "20231101.simple" / "train-0.parquet", {"title": ["April"], "text": ["A month."], "id": [1]}
    )
    assert texts("wikipedia", tmp_path, language="simple") == ["April\n\nA month."]
    import bz2

    (packed,) = (shared_data / "wikipedia").glob("*.bz2")
    (tmp_path / "cut.xml").write_bytes(bz2.decompress(packed.read_bytes())[:100_000])
    with pytest.raises(MinilmError, match=r"cut\.xml is damaged or cut short"):
        texts("wikipedia", tmp_path / "cut.xml")


# Downloads of what has no published checksum, and listings of the Hub


class Host:
    """Files on loopback, and the Hub's two addresses that list a repository."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.asked = files, []  # type: ignore[var-annotated]
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                outer.asked.append(path)
                data = outer.answer(path)
                self.send_response(200 if data is not None else 404)
                self.send_header("Content-Length", str(len(data or b"")))
                self.end_headers()
                self.wfile.write(data or b"")

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True, args=(0.01,)).start()

    def answer(self, path: str) -> bytes | None:
        if path.startswith("/api/datasets/a/b/revision/"):
            return json.dumps({"id": "a/b", "sha": "c" * 40}).encode()
        if path.startswith("/api/datasets/a/b/tree/"):
            return json.dumps([self._listed(name, data) for name, data in self.files.items()]).encode()
        return self.files.get(path.partition("/resolve/")[2].partition("/")[2] or path)

    @staticmethod
    def _listed(name: str, data: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
        if name.endswith(".parquet"):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return entry


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(downloads, "BACKOFF_SECONDS", 0.001)
    served = Host({})
    yield served
    served.http.shutdown()
    served.http.server_close()


def test_a_file_without_a_published_checksum_must_stay_what_it_was(host: Host, tmp_path: Path) -> None:
    host.files["/book.txt"] = b"first words"
    source = downloads.Source(f"{host.url}/book.txt")
    assert downloads.download(source, tmp_path).path.read_bytes() == b"first words"
    assert downloads.recorded_sha256(source, tmp_path) == hashlib.sha256(b"first words").hexdigest()
    asked = len(host.asked)
    downloads.download(source, tmp_path)
    assert len(host.asked) == asked  # kept
    (tmp_path / "book.txt").unlink()
    host.files["/book.txt"] = b"other words"
    with pytest.raises(MinilmError, match="is not the file it was: its SHA-256 differs"):
        downloads.download(source, tmp_path)
    with pytest.raises(MinilmError, match=r"answers HTTP 404.*--source"):
        downloads.download(downloads.Source(f"{host.url}/gone.txt"), tmp_path)


def test_hub_files_are_listed_once_and_checked(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    class Api(huggingface_hub.HfApi):
        def __init__(self) -> None:
            super().__init__(endpoint=host.url)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", host.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", host.url + "/{repo_id}/resolve/{revision}/{filename}")
    page = write_parquet(tmp_path / "x.parquet", {"text": ["A page."]}).read_bytes()
    host.files |= {"x/train-0.parquet": page, "y/train-0.parquet": page + b"!", "x/readme.md": b"#"}
    files = HubFiles("a/b", ("x/*",))
    first, second = files.listed(tmp_path / "d")
    assert (first.name, first.bytes, first.sha256) == ("x/train-0.parquet", len(page), hashlib.sha256(page).hexdigest())
    assert "c" * 40 in first.url
    assert (second.name, second.sha256) == ("x/readme.md", "")
    assert downloads.download(first, tmp_path / "d").path == tmp_path / "d" / "x" / "train-0.parquet"
    host.files.clear()
    assert files.listed(tmp_path / "d") == [first, second]
    with pytest.raises(UsageError, match=r"a/b has no file z/\*"):
        HubFiles("a/b", ("z/*",)).listed(tmp_path / "d")
    host.http.shutdown()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MinilmError, match=r"list of a/b's files cannot be had from the Hub.*--source"):
        HubFiles("a/b", ("w/*",)).listed(tmp_path / "d")


def test_bad_rows_and_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Empty documents are dropped and counted, broken bytes counted, a missing field named; never a traceback."""
    rows = [b'{"text": "caf\xe9 one"}', b'{"text": ""}', b'{"text": null}', b'{"text": " \\n"}', b'{"text": "two"}']
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "pages.jsonl").write_bytes(b"\n".join(rows))
    folder = prepare("openwebtext", source=tmp_path / "a", tokenizer="bytes")
    assert sum(split.documents for split in open_shards(folder).meta.splits.values()) == 2
    said = capsys.readouterr().err
    assert "\n  3 documents dropped, without text\n" in said
    assert "\n  1 characters that did not decode, read as U+FFFD\n" in said
    review = {"text": ["fine", None], "label": [1, 0]}
    assert read("imdb", write_parquet(tmp_path / "b" / "train-0.parquet", review)) == [("fine", "pos"), ("", "neg")]
    (tmp_path / "gutenberg.csv").write_text("poem,source\na,b\n")
    with pytest.raises(UsageError, match=r"a row of gutenberg\.csv has no field 'haiku', it has poem, source: give"):
        prepare("haiku", source=tmp_path / "gutenberg.csv", tokenizer="bytes")


def test_labels_do_not_reach_the_shards(shared_data: Path) -> None:
    folder = prepare("imdb", source=shared_data / "hf_dummy" / "imdb__plain_text.zip", tokenizer="bytes")
    shards = open_shards(folder)
    tokenizer = shards.tokenizer()
    split = shards.splits["test"]
    found = [tokenizer.decode(split.document(i)) for i in range(split.n_documents)]
    assert found == texts("imdb", shared_data / "hf_dummy" / "imdb__plain_text.zip", "test")
    assert shards.meta.licence == "research use"
