"""Cleaning against brute force and real text: repair, languages, duplicates, lengths, detokenizers, articles."""

from __future__ import annotations

import gzip
import json
import random
import re
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilm.errors import MinilmError, UsageError
from minilm.text import clean as cleaning
from minilm.text import wikipedia
from minilm.text.clean import language_share, make_cleaner, shingles
from minilm.text.detokenize import DETOKENIZERS
from minilm.text.parallel import in_order
from minilm.text.prepare import prepare
from minilm.text.shards import open_shards
from minilm.text.sources import Files


def test_repair_mends_what_is_broken_and_nothing_else() -> None:
    pytest.importorskip("ftfy")
    repair = make_cleaner("repair").clean
    for text in ("“Quoted” – ‘curly’ ﬁn ＡＢ &amp; caf\u00e9\n\ttab", "日本語のテキスト。", ""):
        assert repair(text) == text
    whole = "Sch\u00f6n sagt man \u2018ja\u2019"
    assert repair(whole.encode().decode("cp1252")) == whole
    assert repair("a\r\nb\x07c") == "a\nbc"


def test_languages_are_told_apart_the_same_way_each_time(shared_data: Path) -> None:
    pytest.importorskip("langdetect")
    right = total = 0
    for path in sorted((shared_data / "langid" / "sentences").iterdir())[:15]:
        text = path.read_text(encoding="utf-8")
        share = language_share(text[:3000], "en")
        assert share == language_share(text[:3000], "en")
        total += 1
        right += (share > 0.5) == ("en" in path.name.split(".")[0].split("_") or path.name.startswith("en"))
    assert right == total
    assert language_share("12345 6789", "en") == 0
    assert make_cleaner("language:en:0.8").clean("This is plainly a sentence in the English language.") is not None
    assert make_cleaner("language:en:0.8").clean("Das ist ganz offensichtlich ein Satz auf Deutsch.") is None


def test_near_duplicates_are_those_that_brute_force_finds(shared_data: Path) -> None:
    pytest.importorskip("datasketch")
    rng = random.Random(0)
    vocabulary = [f"word{i}" for i in range(300)]
    texts = []
    for i in range(60):
        words = rng.choices(vocabulary, k=120)
        texts.append(" ".join(words))
        if i % 3 == 0:
            changed = list(words)
            for place in rng.sample(range(120), rng.choice((0, 1, 2, 12, 30))):
                changed[place] = "other"
            texts.append(" ".join(changed))
    kept: list[set[str]] = []
    certain = {}  # places where the exact similarity is far enough from the border for the estimate
    for i, text in enumerate(texts):
        nearest = max((len(shingles(text) & old) / len(shingles(text) | old) for old in kept), default=0.0)
        if not 0.55 < nearest < 0.85:
            certain[i] = nearest >= 0.7
        if nearest < 0.7:
            kept.append(shingles(text))
    assert 5 <= sum(certain.values()) < 25
    clean = make_cleaner("near_duplicates:0.7").clean
    dropped = [clean(text) is None for text in texts]
    assert {i: dropped[i] for i in certain} == certain
    licences = [
        path.read_text() for path in sorted((shared_data / "cs336_data" / "documents_with_fuzzy_duplicates").iterdir())
    ]
    cleaner = make_cleaner("near_duplicates:0.7")
    cleaned = list(cleaner.run([(text, None) for text in licences], 1))
    assert len(cleaned) == 2  # Rails' and React's MIT licences are one text
    assert cleaner.report().startswith("near_duplicates:0.7: of 3 documents dropped 1 (33.3%); ")


@given(st.lists(st.sampled_from(["a b", "A  b", "a\nb ", "b a", "", " ", "c"]), max_size=12))
def test_exact_duplicates(texts: list[str]) -> None:
    seen, expected = set(), []
    for text in texts:
        key = tuple(text.lower().split())
        expected += [text] if key not in seen else []
        seen.add(key)
    cleaned = make_cleaner("duplicates").run(((text, None) for text in texts), workers=1)
    assert [text for text, _ in cleaned] == expected


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("repare", r"no cleaning step 'repare' \(did you mean repair\?\): choose repair, language, duplicates"),
        ("near_duplicates:2", "'near_duplicates:2' needs a number from 0.05 to 1 behind its colon"),
        ("min_tokens:few", "'min_tokens:few' needs a number from 1"),
        ("language:english", "langdetect knows no language 'english': write one of af, "),
    ],
)
def test_wrong_recipes(recipe: str, message: str, tmp_path: Path) -> None:
    pytest.importorskip("langdetect")
    pytest.importorskip("datasketch")
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UsageError, match=message):
        prepare(tmp_path, tokenizer="bytes", clean=recipe)


def test_prepare_cleans_training_text_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"a document of some length, number {i % 30}" for i in range(60)] + ["short"] * 2
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    folder = prepare(tmp_path, tokenizer="bytes", clean="duplicates,min_tokens:10")
    shards = open_shards(folder)
    tokenizer = shards.tokenizer()
    found = {name: [tokenizer.decode(split.document(i)) for i in range(split.n_documents)]
             for name, split in shards.splits.items()}  # fmt: skip
    assert sorted(found["train"] + [text for text in found["val"] if text != "short"]) == sorted(set(lines) - {"short"})
    counts = shards.meta.splits["train"]
    assert (counts.bytes, counts.documents) == (len("".join(found["train"])), len(found["train"]))
    said = capsys.readouterr().err
    assert "duplicates: of 62 documents dropped 31 (50.0%)" in said
    assert re.search(r"min_tokens:10: dropped [01] documents of train", said)
    assert "--clean duplicates,min_tokens:10" in shards.meta.command
    assert prepare(tmp_path, tokenizer="bytes") != folder


