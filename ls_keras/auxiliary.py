"""Training with an auxiliary head: a second classifier on an earlier layer that counts in training alone."""

from typing import Any

from ls_keras import distribution, keras_hooks

import keras


@keras.saving.register_keras_serializable("ls_keras")
class WithAuxiliary(distribution.Model):
    """A model that also learns from a classifier on one of its earlier layers.

        loss = loss(logits) + weight · loss(auxiliary) + penalties

    Both classifiers see the same labels through the loss of `compile`. Metrics, the loss in evaluation and what is
    exported are those of the logits alone. Everything else is as in `distribution.Model`.

    Args:
        inputs, outputs, name: A network with the outputs {"logits": [n, K], "auxiliary": [n, K]}, as for `keras.Model`.
        weight: Weight of the auxiliary loss, above 0. Inception-v4 in TensorFlow's slim: 0.4.

    Raises:
        ValueError: Other outputs, or a weight that is not above 0.

    Example:
        >>> network = models.inception_v4((107, 107, 3), 10, width=0.25, auxiliary=True)
        >>> model = WithAuxiliary(network.input, network.output, weight=0.4)
        >>> model.compile("sgd", losses.SmoothedCrossentropy(0.1), weighted_metrics=["accuracy"])

    Reference: Szegedy et al., 2015, section 5, https://arxiv.org/abs/1409.4842
    """

    def __init__(self, inputs: Any, outputs: Any, name: str | None = None, *, weight: float) -> None:
        names = sorted(outputs) if isinstance(outputs, dict) else None
        if names != ["auxiliary", "logits"]:
            raise ValueError(
                "A model with an auxiliary head needs the outputs {'logits': …, 'auxiliary': …}; received "
                f"{names or type(outputs).__name__}. Build the network with auxiliary=True."
            )
        if not weight > 0:
            raise ValueError(f"`weight` of the auxiliary loss must be above 0; received {weight}.")
        super().__init__(inputs, outputs, name=name)
        self.weight = weight

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        loss = super().compute_loss(x, y, y_pred["logits"], sample_weight, training)
        if not training:
            return loss
        return loss + self.weight * keras_hooks.loss_of(self, y, y_pred["auxiliary"], sample_weight)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        return super().compute_metrics(x, y, y_pred["logits"], sample_weight)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "weight": self.weight}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "WithAuxiliary":
        config = dict(config)
        weight = config.pop("weight")
        network = keras.Model.from_config(config, custom_objects)
        return cls(network.input, network.output, network.name, weight=weight)
