# SPDX-License-Identifier: Apache-2.0
"""One training step, and the state that it changes."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from lvqcodec.distortion import distortion, weight
from lvqcodec.errors import UsageError
from lvqcodec.model.codec_model import CodecModel
from lvqcodec.model.layers import ResidualBlock, channels_last
from lvqcodec.model.surrogates import SURROGATES, Surrogate
from lvqcodec.training.checkpoint import read_checkpoint, read_weights, write_checkpoint
from lvqcodec.training.data import CropSampler, to_device
from lvqcodec.training.optimizers import make_optimizers, set_learning_rate, trainable
from lvqcodec.training.ranks import Ranks
from lvqcodec.training.recipe import Recipe, Stage
from lvqcodec.training.start import initialise, initialise_entropy, solve
from lvqcodec.training.throughput import Meter
from lvqcodec.training.transfer import adapt

_BINS = 10


class Trainer:
    """What a checkpoint holds: weights, their average, optimiser, counters, random state.

    No step waits for a GPU: what it reports stays there until `meter` is read.
    """

    def __init__(self, recipe: Recipe, device: torch.device, ranks: Ranks | None = None) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.device = device
        self.ranks = ranks or Ranks()
        self.model = channels_last(CodecModel(recipe.codec).to(device))
        for stage in recipe.stages:
            self._check(stage)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.reference = torch.zeros(_BINS, device=device)
        self.stage_index = 0
        self.stage_step = 0
        self.total_steps = 0
        self.seconds = 0.0
        self.pixels = 0
        self.optimizers: list[torch.optim.Optimizer] = []
        self.meter = Meter(device)
        for tune in {self._tune(stage) for stage in recipe.stages}:
            distortion(tune)  # a missing package is to show now

    def _check(self, stage: Stage) -> None:
        groups = trainable(self.model)
        wrong = sorted(set(stage.train) - set(groups))
        if wrong or not stage.train:
            what = repr(wrong[0]) if wrong else "nothing"
            raise UsageError(f"stage {stage.name!r} trains {what}; choose from {', '.join(groups)}")
        for name, value, unit, what in (
            ("crop", stage.crop, self.model.stride, "the stride of the transform"),
            ("batch", stage.batch, self.ranks.count, "the number of processes"),
        ):
            if value % unit:
                raise UsageError(
                    f"stage {stage.name!r}: {name} = {value} is no multiple of {unit}, {what}"
                )

    # --- a stage ------------------------------------------------------------------------------

    @property
    def stage(self) -> Stage | None:
        """The stage at hand; None when the recipe is finished."""
        stages = self.recipe.stages
        return stages[self.stage_index] if self.stage_index < len(stages) else None

    def begin_stage(self, stage: Stage) -> None:
        """Choose what is trained and build its optimisers."""
        for model in (self.model, self.average):
            model.entropy.set_mode("simulate" if stage.simulate else "float")
        for name, parameters in trainable(self.model).items():
            for parameter in parameters:
                parameter.requires_grad_(name in stage.train)
        for module in self.model.modules():
            if isinstance(module, ResidualBlock):
                module.precision = torch.bfloat16 if stage.bfloat16 else None
        self.optimizers = make_optimizers(self.model, stage.lr, self.ranks)

    def train_step(self, sampler: CropSampler, stage: Stage) -> dict[str, Tensor]:
        """One step on a batch; return what to log, scalars on the device."""
        self.meter.mark()
        share = self.ranks.share(stage.batch)
        crops = sampler.sample(stage.batch, stage.crop, self.generator, share)
        crops = crops.contiguous(memory_format=torch.channels_last)
        strata = torch.arange(stage.batch) + torch.rand(stage.batch, generator=self.generator)
        low, high = stage.qualities
        qualities = to_device(low + strata * ((high - low) / stage.batch), self.device)
        self.meter.mark("data")
        balanced, values = self._loss(stage, crops, qualities, share)
        self.meter.mark("forward")
        skipped = self._backward(balanced, values)
        self.meter.mark("backward")
        self._update(stage, skipped)
        self.meter.mark("optimizer")
        self.meter.add_values(values, skipped)
        self.stage_step += 1
        self.total_steps += 1
        self.pixels += stage.batch * stage.crop**2
        return values

    def _loss(
        self, stage: Stage, crops: Tensor, qualities: Tensor, share: slice
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the balanced loss of this process's share, and what to log of the whole batch."""
        quality, tune = qualities[share], self._tune(stage)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            call = crops, quality, self._surrogate(stage)
            # the same in all processes, which add up the gradients of the same parameters
            self.model.entropy.sparse = self._noise() if stage.sparse else None
            out = self.model(*call) if self._reaches_distortion(stage) else None
            bits = self.model.rate(*call).bits if out is None else out.bits
        loss = bpp = bits / stage.crop**2
        distorted = torch.zeros_like(bpp)
        if out is not None:
            distorted = distortion(tune)(out.x_hat.float(), crops)
            loss = bpp + weight(tune, self._lmbda(quality)) * distorted
        whole = self.ranks.gather(torch.stack([loss, bpp, distorted], 1).detach())
        balanced = (loss / self._reference(whole[:, 0], qualities)[share]).mean()
        logged = [whole[:, 0].log(), whole[:, 1], whole[:, 2]]
        name = "mse" if tune == "psnr" else "1-ms_ssim"
        names = ("loss", "bpp", name)
        values = {n: v.mean() for n, v in zip(names, logged, strict=True)}
        if stage.penalty:
            penalty = self.model.transform.penalty()
            balanced = balanced + stage.penalty * penalty
            values["penalty"] = penalty.detach()
        return balanced, values

    def _backward(self, balanced: Tensor, values: dict[str, Tensor]) -> Tensor:
        """Set the gradients, clipped; return 1.0 if they are not finite, else 0.0."""
        shares = [[p for g in o.param_groups for p in g["params"]] for o in self.optimizers]
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        balanced.backward()  # type: ignore[no-untyped-call]
        # which parameters the loss does not reach follows from the stage: the same everywhere
        self.ranks.average(p.grad for share in shares for p in share if p.grad is not None)
        # apart, so that a wild gradient in one's share does not slow down the other's
        norms = [nn.utils.clip_grad_norm_(share, 1.0) for share in shares]
        values["norm"] = torch.stack(norms).norm()
        return 1 - values["norm"].isfinite().float()

    def _update(self, stage: Stage, skipped: Tensor) -> None:
        """Move the weights and their average, unless skipped (1.0), as decided on the device."""
        set_learning_rate(self.optimizers, self._learning_rate(stage))
        for optimizer in self.optimizers:
            # what torch.amp.GradScaler sets as well: the fused kernel leaves everything as it is
            optimizer.found_inf = skipped  # type: ignore[attr-defined]
            optimizer.step()
        self._update_average()

    def _reaches_distortion(self, stage: Stage) -> bool:
        """Whether what a stage trains changes the distortion; if not, save the synthesis."""
        entropy = self.model.entropy
        return bool(set(stage.train) - set(entropy.parts()) or entropy.features)

    def _tune(self, stage: Stage) -> str:
        """What a stage is tuned for."""
        return stage.loss or self.recipe.tune

    def _surrogate(self, stage: Stage) -> Surrogate:
        """What stands for rounding in the step at hand; its noise follows from step and process."""
        generator = self._noise(1 + self.ranks.index)
        progress, name = self.stage_step / stage.steps, self.model.config.lattice
        return SURROGATES[stage.surrogate](generator, progress, name)

    def _noise(self, stream: int = 0) -> torch.Generator:
        """A generator that follows from the seed, the step at hand and a number up to 255."""
        seed = (self.recipe.seed << 32) + (self.total_steps << 8) + stream
        return torch.Generator().manual_seed(seed)

    def _lmbda(self, quality: Tensor) -> Tensor:
        low, high = self.recipe.codec.lmbda_min, self.recipe.codec.lmbda_max
        return low * torch.exp(quality / 100 * math.log(high / low))

    def _learning_rate(self, stage: Stage) -> float:
        progress = self.stage_step / stage.steps
        warm = min(1.0, (self.stage_step + 1) / 50)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return warm * (stage.lr_end + (stage.lr - stage.lr_end) * cosine)

    def _reference(self, loss: Tensor, quality: Tensor) -> Tensor:
        """Running mean of the loss per band of quality: dividing by it, no band starves another.

        Of the whole batch, so that all processes know the same; those of one band count as one.
        """
        band = (quality * (_BINS / 100)).long().clamp(max=_BINS - 1)
        # a step that is skipped for its gradients must leave no trace here either
        sound = loss.isfinite()
        members = (band[:, None] == torch.arange(_BINS, device=band.device)) & sound[:, None]
        count = members.sum(0)
        seen = torch.where(members, loss[:, None], 0.0).sum(0) / count.clamp(min=1)
        new = torch.where(self.reference == 0, seen, 0.98 * self.reference + 0.02 * seen)
        self.reference = torch.where(count > 0, new, self.reference)
        return self.reference[band]

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.recipe.ema, (1 + self.stage_step) / (10 + self.stage_step))
        pairs = zip(self.average.parameters(), self.model.parameters(), strict=True)
        trained = [(mean, value) for mean, value in pairs if value.requires_grad]
        torch._foreach_lerp_([m for m, _ in trained], [v for _, v in trained], 1 - decay)

    # --- where it starts ------------------------------------------------------------------------

    def start_from_pictures(self, sampler: CropSampler) -> None:
        """Start from what the training pictures determine."""
        initialise(self.model, sampler.sample(self.recipe.init_crops, 256, self.generator))
        self._agree()

    def load_weights(self, source: Path, sampler: CropSampler) -> list[str]:
        """Take the weights of another run or of an exported model; return what begins anew.

        See `transfer.adapt`. A new entropy model starts from the latents of the transform taken.
        """
        state, anew = adapt(read_weights(source), self.model)
        self.model.load_state_dict(state)
        if "entropy" in anew:
            crops = sampler.sample(self.recipe.init_crops, 256, self.generator)
            initialise_entropy(self.model, crops)
        self._agree()
        return anew

    def solve(self, sampler: CropSampler) -> None:
        """Solve for what of the entropy model is solved for, if nobody has yet."""
        regression = self.model.entropy.regression()
        if regression is None:
            return
        crops = sampler.sample(self.recipe.init_crops, 256, self.generator)
        solve(regression, self.model, crops)
        self._agree()

    def _agree(self) -> None:
        """Give every process, and the average, the first one's weights.

        An eigenvector has no sign of its own, and two GPUs may differ.
        """
        self.ranks.copy_first(p.detach() for p in self.model.parameters())
        self.average.load_state_dict(self.model.state_dict())

    def save(self, folder: Path) -> None:
        """Write the checkpoint."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "generator": self.generator.get_state(),
            "reference": self.reference,
            "counters": [self.stage_index, self.stage_step, self.total_steps, self.pixels],
            "seconds": self.seconds,
        }
        write_checkpoint(folder, state)

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint of the same recipe."""
        state = read_checkpoint(folder, self.device)
        try:
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.generator.set_state(state["generator"].cpu())
            self.reference = state["reference"].float().reshape(_BINS)
            self.stage_index, self.stage_step, self.total_steps, self.pixels = state["counters"]
            self.seconds = state["seconds"]
            if self.stage is not None:
                self.begin_stage(self.stage)
                if self.stage_step > 0:
                    for optimizer, old in zip(self.optimizers, state["optimizers"], strict=True):
                        optimizer.load_state_dict(old)
        except (LookupError, RuntimeError, TypeError, ValueError, AttributeError):
            raise UsageError(f"{str(folder)!r} holds a run of another recipe") from None
