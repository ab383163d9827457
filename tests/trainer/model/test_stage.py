from dataclasses import replace

import pytest
import torch
from torch.distributed.tensor import DTensor

from comms.ledger import Ledger
from parallel.apply import ModelParts, parallelize
from parallel.config import ParallelConfig
from parallel.layout import Layout
from parallel.mesh import build_mesh
from parallel.pipeline.run import Pipeline
from parallel.pipeline.schedule import PipelineShape
from parallel.pipeline.stages import StagedGradients
from tests.ranks import run_on_ranks
from tests.trainer.model.batches import make_batch
from trainer.model.config import Architecture, MoeConfig
from trainer.model.decoder import Decoder
from trainer.model.init import init_weights
from trainer.model.stage import DecoderStage, DecoderStages
from trainer.model.stage_costs import layer_flops, stage_layers

MOE = MoeConfig(
    num_experts=4,
    top_k=2,
    expert_intermediate_size=8,
    shared_intermediate_size=8,
    aux_loss_weight=0.1,
    z_loss_weight=0.01,
    first_dense_layers=1,
)
ARCHITECTURE = Architecture(
    vocab_size=40,
    hidden_size=16,
    num_layers=8,
    num_heads=4,
    num_kv_heads=2,
    intermediate_size=24,
    tie_embeddings=False,
    qk_norm=True,
    moe=MOE,
)
BATCHES = [[[7, 5], [3, -4]], [[9]], [[4, 4, 6]], [[2, -3], [8]], [[6, 5]]]
"""Microbatches of different sizes."""


def make_batches(seed=0):
    return [make_batch(s, 40, seed=seed + i) for i, s in enumerate(BATCHES)]


def filled(module):
    init_weights(module, 3)
    return module


def targets(batches):
    return sum(batch.num_targets for batch in batches)


def one_process(batches, divisor):
    """Losses, loads and gradients of the whole decoder."""
    model = filled(Decoder(ARCHITECTURE))
    losses = torch.zeros(2)
    load = torch.zeros(7, 4)
    for batch in batches:
        parts = model(batch)
        ((parts.loss_sum + parts.aux_sum) / divisor).backward()
        losses += torch.stack([parts.loss_sum, parts.aux_sum]).detach()
        load += parts.expert_load
    return losses, load, {name: p.grad for name, p in model.named_parameters()}


def make_stages(shape, rank):
    layers = stage_layers(ARCHITECTURE, shape.stages, context_tokens=8)
    return [DecoderStage(ARCHITECTURE, layers[stage]) for stage in shape.stages_of(rank)]


def test_stages_have_the_names_and_weights_of_the_whole_decoder():
    whole = dict(filled(Decoder(ARCHITECTURE)).named_parameters())
    shape = PipelineShape(schedule="interleaved", ranks=2, stages_per_rank=2)
    names = []
    for rank in range(2):
        part = filled(DecoderStages(make_stages(shape, rank)))
        for name, parameter in part.named_parameters():
            assert torch.equal(parameter, whole[name])
            names.append(name)
        assert set(part.state_dict()) <= set(Decoder(ARCHITECTURE).state_dict())
        assert len(part.layers) == 4
        assert len(list(part.layers)) == 4
    assert sorted(names) == sorted(whole)


@pytest.mark.parametrize("recompute", [False, True])
def test_stages_one_after_the_other_are_the_decoder_bitwise(recompute):
    shape = PipelineShape(schedule="interleaved", ranks=1, stages_per_rank=3)
    stages = DecoderStages(make_stages(shape, 0))
    filled(stages).recompute = recompute
    batch = make_batches()[0]
    hidden, losses, reports = None, [], []
    for stage in stages.stages:
        hidden, loss, report = stage(hidden, batch)
        losses.append(loss)
        reports.append([report])
    (torch.stack([x for x in losses if x is not None]).sum() / 5.0).backward()
    wanted, load, gradients = one_process([batch], 5.0)
    parts = stages.total(reports)
    assert torch.equal(parts.loss_sum, wanted[0])
    torch.testing.assert_close(parts.aux_sum, wanted[1], rtol=1e-6, atol=0)
    assert torch.equal(parts.expert_load, load)
    for name, parameter in stages.named_parameters():
        assert torch.equal(parameter.grad, gradients[name]), name


def test_tied_embeddings_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"tie_embeddings.*set it to false, or parallel.pp to 1"):
        DecoderStage(replace(ARCHITECTURE, tie_embeddings=True), range(0, 4))


def test_only_the_first_stage_takes_tokens():
    with pytest.raises(ValueError, match="only the first stage"):
        DecoderStage(ARCHITECTURE, range(4, 8))(None, make_batches()[0])


def test_layers_are_balanced_by_their_arithmetic():
    dense = replace(ARCHITECTURE, moe=None, vocab_size=1000)
    flops = layer_flops(dense, 8)
    assert len(set(flops)) == 1
    assert len(stage_layers(dense, 2, context_tokens=8)[0]) > 4
    windowed = replace(dense, sliding_window=4, sliding_window_from_layer=4)
    assert layer_flops(windowed, 64)[0] > layer_flops(windowed, 64)[7]


