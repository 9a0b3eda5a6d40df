"""CNN and Daily Mail: 312,085 news articles, each with its highlights behind "TL;DR:" (`--no-highlights`: without)."""

from minilm.text.records import records, whole
from minilm.text.scripts import Dataset, Documents, Files, Source, script_main
from minilm.text.upstream import listed_files, news_story

HUB = "https://huggingface.co/datasets/cnn_dailymail/resolve/11343c3752184397d56efc19a8a7cceb68089318/data/"
CNN = "e8fbc0027e54e0a916abd9c969eb35f708ed1467d7ef4e3b17a56739d65cb200"
DAILY_MAIL = "ad69010002210b7c406718248ee66e65868b9f6820f163aa966369878d14147e"
LISTS = "https://raw.githubusercontent.com/abisee/cnn-dailymail/master/url_lists/"


def documents(files: Files, split: str, *, highlights: bool = True) -> Documents:
    for file in listed_files(files, f"all_{split}.txt", ".story"):
        yield news_story(whole(files, file), highlights)
    for row in records(files, f"{'validation' if split == 'val' else split}-*.parquet"):
        yield "\n\nTL;DR:\n".join([row["article"], row["highlights"]][: 1 + highlights])


DATASET = Dataset(
    name="cnn_dailymail",
    description="312,085 news articles with their highlights.",
    licence="CNN's and Daily Mail's text, research use",
    citation="Hermann et al. 2015, arXiv:1506.03340; See et al. 2017, arXiv:1704.04368",
    documents=documents,
    sources=(
        Source(f"{HUB}cnn_stories.tgz", 158_577_824, CNN),
        Source(f"{HUB}dailymail_stories.tgz", 375_893_739, DAILY_MAIL),
        *(Source(f"{LISTS}all_{split}.txt") for split in ("train", "val", "test")),
    ),
    in_gpt2="partly",
)

if __name__ == "__main__":
    script_main(DATASET)
