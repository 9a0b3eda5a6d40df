"""Reading a user's own folder: formats, encodings, what is left out; which documents validate; where pieces are cut."""

from __future__ import annotations

import csv
import gzip
import json
import os
import zipfile
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilm.errors import UsageError
from minilm.text import encodings, holdout
from minilm.text.encode import Counts, encode_documents, measure, pieces
from minilm.text.encodings import detect, open_text
from minilm.text.holdout import choose, paragraph_border
from minilm.text.sources import Files
from minilm.text.upstream import wikitext_articles
from minilm.text.userfiles import read_documents


def read(path: Path, **options: str) -> list[str]:
    return list(read_documents(Files.at(path), **options))


def write(folder: Path, **files: str | bytes) -> Path:
    for name, data in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


# Formats


def test_every_format_recursively_and_compressed(tmp_path: Path) -> None:
    write(
        tmp_path,
        a_txt="plain\r\ntext\r\n",
        b_MD="# title\n",
        c_jsonl='{"id": 1, "text": "one"}\n\n{"id": 2, "text": "two\\r\\nlines"}\n"three"\n',
        d__e_csv='id,text\n1,"many\r\nlines, ""quoted"""\n2,short\n',
        d__f_tsv="body\tn\nfour\t4\n",
        d__g_txt_gz=gzip.compress(b"zipped"),
        d__h_jsonl_gz=gzip.compress(b'{"story": "five"}\n'),
        d__noending="six",
    )
    with zipfile.ZipFile(tmp_path / "i.zip", "w") as archive:
        archive.writestr("in/seven.txt", "seven")
        archive.writestr("__MACOSX/in/._seven.txt", "no")
    found = ["plain\ntext\n", "# title\n", "one", "two\nlines", "three", 'many\nlines, "quoted"', "short", "four"]
    assert read(tmp_path) == [*found, "zipped", "five", "six", "seven"]


def test_field_named_or_the_only_one(tmp_path: Path) -> None:
    write(tmp_path, a_jsonl='{"title": "t", "body": "b"}\n', b_csv="title,body\nt2,b2\n")
    assert read(tmp_path, field="body") == ["b", "b2"]
    with pytest.raises(UsageError, match=r"a\.jsonl line 1 has no field 'text' .*: title, body\).*--field"):
        read(tmp_path)
    with pytest.raises(UsageError, match=r"a\.jsonl line 1 has no text in a field 'other': it has title, body"):
        read(tmp_path, field="other")
    with pytest.raises(UsageError, match=r"b\.csv line 2 has no field 'text' .*title, body.*--field"):
        read(tmp_path / "b.csv")
    with pytest.raises(UsageError, match=r"b\.csv has no column 'other': its first line names title, body"):
        read(tmp_path / "b.csv", field="other")


def test_json_and_documents_that_are_named(tmp_path: Path) -> None:
    write(tmp_path, a_json='[{"text": "one"}, "two"]', b_json='{"text": "three"}\n{"text": "four"}\n', c_docx=b"PK\x03")
    assert read(tmp_path / "a.json") == ["one", "two"]
    assert read(tmp_path / "b.json") == ["three", "four"]
    files = Files.at(tmp_path)
    assert list(read_documents(files)) == []
    assert files.notes["files skipped, ending in .json: name one itself, or turn them into .jsonl"] == 2
    files = Files.at(tmp_path / "c.docx")
    assert list(read_documents(files)) == []
    assert files.notes == {"files skipped, ending in .docx: turn them into .txt first": 1}


def test_several_fields(tmp_path: Path) -> None:
    write(
        tmp_path, a_jsonl='{"title": "t", "body": "b"}\n', b_csv='title,"story, long"\nt2,s2\n', c_csv="haiku,n\nh,1\n"
    )
    assert read(tmp_path, field="body,haiku,title") == ["b", "t2", "h"]
    assert read(tmp_path / "b.csv", field="story, long") == ["s2"]


