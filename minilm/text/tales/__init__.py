"""Tales: an embedded corpus that can grade. Any amount of it from a seed, nothing to download.

A story is a plan of events (`plans`, `scenes`) in a small world (`world`; what an event needs and does: `things`,
`people`, `days`), told by a grammar (`grammar`, the tables beside it) in words (`words`) and read back by `grader`.
"""

from minilm.text.tales.copying import CopyCheck
from minilm.text.tales.grader import Verdict, grade
from minilm.text.tales.grammar import LEVELS, STYLES
from minilm.text.tales.tell import SPLITS, Beat, mixed_stories, stories, story, trace
from minilm.text.tales.world import RULES

__all__ = ["LEVELS", "RULES", "SPLITS", "STYLES", "Beat", "CopyCheck", "Verdict"]
__all__ += ["grade", "mixed_stories", "stories", "story", "trace"]
