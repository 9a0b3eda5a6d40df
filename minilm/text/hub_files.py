"""Files of a data set on the Hugging Face Hub: which they are, how large, with which checksum, at which commit.

The listing is asked for once and kept beside the downloads, so that a later run needs no network and sees the same
commit, also where the script names a branch.
"""

from __future__ import annotations

import fnmatch
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from minilm.errors import MinilmError, UsageError
from minilm.text.download import OFFLINE_WAY, Source
from minilm.text.folders import disk_errors, short_hash


@dataclass(frozen=True)
class HubFiles:
    """The files of a data set repository that match one of `patterns`, at `revision` (a commit; a branch where a script
    knows of no commit, and then the commit that the first listing found)."""

    repo: str
    patterns: tuple[str, ...]
    revision: str = "main"

    def listed(self, folder: Path) -> list[Source]:
        """Each with its size and, where the Hub states it (all large files), its SHA-256. Raises MinilmError where
        neither the Hub nor an earlier listing in `folder` is there."""
        kept = folder / f"hub-{short_hash(f'{self.repo} {self.revision} {self.patterns}')}.json"
        if not kept.is_file():
            sources = self._ask()
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                partial = kept.with_suffix(".tmp")
                partial.write_text(json.dumps([asdict(source) for source in sources], indent=1), encoding="utf-8")
                partial.replace(kept)
        return [Source(**source) for source in json.loads(kept.read_text(encoding="utf-8"))]

    def _ask(self) -> list[Source]:
        from huggingface_hub import HfApi, hf_hub_url
        from huggingface_hub.hf_api import RepoFile

        try:
            commit = HfApi().dataset_info(self.repo, revision=self.revision).sha
            tree = HfApi().list_repo_tree(self.repo, recursive=True, revision=commit, repo_type="dataset")
            found = [entry for entry in tree if isinstance(entry, RepoFile)]
        except Exception as error:  # the client raises its HTTP library's errors beside its own
            raise MinilmError(
                f"the list of {self.repo}'s files cannot be had from the Hub ({str(error).splitlines()[0][:200]}): try "
                f"again later, or {OFFLINE_WAY}"
            ) from error
        sources = [
            Source(
                url=hf_hub_url(self.repo, entry.path, repo_type="dataset", revision=commit),
                bytes=entry.size,
                sha256=entry.lfs.sha256 if entry.lfs else "",
                path=entry.path,
            )
            for entry in found
            if any(fnmatch.fnmatchcase(entry.path, pattern) for pattern in self.patterns)
        ]
        if not sources:
            raise UsageError(f"{self.repo} has no file {' or '.join(self.patterns)} at {commit}: check the options")
        return sources
