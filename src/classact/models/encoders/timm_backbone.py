"""Models of timm as backbones, by their names there: ``timm/resnet10t``, ``timm/vit_small_patch16_224.dino``."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import Tensor, nn

from classact.errors import ConfigError, MissingDependencyError, UnknownNameError, choose
from classact.models.encoders.config import OWN, EncoderConfig
from classact.models.encoders.layers import group_norm
from classact.utils.hub import reason
from classact.utils.lazy import resolve

Triple = tuple[float, float, float]


def scaling(name: str) -> tuple[Triple, Triple]:
    """Mean and standard deviation of 0..255 channel values that a model's weights were trained with.

    Raises:
        UnknownNameError: timm has no such model.
    """
    config = _published(name)
    mean, std = (tuple(round(255 * value, 4) for value in values) for values in (config.mean, config.std))
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _published(name: str) -> Any:
    """What timm says of the weights of a model, or of ``MODEL.WEIGHTS``."""
    import timm

    model = name.partition(".")[0]
    if not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UnknownNameError(f"timm has no model {model!r}{hint}. timm.list_models() names all of them.")
    try:
        config = timm.models.get_pretrained_cfg(name)
    except RuntimeError:  # an unknown name of weights
        known = timm.list_pretrained(f"{model}.*")
        raise UnknownNameError(choose("weights of timm", name, known)) from None
    return config or timm.models.PretrainedCfg()


class TimmBackbone(nn.Module):
    """A model of timm: (B, 3, S, S) -> its last maps (B, C, H, W), normalised as before its own head; with pooling
    "own" (B, C, 1, 1), what its head pools.

    A loss must not depend on what else is in a part of a batch, and a step not on unseeded random numbers. So batch
    normalisation becomes group normalisation where training starts from scratch (as in C.1), and keeps its statistics
    where weights are loaded; dropout and stochastic depth are off.

    Raises:
        UnknownNameError: timm has no such model.
        ConfigError: settings that it cannot have, above all a size of crops.
        MissingDependencyError: its weights are neither here nor can they be downloaded.
    """

    model: Any

    def __init__(self, config: EncoderConfig, *, load_init: bool = False) -> None:
        super().__init__()
        import timm

        name, crop = config.timm, config.crop_size
        self.name, self.own = name, config.pooled_by == OWN
        published = _published(name)
        if config.init not in ("scratch", "pretrained"):
            raise ConfigError(
                f"init {config.init!r} exists for the encoder 'resnet18' only; use init 'pretrained', the weights that "
                f"timm has for {name!r}, or 'scratch'."
            )
        if config.width != 1:
            raise ConfigError(f"backbone {config.backbone!r} has one width: expected width 1, got {config.width:g}.")
        options: dict[str, Any] = {"img_size": crop} if published.fixed_input_size else {}
        if config.init_path is not None:
            options["pretrained_cfg_overlay"] = {"file": config.init_path}
        load = load_init and config.init == "pretrained"
        usual = published.input_size[-1]
        try:
            model = timm.create_model(name, pretrained=load, num_classes=0, **options)
            if not self.own:
                self.last = _last_maps(model, name)
            self.model = _frozen(model) if config.init == "pretrained" else _grouped(model)
            _check_norms(self.model, name)
            maps = self(torch.zeros(1, 3, crop, crop))
        except ConfigError:
            raise
        except Exception as problem:
            if load and not isinstance(problem, AssertionError):
                raise MissingDependencyError(
                    f"timm's weights of {name!r} could not be loaded ({reason(problem)}). On a machine with a network "
                    f"download {published.hf_hub_id or published.url or 'them'} and give the file as init_path; or "
                    f"train from scratch with init 'scratch'."
                ) from None
            raise ConfigError(
                f"backbone {config.backbone!r} cannot be used with crops of {crop} pixels ({reason(problem)}). timm "
                f"made it for {usual}: choose such a crop_size (and image_size), or another model."
            ) from None
        assert maps.ndim == 4

    def forward(self, x: Tensor) -> Tensor:
        """Maps, or one cell of the model's own features."""
        if self.own:
            features: Tensor = self.model(x)
            return features[:, :, None, None]
        maps: Tensor = self.model.forward_intermediates(
            x, indices=self.last, norm=True, output_fmt="NCHW", intermediates_only=True
        )[-1]
        return maps

    def extra_repr(self) -> str:
        """The model's name."""
        return repr(self.name)


def _last_maps(model: Any, name: str) -> list[int]:
    """Where a model's last maps are; what comes after them is removed.

    Raises:
        ConfigError: a model without maps.
    """
    if not hasattr(model, "forward_intermediates"):
        raise ConfigError(f"backbone 'timm/{name}' gives no maps: choose pooling 'own', or another model.")
    return list(model.prune_intermediate_layers(1, prune_norm=False, prune_head=True))


def _frozen(model: nn.Module) -> nn.Module:
    freeze = resolve("timm.layers:freeze_batch_norm_2d")  # which has no types
    return _deterministic(freeze(model))


def _grouped(model: nn.Module) -> nn.Module:
    """Batch normalisation of maps replaced by group normalisation, with the activation that timm joins to it."""
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            norm: nn.Module = group_norm(child.num_features)
            act = getattr(child, "act", None)
            setattr(model, name, norm if act is None else nn.Sequential(norm, act))
        else:
            _grouped(child)
    return _deterministic(model)


def _deterministic(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name in ("drop_prob", "attn_drop_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def _check_norms(model: nn.Module, name: str) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                f"backbone 'timm/{name}' normalises over batches ({type(module).__name__}): an image's features would "
                f"depend on others. Choose another model."
            )
