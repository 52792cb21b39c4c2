"""The run's configuration: frozen, typed pydantic models. `checks.read_config` loads and checks a file.

DeepSpeed's own configuration is derived from this one (`parallel/deepspeed_config.py`); nothing is said twice.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticKnownError

from janus_pt.config.objectives import DEFAULT_OBJECTIVE, OBJECTIVES, default_values
from janus_pt.config.parallel_schema import ParallelConfig, PrecisionConfig
from janus_pt.config.run_schema import CheckpointConfig, RunConfig, TrackingConfig, ValidationConfig
from janus_pt.config.section import (
    AUTO,
    Count,
    Depth,
    Positive,
    PositiveOrAuto,
    Probability,
    Section,
    Share,
    TokenIds,
    Weight,
)


def _known_objective(name: Any) -> Any:
    """Refuse other names as pydantic refuses the wrong value of a `Literal`. Rows may be added."""
    if not isinstance(name, str) or name not in OBJECTIVES:
        *others, last = (repr(known) for known in OBJECTIVES)
        raise PydanticKnownError("literal_error", {"expected": f"{', '.join(others)} or {last}"})
    return name


KNOWN_OBJECTIVE = BeforeValidator(_known_objective)


class Frame(NamedTuple):
    """Ids that stand before and behind every text."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    @property
    def size(self) -> int:
        """Tokens that it adds to a text."""
        return len(self.prefix) + len(self.suffix)


ROTARY_POSITIONS = ("rotary",)
"""Kinds of `model.positions` that rotate queries and keys, and have no table."""


