"""The small residual networks for pictures of 32 x 32 pixels, whose layers may have any width after pruning."""

from modicum.models.cifar_resnet.config import CifarResNetConfig
from modicum.models.cifar_resnet.files import convert, is_cifar_resnet, load_cifar_resnet, save
from modicum.models.cifar_resnet.model import CifarResNetForImageClassification

__all__ = [
    "CifarResNetConfig",
    "CifarResNetForImageClassification",
    "convert",
    "is_cifar_resnet",
    "load_cifar_resnet",
    "save",
]
