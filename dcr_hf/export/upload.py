"""Exported folders -> repositories of the hub."""

from pathlib import Path

from huggingface_hub import HfApi


def push_to_hub(
    folders: tuple[Path, Path], model_id: str | None, private: bool | None, token: str | None
) -> list[str]:
    """Upload both folders, as `model_id` (by default the folder's name) and `model_id`-vision; returns their ids."""
    api = HfApi(token=token)
    ids = []
    for folder, suffix in zip(folders, ("", "-vision"), strict=True):
        repository = api.create_repo(model_id + suffix if model_id else folder.name, private=private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repository.repo_id, commit_message="Encoder enhanced by DCR")
        ids.append(repository.repo_id)
    return ids
