"""What a run prints: short lines on the first rank, all entries in the log files."""

from types import SimpleNamespace

import pytest

from dcr_hf.training.progress import PlainLog, duration, log_line, say

LOGS = {
    "loss": 2.31041,
    "grad_norm": 0.5,
    "learning_rate": 1e-3,
    "cosine/view": 0.9812,
    "cosine/target": 0.5241,
    "cosine/negative": 0.9771,
    "cosine/hardest_negative": 0.99,
    "noise_mse/own": 0.244,
    "noise_mse/other": 0.248,
    "condition_norm": 0.31,
    "images_per_second": 12.34,
    "skipped_images": 3,
    "epoch": 0.13,
}


def test_a_training_line_is_short():
    assert log_line(LOGS, 20, 150, 245.0) == (
        "step 20/150  loss 2.3104  view 0.981  target 0.524  negatives 0.977  noise MSE 0.244  condition norm 0.31  "
        "images/s 12.3  skipped 3  4 min left"
    )


def test_an_evaluations_line_has_all_its_numbers():
    assert log_line({"eval_mmvp_vlm": 0.52, "epoch": 1.0}, 500, 4600, None) == (
        "step 500/4,600  eval_mmvp_vlm 0.52  epoch 1"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(45, "45 s"), (89, "89 s"), (720, "12 min"), (12_000, "3 h 20 min"), (190_000, "2 d 4 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("first", "lines"), [(True, 1), (False, 0)])
def test_only_the_first_rank_prints(capsys, first, lines):
    state = SimpleNamespace(is_world_process_zero=first, global_step=0, max_steps=10)
    log = PlainLog()
    log.on_train_begin(None, state, None)
    state.global_step = 5
    log.on_log(None, state, None, logs=dict(LOGS))
    log.on_log(None, state, None, logs={"gradient_conflict/layer/3": 0.2})
    log.on_log(None, state, None, logs={"train_runtime": 3.0})
    say(SimpleNamespace(process_index=0 if first else 1), "stage 1 of 2")
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 * lines and all("{" not in line for line in printed)
