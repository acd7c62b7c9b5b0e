"""Our backbones as timm models: the checks of timm's own test suite, on every registered name."""

import re

import pytest
import timm
import tiny
import torch
from timm.models import get_pretrained_cfg

import backbones.timm_models as ours
from attention.options import SpecError
from backbones import variants, weights

NAMES = timm.list_models("transom*")
SMALL = [ours.PREFIX + n for n in ("swin_t", "swinv2_t_w8", "swin_mlp_t_c24", "cswin_t", "pale_t")]


def small(family, *edits, **kwargs):
    """A small model of a family, through create_model."""
    spec = tiny.notation(family, *edits)
    kwargs = {"num_classes": 10, "img_size": 64} | kwargs
    return tiny.randomise(timm.create_model("transom", spec=spec, **kwargs)).eval()


def test_every_variant_is_registered_under_a_prefix():
    assert set(NAMES) == {"transom"} | {ours.PREFIX + name for name in variants.names()}
    assert type(timm.create_model("swin_tiny_patch4_window7_224")).__module__.startswith("timm.")


@pytest.mark.parametrize("name", NAMES)
def test_default_configs(name):
    """Built on meta, with the configuration that timm's tools read; pretrained is refused."""
    with torch.device("meta"):
        model = timm.create_model(name)
    config = model.pretrained_cfg
    state = model.state_dict()
    assert state[config["first_conv"] + ".weight"].shape[1] == config["input_size"][0]
    assert state[config["classifier"] + ".weight"].shape[0] == model.num_classes == 1000
    assert model(torch.empty(2, *config["input_size"], device="meta")).shape == (2, 1000)
    features = model.forward_features(torch.empty(2, *config["input_size"], device="meta"))
    assert features.shape == (2, model.num_features, *config["pool_size"])
    assert get_pretrained_cfg(name).url == ""
    if name != "transom":
        row = variants.get(name.removeprefix(ours.PREFIX))
        assert sum(p.numel() for p in model.parameters()) == row.params


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_forward_equals_the_backbone_it_wraps(family):
    model = small(family)
    plain = tiny.create(family, "num_classes=10", "img_size=64")
    plain.load_state_dict(model.state_dict())
    x = tiny.images(2, 3, 50, 70)
    assert tiny.error(model(x), plain(x)) < 1e-6


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_backward_reaches_every_parameter(family):
    model = small(family).train()
    model(tiny.images(2, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("kind", ["list", "dict", "hook", "getter", "fx"])
@pytest.mark.parametrize("family", ["swin", "pale", "hybrid"])
def test_features_in_all_classes(family, kind):
    """The same maps, NCHW, by any wrapper, with negative indices and a size of primes."""
    spec = tiny.notation(family)
    net = timm.create_model(
        "transom", spec=spec, features_only=True, feature_cls=kind, out_indices=(0, 2, -1)
    ).eval()  # fmt: skip
    whole = small(family)
    wrapped = {key.replace("stages_", "stages."): v for key, v in net.state_dict().items()}
    wrapped = {re.sub(r"^(graph_module|model)\.", "", k): v for k, v in wrapped.items()}
    missing = whole.load_state_dict(wrapped, strict=False)
    assert not missing.unexpected_keys
    assert all(key.startswith(("norm.", "head.")) for key in missing.missing_keys)
    x = tiny.images(2, 3, 97, 53)
    maps = net(x)
    maps = list(maps.values()) if isinstance(maps, dict) else maps
    expected = [whole.features(x)[i] for i in (0, 2, 3)]
    assert [m.shape[1] for m in maps] == net.feature_info.channels()
    assert net.feature_info.reduction() == [4, 16, 32]
    assert max(map(tiny.error, maps, expected)) < 1e-5


@pytest.mark.parametrize("indices", [None, 1, 3, [0, 2], [-1]])
def test_intermediates(indices):
    model = small("swin")
    x = tiny.images(1, 3, 64, 48)
    last, maps = model.forward_intermediates(x, indices)
    every = model.features(x)
    chosen = {None: [0, 1, 2, 3], 1: [3], 3: [1, 2, 3]}.get(
        indices if not isinstance(indices, list) else "list", indices
    )
    assert tiny.error(last, model.forward_features(x)) == 0
    assert len(maps) == len(chosen)
    assert all(tiny.error(m, every[i]) == 0 for m, i in zip(maps, chosen, strict=True))
    only = model.forward_intermediates(x, indices, norm=True, intermediates_only=True)
    if 3 in chosen or -1 in chosen:
        assert tiny.error(only[-1], last) == 0
    short = model.forward_intermediates(x, [0], stop_early=True, intermediates_only=True)
    assert tiny.error(short[0], every[0]) == 0


@pytest.mark.parametrize("indices", [[1], [0, 3], 2])
def test_pruning_keeps_what_is_asked_for(indices):
    model = small("cswin")
    x = tiny.images(1, 3, 64, 64)
    before = model.forward_intermediates(x, indices, intermediates_only=True)
    taken = model.prune_intermediate_layers(indices)
    after = model.forward_intermediates(x, taken, intermediates_only=True)
    assert all(tiny.error(a, b) == 0 for a, b in zip(after, before, strict=True))
    assert len(model.stages) == max(taken) + 1 and model.num_classes == 0
    assert model(x).shape[1] == model.num_features


def test_classifier_and_channels():
    model = small("swinv2", num_classes=7, in_chans=5)
    x = tiny.images(2, 5, 64, 64)
    assert model(x).shape == (2, 7) and model.get_classifier() is model.head
    model.reset_classifier(3)
    assert model(x).shape == (2, 3) and model.num_classes == 3
    model.reset_classifier(0)
    assert tiny.error(model(x), model.forward_head(model.forward_features(x), True)) == 0
    model.reset_classifier(0, "")
    assert model(x).shape == (2, 32, 2, 2)
    with pytest.raises(SpecError):
        model.reset_classifier(4)


def test_input_size_resamples_absolute_positions():
    model = small("swin", "position=absolute")
    before = model.stem.position.detach().clone()
    x = tiny.images(1, 3, 96, 64)
    expected = model(x)
    model.set_input_size((96, 64))
    assert model.stem.position.shape[2:] == (24, 16) != before.shape[2:]
    assert tiny.error(model(x), expected) < 1e-5  # what forward did at every call
    for bad in ({"img_size": 0}, {"patch_size": 2}):
        with pytest.raises(SpecError):
            model.set_input_size(**bad)


def test_drop_path_rate():
    model = small("swin", drop_path_rate=0.3)
    rates = [m.rate for m in model.modules() if type(m).__name__ == "DropPath"]
    assert rates[0] == 0 and rates[-1] == pytest.approx(0.3) and rates == sorted(rates)


@pytest.mark.parametrize("family", ["swin", "swinv2", "pale", "hybrid"])
def test_checkpointing_changes_nothing(family):
    """Outputs within 1e-6 and gradients within 1e-5 of the plain ones, and blocks do run again."""
    model, x = small(family).eval(), tiny.images(2, 3, 64, 64)
    grads, kept = [], []
    calls = []
    model.stages[0].blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for enable, per in ((False, "block"), (True, "block"), (True, "stage")):
        model.set_grad_checkpointing(enable, per=per)
        model.zero_grad()
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: (sizes.update({t.data_ptr(): t.nbytes}), t)[1], lambda t: t
        ):
            out = model(x)
        out.square().sum().backward()
        grads.append((out.detach(), [p.grad.clone() for p in model.parameters()]))
        kept.append(sum(sizes.values()))
    assert len(calls) == 5 and kept[0] > kept[1] > kept[2]
    (a, plain), *others = grads
    scale = max(float(g.abs().max()) for g in plain)
    for b, again in others:
        assert tiny.error(a, b) <= 1e-6
        assert max(map(tiny.error, plain, again)) <= 1e-5 * scale
    with pytest.raises(SpecError, match="per='head' is neither 'block' nor 'stage'"):
        model.set_grad_checkpointing(per="head")


def test_weight_decay_and_layer_groups():
    from timm.optim import create_optimizer_v2, param_groups_weight_decay

    model = small("swinv2")
    skipped = model.no_weight_decay()
    names = dict(model.named_parameters())
    assert skipped <= set(names)
    for part in ("logit_scale", "bias.mlp.0.weight", "bias.mlp.2.weight"):
        assert any(part in name for name in skipped)
    assert not any(name.endswith(("qkv.weight", "fc1.weight", "conv.weight")) for name in skipped)
    assert any("table" in name for name in small("swin").no_weight_decay())
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=skipped)
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {id(p) for n, p in names.items() if n not in skipped and p.ndim > 1}
    optimizer = create_optimizer_v2(model, "adamw", layer_decay=0.9)
    scales = {group["lr_scale"] for group in optimizer.param_groups}
    assert len(scales) >= 10 and max(scales) == 1.0