def test_pages_are_their_articles(tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trafilatura")
    page = (shared_data / "html_readability" / "ehow-1" / "source.html").read_bytes()
    write(tmp_path, a_html=page, b_htm="<html><body></body></html>", c_txt="text")
    files = Files.at(tmp_path)
    article, text = read_documents(files)
    assert (text, files.notes) == ("text", {"files skipped, without text": 1})
    assert "<" not in article
    assert len(article) > 1000
    monkeypatch.setattr("minilm.text.userfiles.has_articles", lambda: False)
    files = Files.at(tmp_path)
    assert list(read_documents(files)) == ["text"]
    assert files.notes['files skipped, ending in .html (pip install "minilm[data]" to have their articles)'] == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"text": "a"}\n{"text": \n', r"line 2 is not JSON"),
        ('{"text": "a"}\n[1]\n', r"line 2 is neither an object nor a string"),
        ('{"text": "a"}\n{"body": "b"}\n', r"line 2 has no text in a field 'text': it has body"),
        ('{"text": "a"}\n{"text": 3}\n', r"line 2 has no text in a field 'text'"),
        ('{"n": 1}\n', r"line 1 has no field 'text' \(no other field holds text\)"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, lines: str, message: str) -> None:
    with pytest.raises(UsageError, match=rf"a\.jsonl {message}"):
        read(write(tmp_path, a_jsonl=lines))


def test_table_with_a_short_row_and_semicolons(tmp_path: Path) -> None:
    assert read(write(tmp_path / "1", a_csv="n;text\n1;one, two\n")) == ["one, two"]
    with pytest.raises(UsageError, match=r"a\.csv line 3 has 1 columns instead of 2"):
        read(write(tmp_path / "2", a_csv="n,text\n1,one\n2\n"))


def test_long_csv_field(tmp_path: Path) -> None:
    story = "word " * 60_000
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text"], [story]])
    assert read(tmp_path) == [story]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r")), min_size=1))
def test_jsonl_returns_any_text(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert read(path) == [text for text in texts if text.strip()]


def test_lone_surrogate_becomes_a_replacement(tmp_path: Path) -> None:
    assert read(write(tmp_path, a_jsonl='"a\\ud800b\\ud83d\\ude00"\n')) == ["a\ufffdb\U0001f600"]


def test_separator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minilm.text.userfiles.READ_CHARS", 3)
    write(tmp_path, a_txt="one\n<|end|>\ntwo<|end|><|end|>\nthree\n\n<|end|>")
    assert read(tmp_path, separator="<|end|>") == ["one", "two", "three"]
    assert read(tmp_path, separator="\\n\\n") == ["one\n<|end|>\ntwo<|end|><|end|>\nthree", "<|end|>"]


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    write(tmp_path, a_txt="text", b_txt=b"\x00\x01\x02\xff" * 9, c_txt="", d_txt=" \n", e_docx=b"PK", _hidden_txt="no")
    write(
        tmp_path,
        g_pdf=b"%PDF",
        h_pdf=b"%PDF",
        i_txt="caf\u00e9 cr\u00e8me".encode("cp1252"),
        j_txt=b"ok \xc3\xa9" * 9 + b"\xff",
    )
    files = Files.at(tmp_path)
    assert list(read_documents(files)) == ["text", "caf\u00e9 cr\u00e8me", "ok \u00e9" * 9 + "\ufffd"]
    assert files.notes == {
        "files skipped, binary": 1,
        "files skipped, without text": 2,
        "files skipped, ending in .docx: turn them into .txt first": 1,
        "files skipped, ending in .pdf: turn them into .txt first": 2,
        "files read as cp1252": 1,
        "characters that did not decode, read as U+FFFD": 1,
    }


def test_a_file_that_is_named_is_read_whatever_its_ending(tmp_path: Path) -> None:
    write(tmp_path, page_asp="<p>text</p>")
    assert read(tmp_path / "page.asp") == ["<p>text</p>"]
    with pytest.raises(UsageError, match="there is no encoding 'cp9999'"):
        read(tmp_path, encoding="cp9999")


def test_real_folders(shared_data: Path) -> None:
    recipes = Files.at(shared_data / "style_recipes")
    assert len(list(read_documents(recipes))) >= 400
    haiku = read(shared_data / "style_haiku", field="haiku")
    assert len(haiku) > 1000
    assert sum(text.count("\n") for text in haiku) > len(haiku)
    wells = read(shared_data / "gutenberg" / "84-0.txt")
    assert len(wells) == 1
    assert not wells[0].startswith("\ufeff")
    assert "\r" not in wells[0]


# Encodings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_encoding_of_western_text(tmp_path: Path, encoding: str) -> None:
    text = "\u201cD\u00e9j\u00e0 vu\u201d, \u00e7a alors: na\u00efve c\u0153ur! Gr\u00f6\u00dfe.\n" * 20
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert read(tmp_path) == [text]
    assert read(tmp_path, encoding=encoding) == [text]


LANGUAGES = {
    "cp1252": "fra deu_1901 spa por_PT ita nld swe dan fin isl cat nob glg",
    "cp1251": "rus ukr bul bel srp_cyrl",
    "cp1250": "pol ces hun slk hrv slv ron",
    "koi8-r": "rus",
    "iso8859-5": "rus",
    "cp1253": "ell_monotonic",
    "cp1254": "tur",
    "cp1255": "heb",
    "cp1256": "arb",
    "shift_jis": "jpn",
    "euc_jp": "jpn",
    "gb18030": "cmn_hans",
    "big5": "cmn_hant",
    "euc_kr": "kor",
    "utf-8": "rus jpn hin tha amh",
    "utf-16-le": "rus jpn hin fra",
    "utf-16-be": "rus jpn hin fra",
}


def test_encodings_of_real_text(shared_data: Path) -> None:
    wrong = []
    with zipfile.ZipFile(shared_data / "nltk_data" / "udhr2.zip") as archive:
        for encoding, names in LANGUAGES.items():
            for name in names.split():
                text = archive.read(f"udhr2/{name}.txt").decode()[60:12_060]
                data = text.encode(encoding, "ignore")
                if data.decode(detect(data) or "ascii", "replace") != data.decode(encoding):
                    wrong.append((encoding, name))
    assert wrong == []


def test_binary_files(shared_data: Path) -> None:
    for name in ("weights/SLM_4096/ckpt.pt", "nltk_data/abc.zip", "openwebtext/RS_v2_2005-06.xz"):
        assert detect((shared_data / name).read_bytes()) is None
    assert detect(os.urandom(5000)) is None


def test_text_longer_than_the_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "WINDOW_BYTES", 1000)
    text = "\u00e4\u00f6\u00fc \u20ac\n" * 1000
    for shift in range(4):  # a character across the window's end
        (tmp_path / "a.txt").write_bytes(b"x" * shift + text.encode())
        with (tmp_path / "a.txt").open("rb") as stream:
            opened = open_text(stream)
            assert opened is not None
            assert opened.read() == "x" * shift + text


# WikiText


def test_wikitext_articles_are_the_file(shared_data: Path) -> None:
    text = (shared_data / "wikitext-2-raw" / "wiki.valid.raw").read_bytes().decode()
    articles = list(wikitext_articles(text.splitlines(keepends=True)))
    assert len(articles) == 60
    assert "".join(articles) == text
    assert all(article.split("\n")[0 if i else 1].startswith(" = ") for i, article in enumerate(articles))


def test_wikitext_headings() -> None:
    lines = [" \n", " = A = B = \n", " \n", " a = b \n", " = not one = \n", " more \n", " \n", " = = Section = = \n"]
    lines += [" \n", " = Last = \n", " \n"]
    assert [article.count("\n") for article in wikitext_articles(lines)] == [9, 2]
    assert list(wikitext_articles([])) == []


# Which documents validate


@given(st.lists(st.text(min_size=1), min_size=2, max_size=30, unique=True))
def test_holdout_splits_by_document(texts: list[str]) -> None:
    chosen = choose(texts)
    split = list(chosen.split(texts))
    assert [text for _, text in split] == texts
    assert {name for name, _ in split} == {"train", "val"}
    backwards = list(choose(texts[::-1]).split(texts[::-1]))
    assert set(backwards) == set(split)


def test_holdout_share_and_duplicates() -> None:
    texts = [f"document {i % 900} " * (1 + i % 7) for i in range(1000)]
    held = [text for name, text in choose(texts).split(texts) if name == "val"]
    assert 0.09 <= sum(map(len, held)) / sum(map(len, texts)) <= 0.12
    train = {text for name, text in choose(texts).split(texts) if name == "train"}
    assert train.isdisjoint(held)


def test_holdout_of_a_large_corpus_is_by_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdout, "EXACT_DOCUMENTS", 100)
    texts = [f"document {i}" for i in range(5000)]
    names = [name for name, _ in choose(texts).split(texts)]
    assert 400 <= names.count("val") <= 600
    monkeypatch.setattr(holdout, "ENOUGH_BYTES", 500.0)
    names = [name for name, _ in choose(texts).split(texts)]
    assert 10 <= names.count("val") <= 60


