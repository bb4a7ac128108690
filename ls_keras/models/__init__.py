"""Networks of the paper: builders that return an uncompiled functional `keras.Model`.

Every network ends in two layers named "penultimate" (the activations that the paper projects) and "logits",
with penultimate @ kernel + bias == logits, both in float32 under any mixed-precision policy.
"""

from ls_keras.models.alexnet import alexnet
from ls_keras.models.inception import inception_v3, inception_v4
from ls_keras.models.mlp import mlp
from ls_keras.models.resnet import resnet

__all__ = ["alexnet", "inception_v3", "inception_v4", "mlp", "resnet"]
