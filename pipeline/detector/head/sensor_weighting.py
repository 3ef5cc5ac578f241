"""The part of the head that AQR adds to CMT: weights of the sensors per query, and biases from them."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from operators import Bias
from pipeline.config.plan import Choice
from pipeline.detector.aqr.projection import ProjectedQueries
from pipeline.detector.transformer.position_encoding import Memory, inverse_sigmoid


class SensorWeighting(nn.Module):
    """Mixin of a head that holds the modules of AQR.

    Attributes:
        num_query: number of matching queries; denoising queries come before them.
        point_range: (6,) x, y, z minima and maxima in m.
        aqr: the weight generator; None for plain CMT.
        bias_generator: makes biases from the weights; None for plain CMT.
        weight_map: multiplies the memory by weight maps (deprecated); None for none.
    """

    num_query: int
    point_range: Tensor
    aqr: Any
    bias_generator: Any
    weight_map: Any

    def weigh_sensors(
        self,
        choices: Sequence[Choice],
        points: Tensor,
        query_pos: Tensor,
        memory: Memory,
        scales: Tensor | None,
    ) -> tuple[Tensor | None, list[Bias | None], Memory]:
        """Weigh the sensors per query, and make the bias of every decoder layer.

        Args:
            choices: of every layer's cross-attention.
            points: (B, Q, 3) normalised reference points.
            query_pos: (B, Q, C) query embedding.
            memory: of the decoder.
            scales: see ``AttentionBiasGenerator.forward``.

        Returns:
            The weights (B, Q, 2), or None if nothing uses them; the bias of every layer, or None; and the
            memory that the decoder reads.

        Raises:
            ValueError: a choice has a bias, and the head has no weight generator.
        """
        kinds = [choice.bias for choice in choices]
        biased = {kind for kind in kinds if kind != "none"}
        if not biased and self.weight_map is None:
            return None, [None] * len(kinds), memory
        if self.aqr is None or self.bias_generator is None:
            raise ValueError(
                f"the plan wants the bias {', '.join(sorted(biased))}, but the head has no aqr_config"
            )
        projected = inverse_sigmoid(points).sigmoid()  # the points that the query embedding uses
        geometry = ProjectedQueries.of(
            projected, memory.lidar2img, self.point_range, memory.pad_hw, memory.grid
        )
        weights = self.aqr(memory.keys, memory.tokens, query_pos, geometry)
        windows = [choice.window for choice in choices]
        biases = self.bias_generator(kinds, weights, geometry, windows, scales)
        if self.weight_map is not None:
            # Only matching queries: denoising queries would reveal where the objects are.
            matching = self.num_query
            memory = self.weight_map(memory, weights[:, -matching:], geometry.last(matching))
        return weights, biases, memory


def check_head_parts(
    tasks: Sequence[Mapping[str, Any]], aqr: object | None, bias: object | None, weight_map: object | None
) -> None:
    """Check that the parts of a head's config go together.

    Args:
        tasks: ``tasks`` of the config.
        aqr: ``aqr_config``.
        bias: ``bias_config``.
        weight_map: ``weight_map_config``.

    Raises:
        ValueError: several groups of classes, or one of AQR's parts without the other.
    """
    if len(tasks) != 1:
        raise ValueError(f"pts_bbox_head.tasks: expected one group with all classes, got {len(tasks)}")
    if (aqr is None) != (bias is None):
        raise ValueError("pts_bbox_head: aqr_config and bias_config go together; one of them is missing")
    if aqr is None and weight_map is not None:
        raise ValueError("pts_bbox_head: weight_map_config needs aqr_config, which makes the weights")
