"""python -m dcr_hf.llava: a user's mistake ends in one line and code 2, an error of our own in its traceback."""

import shutil

import pytest

from dcr_hf.llava import __main__ as command


def swap_arguments(llava, encoder, output):
    return ["swap", "--llava", str(llava), "--encoder", str(encoder), "--output", str(output)]


def cut(folder):
    file = min(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])


def test_broken_files_end_in_one_line(llava_folder, towers, tmp_path, refusal):
    llava, encoder = shutil.copytree(llava_folder, tmp_path / "llava"), towers["clip-l-224"]
    torn = shutil.copytree(encoder, tmp_path / "torn")
    cut(torn)
    assert "torn" in refusal(command.main, swap_arguments(llava, torn, tmp_path / "out"))
    cut(llava)
    assert "is no safetensors file" in refusal(command.main, swap_arguments(llava, encoder, tmp_path / "out"))
    (llava / "model.safetensors.index.json").write_text("{}")
    assert "no weight_map" in refusal(command.main, swap_arguments(llava, encoder, tmp_path / "out"))
    (llava / "tokenizer.json").write_text("{")
    assert "processor: " in refusal(command.main, swap_arguments(llava, encoder, tmp_path / "out"))
    (llava / "config.json").write_text("{")
    assert "config.json" in refusal(command.main, swap_arguments(llava, encoder, tmp_path / "out"))
    (torn / "config.json").write_text('{"model_type": "unheard_of"}')
    assert "unheard_of" in refusal(command.main, ["check", str(torn)])
    assert not (tmp_path / "out").exists()


def test_check_finds_weights_that_are_cut_off(towers, tmp_path, capsys):
    torn = shutil.copytree(towers["clip-l-224"], tmp_path / "torn")
    cut(torn)
    with pytest.raises(SystemExit) as ended:
        command.main(["check", str(torn)])
    assert ended.value.code == 1 and "model.safetensors" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, OSError, KeyError])
def test_an_error_of_our_own_keeps_its_traceback(monkeypatch, kind):
    def fail(*args):
        raise kind("our own")

    monkeypatch.setattr(command, "check_tower", fail)
    with pytest.raises(kind, match="our own"):
        command.main(["check", "folder"])
