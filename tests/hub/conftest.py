import pytest
from huggingface_hub import constants

from dcr_hf import hub as hub_room
from dcr_hf.hub import patience
from helpers.hub import constants_for, fake_hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An emulated hub that this process uses, with an empty cache and short waits."""
    with fake_hub() as emulated:
        for name, value in constants_for(emulated.url, tmp_path / "cache").items():
            monkeypatch.setattr(constants, name, value)
        for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):
            monkeypatch.setattr(constants, name, 1)
        monkeypatch.setattr(patience, "FIRST_WAIT", 0.05)
        monkeypatch.setattr("dcr_hf.hub.remote.TIMEOUT", 1)
        monkeypatch.setattr(patience, "TIMEOUT", 1)
        monkeypatch.setenv(patience.PATIENCE_VARIABLE, "20")
        for variable in ("HF_TOKEN", "HF_ENDPOINT"):
            monkeypatch.delenv(variable, raising=False)
        hub_room.forget_pins()
        yield emulated
        hub_room.forget_pins()
