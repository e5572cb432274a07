"""Exported folders -> repositories of the hub."""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from dcr_hf.errors import UnavailableError, UserError, as_user_error
from dcr_hf.hub import passes, patiently

_MESSAGE = "Encoder enhanced by DCR"


@dataclass(frozen=True)
class Upload:
    """Where exported folders go.

    Attributes:
        model_id: of the dual encoder; its tower's has `-vision` at the end. None: the folders' own names.
        private: of new repositories; None: as the account's settings say.
        token: None: the one that `hf auth login` left, or HF_TOKEN.
    """

    model_id: str | None = None
    private: bool | None = None
    token: str | None = None

    def names(self, folders: tuple[Path, Path]) -> tuple[str, str]:
        """The repositories' ids, without an owner where none was given."""
        if self.model_id is None:
            return folders[0].name, folders[1].name
        return self.model_id, f"{self.model_id}-vision"


def check_upload(upload: Upload, folders: tuple[Path, Path], create: bool = True) -> None:
    """Raise a UserError unless an upload would be allowed.

    Args:
        create: make the empty repositories, which shows that the token may write there.
    """
    api = HfApi(token=upload.token)
    names = upload.names(folders)
    with as_user_error(f"--hub_model_id {names[0]}", HFValidationError):
        for name in names:
            validate_repo_id(name)
    try:
        account = patiently("--push_to_hub", api.whoami)
        owners = {account["name"], *(org["name"] for org in account.get("orgs", []))}
        owner = names[0].rpartition("/")[0]
        if owner and owner not in owners:
            raise UserError(
                f"--hub_model_id {names[0]}: {owner} is neither you ({account['name']}) nor an organisation of yours."
            )
        if create:
            for name in names:
                _create(api, name, upload)
    except (HfHubHTTPError, LocalTokenNotFoundError) as error:
        raise _refused(names[0], error) from error


def push_to_hub(folders: tuple[Path, Path], upload: Upload, command: str) -> list[str]:
    """Upload both folders; returns their repositories' ids. What is there already is not sent again.

    Args:
        command: what uploads the same folders later, for the message of a failure.
    """
    api, ids = HfApi(token=upload.token), []
    for folder, name in zip(folders, upload.names(folders), strict=True):
        try:
            repository = _create(api, name, upload)
            _name_in_card(folder, repository)
            send = partial(api.upload_folder, folder_path=folder, repo_id=repository, commit_message=_MESSAGE)
            patiently(f"uploading {repository}", send)
        except (HfHubHTTPError, LocalTokenNotFoundError) as error:
            raise _refused(name, error, f" {folder} is complete; to upload it later: {command}") from error
        except UnavailableError as error:
            raise UnavailableError(f"{error} {folder} is complete; to upload it later: {command}.") from error
        ids.append(repository)
    return ids


def upload_command(output_dir: str | Path, upload: Upload, checkpoint: str | None = None) -> str:
    """What uploads a run's export, or that of one of its checkpoints."""
    which = f" --checkpoint {checkpoint}" if checkpoint else ""
    where = f" --hub_model_id {upload.model_id}" if upload.model_id else ""
    return f"python -m dcr_hf.export {output_dir}{which} --push_to_hub{where}"


def _create(api: HfApi, name: str, upload: Upload) -> str:
    make = lambda: api.create_repo(name, private=upload.private, exist_ok=True).repo_id  # noqa: E731
    return patiently(f"--hub_model_id {name}", make)


def _name_in_card(folder: Path, repository: str) -> None:
    """The card's code loads from the repository that it lies in."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8")
    named = re.sub(r'from_pretrained\("[^"]*"\)', f'from_pretrained("{repository}")', text)
    if named != text:
        card.write_text(named, encoding="utf-8")


def _refused(name: str, error: Exception, more: str = "") -> UserError:
    if isinstance(error, HfHubHTTPError) and not passes(error):
        said = error.server_message or str(error).partition("\n")[0]
    else:
        said = str(error)
    return UserError(
        f"--push_to_hub: the hub does not let you write to {name}: {said}. Log in with a token that may write there: "
        f"hf auth login (or set HF_TOKEN, or give --hub_token).{more}"
    )
