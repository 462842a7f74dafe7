"""Where the papers have their exits."""

import re

import keras


def stage_ends(model: keras.Model) -> list[str]:
    """Return the names of the layers that end a network's stages, but the last stage.

    There *Be Your Own Teacher*, its journal version and TESKD have the exits of a
    ResNet. A number of taps places exits by multiply-adds, which in ResNet-34 and
    deeper ones is elsewhere. A network of three stages has two such places,
    VGG has four.

    Args:
        model: One of the networks of this package.

    Returns:
        Names from shallow to deep, as `SelfDistiller(model, taps=…)` takes them.

    Raises:
        ValueError: The layers of `model` are not named as those of this package.

    Example:
        >>> import keras_selfdistill as ksd
        >>> base = ksd.networks.resnet34(width_multiplier=0.125)
        >>> ksd.networks.stage_ends(base)
        ['stage1_block3_out', 'stage2_block4_out', 'stage3_block6_out']
    """
    ends = {}
    for layer in model.layers:
        if found := re.fullmatch(r"stage(\d+)_(block\d+_out|pool)", layer.name):
            ends[int(found[1])] = layer.name  # The last block of a stage is its end.
    if len(ends) < 2:
        raise ValueError(
            f"Received a model, {model.name!r}, without stages; expected a network of "
            "keras_selfdistill.networks. Pass taps=3, or the names of its layers."
        )
    *shallow, _ = [ends[stage] for stage in sorted(ends)]
    return shallow
