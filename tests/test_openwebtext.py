"""OpenWebText from dumps to shards: real pages through a proxy on loopback, with all planted that goes wrong."""

from __future__ import annotations

import contextlib
import gzip
import json
import lzma
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from shutil import which
from typing import Any

import pytest

pytest.importorskip("datatrove", reason="needs the extra `cluster`")
pytest.importorskip("trafilatura", reason="needs the extra `data`")

from minilm.errors import MinilmError, UsageError
from minilm.text import build_corpus as building
from minilm.text import openwebtext
from minilm.text.articles import article_text
from minilm.text.clean import language_share
from minilm.text.openwebtext import BLOCKED, link, same_page
from minilm.text.shards import open_shards
from minilm.text.tokenizer import get_tokenizer
from minilm.text.webpages import Fetcher, Limits, decoded

QUICK = Limits(pause_seconds=0.01, timeout_seconds=0.5, page_seconds=2, page_bytes=1 << 20, retries=1)


class Web:
    """Every host there is, behind one proxy on loopback."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.wrong: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.asked: list[tuple[float, str]] = []
        self.busy: Counter[str] = Counter()
        self.most_at_once: Counter[str] = Counter()
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                url = self.path
                host = url.split("/")[2]
                with lock:
                    outer.asked.append((time.monotonic(), url))
                    outer.busy[host] += 1
                    outer.most_at_once[host] = max(outer.most_at_once[host], outer.busy[host])
                try:
                    if url in outer.wrong:
                        outer.wrong[url](self)
                    elif url in outer.pages:
                        reply(self, outer.pages[url])
                    else:
                        self.send_error(404)
                except OSError:
                    pass  # nobody waits any more
                finally:
                    with lock:
                        outer.busy[host] -= 1

        class Proxy(ThreadingHTTPServer):
            request_queue_size = 128

        self.http = Proxy(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True, args=(0.01,)).start()
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"

    def count(self, url: str) -> int:
        return sum(asked == url for _, asked in self.asked)


def reply(
    handler: BaseHTTPRequestHandler, body: bytes, kind: str = "text/html", length: int | None = None, **more: str
) -> None:
    handler.send_response(200)
    for name, value in ({"Content-Type": kind, "Content-Length": str(length or len(body))} | more).items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    served = Web()
    monkeypatch.setenv("http_proxy", served.address)
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield served
    served.http.shutdown()
    served.http.server_close()


# One page at a time


def test_what_a_host_can_do_wrong(web: Web) -> None:
    tries: Counter[str] = Counter()
    bomb = gzip.compress(b"a" * (8 << 20))

    def sometimes(handler: BaseHTTPRequestHandler) -> None:
        tries["busy"] += 1
        if tries["busy"] == 1:
            handler.send_error(503)
        else:
            reply(handler, b"<p>at last</p>")

    def slowly(handler: BaseHTTPRequestHandler) -> None:
        reply(handler, b"x", length=10_000)
        for _ in range(40):
            time.sleep(0.1)
            handler.wfile.write(b"x")

    web.wrong = {
        "http://busy.org/": sometimes,
        "http://never.org/": lambda handler: time.sleep(1.5),
        "http://drips.org/": slowly,
        "http://breaks.org/": lambda handler: reply(handler, b"<p>half", length=1000),
        "http://picture.org/": lambda handler: reply(handler, b"\x89PNG", "image/png"),
        "http://garbage.org/": lambda handler: reply(
            handler, random.Random(1).randbytes(4000), "text/html; charset=utf-8"
        ),
        "http://huge.org/": lambda handler: reply(handler, b"<p>" + b"a" * (2 << 20)),
        "http://bomb.org/": lambda handler: reply(handler, bomb, "text/html", Content_Encoding="gzip"),
        "http://round.org/": lambda handler: moved(handler, "http://round.org/"),
        "http://old.org/": lambda handler: moved(handler, "http://new.org/"),
        "http://limits.org/": lambda handler: handler.send_error(429),
        "http://down.org/robots.txt": lambda handler: handler.send_error(500),
    }
    web.pages = {
        "http://new.org/": b"<p>new</p>",
        "http://closed.org/robots.txt": b"User-agent: *\nDisallow: /private",
        "http://closed.org/private/a": b"<p>no</p>",
        "http://closed.org/public": b"<p>yes</p>",
        "http://cafe.org/": '<meta charset="iso-8859-1"><p>caf\xe9 \x93quoted\x94</p>'.encode("latin-1"),
    }
    expected = {
        "http://busy.org/": "page",
        "http://never.org/": "time-out",
        "http://drips.org/": "time-out",
        "http://breaks.org/": "no connection",
        "http://picture.org/": "no web page",
        "http://garbage.org/": "no text",
        "http://huge.org/": "too long",
        "http://bomb.org/": "too long",
        "http://round.org/": "too many redirects",
        "http://old.org/": "page",
        "http://limits.org/": "HTTP 429",
        "http://down.org/": "HTTP 500",
        "http://closed.org/private/a": "robots.txt forbids",
        "http://closed.org/public": "page",
        "http://cafe.org/": "page",
        "http://missing.org/": "HTTP 404",
        "http://a.org:999999/": "no connection",
    }
    found = Fetcher(QUICK).fetch(list(expected))
    assert {one.url: one.outcome for one in found} == expected
    texts = {one.url: one.text for one in found if one.text}
    assert texts["http://busy.org/"] == "<p>at last</p>"
    assert texts["http://old.org/"] == "<p>new</p>"
    assert "café “quoted”" in texts["http://cafe.org/"]
    assert web.count("http://limits.org/") == 2  # one retry
    assert web.count("http://missing.org/") == 1
    assert web.count("http://down.org/") == web.count("http://closed.org/private/a") == 0


def moved(handler: BaseHTTPRequestHandler, to: str) -> None:
    handler.send_response(302)
    handler.send_header("Location", to)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def test_of_a_host_one_request_at_a_time_and_pauses_between(web: Web) -> None:
    urls = [f"http://{host}.org/{i}" for i in range(4) for host in ("a", "b", "www.a")]
    web.pages = dict.fromkeys(urls, b"<p>text</p>")
    web.pages["http://b.org/robots.txt"] = b"User-agent: *\nCrawl-delay: 1"
    fetcher = Fetcher(Limits(pause_seconds=0.1))
    found = [one for begin in (0, 6) for one in fetcher.fetch(urls[begin : begin + 6])]
    assert [one.url for one in found] == urls
    assert all(one.outcome == "page" for one in found)
    for host, pause in (("a.org", 0.1), ("b.org", 1.0)):
        times = [at for at, url in web.asked if url.split("/")[2].removeprefix("www.") == host]
        pauses = [after - before for before, after in pairwise(times)]
        assert min(pauses[1:]) > pause * 0.95  # what robots.txt asks for is known from the second request on
        assert web.most_at_once[host] == 1
    assert web.count("http://a.org/robots.txt") == 1


def test_a_host_that_is_gone_is_left_alone(web: Web) -> None:
    urls = [f"http://gone.org/{i}" for i in range(6)]
    web.wrong = {url: lambda handler: time.sleep(0.3) for url in urls}
    found = Fetcher(Limits(pause_seconds=0, timeout_seconds=0.1, retries=0, host_failures=2)).fetch(urls)
    assert [one.outcome for one in found] == ["time-out"] * 2 + ["host gone"] * 4


def test_encodings_of_pages() -> None:
    text = "<html><p>Žluťoučký kůň</p></html>"
    assert decoded(text.encode()) == text
    assert decoded(text.encode("cp1250"), "windows-1250") == text
    assert decoded(text.replace("<p>", "<meta charset=cp1250><p>").encode("cp1250")) is not None
    assert decoded(text.encode("utf-16"), "no-such-charset") == text
    assert decoded(b"") == ""


# Links


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"url": "http://a.org/x", "score": 3}, ""),
        ({"url": "http://a.org/x", "score": 2}, "karma too low"),
        ({"url": "http://a.org/x"}, "karma too low"),
        ({"url": "http://a.org/x", "score": 9, "is_self": True}, "no link to a page"),
        ({"url": "ftp://a.org/x", "score": 9}, "no link to a page"),
        ({"url": "http://127.0.0.1/x", "score": 9}, "no link to a page"),
        ({"url": "http://localhost/x", "score": 9}, "no link to a page"),
        ({"url": "http://[::1]/x", "score": 9}, "no link to a page"),
        ({"url": "http://[broken/x", "score": 9}, "no link to a page"),
        ({"url": None, "score": 9}, "no link to a page"),
        ({"url": "http://www.youtube.com/watch?v=1", "score": 9}, "on the blocklist"),
        ({"url": "http://notyoutube.com/watch", "score": 9}, ""),
        ({"url": "http://a.org/cat.JPG", "score": 9}, "on the blocklist"),
        ({"url": "http://a.org/report.2005/page", "score": 9}, ""),
        ({"url": "http://a.org", "score": "many"}, "broken line"),
    ],
)
def test_links_worth_fetching(row: dict[str, Any], reason: str) -> None:
    assert link(json.dumps(row), 3, frozenset(BLOCKED.read_text().split()))[1] == reason


def test_links_of_real_dumps(shared_data: Path) -> None:
    blocked = frozenset(BLOCKED.read_text().split())
    for path in sorted((shared_data / "openwebtext").iterdir()):
        lines = lzma.decompress(path.read_bytes()).decode().splitlines(keepends=True)
        reasons = Counter(link(line, 3, blocked)[1] for line in lines)
        rows = [json.loads(line) for line in lines]
        assert reasons["karma too low"] == sum(row["score"] < 3 and row["url"].startswith("http") for row in rows)
        assert reasons["broken line"] == 0
        assert reasons[""] > 0.9 * sum(row["score"] >= 3 for row in rows)
    assert link("{broken", 3, blocked) == ("", "broken line")
    assert link("http://a.org/a?b=1&amp;c=2#end\n", 3, blocked) == ("http://a.org/a?b=1&c=2", "")


def test_same_page() -> None:
    same = ["http://a.org/x/", "https://www.a.org/x", "http://A.org/x?utm_source=reddit", "http://a.org/x?"]
    assert len(set(map(same_page, same))) == 1
    assert len(set(map(same_page, ["http://a.org/x", "http://a.org/y", "http://a.org/x?id=1", "http://b.org/x"]))) == 4


# The whole


FOREIGN = ("la-nacion", "lemonde-1", "qq", "heise", "aktualne")


def plant(web: Web, shared: Path, dumps: Path) -> tuple[dict[str, str], Counter[str]]:
    """Pages and dumps. Returns the text of each page that must come through, and how many must not and why."""
    pages = {
        path.parent.name: path.read_bytes() for path in sorted((shared / "html_readability").glob("*/source.html"))
    }
    names = [name for name in pages if name not in FOREIGN and 5_000 < len(pages[name]) < 80_000][:13]
    drops: Counter[str] = Counter()
    links: list[tuple[str, int]] = []
    good: dict[str, str] = {}
    gpt2 = get_tokenizer(shared / "gpt2_files")
    for i, name in enumerate([*names, *FOREIGN]):
        url = f"http://site{i % 7}.org/{name}"
        web.pages[url] = pages[name]
        links.append((url, 3 + i))
        text = article_text(decoded(pages[name]) or "")
        if not text:
            drops["no article"] += 1
        elif language_share(text, "en") < 0.5:
            drops["language:en"] += 1
        elif len(gpt2.encode(text)) < 128:
            drops["min_tokens:128"] += 1
        else:
            good[url] = text
    assert drops["language:en"] >= len(FOREIGN) - 1
    longest = max(good, key=lambda url: len(good[url]))
    web.pages["http://mirror.org/copy"] = web.pages[longest].replace(b" the ", b" the very ", 2)
    links.append(("http://mirror.org/copy", 5))
    drops["near-duplicates"] += 1
    links += [(longest.replace("http://", "https://www.") + "/?utm_source=reddit", 7), (longest, 8)]
    drops["seen before"] += 2
    web.wrong = {
        "http://never.org/": lambda handler: time.sleep(1.5),
        "http://garbage.org/": lambda handler: reply(handler, random.Random(1).randbytes(9000)),
        "http://picture.org/": lambda handler: reply(handler, b"\x89PNG", "image/png"),
        "http://breaks.org/": lambda handler: reply(handler, b"<p>half", length=1000),
    }
    links += [(url, 4) for url in web.wrong] + [("http://site1.org/missing", 4), ("http://site2.org/missing", 4)]
    drops += Counter({"time-out": 1, "no text": 1, "no web page": 1, "no connection": 1, "HTTP 404": 2})
    links += [("http://low.org/", 2), ("http://i.imgur.com/x", 99), ("http://site1.org/x.mp3", 99)]
    drops += Counter({"karma too low": 1, "on the blocklist": 2})
    row = json.loads(lzma.decompress((shared / "openwebtext" / "RS_v2_2005-06.xz").read_bytes()).partition(b"\n")[0])
    lines = [json.dumps(row | {"url": url, "score": score}) + "\n" for url, score in links]
    lines += [json.dumps(row | {"is_self": True, "url": "http://www.reddit.com/r/x"}) + "\n", '{"url": "http://cut\n']
    drops += Counter({"no link to a page": 1, "broken line": 1})
    dumps.mkdir()
    (dumps / "RS_2011-01.xz").write_bytes(lzma.compress("".join(lines[:12]).encode()))
    (dumps / "RS_2011-02.jsonl.gz").write_bytes(gzip.compress("".join(lines[12:]).encode()))
    return good, drops


def words(dumps: Path, out: Path, shared: Path, *more: str) -> list[str]:
    given = ["openwebtext", "--build", str(dumps), "--out", str(out), "--tasks", "2", "--workers", "1"]
    given += ["--tokenizer", str(shared / "gpt2_files"), "--pause_seconds", "0.01", "--timeout_seconds", "1"]
    return [*given, *more]


def documents(out: Path) -> list[str]:
    return [
        json.loads(line)["text"]
        for path in sorted((out / "documents").glob("*.jsonl.gz"))
        for line in gzip.open(path, "rt", encoding="utf-8")
    ]


def test_from_dumps_to_shards(
    web: Web, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from minilm.text.clean import make_cleaner
    from minilm.text.scripts import prepare_words

    good, drops = plant(web, shared_data, tmp_path / "dumps")
    out = tmp_path / "build"
    folder = prepare_words(words(tmp_path / "dumps", out, shared_data))
    told = (out / "funnel.md").read_text()
    table = [line.split("|")[1:5] for line in told.splitlines() if line.startswith("| ")][1:]
    found = Counter(
        {reason.strip(): int(count.replace(",", "")) for reason, count, *_ in table if int(count.replace(",", ""))}
    )
    assert found == drops
    assert int(table[-1][3].replace(",", "")) == len(documents(out)) == len(good)
    repair = make_cleaner("repair").clean
    expected = [repair(text) for text in good.values()]
    missing = [text for text in expected if text not in documents(out)]
    assert len(missing) <= 1  # of a page and its near copy either may stay
    assert "slowest: " in told
    assert told.split("\n\n")[1] in capsys.readouterr().err
    shards = open_shards(folder)
    tokenizer = shards.tokenizer()
    decoded_texts = [
        tokenizer.decode(split.document(i)) for split in shards.splits.values() for i in range(split.n_documents)
    ]
    assert sorted(decoded_texts) == sorted(documents(out))
    # Again: nothing is asked for and nothing changes.
    asked = len(web.asked)
    assert prepare_words(words(tmp_path / "dumps", out, shared_data)) == folder
    assert len(web.asked) == asked
    assert (out / "funnel.md").read_text() == told
    with pytest.raises(UsageError, match="other dumps or settings"):
        prepare_words(words(tmp_path / "dumps", out, shared_data, "--min_score", "9"))


def test_misuse_and_an_empty_result(
    web: Web, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "urls.txt").write_text("http://site.org/missing\n")
    with pytest.raises(MinilmError, match=r"no page of .* is left"):
        building.build_words(words(tmp_path / "urls.txt", tmp_path / "a", shared_data)[1:])
    assert "HTTP 404 | 1 |" in (tmp_path / "a" / "funnel.md").read_text()
    with pytest.raises(UsageError, match="does not exist"):
        building.build_words(words(tmp_path / "nothing", tmp_path / "b", shared_data)[1:])
    with pytest.raises(UsageError, match="partition"):
        building.build_words(words(tmp_path / "urls.txt", tmp_path / "c", shared_data, "--executor", "slurm")[1:])
    monkeypatch.setitem(sys.modules, "minilm.text.openwebtext", None)
    with pytest.raises(UsageError, match=r"minilm\[cluster,data\]"):
        building.build_words(words(tmp_path / "urls.txt", tmp_path / "d", shared_data)[1:])


@pytest.mark.faults
def test_killed_while_downloading(web: Web, shared_data: Path, tmp_path: Path) -> None:
    good, _ = plant(web, shared_data, tmp_path / "dumps")
    program = (
        "import os, signal, sys\n"
        "import minilm.text.openwebtext as o\n"
        "from minilm.text.scripts import prepare_words\n"
        "o.CHUNK = 4\n"
        "fetch, calls = o.Fetcher.fetch, []\n"
        "def killed(self, urls):\n"
        "    calls.append(1)\n"
        "    if len(calls) > 3 and sys.argv[1] == 'kill':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return fetch(self, urls)\n"
        "o.Fetcher.fetch = killed\n"
        "prepare_words(sys.argv[2:])\n"
    )
    out = tmp_path / "build"

    def start(how: str) -> int:
        command = [sys.executable, "-c", program, how, *words(tmp_path / "dumps", out, shared_data)]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        code = process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # datatrove's manager outlives its parent
        return code

    assert start("kill") == -signal.SIGKILL
    before = [url for _, url in web.asked if "robots" not in url]
    assert start("on") == 0
    after = [url for _, url in web.asked if "robots" not in url][len(before) :]
    assert len(before) >= 9
    assert not set(before) & set(after)
    assert len(documents(out)) == len(good)


@pytest.mark.slow
def test_the_same_on_a_ray_cluster_of_two_workers(
    web: Web, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra `cluster`")
    from ray.cluster_utils import Cluster

    monkeypatch.setattr(openwebtext, "BUCKETS", 4)  # a task each
    plant(web, shared_data, tmp_path / "dumps")
    building.build_words(words(tmp_path / "dumps", tmp_path / "local", shared_data)[1:])
    proxy = os.environ.pop("http_proxy")  # for the tasks alone: Ray's own messages go without
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, runtime_env={"env_vars": {"http_proxy": proxy}})
        assert len(ray.nodes()) == 2
        more = ("--executor", "ray", "--executor_options", "mem_per_cpu_gb=1")
        given = words(tmp_path / "dumps", tmp_path / "ray", shared_data, *more)
        given[given.index("--workers") + 1] = "2"
        building.build_words(given[1:])
    finally:
        ray.shutdown()
        cluster.shutdown()
    same_output(tmp_path, "ray")


def same_output(folder: Path, kind: str) -> None:
    """Documents and table of a build are those of the local one."""
    names = sorted(path.name for path in (folder / "local" / "documents").iterdir())
    assert names == sorted(path.name for path in (folder / kind / "documents").iterdir())
    for name in names:
        local, there = (gzip.decompress((folder / one / "documents" / name).read_bytes()) for one in ("local", kind))
        assert local.replace(b"/local/", f"/{kind}/".encode()) == there
    table = (folder / "local" / "funnel.md").read_text().split("\n\n")[0]
    assert (folder / kind / "funnel.md").read_text().split("\n\n")[0] == table


SBATCH = """
import json, pathlib, sys
queue = pathlib.Path(__file__).parent / "queue"
queue.mkdir(exist_ok=True)
number = 100 + len(list(queue.iterdir()))
*options, script = sys.argv[1:]
job = {"options": options, "script": pathlib.Path(script).read_text()}
(queue / f"{number}.json").write_text(json.dumps(job))
print("Submitted batch job", number)
"""


def slurm_commands(folder: Path) -> None:
    """A cluster's commands as far as a job needs them: sbatch queues, srun runs, scontrol names the one node."""
    programs = {
        "sbatch": f"#!{sys.executable}\n{SBATCH}",
        "srun": '#!/bin/bash\n[ "$1 $2 $3" = "-l -n 1" ] || exit 9\nshift 3\nexec "$@"\n',
        "scontrol": '#!/bin/bash\n[ "$*" = "show hostnames node1" ] && echo node1\n',
    }
    for name in ("launch_pickled_pipeline", "merge_stats"):
        programs[name] = f'#!/bin/bash\nexec {sys.executable} -m datatrove.tools.{name} "$@"\n'
    folder.mkdir()
    for name, program in programs.items():
        (folder / name).write_text(program)
        (folder / name).chmod(0o755)


