# SPDX-License-Identifier: Apache-2.0
"""The multi-scale progressive probability model (Zhang et al., "Leveraging progressive model and
overfitting for efficient learned image compression", section III), in exact integer arithmetic.

The h x w latent grid is thinned by 2, `scales` times. The coarsest grid is coded with a factorised
prior; then, scale by scale, the positions that a scale adds to the coarser one are coded in
subgroups by their place in a `block`, and within a subgroup first the `seeds`, groups of channels,
one after the other, then the rest: scales * subgroups * (len(seeds) + 1) + 1 parallel steps in all.

Only the positions of the step at hand are computed. For each of them
    known neighbours (3x3 at the spacing of the scale) --per-channel weighted sum--> p
    |neighbours - p| --per-channel weighted sum, compand--> activity a --linear--> s
    neighbours - p in the first channels --linear, times a gate by a--> l
    compand(neighbours - p), a, features of the coarser grid, seeds there --network--> m, t
and the latent is expected around p + l + m (1/16 step) with the scale bin s + t (1/16 bin). What a
straight line can say has a path of its own, because a narrow network has better things to do: the
activity, which says how large the errors around are, took 8 to 13 % off the rate after 300 training
steps, and l 1 to 3 % off that of a trained model. The gate is there because a prediction from many
neighbours helps at edges and adds their noise in the plain.

Which neighbours are known follows from the order of coding alone (`CodingOrder`): a position that
is not decoded yet cannot be read, because no index points to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lvqcodec.errors import UsageError
from lvqcodec.model.entropy import context, msp_start
from lvqcodec.model.entropy.base import LATENT_UNITS, EntropyModel, LatentCoder, Regression
from lvqcodec.model.entropy.context import SCALE_MAX, Compand, ContextNetwork, Trunk, gather, known
from lvqcodec.model.entropy.order import Scale, Subgroup, coding_order, subgroup_places
from lvqcodec.model.layers import module_list, weigh_gradient


class MultiScaleProgressive(EntropyModel):
    """The probability model: `code` walks the order of coding, for every kind of coder alike."""

    Config = context.Config
    config: context.Config

    def __init__(self, config: context.Config, channels: int) -> None:
        super().__init__(config, channels)
        if config.scales < 1 or min(config.block) < 2 or any(side % 2 for side in config.block):
            raise UsageError(
                f"{config.scales} scales of blocks {config.block} cannot be coded; give at least"
                " one scale and blocks with even sides"
            )
        if config.linear < 1:
            raise UsageError(f"linear = {config.linear} must be at least 1")
        if min(config.seeds, default=1) < 1 or sum(config.seeds) >= channels:
            raise UsageError(
                f"seeds = {list(config.seeds)} must be at least 1 each, less than {channels} in all"
            )
        self.prior = context.head(1, channels)
        # the finest scale holds three quarters of the latents and has networks of its own
        sets = min(config.scales, 2)
        subgroups = len(subgroup_places(config.block))
        self.trunks = module_list(Trunk(config, channels) for _ in range(sets))
        self.networks = module_list(
            module_list(ContextNetwork(config, channels, k) for k in range(subgroups))
            for _ in range(sets)
        )
        self.compand = Compand()

    @property
    def num_steps(self) -> int:
        """Number of parallel steps (paper: 10, 28 and 121 for baseline, normal and extra)."""
        subgroups = len(subgroup_places(self.config.block))
        return self.config.scales * subgroups * (len(self.config.seeds) + 1) + 1

    @property
    def period(self) -> int:
        """Positions after which the order of coding repeats itself, in both directions."""
        return math.lcm(*self.config.block) << (self.config.scales - 1)

    def code(self, coder: LatentCoder, height: int, width: int, quality: Tensor) -> Tensor:
        """See `EntropyModel.code`."""
        config, size = self.config, (quality.shape[0], height * width + 1, self.channels)
        order = coding_order(height, width, config.scales, config.block, quality.device)
        y = torch.zeros(size, dtype=quality.dtype, device=quality.device)
        y[:, order.coarsest] = self._code_coarsest(coder, order.coarsest, quality)
        for depth, scale in enumerate(order.scales):
            which = 0 if depth == len(order.scales) - 1 else len(self.trunks) - 1
            features = self._features(y, scale, which, quality)
            learner = self._draw_learner()
            for number, subgroup in enumerate(scale.subgroups):
                if subgroup.positions.shape[0] > 0:
                    network = self.networks[which][number]
                    parents = features.index_select(1, subgroup.parents)
                    learns = learner in (number, None)
                    self._code_subgroup(coder, y, subgroup, network, parents, quality, learns)
        return y[:, :-1]

    def _code_coarsest(self, coder: LatentCoder, positions: Tensor, quality: Tensor) -> Tensor:
        """Code the coarsest grid: one parallel step, whatever the channel groups."""
        nothing = quality.new_zeros(quality.shape[0], positions.shape[0], 1)
        mean, scale = self.prior(nothing, quality).chunk(2, dim=2)
        channels = slice(0, self.channels)
        return coder("y", positions, channels, mean / LATENT_UNITS, scale.clamp(0, SCALE_MAX))

    def _features(self, y: Tensor, scale: Scale, which: int, quality: Tensor) -> Tensor:
        """Return the features (B, Q, T) of the coarser grid, all of which y holds."""
        seen = known(y.index_select(1, scale.coarse), self.mode)
        features: Tensor = self.trunks[which](self.compand(seen, self.mode), scale.windows, quality)
        return features

    def _code_subgroup(
        self,
        coder: LatentCoder,
        y: Tensor,
        subgroup: Subgroup,
        network: ContextNetwork,
        parents: Tensor,
        quality: Tensor,
        learns: bool,
    ) -> None:
        """Code a subgroup into y (B, h * w + 1, C), one channel group after the other."""
        graded = torch.is_grad_enabled() and learns
        with torch.set_grad_enabled(graded):
            neighbours = known(gather(y, subgroup.neighbours), self.mode)
            expected = network(neighbours, parents, quality, self.compand)
        for index, group in enumerate(network.groups):
            with torch.set_grad_enabled(graded):
                mean, scale = expected.of(index)
            told = mean, scale
            if graded and self.sparse is not None:  # it learns for all of the scale
                weight = len(self.networks[0])
                told = weigh_gradient(mean, weight), weigh_gradient(scale, weight)
            coded = coder("y", subgroup.positions, group, *told)
            with torch.set_grad_enabled(graded):
                expected.learn(coded - mean)
            y[:, subgroup.positions, group] = coded

    def _draw_learner(self) -> int | None:
        """Return which subgroup of a scale learns, None for all; see `EntropyModel.sparse`."""
        if self.sparse is None:
            return None
        return int(torch.randint(len(self.networks[0]), (), generator=self.sparse))

    # --- training -------------------------------------------------------------------------------

    def start(self, y: Tensor, grid: tuple[int, int], steps: Tensor) -> None:
        """Set predictors by least squares and scales by the deviations from them."""
        order = coding_order(*grid, self.config.scales, self.config.block)
        statistics = msp_start.Statistics(y, steps, order, self.compand)
        statistics.start_prior(self.prior)
        statistics.start_networks(self.networks)

    def regression(self) -> Regression | None:
        """Return the fit of the linear predictors, unless any of them says something already."""
        fitted = msp_start.linear_is_fitted(self.networks)
        return None if fitted else msp_start.LinearFit(self.networks)

    def adapt(self, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """See `EntropyModel.adapt`; with other channel groups a model may begin exactly as good.

        The other model may lack the linear predictors too. What a group is told of new seeds, or
        such a predictor says, counts for nothing at first.
        """
        groups = context.channel_groups(self.config, self.channels)
        return msp_start.adapt(self.state_dict(), groups, state)

    def rate_class(self, name: str) -> str:
        """See `EntropyModel.rate_class`."""
        sums = (".predictor.", ".linear.", ".activity.")
        return "predictor" if any(part in name for part in sums) else "networks"