class ModelConfig(Section):
    """Shape of the encoder-decoder Transformer and the ids its tokenizer uses."""

    vocab_size: Positive
    source_vocab_size: Positive | None = None
    """Vocabulary of the encoder, where source and target have an embedding and a tokenizer each; by default they share
    one. The special ids are the same in both."""
    hidden_size: Positive = 512
    ffn_hidden_size: Positive = 2048
    num_attention_heads: Positive = 8
    num_key_value_heads: Positive | None = None
    """Heads of keys and values, in all attentions: each is read by as many query heads (Ainslie et al. 2023, "GQA").
    By default there are as many as `num_attention_heads`; 1 is multi-query attention."""
    encoder_layers: Depth = 6
    decoder_layers: Depth = 6
    pre_layer_norm: bool = False
    """The norm before each sublayer (and once at the end) instead of after it."""
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    """LayerNorm (Ba et al. 2016), or RMSNorm (Zhang and Sennrich 2019), which has no mean and no bias."""
    feed_forward: Literal["plain", "gated"] = "plain"
    """Gated (Shazeer 2020): the activation of one projection multiplies another. With "silu" it is SwiGLU, with "gelu"
    GEGLU. Three matrices instead of two: two thirds of `ffn_hidden_size` have as many parameters."""
    activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = "gelu"
    """"gelu_tanh" is GELU's approximation by tanh (Hendrycks and Gimpel 2016)."""
    positions: Literal["learned", "sinusoidal", "marian", "rotary"] = "learned"
    """A trained or a computed table ("sinusoidal": fairseq's, "marian": Marian's), added to the token embeddings; or
    rotations of the queries and keys of self-attention (Su et al. 2021), and no table. Cross-attention is never
    rotated."""
    max_positions: Positive = 1024
    """Rows of the position tables, if there are any: the longest source, and the longest target with bos and eos."""
    length_classes: Positive = 256
    """Target lengths the length head tells apart; longer ones fall in the last class."""
    upsampling: Positive = 2
    """Mask symbols for each source token, of models that align their output with them (objective `ctc`). Fixed for a
    model's life."""
    scale_embedding: bool = False
    """Multiply token embeddings by the square root of `hidden_size`."""
    embedding_layer_norm: bool = True
    output_bias: bool = False
    """Add a trained number to each token's score, as Marian does."""
    embedding_projection: bool = False
    """Join the embeddings of a token and of its position and project them to `hidden_size`, instead of adding them
    (CMLMC, Huang et al. 2022)."""
    causal_self_attention: bool = False
    """Behind the self-attention of each decoder layer a second one, in which no slot reads what is to its right
    (CMLMC); for P_NAR alone."""
    dropout: Probability = 0.1
    attention_dropout: Probability = 0.0
    activation_dropout: Probability = 0.0
    init_std: Annotated[float, Field(gt=0)] = 0.02
    """Standard deviation of new weights. 0.02, BERT's, suits hidden sizes near 1000; small models want more."""
    ar_position_offset: Literal[0, 1] = 1
    """Where the AR query that predicts target token p sits: at p - 1 (0) or at p (1). Fixed for a model's life."""
    ar_stream: Literal["query", "content"] = "query"
    """Where P_AR is read off: a query slot beside each token, or the token's own content slot, as in any decoder: fewer
    slots in training, half of the work in decoding. Fixed for a model's life."""
    pad_token_id: Count = 0
    bos_token_id: Count = 1
    eos_token_id: Count = 2
    unk_token_id: Count = 3
    mask_token_id: Count = 4
    """May be `unk_token_id`, as in the authors' translation models and in Marian's, which have no mask symbol."""
    source_prefix: TokenIds | None = None
    """Ids before every source; by default bos."""
    source_suffix: TokenIds | None = None
    """Ids behind every source; by default eos. mBART's are eos and a language."""
    target_prefix: Annotated[TokenIds, Field(min_length=1)] | None = None
    """Ids that the decoder reads before every target; by default bos. The first is where it starts, and may be any
    symbol; it writes none of them. BART's are eos and bos, Marian's is pad. Behind every target is eos."""

    @property
    def head_size(self) -> int:
        """Elements of an attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def source_frame(self) -> Frame:
        """What stands around every source."""
        prefix, suffix = self.source_prefix, self.source_suffix
        return Frame(
            (self.bos_token_id,) if prefix is None else prefix,
            (self.eos_token_id,) if suffix is None else suffix,
        )

    @property
    def target_frame(self) -> Frame:
        """What stands around every target."""
        return Frame(self.target_prefix or (self.bos_token_id,), (self.eos_token_id,))

    @property
    def scored_frame(self) -> int:
        """Tokens of a target's frame that a score's length counts: all but the first, where decoding starts."""
        return self.target_frame.size - 1

    @property
    def longest_text(self) -> int:
        """The most tokens of a source or a target, without its frame, that the positions allow."""
        return self.max_positions - max(self.source_frame.size, self.target_frame.size)

    @property
    def longest_sample(self) -> int:
        """The longest sample that fits, in the count of corpora: its text, bos and eos."""
        return self.longest_text + 2

    @property
    def common_vocab_size(self) -> int:
        """Ids below it are tokens in both source and target."""
        return min(self.vocab_size, self.source_vocab_size or self.vocab_size)


class MaskingConfig(Section):
    """Which target positions are masked, and what the encoder sees of them (METHOD §4)."""

    kind: Literal["infill", "span", "uniform"]
    """`infill`: denoising, the source is made from the target; `span`, `uniform`: a given source, whole spans or
    as many single positions as a uniform draw says."""
    ratio: Share = 0.3
    """Share of the target the spans add up to before overlaps."""
    mean_span_length: Annotated[float, Field(gt=0)] = 3.0
    visible_share: Share = 0.5
    """`infill`: share of spans left readable in the encoder input."""
    rotate_probability: Share = 0.0
    """`infill`: probability that the encoder input is rotated at a random place."""
    full_share: Share = 0.0
    """Probability that a target is masked as a whole, as decoding finds it at first, instead of as `kind` says."""
    suffix_share: Share = 0.0
    """Probability that everything behind a uniformly drawn cut is masked, as speculative decoding finds it when it
    drafts, instead of as `kind` says."""

    @model_validator(mode="after")
    def _shares_fit(self) -> MaskingConfig:
        if self.full_share + self.suffix_share > 1:
            raise ValueError(
                f"full_share {self.full_share} and suffix_share {self.suffix_share} are probabilities of one "
                "draw: together at most 1; lower one of them"
            )
        return self


class ObjectiveConfig(Section):
    """What is trained, with the weights of METHOD §3. `recipe` gives the defaults: `pretraining` or `translation`."""

    name: Annotated[str, KNOWN_OBJECTIVE] = DEFAULT_OBJECTIVE
    """JANUS, or one of its rivals (docs/reference/objectives.md). Weights of terms that an objective lacks are 0."""
    recipe: Literal["pretraining", "translation"] = "pretraining"
    ce_ar: Weight
    ce_nar: Weight
    ce_aux: Weight
    ce_correction: Weight = 0.0
    """`cmlmc`: weight of the tokens to be corrected."""
    kl_ar_aux: Weight
    kl_aux_nar: Weight
    kl_ar_nar: Weight
    length: Weight
    label_smoothing: Probability
    r_drop: Weight = 0.0
    """R-Drop's alpha (Wu et al. 2021): each sample is drawn twice, with two dropouts, and the symmetric KL between the
    two predictions of a stream counts alpha / 2 times its cross-entropy's weight. Twice the work of a step."""
    normalize_by: Literal["slots", "tokens"]
    """Divide each term by the number of its own slots, or every term by the number of target tokens."""
    masking: MaskingConfig
    bang_streams: Annotated[int, Field(gt=0, le=32)] = 9
    """`bang`: its predicting streams."""

    @property
    def draws(self) -> int:
        """How often a batch has each sample."""
        return 2 if self.r_drop else 1

    @model_validator(mode="before")
    @classmethod
    def _fill_from_recipe(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        defaults = default_values(given.get("name", DEFAULT_OBJECTIVE), given.get("recipe"))
        filled = {**defaults, **given}
        if isinstance(given.get("masking"), dict):
            filled["masking"] = {**defaults["masking"], **given["masking"]}
        return filled


class CorpusConfig(Section):
    """One corpus of the mixture."""

    path: str
    """Folder of shards with its `manifest.json`: a local path or any fsspec URL."""
    weight: Annotated[float, Field(gt=0)] = 1.0


class DataConfig(Section):
    """What is read, in which batches. A step reads `global_batch_size`, whatever the number of ranks."""

    train: Annotated[tuple[CorpusConfig, ...], Field(min_length=1, strict=False)]
    valid: str | None = None
    """Corpus for the validation loss."""
    batch_unit: Literal["tokens", "sequences"] = "tokens"
    """Unit of the two sizes below. A batch of n sequences costs n times its longest source or target."""
    global_batch_size: Positive
    """A step, over all ranks and accumulation steps."""
    micro_batch_size: PositiveOrAuto
    """One forward pass of one rank. Gradient accumulation is derived. "auto": the largest that fits into memory; the
    run folder's `config.json` has the number, and a run that goes on keeps it."""
    window: Positive = 16384
    """Samples among which batches of like length are formed; about `micro_batch_size` where lengths must be mixed
    (docs/guides/corpora.md)."""
    shuffle_shards: Positive = 16
    """Shards among which samples are shuffled."""
    on_error: Literal["stop", "skip"] = "stop"
    """What to do about a sample that is damaged, empty or too long: stop, or skip it and count it. A store that
    cannot be reached and a damaged index always stop the run."""
    num_workers: Count = 1
    """Processes per rank that read and build batches ahead."""
    cache_dir: str | None = None
    """Where shards read from a URL are kept (default: `.cache/janus_pt` in the home folder)."""

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches of one step, over all ranks."""
        assert self.micro_batch_size != AUTO, "no number yet"
        return self.global_batch_size // self.micro_batch_size


class OptimizerConfig(Section):
    """AdamW; biases and LayerNorms are not decayed."""

    lr: Annotated[float, Field(gt=0)] = 1e-4
    betas: Annotated[tuple[Probability, Probability], Field(strict=False)] = (0.9, 0.98)
    eps: Annotated[float, Field(gt=0)] = 1e-6
    weight_decay: Weight = 0.01
    clip_norm: Weight = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    layer_lr_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Each layer's learning rate is this share of the one's above it; heads have `lr`, embeddings the lowest."""
    freeze: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Patterns of parameters that are not trained: parts of their names, as in `encoder`, `embed_tokens`,
    `decoder.layers.0`, `encoder.layers.*.fc1`."""


class AdapterConfig(Section):
    """Small trained parts on a frozen model. Names and meanings follow the library peft where it has them."""

    kind: Literal["lora", "bottleneck"] = "lora"
    """`lora`: low-rank matrices beside the linear layers (Hu et al. 2022); `bottleneck`: two small layers behind a
    sublayer (Houlsby et al. 2019), which cannot be merged."""
    r: Positive = 8
    """Rank, or width of the bottleneck."""
    lora_alpha: Annotated[float, Field(gt=0)] = 8.0
    """`lora`: the product of its matrices counts `lora_alpha / r` times."""
    lora_dropout: Probability = 0.0
    """`lora`: dropout of its input."""
    target_modules: Annotated[tuple[str, ...], Field(min_length=1, strict=False)] | None = None
    """Patterns of the linear layers that get one: of `q_proj`, `k_proj`, `v_proj`, `out_proj`, `fc1`, `fc2` and
    `gate_proj`; by default `q_proj`, `v_proj`. A bottleneck is behind `out_proj` or `fc2`, by default behind both."""
    modules_to_save: Annotated[tuple[str, ...], Field(strict=False)] = ("embed_length",)
    """Patterns of parameters that are trained, and saved, as well. Pretraining leaves the length head untrained."""

    @property
    def targets(self) -> tuple[str, ...]:
        """`target_modules` or what stands for it."""
        return (
            self.target_modules
            or {"lora": ("q_proj", "v_proj"), "bottleneck": ("out_proj", "fc2")}[self.kind]
        )


class ScheduleConfig(Section):
    """Learning rate: linear warm-up, then a decay that reaches `final_lr` at `run.max_steps` (not `inverse_sqrt`)."""

    kind: Literal["inverse_sqrt", "polynomial", "cosine"] = "polynomial"
    warmup_steps: Count = 0
    final_lr: Weight = 0.0
    power: Annotated[float, Field(gt=0)] = 1.0


class Config(Section):
    """The whole file."""

    model: ModelConfig
    objective: ObjectiveConfig = Field(default_factory=lambda: ObjectiveConfig.model_validate({}))
    data: DataConfig
    adapter: AdapterConfig | None = None
    """Fine-tuning: train these small parts, and freeze the rest."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    parallel: ParallelConfig = ParallelConfig()
    precision: PrecisionConfig = PrecisionConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    validation: ValidationConfig | None = None
    tracking: TrackingConfig = TrackingConfig()
    run: RunConfig
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Added to DeepSpeed's derived configuration; a key that is derived is an error."""
