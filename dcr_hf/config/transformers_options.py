"""Transformers' own options, for those that no field of ours declares again: which of them change the result.

`tests/config/test_options.py` fails for an option that is in none of the three, also when transformers adds one.
"""

CHANGE_RESULT = frozenset(
    """
    max_steps num_train_epochs learning_rate lr_scheduler_kwargs max_grad_norm
    per_device_train_batch_size gradient_accumulation_steps
    optim_args optim_target_modules adam_beta1 adam_beta2 adam_epsilon
    fp16 tf32 torch_compile torch_compile_backend torch_compile_mode full_determinism
    seed data_seed accelerator_config deepspeed fsdp fsdp_config ddp_backend ddp_bucket_cap_mb
    load_best_model_at_end metric_for_best_model greater_is_better
    """.split()
)

NEUTRAL = frozenset(
    """
    output_dir use_cpu local_rank debug skip_memory_metrics torch_empty_cache_steps
    gradient_checkpointing gradient_checkpointing_kwargs activation_checkpointing activation_checkpointing_kwargs
    logging_strategy logging_first_step log_on_each_node log_level log_level_replica disable_tqdm run_name project
    trackio_space_id trackio_bucket_id trackio_static_space_id logging_dir
    eval_strategy eval_steps eval_delay eval_on_start per_device_eval_batch_size
    save_strategy save_steps save_on_each_node save_total_limit
    push_to_hub hub_token hub_private_repo hub_model_id
    dataloader_drop_last dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
    dataloader_multiprocessing_context
    ddp_broadcast_buffers ddp_static_graph ddp_timeout
    """.split()
)

_OWN_LOSS = "the losses here read no such option; leave it out"
_OWN_EVALUATION = "--eval_benchmarks runs the evaluation, which has no such option; leave it out"
_OWN_BATCHES = "batches are images, not rows of columns; leave it out"
_EXACT = "a resume would not be exact; leave it out"

REFUSED = {
    "resume_from_checkpoint": "the same command resumes from the newest complete checkpoint of --output_dir by itself",
    "ignore_data_skip": f"the data continues from its own recorded position, else {_EXACT}",
    "restore_callback_states_from_checkpoint": "checkpoints keep no states of callbacks; leave it out",
    "save_only_model": f"checkpoints hold little besides, and without it {_EXACT}",
    "enable_jit_checkpoint": "SIGTERM already ends a run with a checkpoint and code 75; leave it out",
    "dataloader_in_order": f"out of order {_EXACT}",
    "hub_strategy": "--push_to_hub uploads the exported encoder at the end; leave it out",
    "hub_always_push": "--push_to_hub uploads the exported encoder at the end; leave it out",
    "hub_revision": "--push_to_hub uploads to the main branch of --hub_model_id; leave it out",
    "do_train": "a recipe always trains what --stage names; leave it out",
    "do_eval": "--eval_benchmarks evaluates during stage 2, recipes/evaluate.py afterwards",
    "do_predict": "recipes/evaluate.py keeps every prediction; leave it out",
    "auto_find_batch_size": "the batch size is part of the objective; --pair_chunk_size auto fits the memory",
    "average_tokens_across_devices": _OWN_LOSS,
    "label_smoothing_factor": _OWN_LOSS,
    "neftune_noise_alpha": "it is noise on the token embeddings of language models; leave it out",
    "use_liger_kernel": "its kernels are for language models; leave it out",
    "liger_kernel_config": "its kernels are for language models; leave it out",
    "use_cache": "it is for models that generate; leave it out",
    "include_num_input_tokens_seen": "there are no tokens to count; the log has images_per_second",
    "include_tokens_per_second": "there are no tokens to count; the log has images_per_second",
    "bf16_full_eval": _OWN_EVALUATION,
    "fp16_full_eval": _OWN_EVALUATION,
    "prediction_loss_only": _OWN_EVALUATION,
    "eval_do_concat_batches": _OWN_EVALUATION,
    "eval_use_gather_object": _OWN_EVALUATION,
    "eval_accumulation_steps": _OWN_EVALUATION,
    "include_for_metrics": _OWN_EVALUATION,
    "batch_eval_metrics": _OWN_EVALUATION,
    "label_names": _OWN_BATCHES,
    "train_sampling_strategy": _OWN_BATCHES,
    "length_column_name": _OWN_BATCHES,
    "parallelism_config": "tensor and context parallelism are not supported; give an accelerate --config_file",
    "per_gpu_train_batch_size": "give --per_device_train_batch_size",
    "per_gpu_eval_batch_size": "give --per_device_eval_batch_size",
    "warmup_ratio": "give --warmup_steps",
}