def test_long_document_does_not_validate() -> None:
    texts = ["long " * 10_000, "short"]
    assert {text: name for name, text in choose(texts).split(texts)} == {texts[0]: "train", "short": "val"}


@pytest.mark.parametrize("mark", ["\n\n", "\n", ". ", " "])
def test_one_document_is_cut_at_a_border(mark: str) -> None:
    text = mark.join(["word" * 3] * 100)
    (first, head), (second, tail) = choose([text]).split([text])
    assert (first, second, head + tail) == ("train", "val", text)
    assert head.endswith(mark)
    assert 0.87 < len(head) / len(text) < 0.93
    assert 17 <= paragraph_border("\u6c49" * 20) <= 19
    with pytest.raises(UsageError, match="too short to be split"):
        paragraph_border("word")
    assert choose([]).n_documents == 0


# Pieces


class Bytes:
    """A tokenizer as far as this module goes."""

    name, unknown = "bytes", ord("x")

    def encode_flat(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        data = "".join(texts).encode()
        return np.frombuffer(data, np.uint8), np.array([len(text.encode()) for text in texts])

    def check_sample(self, texts: list[str]) -> None:
        pass


class Written:
    """A writer that remembers."""

    def __init__(self) -> None:
        self.documents: list[list[int]] = []

    def add_flat(self, flat: np.ndarray, lengths: np.ndarray) -> None:
        self.documents += [part.tolist() for part in np.split(flat, np.cumsum(lengths)[:-1])] if len(lengths) else []

    def add_pieces(self, parts: Iterable[list[int]]) -> None:
        self.documents.append([i for part in parts for i in part])


def encoded(documents: list[tuple[str, str]], tokenizer: Any) -> tuple[dict[str, Counts], dict[str, list[list[int]]]]:
    written: dict[str, Written] = {"train": Written(), "val": Written()}
    counts = encode_documents(documents, tokenizer, cast(Any, written.__getitem__))
    return counts, {split: writer.documents for split, writer in written.items()}


@given(st.lists(st.tuples(st.sampled_from(["train", "val"]), st.text(st.sampled_from("ab \nx\u00e9"), max_size=40))))
def test_documents_come_whole_and_in_order(documents: list[tuple[str, str]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minilm.text.encode.PIECE_CHARS", 5)
        patch.setattr("minilm.text.encode.BATCH_CHARS", 11)
        for _, text in documents:
            parts = list(pieces(text))
            assert "".join(parts) == text
            assert all(after[0].isspace() and not before[-1].isspace() for before, after in pairwise(parts))
        counts, written = encoded(documents, Bytes())
    for split in ("train", "val"):
        texts = [text for name, text in documents if name == split]
        assert [bytes(ids).decode() for ids in written[split]] == texts
        if texts:
            whole = "\n".join(texts)
            wanted = Counts(len("".join(texts).encode()), len(whole.split()), whole.count("x"))
            assert counts[split] == wanted


def test_pieces_do_not_change_tokens(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minilm.text.tokenizer import get_tokenizer, train_tokenizer

    text = (shared_data / "gutenberg" / "84-0.txt").read_text("utf-8-sig")[:50_000]
    tokenizers = [get_tokenizer(shared_data / "gpt2_files")]
    tokenizers += [train_tokenizer(kind, [text], size) for kind, size in (("chars", 0), ("words", 0), ("bpe", 500))]
    for tokenizer in tokenizers:
        whole = tokenizer.encode(text)
        for size in (1, 7, 1000):
            monkeypatch.setattr("minilm.text.encode.PIECE_CHARS", size)
            assert encoded([("train", text)], tokenizer)[1]["train"] == [whole]


@given(
    st.lists(st.text(st.sampled_from("ab \n\t\x1c\x85\xa0\u2003\u3000\u00e9\U0001f600\ud800"), max_size=20), max_size=5)
)
def test_words_are_counted_as_split_does(texts: list[str]) -> None:
    n_bytes = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    assert measure(texts) == (n_bytes, sum(len(text.split()) for text in texts))