def test_what_is_not_offered_is_refused_by_name():
    for kwargs, word in [
        ({"output_stride": 8}, "output_stride=8"), ({"global_pool": "max"}, "global_pool='max'"),
        ({"spec": "swin_t/out_norms=true"}, "out_norms"), ({"spec": "swin_x"}, "swin_t"),
    ]:  # fmt: skip
        with pytest.raises(SpecError, match=word):
            timm.create_model("transom", **kwargs)
    with pytest.raises(TypeError):
        timm.create_model("transom_swin_t", no_such_argument=1)
    assert timm.create_model("transom_swin_t", output_stride=32).num_classes == 1000


def test_register_names_a_hybrid():
    """The same weights as through spec=; twice is once; what is taken or no name is refused."""
    spec = tiny.notation("hybrid")
    name = ours.register("test_hybrid", spec)
    assert name == "transom_test_hybrid" and ours.register("test_hybrid", spec) == name
    made = tiny.randomise(timm.create_model(name)).eval()
    assert tiny.state_hash(made) == tiny.state_hash(small("hybrid"))
    told = tiny.randomise(timm.create_model("transom", spec=spec)).eval()  # its classes, too
    assert told.num_classes == 10 and tiny.state_hash(made) == tiny.state_hash(told)
    assert made.pretrained_cfg["input_size"] == (3, 64, 64)
    assert get_pretrained_cfg(name).input_size == (3, 64, 64)
    for wrong, of, why in (
        ("test_hybrid", "swin_t", "another backbone"),
        ("swin_t", spec, "another backbone"),
        ("Test-Hybrid", spec, "lower-case"),
        ("test_other", "swin_t/3=pal", "did you mean 'pale'"),
    ):
        with pytest.raises(SpecError, match=why):
            ours.register(wrong, of)
    assert "transom_test_other" not in timm.list_models()


def test_weights_are_loaded_into_timm_models(tmp_path):
    """weights.load takes them as it takes ours, for those who want no reader but ours."""
    wanted = tiny.create("hybrid", seed=3)
    path = weights.save(wanted, tmp_path / "own.safetensors")
    made = timm.create_model("transom", spec=tiny.notation("hybrid"))
    assert weights.load(made, path).model is made
    assert tiny.state_hash(made) == tiny.state_hash(wanted)