def test_the_selection_bias_moves_as_in_the_whole_decoder():
    load = torch.rand(7, 4, generator=torch.Generator().manual_seed(2))
    whole = filled(Decoder(ARCHITECTURE))
    whole.update_expert_bias(load, 0.1)
    shape = PipelineShape(schedule="zero_bubble", ranks=2, stages_per_rank=2)
    for rank in range(2):
        part = filled(DecoderStages(make_stages(shape, rank)))
        part.update_expert_bias(load, 0.1)
        for name, buffer in part.named_buffers():
            assert torch.equal(buffer, dict(whole.named_buffers())[name])


class PipelinedDecoder:
    """A decoder over a layout, its pipeline and its gradients, as a training run has them."""

    def __init__(self, shape, *, recompute=False, dtype=torch.float32, **axes):
        meshes = build_mesh(Layout(pp=shape.ranks, **axes), "cpu")
        self.ledger = Ledger()
        with torch.device("meta"):
            stages = make_stages(shape, meshes.group("pp").rank())
        spreads = [
            parallelize(
                stage,
                parts=ModelParts(blocks=list(stage.layers), experts=stage.experts),
                meshes=meshes,
                config=CONFIG,
                param_dtype=dtype,
                compile_blocks=False,
                ledger=self.ledger,
            )
            for stage in stages
        ]
        self.part = DecoderStages(stages)
        self.part.to_empty(device="cpu")
        filled(self.part).recompute = recompute
        self.gradients = StagedGradients([spread.gradients() for spread in spreads])
        self.pipeline = Pipeline(
            stages,
            shape=shape,
            group=meshes.group("pp"),
            hidden_shape=lambda batch: (len(batch.tokens_T), 16),
            dtype=dtype,
            ledger=self.ledger,
            start_backward=self.gradients.start_backward,
        )

    def step(self, batches, divisor):
        reports = self.pipeline.run(batches, divisor=divisor, whole_backward=self.part.recompute)
        self.gradients.finish()
        return self.part.total(reports)


def full(gradient):
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient


def steps_of(rank, cases, data):
    """Two steps of each case, the second with other batches after the gradients were dropped."""
    found = []
    for shape, options in cases:
        spread = PipelinedDecoder(shape, **options)
        for seed in (50, 0):
            batches = make_batches(seed=seed + 10 * (rank % data))
            everything = [b for i in range(data) for b in make_batches(seed=seed + 10 * i)]
            parts = spread.step(batches, targets(everything))
            gradients = {n: full(p.grad).clone() for n, p in spread.part.named_parameters()}
            spread.gradients.zero()
        found.append((parts, gradients, spread.ledger.take()[0]))
    return found


def shape_of(schedule, ranks, stages_per_rank=1):
    return PipelineShape(schedule=schedule, ranks=ranks, stages_per_rank=stages_per_rank)


CONFIG = ParallelConfig(bucket_bytes=2000)
REPLICAS = {"replica": 2}
SHARDED = {"shard": 2}
HALF = {"dtype": torch.bfloat16}


def compare(results, data, *, rtol=2e-5, atol=1e-6):
    """Losses, loads and gradients of one case against the decoder on all of its batches."""
    batches = [b for i in range(data) for b in make_batches(seed=10 * i)]
    losses, load, gradients = one_process(batches, targets(batches))
    parts = [result[0] for result in results]
    summed = torch.stack([torch.stack(p[:2]) for p in parts]).sum(0)
    torch.testing.assert_close(summed, losses, rtol=max(rtol, 1e-6), atol=atol)
    loads = torch.stack([p.expert_load for p in parts]).sum(0)
    if rtol < 1e-3:
        assert torch.equal(loads, load)
    seen = set()
    for _, found, _ in results:
        for name, gradient in found.items():
            torch.testing.assert_close(
                gradient, gradients[name], rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
            )
            seen.add(name)
    assert seen == set(gradients)


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_schedule_gives_the_losses_and_gradients_of_the_decoder(ranks):
    cases = [
        (shape_of("1f1b", ranks), {}),
        (shape_of("interleaved", ranks, 2), {}),
        (shape_of("zero_bubble", ranks, 2), {}),
        (shape_of("zero_bubble", ranks, 2), {"recompute": True}),
    ]
    results = run_on_ranks(ranks, steps_of, cases, 1)
    for case in range(len(cases)):
        compare([found[case] for found in results], 1, rtol=0, atol=0)


def test_stages_compose_with_replicas_and_with_sharding():
    cases = [
        (shape_of("1f1b", 2), REPLICAS),
        (shape_of("interleaved", 2, 2), REPLICAS),
        (shape_of("zero_bubble", 2, 2), REPLICAS),
        (shape_of("1f1b", 2), SHARDED),
        (shape_of("interleaved", 2, 2), SHARDED),
        (shape_of("zero_bubble", 2, 2), SHARDED),
        (shape_of("zero_bubble", 2, 2), {**SHARDED, "recompute": True}),
    ]
    results = run_on_ranks(4, steps_of, cases, 2)
    for case in range(len(cases)):
        compare([found[case] for found in results], 2)


def test_half_precision_travels_in_half_the_bytes():
    cases = [(shape_of(s, 2, n), HALF) for s, n in (("1f1b", 1), ("zero_bubble", 2))]
    results = run_on_ranks(2, steps_of, cases, 1)
    for case, boundaries in enumerate((1, 2)):
        found = [result[case] for result in results]
        compare(found, 1, rtol=0.1, atol=0.02)
        tokens = sum(len(batch.tokens_T) for batch in make_batches())
        sent = sum(result[2]["pp/send"] for result in found)
        assert sent == 2 * 2 * boundaries * tokens * 16 * 2  # steps, directions
