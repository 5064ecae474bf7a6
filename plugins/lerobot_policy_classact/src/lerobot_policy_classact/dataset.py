"""What a head is made for: the features of a LeRobot data set, and its normalisation by the recorded ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from classact.data.language import SIZE, source_at_hand
from classact.data.lowdim import LowDim
from classact.data.normalize import MinMax
from classact.data.readers.lerobot import Info, declared_schema, read_info
from classact.data.types import FloatArray
from classact.errors import ConfigError, DataError
from classact.models.encoders import EncoderConfig
from classact.models.encoders.image import ASPECT_TOLERANCE
from classact.train.config import FinetuneConfig
from lerobot_policy_classact.configuration_classact import ClassactConfig


@dataclass(frozen=True)
class Trained:
    """Of a head, what its config.json holds.

    Attributes:
        finetune: classact's settings of its training; the encoder's are among them.
        actions, lowdim: normalisation, by what the data set recorded.
        cameras, proprioception: name in the policy -> feature of the observation.
    """

    finetune: FinetuneConfig
    actions: MinMax
    lowdim: LowDim
    cameras: Mapping[str, str]
    proprioception: Mapping[str, str]

    def check(self, dataset_meta: Any) -> None:
        """Refuse a data set that lacks what the head was made for.

        Raises:
            ConfigError: a feature is missing, or of another size.
        """
        features = dataset_meta.features
        sizes = {self.proprioception[key]: size for key, size in self.lowdim.schema.proprioception}
        sizes["action"] = len(self.actions.low)
        for name, size in sizes.items():
            found = int(np.prod(features[name]["shape"])) if name in features else None
            if found != size:
                what = "is missing" if found is None else f"has {found} dimensions"
                raise ConfigError(
                    f"{dataset_meta.repo_id}: feature {name!r} {what}, the head was made for {size}. Features are "
                    f"{', '.join(sorted(features))}."
                )
        if missing := [name for name in self.cameras.values() if name not in features]:
            raise ConfigError(
                f"{dataset_meta.repo_id}: feature {missing[0]!r} is missing, which the encoder sees. Features are "
                f"{', '.join(sorted(features))}."
            )


def described(config: ClassactConfig, encoder: EncoderConfig, dataset_meta: Any) -> Trained:
    """What a head on this encoder is made for, by a data set's metadata.

    Raises:
        ConfigError: the encoder's cameras, or features that were named, are not there.
        DataError: metadata that classact does not read, or without the ranges of actions or states.
    """
    root = Path(dataset_meta.root)
    info = read_info(root)
    declared = declared_schema(root, info)
    keys = _keys(config, info, dict.fromkeys(declared.keys))
    cameras = _cameras(config, encoder, info)
    sizes = {key: int(np.prod(info.features[name].shape)) for key, name in keys.items()}
    tasks = len(dataset_meta.tasks)
    schema = replace(
        declared,
        cameras=encoder.cameras,
        proprioception=tuple(sizes.items()),
        language=SIZE if tasks > 1 else 0,
    )
    space = schema.actions
    ranges = [_range(dataset_meta, name) for name in keys.values()]
    low = np.concatenate([np.zeros((2, 0), np.float32), *ranges], axis=1)
    return Trained(
        replace(config.finetune(), encoder=encoder),
        MinMax.fit(_range(dataset_meta, "action"), 0.0 if space is None else space.magnitude()),
        LowDim(schema, schema.keys, MinMax.fit(low), language_source=source_at_hand() if tasks > 1 else ""),
        cameras,
        keys,
    )


def _keys(config: ClassactConfig, info: Info, declared: Mapping[str, Any]) -> dict[str, str]:
    """Proprioception key -> feature."""
    by_short = {feature.short: name for name, feature in info.features.items()}
    if not config.proprioception:
        return {key: by_short[key] for key in declared}
    for key, name in config.proprioception.items():
        if name not in info.features or info.features[name].short not in declared:
            raise ConfigError(
                f"--policy.proprioception names feature {name!r} for {key!r}; numbers of the observation are "
                f"{', '.join(by_short[one] for one in declared) or 'none'}."
            )
    return dict(config.proprioception)


def _cameras(config: ClassactConfig, encoder: EncoderConfig, info: Info) -> dict[str, str]:
    """Camera of the encoder -> feature: as named, by its name, or the only one for the only one."""
    there = {f.short: f for f in info.features.values() if f.name.startswith("observation.") and f.is_camera}
    chosen = dict(config.cameras)
    if unknown := sorted(set(chosen) - set(encoder.cameras)):
        raise ConfigError(f"--policy.cameras names {unknown[0]!r}; the encoder sees {', '.join(encoder.cameras)}.")
    for camera in encoder.cameras:
        if camera not in chosen and camera in there:
            chosen[camera] = there[camera].name
        elif camera not in chosen and len(encoder.cameras) == len(there) == 1:
            chosen[camera] = next(iter(there.values())).name
    features = {feature.name: feature for feature in there.values()}
    for camera, aspect in zip(encoder.cameras, encoder.aspects, strict=True):
        name = chosen.get(camera)
        if name not in features:
            what = "none of the data set's has that name" if name is None else f"there is no feature {name!r}"
            raise ConfigError(
                f"the encoder sees camera {camera!r}, but {what}: cameras are {', '.join(features) or 'none'}. Say "
                f'which it is, --policy.cameras=\'{{"{camera}": "FEATURE"}}\'.'
            )
        height, width = features[name].shape[:2]
        if not (height == width == encoder.image_size) and abs(width / height / aspect - 1) > ASPECT_TOLERANCE:
            raise ConfigError(
                f"{name} is {height} x {width} pixels (width / height {width / height:.2f}), what the encoder saw in "
                f"its training had {aspect:.2f}. Pre-train it on this camera."
            )
    return {camera: chosen[camera] for camera in encoder.cameras}


def _range(dataset_meta: Any, name: str) -> FloatArray:
    """(2, D) smallest and largest values that are recorded of a feature."""
    found = (dataset_meta.stats or {}).get(name, {})
    size = int(np.prod(dataset_meta.features[name]["shape"]))
    values = [np.asarray(found.get(kind, ()), np.float32).ravel() for kind in ("min", "max")]
    if any(len(value) != size for value in values):
        raise DataError(
            f"{dataset_meta.repo_id}: meta/stats.json lacks the smallest and largest values of {name!r} ({size} "
            f"dimensions). Compute the statistics with LeRobot: a head is not trained without normalisation."
        )
    return np.stack(values)
