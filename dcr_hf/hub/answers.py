"""What the hub's answers mean to the user who asked."""

import contextlib
from collections.abc import Iterator

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from dcr_hf.errors import NotFoundError, UserError
from dcr_hf.hub import patience


@contextlib.contextmanager
def explained(who: str, given: str) -> Iterator[None]:
    """What the hub says to a stranger, as what it means.

    Args:
        who: the option and its value, for the messages.
    """
    repository = given.partition("@")[0]
    try:
        yield
    except GatedRepoError as error:
        raise UserError(
            f"{who}: access to {repository} is restricted. Accept its conditions on its page of the hub, then log in: "
            "hf auth login (or set HF_TOKEN)."
        ) from error
    except RepositoryNotFoundError as error:
        raise NotFoundError(
            f"{who} is neither a folder here nor a repository on the hub that you can see. Correct it; for a private "
            "repository log in first: hf auth login (or set HF_TOKEN)."
        ) from error
    except RevisionNotFoundError:
        raise
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        if patience.passes(error):
            raise
        raise UserError(f"{who} on the hub: {error}") from error


@contextlib.contextmanager
def explained_at_commit(who: str, given: str) -> Iterator[None]:
    """`explained`, for requests by commit: one that is no longer on the hub is a UserError too."""
    try:
        with explained(who, given):
            yield
    except RevisionNotFoundError as error:
        raise UserError(f"{who}: its commit is no longer on the hub.") from error