def run_queue(folder: Path) -> list[str]:
    """Every queued job's array, after what it depends on; the names of the jobs."""
    done: dict[str, bool] = {}
    names = []
    for path in sorted((folder / "queue").iterdir()):
        job = json.loads(path.read_text())
        said = dict(line[10:].partition("=")[::2] for line in job["script"].splitlines() if line.startswith("#SBATCH"))
        given = dict(option[2:].partition("=")[::2] for option in job["options"])
        kind, _, number = (given.get("dependency") or said.get("dependency") or "").partition(":")
        assert kind in ("", "afterok")
        assert done.get(number, not kind), f"{path.name} depends on {number}"
        assert (said["partition"], said["time"], said["cpus-per-task"]) == ("cpu", "2:00:00", "1")
        assert said["mem-per-cpu"] == ("1G" if "dependency" in said else "3G")
        exported = dict(word.partition("=")[::2] for word in given.get("export", "").split(",") if "=" in word)
        last = int(said["array"].partition("%")[0].removeprefix("0-"))
        codes = []
        for i in range(last + 1):
            task = {"SLURM_ARRAY_TASK_ID": str(i), "SLURM_JOB_ID": path.stem, "SLURM_NODELIST": "node1"}
            log = folder / f"{path.stem}_{i}.out"
            with log.open("w") as out:
                words = ["bash", "-c", job["script"]]
                codes.append(subprocess.run(words, env=os.environ | exported | task, stdout=out, stderr=out).returncode)
        done[path.stem] = not any(codes)
        names.append(said["job-name"])
    assert all(done.values()), done
    return names