def test_several_processes_clean_as_one_does(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("ftfy", "langdetect", "datasketch"):
        pytest.importorskip(package)
    monkeypatch.setattr(cleaning, "WORTH_CHARS", 8000)
    monkeypatch.setattr(cleaning, "CHUNK_CHARS", 3000)
    path = min((shared_data / "gutenberg").glob("*.txt"))
    book = path.read_text(encoding="utf-8-sig")[20_000:60_000]
    english = [book[i : i + 500] for i in range(0, len(book), 500)]
    german = (shared_data / "langid" / "sentences" / "de.txt").read_text()[:6000]
    near = [text + " And so on." for text in english[::9]]
    texts = [*english, german, *english[::7], *near, "caf\u00c3\u00a9 " + book[:300]]
    documents = [(text, i) for i, text in enumerate(texts)]
    recipe = "repair,language:en,duplicates,near_duplicates:0.6"
    one, three = make_cleaner(recipe), make_cleaner(recipe)
    expected = list(one.run(iter(documents), 1))
    assert list(three.run(iter(documents), 3)) == expected
    counts = [
        {name: (c.seen, c.changed, c.dropped, c.bytes) for name, c in cleaner.counts.items()}
        for cleaner in (one, three)
    ]
    assert counts[0] == counts[1]
    assert all(dropped for _, _, dropped, _ in list(counts[0].values())[1:])
    slowest = min(three.counts, key=lambda name: three.counts[name].bytes / three.counts[name].seconds)
    assert re.search(rf"repair: .* [\d.]+ MB/s on a core\n.*slowest: {slowest}", three.report(), re.DOTALL)


def test_wikipedia_by_several_processes(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mwparserfromhell")
    (dump,) = Files.at(shared_data / "wikipedia").find("*")
    monkeypatch.setattr(cleaning, "CHUNK_CHARS", 60_000)
    found = []
    for cores in (1, 2):
        monkeypatch.setattr(wikipedia, "n_cores", lambda cores=cores: cores)
        articles = wikipedia.dump_articles(dump)
        found.append(list(islice(articles, 9)))
        articles.close()  # type: ignore[attr-defined]
    assert found[0] == found[1]
    assert len({title for title, _ in found[0]}) == 9


def test_processes_that_fail() -> None:
    found = in_order("minilm.text.clean:make_cleaner", "nonsense", [1], 1)
    with pytest.raises(MinilmError, match="ended early"):
        list(found)
    with pytest.raises(TypeError, match="subscriptable"):
        list(in_order("minilm.text.clean:finder", "", [1], 2))
    some = in_order("minilm.text.clean:finder", "", ((["a"], i) for i in range(10**9)), 2)
    assert next(some) == ((["a"], 0), [("a", [])])
    some.close()  # type: ignore[attr-defined]


# Detokenizers


@pytest.mark.parametrize(
    ("style", "tokens", "text"),
    [
        ("wikitext", "the 1 @.@ 5 @-@ year , 2 @,@ 000 – 3 @,@ 000 ( or so ) .", "the 1.5-year, 2,000–3,000 (or so)."),
        ("wikitext", '" Yes , " he said ; " it \'s Lewis \' own . "', '"Yes," he said; "it\'s Lewis\' own."'),
        ("wikitext", " = = Early life = = ", "= = Early life = ="),
        ("ptb", "`` It wo n't -LRB- ever -RRB- cost $ 5 , '' Mr. Vinken 's aide said .",
         '"It won\'t (ever) cost $5," Mr. Vinken\'s aide said.'),
        ("ptb", "the index rose N N to N", "the index rose N N to N"),
        ("lm1b", "Ryan Giggs , Darren Fletcher and John O 'Shea .", "Ryan Giggs, Darren Fletcher and John O'Shea."),
        ("reviews", "`` Dad , why ca n't Mom come with us ? ''", '"Dad, why can\'t Mom come with us?"'),
        ("reviews", "it 's good !\n5 % off : yes", "it's good!\n5% off: yes"),
    ],
)  # fmt: skip
def test_detokenizers(style: str, tokens: str, text: str) -> None:
    assert DETOKENIZERS[style](tokens) == text


@given(st.sampled_from(sorted(DETOKENIZERS)), st.text("ab ,.'\"`()N$\n-@", max_size=60))
@settings(max_examples=200, deadline=None)
def test_detokenizing_loses_no_letter(style: str, text: str) -> None:
    plain = DETOKENIZERS[style](text)
    assert plain.count("\n") == text.count("\n")
    assert re.sub(r"[^abN]", "", plain) == re.sub(r"[^abN]", "", text)


def test_treebank_sentences_come_back(shared_data: Path) -> None:
    import sys

    sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
    try:
        from detokenize import compare, treebank
    finally:
        sys.path.pop(0)
    n, equal, words = compare(treebank(shared_data))
    assert n > 800
    assert equal > 0.9
    assert words > 0.95


# HTML


def test_articles_of_real_pages(shared_data: Path) -> None:
    pytest.importorskip("trafilatura")
    from minilm.text.articles import article_text

    folder = shared_data / "html_article_benchmark"
    truth = json.loads((folder / "ground-truth.json").read_text())
    shares = []
    for path in sorted((folder / "html").iterdir())[:12]:
        known = set(re.findall(r"\w+", truth[path.name.removesuffix(".html.gz")]["articleBody"]))
        found = set(re.findall(r"\w+", article_text(gzip.decompress(path.read_bytes()).decode())))
        shares.append(len(known & found) / len(known | found))
    assert sum(shares) / len(shares) > 0.85
    assert article_text("<html><body></body></html>") == article_text("") == ""
