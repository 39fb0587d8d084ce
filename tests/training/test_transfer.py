# SPDX-License-Identifier: Apache-2.0
"""Starting one codec from another."""

import dataclasses

import pytest
import torch

from lvqcodec.errors import UsageError
from lvqcodec.model.codec_model import CodecModel
from lvqcodec.model.entropy.context import channel_groups
from lvqcodec.model.weights import unpack_weights
from lvqcodec.training.checkpoint import read_weights
from lvqcodec.training.transfer import adapt


def grown_config(config, seeds):
    entropy = dataclasses.replace(config.entropy, seeds=seeds)
    return dataclasses.replace(config, entropy=entropy)


def record(model, target, mode):
    """Means and scales by (position, channel) while `target` (1, h * w, C) is coded."""
    seen = torch.full((2, *target.shape[1:]), torch.nan)

    def coder(plane, positions, channels, mean, scale):
        seen[0, positions, channels], seen[1, positions, channels] = mean[0], scale[0]
        return mean + torch.round(target[:, positions, channels] - mean)

    model.entropy.set_mode(mode)
    with torch.no_grad():
        model.entropy.code(coder, 5, 6, torch.full((1,), 40.0))
    return seen


@pytest.mark.parametrize("mode", ["float", "simulate"])
@pytest.mark.parametrize(
    ("before", "seeds"), [((), (8,)), ((), (4, 10)), ((8,), (4, 4)), ((8,), (2, 3, 3, 6, 1))]
)
def test_a_grown_model_begins_as_good_as_the_smaller_one(
    new_model, tiny_config, before, seeds, mode
):
    small = new_model(grown_config(tiny_config, before))
    large = CodecModel(grown_config(tiny_config, seeds))
    state, anew = adapt(small.state_dict(), large)
    large.load_state_dict(state)
    assert not anew
    assert len(large.entropy.networks[0][0].heads) == len(seeds) + 1
    target = 40 * torch.randn(1, 30, small.entropy.channels, generator=torch.Generator())
    wanted, found = record(small, target, mode), record(large, target, mode)
    assert not wanted.isnan().any()
    # the same numbers, up to the order in which a narrower product adds them up
    assert torch.allclose(found, wanted, atol=1e-2 if mode == "float" else 1.01)
    assert (found - wanted).abs().mean() < 1e-2


def test_linear_predictors_that_are_new_say_nothing_yet_but_can_learn(new_model, tiny_config):
    old = new_model()
    for networks in old.entropy.networks:
        for network in networks:
            network.linear.weight.zero_()
            network.linear.bias.rows.zero_()
    lacking = {n: v for n, v in old.state_dict().items() if ".linear." not in n}
    grown = CodecModel(tiny_config)
    state, anew = adapt({n: v for n, v in lacking.items() if ".gate." not in n}, grown)
    grown.load_state_dict(state)
    assert not anew
    target = 40 * torch.randn(1, 30, old.entropy.channels, generator=torch.Generator())
    assert torch.equal(record(grown, target, "float"), record(old, target, "float"))
    network = grown.entropy.networks[0][0]
    errors = torch.ones(1, 2, 4, old.entropy.channels)
    activity = torch.ones(1, 2, old.entropy.channels)
    told = network.predict_more(torch.zeros_like(activity), errors, activity, torch.zeros(1))
    told.sum().backward()
    assert network.linear.weight.grad.abs().min() > 0


def test_heads_are_split_by_channel_group(new_model, tiny_config):
    small = new_model(grown_config(tiny_config, ()))
    large = CodecModel(grown_config(tiny_config, (4, 10)))
    state, _ = adapt(small.state_dict(), large)
    channels = small.entropy.channels
    whole = small.state_dict()["entropy.networks.1.2.heads.0.weight"]
    for index, group in enumerate(channel_groups(large.entropy.config, channels)):
        part = state[f"entropy.networks.1.2.heads.{index}.weight"]
        means, scales = part.chunk(2)
        assert torch.equal(means, whole[:channels][group])
        assert torch.equal(scales, whole[channels:][group])


def test_groups_put_together_keep_their_heads_and_what_seeds_both_were_told_of(
    new_model, tiny_config
):
    fine, coarse = grown_config(tiny_config, (4, 6, 8)), grown_config(tiny_config, (4,))
    old, model = new_model(fine).state_dict(), CodecModel(coarse)
    state, anew = adapt(old, model)
    assert not anew
    network = "entropy.networks.0.1"
    heads = [old[f"{network}.heads.{n}.weight"].unflatten(0, (2, -1)) for n in (1, 2, 3)]
    assert torch.equal(state[f"{network}.heads.1.weight"], torch.cat(heads, 1).flatten(0, 1))
    assert torch.equal(state[f"{network}.heads.0.weight"], old[f"{network}.heads.0.weight"])
    for layer in ("seed_inputs", "seed_blocks"):
        for name in state:
            if name.startswith(f"{network}.{layer}.0."):
                assert torch.equal(state[name], old[name])
    scales = [old[f"{network}.seed_scales.{n}.weight"][:, :4] for n in (0, 1, 2)]
    assert torch.equal(state[f"{network}.seed_scales.0.weight"], torch.cat(scales))


def test_exported_weights_are_a_start(models_folder, tiny_config):
    path = models_folder / "tiny.safetensors"
    model = CodecModel(tiny_config)
    model.load_state_dict(adapt(read_weights(path), model)[0])
    exact = unpack_weights(path.read_bytes())
    target = 40 * torch.randn(1, 30, model.entropy.channels, generator=torch.Generator())
    wanted, found = record(exact, target, "exact"), record(model, target, "simulate")
    assert (found - wanted).abs().max() <= 1


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("entropy", {"entropy": {"seeds": (), "hidden": 40}}),
        ("transform.analysis_pyramid", {"transform": {"analysis": ((8, 8, 2),)}}),
        ("transform.synthesis_pyramid", {"transform": {"synthesis": ((8, 8, 1), (4, 5, 1))}}),
    ],
)
def test_a_part_that_differs_begins_anew_and_the_rest_is_taken(
    new_model, tiny_config, part, change
):
    old = new_model()
    axes = {
        axis: dataclasses.replace(getattr(tiny_config, axis), **values)
        for axis, values in change.items()
    }
    model = CodecModel(dataclasses.replace(tiny_config, **axes))
    before, source = model.state_dict(), old.state_dict()
    state, anew = adapt(source, model)
    assert anew == [part]
    for name, value in state.items():
        assert torch.equal(value, before[name] if name.startswith(part) else source[name])


def test_what_cannot_be_a_start_is_refused(new_model, tiny_config, tmp_path):
    fewer = dataclasses.replace(tiny_config.transform, latent_channels=20)
    model = CodecModel(dataclasses.replace(tiny_config, transform=fewer))
    with pytest.raises(UsageError, match=r"'transform\.klt\.weight' differs"):
        adapt(new_model().state_dict(), model)
    with pytest.raises(UsageError, match="cannot start from"):
        read_weights(tmp_path / "nothing.safetensors")
