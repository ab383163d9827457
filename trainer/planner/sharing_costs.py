"""Pure: what sequences cost on groups of each size, from the model's shape and measured rates."""

from collections.abc import Sequence
from dataclasses import dataclass

from parallel.layout import Layout
from parallel.sequence.scheme import Links, choose_scheme, predict_attention
from parallel.sequence.stretches import AttentionScheme
from parallel.sequence.volume import AttentionBytes, attention_bytes
from trainer.planner.assignment.problem import SequenceCosts
from trainer.planner.costs import RECOMPUTE_FACTOR, Hardware, ModelCost, sent_bytes


def causal_pairs(lengths_tokens: Sequence[int]) -> float:
    """Pairs of a query and a key that it sees, inside sequences of these lengths."""
    return sum(n * n for n in lengths_tokens) / 2


@dataclass(frozen=True, kw_only=True)
class SharingCosts:
    """Seconds and schemes under one set of rates."""

    layout: Layout
    model: ModelCost
    hardware: Hardware
    recompute: bool
    ranks_per_host: int

    def of_sequences(
        self, degrees: tuple[int, ...], rank_tokens: int, lengths_tokens: Sequence[int]
    ) -> SequenceCosts:
        """Coefficients for groups of these sizes whose ranks hold about `rank_tokens` each, of
        sequences like these."""
        # The mean over tokens of the keys that each one sees.
        keys = causal_pairs(lengths_tokens) / max(sum(lengths_tokens), 1)
        return SequenceCosts(
            quadratic_s=self.model.quadratic_flops * self._s_per_flop,
            linear_s=self.model.linear_flops_per_token * self._s_per_flop,
            fixed_s=self.round_communication_s,
            exchange_s_per_token={
                degree: self._exchange_s(degree, degree * rank_tokens, keys) for degree in degrees
            },
        )

    def _exchange_s(self, degree: int, tokens: int, keys: float) -> float:
        """Seconds per token that sharing adds to a group which holds `tokens`."""
        pairs = tokens * min(keys, tokens / 2)
        scheme, _ = self.scheme(tokens, degree, pairs)
        return self.exposed_s(scheme, tokens, pairs) / tokens

    @property
    def round_communication_s(self) -> float:
        """Seconds of gathering and scattering parameters in one round that are not hidden."""
        sent = sent_bytes(rounds=1, layout=self.layout, model=self.model)
        return sent / self.hardware.link_bytes_per_s * self.hardware.exposed_fraction

    def compute_s(self, lengths_tokens: list[int], degree: int) -> float:
        """Seconds of forward and backward of these sequences on one rank of a group."""
        flops = sum(
            (self.model.quadratic_flops * n + self.model.linear_flops_per_token) * n
            for n in lengths_tokens
        )
        return flops * self._s_per_flop / degree

    def scheme(self, tokens: int, degree: int, pairs: float) -> tuple[AttentionScheme, str]:
        """The fastest scheme of `degree` ranks for a stream of `tokens`, and why. `pairs` of query
        and key are computed."""
        shape = self.model.attention
        return choose_scheme(
            tokens,
            degree,
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            element_bytes=shape.element_bytes,
            links=self._links,
            flops_per_s=self.hardware.flops_per_s,
            windowed=shape.windowed,
            ranks_per_host=self.ranks_per_host,
            causal_pairs=pairs,
        )

    def exposed_s(self, scheme: AttentionScheme, tokens: int, pairs: float) -> float:
        """Seconds that sharing attention adds over all layers, forward and backward."""
        if scheme.degree == 1:
            return 0.0
        shape = self.model.attention
        flops = 4.0 * pairs * shape.num_heads * shape.head_dim / scheme.degree
        time = predict_attention(
            self._attention_bytes(scheme, tokens),
            scheme,
            compute_s=flops / self.hardware.flops_per_s,
            links=self._links,
            ranks_per_host=self.ranks_per_host,
        )
        return time.exposed_s * shape.num_layers

    @property
    def _s_per_flop(self) -> float:
        """Of one sequence's arithmetic, which tensor and pipeline ranks share."""
        ranks = self.layout.tp * self.layout.pp
        return (RECOMPUTE_FACTOR if self.recompute else 1.0) / ranks / self.hardware.flops_per_s

    @property
    def _links(self) -> Links:
        if self.hardware.links is not None:
            return self.hardware.links
        rate = self.hardware.link_bytes_per_s
        return Links(inside_bytes_per_s=rate, between_bytes_per_s=rate)

    def _attention_bytes(self, scheme: AttentionScheme, tokens: int) -> AttentionBytes:
        shape = self.model.attention
        return attention_bytes(
            tokens,
            scheme,
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            element_bytes=shape.element_bytes,
        )
