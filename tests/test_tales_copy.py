"""The copy check against brute force, and how new fresh stories are."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from minilm.text import tales
from minilm.text.tales.copying import CopyCheck, suffix_array


def brute_share(story: str, texts: list[str]) -> float:
    words = story.split()
    padded = [f" {' '.join(text.split())} " for text in texts]
    for length in range(len(words), 0, -1):
        for i in range(len(words) - length + 1):
            if any(f" {' '.join(words[i : i + length])} " in text for text in padded):
                return length / len(words)
    return 0.0


def test_copied_share_equals_brute_force() -> None:
    r = random.Random(1)
    for letters, size in (("ab", 12), ("abc", 30), ("abcdefgh", 60)):
        for _ in range(20):
            texts = [" ".join(r.choices(letters, k=r.randint(0, size))) for _ in range(r.randint(0, 6))]
            check = CopyCheck(texts)
            for story in [*texts, "", *(" ".join(r.choices(letters + "z", k=r.randint(1, 20))) for _ in range(5))]:
                assert check.copied_share(story) == pytest.approx(brute_share(story, texts))
    texts = list(tales.stories(n=100))
    check = CopyCheck(iter(texts))
    for story in tales.stories(n=10, split="fresh"):
        assert check.copied_share(story) == pytest.approx(brute_share(story, texts))


def test_suffix_array_equals_sorting() -> None:
    rng = np.random.default_rng(0)
    for n, v in [(0, 1), (1, 1), (50, 1), (200, 2), (500, 3), (400, 70_000)]:
        ids = rng.integers(1, v + 1, n, dtype=np.int32)
        assert suffix_array(ids).tolist() == sorted(range(n), key=lambda i: ids[i:].tolist())


@pytest.mark.slow
def test_fresh_stories_are_new_against_50_megabytes() -> None:
    train = list(tales.stories(megabytes=50))
    check = CopyCheck(train)
    fresh = list(tales.stories(n=5000, split="fresh"))
    shares = [check.copied_share(story) for story in fresh]
    counts = Counter(fresh)
    passed = sum(share <= 0.6 and counts[story] == 1 for share, story in zip(shares, fresh, strict=True))
    print(f"mean copied share {np.mean(shares):.3f}, largest {max(shares):.3f}, passed {passed / len(fresh):.4f}")
    assert passed / len(fresh) >= 0.98
    assert check.copied_share(train[12345]) == 1.0
