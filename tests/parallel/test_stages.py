"""Which layers a stage gets: every layer once, in order, no split better."""

from __future__ import annotations

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from janus_pt.config.schema import ModelConfig
from janus_pt.parallel.stages import balanced, pipeline_layers, relative_costs


@given(costs=st.lists(st.floats(0, 10), min_size=1, max_size=8), data=st.data())
def test_no_other_split_has_a_cheaper_costliest_stage(
    costs: list[float], data: st.DataObject
) -> None:
    stages = data.draw(st.integers(1, len(costs)))
    bounds = balanced(costs, stages)
    assert bounds[0] == 0 and bounds[-1] == len(costs) and all(a < b for a, b in pairwise(bounds))

    def worst(cuts: tuple[int, ...]) -> float:
        return max(sum(costs[a:b]) for a, b in pairwise((0, *cuts, len(costs))))

    best = min(worst(cuts) for cuts in combinations(range(1, len(costs)), stages - 1))
    assert worst(tuple(bounds[1:-1])) <= best + 1e-9


def test_a_decoder_layer_weighs_more_than_an_encoder_layer_and_the_head_more_still() -> None:
    model = ModelConfig(
        vocab_size=50000, hidden_size=768, ffn_hidden_size=3072, num_attention_heads=12
    )
    costs = relative_costs(model)
    assert len(costs) == 15 and costs[0] == costs[7] == 0
    assert costs[14] > costs[8] > 3 * costs[1]
    assert [list(part) for part in pipeline_layers(model, 2)] == [
        list(range(11)),
        list(range(11, 15)),
    ]


@given(
    encoder=st.integers(1, 5),
    decoder=st.integers(1, 5),
    vocab_size=st.sampled_from([300, 50000]),
    data=st.data(),
)
def test_every_stage_has_a_transformer_layer(
    encoder: int, decoder: int, vocab_size: int, data: st.DataObject
) -> None:
    stages = data.draw(st.integers(1, encoder + decoder))
    model = ModelConfig(vocab_size=vocab_size, encoder_layers=encoder, decoder_layers=decoder)
    parts = pipeline_layers(model, stages)
    assert [layer for part in parts for layer in part] == list(range(encoder + decoder + 3))
    others = {0, encoder + 1, encoder + decoder + 2}
    assert all(set(part) - others for part in parts)
