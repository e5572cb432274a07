"""Pins: what 'owner/name@revision' is at the moment, asked once and used for every later request of the process."""

import contextlib
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name

from dcr_hf.errors import NotFoundError, UnavailableError, UserError
from dcr_hf.hub import patience
from dcr_hf.hub.answers import explained

logger = logging.getLogger(__name__)
Kind = Literal["model", "dataset"]

_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
# An id that may be a mistyped path is not asked for minutes where nothing answers at all.
WITHOUT_CONNECTION = 5.0


@dataclass(frozen=True)
class Pin:
    """A repository at a commit.

    Attributes:
        revision: the branch, tag or commit that was asked for.
        files: the paths of all its files at this commit; of those in the cache, where the hub could not be asked.
        moved_to: the commit that `revision` is at now, where another was asked for and they differ.
    """

    repository: str
    kind: Kind
    revision: str
    commit: str
    files: tuple[str, ...]
    moved_to: str | None = None

    @property
    def folder(self) -> Path:
        """Where the cache holds its files, whether they are there or not."""
        return _cache_of(self.repository, self.kind) / "snapshots" / self.commit


_PINS: dict[tuple[Kind, str], Pin] = {}
_DECLARED: set[str] = set()
_PREFERRED: dict[str, str] = {}


def hub_id(given: str) -> tuple[str, str] | None:
    """Repository and revision of 'owner/name@revision'; None for what has another form, or is a file or folder."""
    match = _ID.fullmatch(given)
    if match is None or given.startswith(".") or Path(given).expanduser().exists():
        return None
    return match["repository"], match["revision"] or "main"


def declare(ids: Iterable[str]) -> None:
    """Say that these are ids of the hub and no mistyped paths: what a recipe file states."""
    _DECLARED.update(ids)


def prefer(ids: Iterable[str], option: str) -> None:
    """Where one of these repositories is asked for without a revision, the one given here is meant.

    Raises:
        UserError: one is not of the form owner/name@revision.
    """
    for given in ids:
        if hub_id(given) is None or "@" not in given:
            raise UserError(f"{option} {given}: expected owner/name@revision.")
        _PREFERRED[given.partition("@")[0]] = given


def preferred(repository: str) -> str:
    """The repository with the revision that `prefer` named, if it did."""
    return _PREFERRED.get(repository, repository)


def pin(what: str, given: str, kind: Kind = "model", commit: str | None = None) -> Pin:
    """The repository that `given` names, at its revision's commit or at `commit`.

    Args:
        what: the option or part that names it, for messages.
        commit: of an earlier start of the same run.

    Raises:
        NotFoundError: neither a folder nor on the hub.
        UserError: whatever else the hub says.
        UnavailableError: it does not answer, and the cache has no copy.
    """
    if (known := _PINS.get((kind, given))) is not None:
        return known
    named = hub_id(given)
    if named is None:
        raise NotFoundError(
            f"{what} {given!r} is neither a folder here nor a hub id of the form 'owner/name' or "
            "'owner/name@revision'. Give the path of a folder that exists, or an id."
        )
    _PINS[kind, given] = found = _ask(what, given, *named, kind, commit)
    if found.moved_to:
        logger.warning(
            f"{what} {given!r}: the hub's {found.revision} has moved to {found.moved_to[:12]}; this run continues "
            f"with {found.commit[:12]}, with which it began."
        )
    return found


def find_pin(given: str, kind: Kind = "model") -> Pin | None:
    """The pin of what was asked for before."""
    return _PINS.get((kind, given))


def adopt(pins: Iterable[tuple[str, Pin]]) -> None:
    """Take over what another process of the run asked."""
    for given, found in pins:
        _PINS[found.kind, given] = found


def forget_pins() -> None:
    """Ask again for everything: another run begins in this process."""
    _PINS.clear()
    _PREFERRED.clear()


def _ask(what: str, given: str, repository: str, revision: str, kind: Kind, commit: str | None) -> Pin:
    def info(at: str) -> Callable:
        timeout = patience.TIMEOUT
        return lambda: HfApi().repo_info(repository, repo_type=kind, revision=at, timeout=timeout)

    who = f"{what} {given!r}"
    try:
        with explained(who, given):
            found = patience.patiently(who, info(commit or revision), _limit_of(given, repository, kind))
            now = found.sha
            if commit and commit != revision:
                with contextlib.suppress(RevisionNotFoundError):  # a branch that was deleted since
                    now = patience.patiently(who, info(revision)).sha
    except RevisionNotFoundError as error:
        raise _no_such_revision(who, repository, revision, commit) from error
    except (OfflineModeIsEnabled, UnavailableError) as error:
        cached = _from_cache(repository, revision, kind, commit)
        if cached is None:
            raise _not_reached(who, given, error) from error
        logger.warning(f"{who}: the hub cannot be asked; using {cached.commit[:12]} from the cache.")
        return cached
    if commit is None:
        _remember(repository, kind, revision, found.sha)
    moved_to = now if now != found.sha else None
    files = tuple(sibling.rfilename for sibling in found.siblings)
    return Pin(repository, kind, revision, found.sha, files, moved_to)


def _limit_of(given: str, repository: str, kind: Kind) -> Callable[[Exception], float]:
    """Patient; but not for minutes where nothing answers and the id may be a mistyped path, or is in the cache."""

    def limit(error: Exception) -> float:
        known = _surely_an_id(given) and not _cache_of(repository, kind).is_dir()
        return patience.patience() if known or not patience.no_connection(error) else WITHOUT_CONNECTION

    return limit


def _surely_an_id(given: str) -> bool:
    return given in _DECLARED or "@" in given or patience.hub_was_reached()


def _no_such_revision(who: str, repository: str, revision: str, commit: str | None) -> UserError:
    if commit:
        return UserError(
            f"{who}: this run began with commit {commit} of {repository}, which is no longer on the hub. Begin again "
            "in another --output_dir, or with --overwrite_output_dir."
        )
    return NotFoundError(f"{who}: {repository} has no branch, tag or commit {revision!r}.")


def _not_reached(who: str, given: str, error: Exception) -> Exception:
    if isinstance(error, UnavailableError) and (_surely_an_id(given) or not patience.no_connection(error)):
        return error
    offline = isinstance(error, OfflineModeIsEnabled)
    why = "HF_HUB_OFFLINE is set" if offline else patience.reason(error.__cause__ or error)
    return NotFoundError(
        f"{who} is no folder here and not in the cache, and the hub cannot be asked ({why}). If it is a path, correct "
        "it; if it is an id, check it and the connection."
    )


def _cache_of(repository: str, kind: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type=kind)


def _remember(repository: str, kind: Kind, revision: str, commit: str) -> None:
    """Write the cache's own note of where a branch is, which downloads by commit leave out: for a later start
    without the hub."""
    if revision == commit:
        return
    note = _cache_of(repository, kind) / "refs" / revision
    with contextlib.suppress(OSError):  # a cache that is only read
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(commit, encoding="utf-8")


def _from_cache(repository: str, revision: str, kind: Kind, commit: str | None) -> Pin | None:
    try:
        folder = Path(
            snapshot_download(repository, repo_type=kind, revision=commit or revision, local_files_only=True)
        )
    except LocalEntryNotFoundError as error:
        partial = getattr(error, "snapshot_path", None)
        if partial is None:
            return None
        folder = Path(partial)
    files = tuple(sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()))
    return Pin(repository, kind, revision, folder.name, files) if files else None
