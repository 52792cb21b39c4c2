"""What fairseq's options mean to a converter, by their names in fairseq 1.0.0a0.

A checkpoint of an older form holds all options of its training. Those that change what the model
computes are read, or must have a value that our model has; others are known to be harmless; what is
in no table is refused, for nobody knows what it does.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

SIDED = ("embed_dim", "ffn_embed_dim", "attention_heads", "normalize_before", "learned_pos")
"""Read for the encoder and for the decoder, as `encoder_embed_dim`; both must be equal."""
READ = (
    "criterion",
    "encoder_layers",
    "decoder_layers",
    "activation_fn",
    "no_scale_embedding",
    "layernorm_embedding",
    "max_source_positions",
    "max_target_positions",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    # Checked with the embedding's size.
    "decoder_input_dim",
    "decoder_output_dim",
)
MUST_BE_OFF = (
    "adaptive_input",
    "adaptive_softmax_cutoff",
    "base_layers",
    "char_inputs",
    "cross_self_attention",
    "decoder_layers_to_keep",
    "decoder_xformers_att_config",
    "encoder_layers_to_keep",
    "encoder_xformers_att_config",
    "merge_src_tgt_embed",
    "moe_freq",
    "no_cross_attention",
    "no_decoder_final_norm",
    "no_token_positional_embeddings",
    "quant_noise_scalar",
    "scale_attn",
    "scale_fc",
    "scale_heads",
    "scale_resids",
)
"""Options that change the model in ways that ours has not; unset they do nothing."""
HARMLESS = (
    # The weights say which tables are shared.
    "share_all_embeddings share_decoder_input_output_embed",
    # Names and folders.
    "_name arch task data user_dir source_lang target_lang *_dir *_file *_path *_logdir",
    "plasma_path train_subset valid_subset gen_subset dataset_impl finetune_from_model bpe",
    "tokenizer scoring restore_file simul_type eos pad unk",
    # Training: precision, optimizer, schedule, batches, noise of the data.
    "*fp16* *bf16* amp* *loss_scale* cpu tpu on_cpu_convert_precision seed no_seed_provided",
    "optimizer optimizer_overrides adam_* weight_decay clip_norm use_old_adam sentence_avg lr",
    "lr_* *_lr warmup_* total_num_update end_learning_rate power update_freq stop_*",
    "force_anneal max_epoch max_update max_tokens* batch_size* required_* num_batch_buckets",
    "curriculum num_workers data_buffer_size skip_* truncate_source upsample_primary",
    "load_alignments left_pad_* *_size_inputs_* shorten_* sample_break_mode tokens_per_sample",
    "mask* insert permute* rotate poisson_lambda replace_length noise mask_length mask_random",
    # Only training drops, recomputes or quantises like that.
    "relu_dropout adaptive_softmax_dropout *_layerdrop quant_noise_pq",
    "quant_noise_pq_block_size quantization_config_path checkpoint_activations",
    "offload_activations min_params_to_wrap export base_sublayers base_shuffle",
    "apply_bert_init label_smoothing report_accuracy ignore_prefix_size tie_adaptive_weights",
    "alignment_* *_alignment adaptive_softmax_factor pooler_* no_share_* classifier_*",
    "spectral_norm*",
    # Processes, logs, checkpoints, validation, decoding.
    "distributed_* device_id ddp_* bucket_cap_mb broadcast_buffers find_unused_parameters",
    "fix_batches_to_gpus fast_stat_sync heartbeat_timeout nprocs_per_node pipeline_*",
    "zero_sharding no_reshard_* fp32_reduce_scatter cpu_offload use_sharded_state not_fsdp_*",
    "gradient_as_bucket_view localsgd_frequency slowmo_* use_bmuf block_* average_sync",
    "global_sync_iter all_gather_list_size model_parallel_size num_shards shard_id",
    "checkpoint_* write_checkpoints_asynchronously load_checkpoint_* *_wandb* wandb_*",
    "azureml_logging aim_* log_* no_progress_bar progress_bar tensorboard_* profile",
    "empty_cache_freq suppress_crashes reset_* ema_* store_ema use_plasma_view save_*",
    "no_save* no_epoch_checkpoints no_last_checkpoints keep_* patience best_checkpoint_metric",
    "maximize_best_checkpoint_metric validate_* disable_validation fixed_validation_seed",
    "combine_valid_subsets ignore_unused_valid_subsets max_valid_steps eval_* beam nbest",
    "lenpen unkpen max_len_* min_len iter_decode_* remove_bpe quiet path post_process",
)
"""Patterns of options that a converter need not know."""
_PATTERNS = [pattern for line in HARMLESS for pattern in line.split()]


def is_known(option: str) -> bool:
    """Whether an option is in one of the tables."""
    side, _, name = option.partition("_")
    if side in ("encoder", "decoder") and name in SIDED:
        return True
    if option in READ or option in MUST_BE_OFF:
        return True
    return any(fnmatchcase(option, pattern) for pattern in _PATTERNS)


def is_off(value: Any) -> bool:
    """Whether an option's value means that it is not used."""
    return not value or value == "0"
