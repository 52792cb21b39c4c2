"""Sharded layers, their randomness, and the pieces of a pipeline, against the plain model in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from janus_pt.config.schema import ModelConfig, ObjectiveConfig
from janus_pt.model.initialize import initialize_weights
from janus_pt.model.transformer import JanusTransformer
from janus_pt.objectives.examples import collate_examples, make_example
from janus_pt.objectives.fused_loss import VocabShard
from janus_pt.objectives.loss import ObjectiveLoss, TrainingModule
from janus_pt.packing.batch import Batch
from tests.support.models import MODERN
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.slow

CONFIG = ModelConfig(
    vocab_size=53,
    hidden_size=16,
    ffn_hidden_size=24,
    num_attention_heads=4,
    encoder_layers=2,
    decoder_layers=2,
    max_positions=32,
    length_classes=16,
    dropout=0.0,
    init_std=0.3,
    output_bias=True,
)
SEED = 3
OBJECTIVE = ObjectiveConfig.model_validate({"recipe": "translation"})
CORRECTING = ObjectiveConfig.model_validate(
    {"name": "cmlmc", "recipe": "translation", "masking": {"kind": "span", "ratio": 0.2}}
)
OWN_SHAPE = {
    "cmlmc": CONFIG.model_copy(update={"embedding_projection": True, "causal_self_attention": True})
}
COEFFICIENTS = torch.linspace(0.1, 0.7, 7, dtype=torch.float64)


def batch(objective: ObjectiveConfig = OBJECTIVE) -> Batch:
    rng = np.random.default_rng(0)
    pairs = [
        {"source": rng.integers(5, 53, n), "target": rng.integers(5, 53, m)}
        for n, m in ((7, 9), (3, 4), (10, 6))
    ]
    examples = [make_example(pair, rng, model=CONFIG, objective=objective) for pair in pairs]
    made = collate_examples(examples, objective)
    assert all(len(index) for index in made.predict.values())
    return made


def loss_and_gradients(module: TrainingModule) -> tuple[list[float], dict[str, torch.Tensor]]:
    total, sums = module.double()(
        batch(module.loss.objective), COEFFICIENTS[: len(module.loss.names)]
    )
    total.backward()
    return [float(total.detach()), *sums.tolist()], {
        n: p.grad for n, p in module.model.named_parameters()
    }


def plain(
    objective: ObjectiveConfig = OBJECTIVE, kinds: dict[str, Any] | None = None
) -> TrainingModule:
    model = JanusTransformer(OWN_SHAPE.get(objective.name, CONFIG).model_copy(update=kinds))
    initialize_weights(model, SEED)
    return TrainingModule(model, ObjectiveLoss(objective, VocabShard(CONFIG.vocab_size)))


def check_shards(
    objective: ObjectiveConfig, sequence_parallel: bool, kinds: dict[str, Any] | None = None
) -> int:
    """Loss and gradients of this rank's shards against the plain model's."""
    from janus_pt.model.layer_factory import partition_dim
    from janus_pt.parallel import groups
    from janus_pt.parallel.assemble import build_model
    from janus_pt.parallel.tensor import full_tensor, local_shard, vocab_shard

    groups.initialize(tensor_parallel_size=2)
    shape = OWN_SHAPE.get(objective.name, CONFIG).model_copy(update=kinds)
    model = build_model(shape, SEED, sequence_parallel=sequence_parallel)
    vocab = vocab_shard(model.embed_tokens, CONFIG.vocab_size)
    losses, gradients = loss_and_gradients(TrainingModule(model, ObjectiveLoss(objective, vocab)))
    expected_losses, expected = loss_and_gradients(plain(objective, kinds))
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-12)
    split = 0
    for name, parameter in model.named_parameters():
        whole = expected[name]
        torch.testing.assert_close(
            gradients[name], local_shard(parameter, whole), rtol=1e-10, atol=1e-12, msg=name
        )
        torch.testing.assert_close(
            full_tensor(parameter, gradients[name], whole.shape),
            whole,
            rtol=1e-10,
            atol=1e-12,
            msg=name,
        )
        split += partition_dim(parameter) is not None
    groups.shutdown()
    return split


@pytest.mark.parametrize("sequence_parallel", [False, True], ids=["", "sequence parallel"])
@pytest.mark.parametrize("objective", [OBJECTIVE, CORRECTING], ids=lambda objective: objective.name)
def test_two_ranks_compute_what_one_does(
    objective: ObjectiveConfig, sequence_parallel: bool
) -> None:
    attention, feed_forward = (
        3 * 2 + 1,
        2 + 1,
    )  # q, k, v and fc1 with their biases; out and fc2 without
    attentions = 3 if objective is CORRECTING else 2
    vocabulary, encoder_layer, decoder_layer = (
        2,  # the table and the output bias
        attention + feed_forward,
        attentions * attention + feed_forward,
    )
    assert (
        run_ranks(check_shards, 2, objective, sequence_parallel)
        == [vocabulary + 2 * encoder_layer + 2 * decoder_layer] * 2
    )


def test_ranks_that_share_rows_compute_other_kinds_of_layers() -> None:
    run_ranks(check_shards, 2, OBJECTIVE, True, MODERN)


def what_is_kept(sequence_parallel: bool) -> tuple[np.ndarray, int]:
    """Hidden states with dropout everywhere, and the elements that autograd keeps of one encoder layer."""
    from janus_pt.parallel import groups
    from janus_pt.parallel.assemble import build_model

    groups.initialize(tensor_parallel_size=2)
    shape = CONFIG.model_copy(
        update={"dropout": 0.3, "activation_dropout": 0.2, "attention_dropout": 0.1}
    )
    model = build_model(shape, SEED, sequence_parallel=sequence_parallel)
    model.seed_dropout((1, 2, 3))
    source, slots = batch().source, batch().slots
    hidden, _ = model(source, slots)
    masks = model.encoder_masks(source, torch.float32)
    x = torch.zeros(1, source.tokens.shape[1], shape.hidden_size, requires_grad=True)
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer_output = model.encoder.run(model.rows.own(x), masks)
    assert layer_output.shape[1] == x.shape[1] // (2 if sequence_parallel else 1)
    groups.shutdown()
    return hidden.detach().numpy(), sum(kept.values())


def test_ranks_that_share_rows_draw_the_same_dropout_and_keep_less() -> None:
    (whole, all_kept), (shared, kept) = (
        run_ranks(what_is_kept, 2, sequence_parallel)[0] for sequence_parallel in (False, True)
    )
    np.testing.assert_allclose(shared, whole, rtol=2e-5, atol=1e-6)
    # Inputs of two sublayers and of two norms, and two dropout masks, of which a rank has half.
    rows = batch().source.tokens.shape[1]
    in_full = CONFIG.encoder_layers * 6 * rows * CONFIG.hidden_size
    assert all_kept - kept > 0.9 * in_full / 2


def draws() -> dict[str, Any]:
    """Dropout of a replicated and of a sharded activation, of two passes with the same seed."""
    from janus_pt.parallel import groups
    from janus_pt.parallel.assemble import build_model

    groups.initialize(tensor_parallel_size=2)
    dropping = CONFIG.model_copy(
        update={"dropout": 0.5, "activation_dropout": 0.5, "attention_dropout": 0.5}
    )
    model = build_model(dropping, SEED).double()
    result: dict[str, Any] = {"passes": []}
    with model.encoder.layers[0].tp_rng_fork():
        result["sharded"] = torch.rand(4).tolist()
    result["replicated"] = torch.rand(4).tolist()
    for recompute in ("none", "all"):
        model.recompute_activations(recompute)
        model.seed_dropout((1, 2, 3))
        model.zero_grad()
        hidden = model(batch().source, batch().slots)[0]
        hidden.square().sum().backward()
        gradient = model.encoder.layers[1].fc1.weight.grad.clone()
        result["passes"].append((hidden.detach().numpy(), gradient.numpy()))
    groups.shutdown()
    return result


def test_dropout_is_in_step_where_activations_are_replicated_and_differs_where_they_are_sharded() -> (
    None
):
    torch.manual_seed(0)
    first, second = run_ranks(draws, 2)
    assert first["sharded"] != second["sharded"]
    np.testing.assert_array_equal(first["passes"][0][0], second["passes"][0][0])
    for rank in (first, second):
        (hidden, gradient), (again, recomputed) = rank["passes"]
        np.testing.assert_array_equal(hidden, again)
        np.testing.assert_allclose(gradient, recomputed, rtol=1e-12, atol=1e-14)


def chained(stages: int) -> tuple[list[float], dict[str, Any]]:
    """Loss and gradients of all stages of a pipeline, run one behind the other in this process."""
    from janus_pt.parallel import groups
    from janus_pt.parallel.assemble import build_model
    from janus_pt.parallel.pipeline import Stage
    from janus_pt.parallel.stages import pipeline_layers
    from janus_pt.parallel.tensor import vocab_shard

    groups.initialize()
    carry: Any = torch.empty(0)
    parts = [
        Stage(build_model(CONFIG, SEED, layers).double(), layers)
        for layers in pipeline_layers(CONFIG, stages)
    ]
    for part in parts:
        part.seeds, part.batches = iter([(0,)]), iter([batch()])
        carry = part(carry)
    last = parts[-1].model
    loss = ObjectiveLoss(OBJECTIVE, vocab_shard(last.embed_tokens, CONFIG.vocab_size))
    hidden, lengths, table = carry
    total, sums = loss(hidden, lengths, table, batch(), COEFFICIENTS)
    total.backward()
    gradients: dict[str, Any] = {}
    for part in parts:
        for name, parameter in part.model.named_parameters():
            gradient = (
                parameter.grad[: CONFIG.vocab_size]
                if name in ("embed_tokens.weight", "output.bias")
                else parameter.grad
            )
            gradients[name] = gradients.get(name, 0) + gradient  # the tie: copies' gradients add up
    groups.shutdown()
    return [float(total.detach()), *sums.tolist()], {n: g.numpy() for n, g in gradients.items()}


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_the_stages_of_a_pipeline_are_the_model(stages: int) -> None:
    losses, gradients = run_ranks(chained, 1, stages)[0]
    expected_losses, expected = loss_and_gradients(plain())
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-12)
    assert gradients.keys() == expected.keys()
    for name, whole in expected.items():
        np.testing.assert_allclose(
            gradients[name], whole.numpy(), rtol=1e-10, atol=1e-12, err_msg=name
        )


def alike() -> list[str]:
    """What the comparison of ranks says when nothing, a setting, or a weight differs."""
    import os

    from janus_pt.parallel import groups
    from janus_pt.parallel.assemble import build_model
    from janus_pt.parallel.consistency import check_identical, parameter_fingerprints
    from janus_pt.utils.errors import UserError

    groups.initialize(tensor_parallel_size=2)
    rank = int(os.environ["RANK"])
    model = build_model(CONFIG, SEED)
    messages = []
    with torch.no_grad():
        model.encoder.layers[0].fc1.weight[0, 0] += rank  # split: a rank's own
        good = parameter_fingerprints(model)
        model.encoder.layers[1].fc2.bias[2] += rank * 1e-6  # replicated
    for claims in (
        [{"the configuration": "same"}],
        good,
        [{"the configuration": str(rank)}],
        parameter_fingerprints(model),
        # As of two stages: one thing in common, in a set of its own.
        [{"table": "same"}, {f"layer {rank}": str(rank)}],
        [{"table": str(rank)}, {f"layer {rank}": "same"}],
    ):
        try:
            check_identical(*claims)
            messages.append("")
        except UserError as error:
            messages.append(str(error))
    groups.shutdown()
    return messages


def test_ranks_that_differ_are_named() -> None:
    first, second = run_ranks(alike, 2)
    assert first == second and first[:2] == ["", ""]
    assert first[2].startswith("the configuration: not the same on all ranks: 1 differ from 0")
    assert first[3].startswith("parameter encoder.layers.1.fc2.bias: not the same")
    assert first[4] == "" and first[5].startswith("table: not the same on all ranks")


def test_tensor_parallel_ranks_are_neighbours() -> None:
    assert run_ranks(order_of_ranks, 4) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def order_of_ranks() -> tuple[int, int]:
    import os

    from janus_pt.parallel import groups

    groups.initialize(tensor_parallel_size=2, pipeline_parallel_size=2)
    coordinate = groups.topology().get_coord(int(os.environ["RANK"]))
    groups.shutdown()
    return coordinate.pipe, coordinate.model