@pytest.mark.slow
def test_the_same_by_slurm_s_launch_scripts(
    web: Web, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What sbatch is given is run as Slurm would run it; scheduling itself is not tested."""
    monkeypatch.setattr(openwebtext, "BUCKETS", 2)  # a task each
    plant(web, shared_data, tmp_path / "dumps")
    building.build_words(words(tmp_path / "dumps", tmp_path / "local", shared_data)[1:])
    slurm_commands(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    more = ("--executor", "slurm", "--executor_options", "partition=cpu,time=2:00:00,mem_per_cpu_gb=3")
    given = words(tmp_path / "dumps", tmp_path / "slurm", shared_data, *more)[1:]
    assert building.build_words(given) == tmp_path / "slurm"
    assert "handed over" in capsys.readouterr().err
    assert not (tmp_path / "slurm" / "documents").exists()
    names = run_queue(tmp_path / "bin")
    stages = ["links", "pages", "articles", "hashes", "pairs", "clusters", "documents"]
    assert names[::2] == [f"openwebtext-{name}" for name in stages]  # a job that adds statistics behind each
    folder = building.build_words(given)
    assert open_shards(folder).splits["train"].n_documents
    assert len(list((tmp_path / "bin" / "queue").iterdir())) == len(names)
    same_output(tmp_path, "slurm")


def has_slurm() -> bool:
    return bool(which("sbatch")) and subprocess.run(["sinfo", "-h", "-t", "idle"], capture_output=True).stdout != b""


@pytest.mark.slow
@pytest.mark.skipif(not has_slurm(), reason="needs a Slurm cluster, idle, on this machine")
def test_the_same_by_slurm(
    web: Web, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(openwebtext, "BUCKETS", 2)
    plant(web, shared_data, tmp_path / "dumps")
    building.build_words(words(tmp_path / "dumps", tmp_path / "local", shared_data)[1:])
    partition = subprocess.run(["sinfo", "-h", "-o", "%R"], capture_output=True, text=True).stdout.split()[0]
    more = ("--executor", "slurm", "--executor_options", f"partition={partition},time=0:20:00,mem_per_cpu_gb=2")
    given = words(tmp_path / "dumps", tmp_path / "slurm", shared_data, *more)[1:]
    building.build_words(given)
    assert "handed over" in capsys.readouterr().err
    until = time.monotonic() + 900
    while subprocess.run(["squeue", "-h", "--me"], capture_output=True).stdout and time.monotonic() < until:
        time.sleep(1)
    folder = building.build_words(given)
    assert "handed over" not in capsys.readouterr().err
    assert open_shards(folder).splits["train"].n_documents
    same_output(tmp_path, "slurm")
