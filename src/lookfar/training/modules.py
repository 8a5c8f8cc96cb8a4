"""What training makes of a network: one with its loss, one with synchronised norms, and its running average."""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lookfar.training.settings import Settings

if TYPE_CHECKING:
    from lookfar.tasks._base import Task


class WithLoss(nn.Module):
    """A network with its loss, so that the loss is computed in the network's precision and on every device."""

    class_weights: Tensor | None

    def __init__(self, network: nn.Module, task: "Task", class_weights: Tensor | None) -> None:
        super().__init__()
        self.network = network
        self.task = task
        self.register_buffer("class_weights", class_weights)

    def forward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The summed loss, and what it is to be divided by."""
        return self.task.learn(self.network, inputs, targets, self.class_weights)


def synchronised(network: nn.Module) -> nn.Module:
    """SyncBatchNorm in place of every batch norm, with what was inserted behind one.

    ``SyncBatchNorm.convert_sync_batchnorm`` forgets the children and the hooks of the norms that it replaces.
    """
    if isinstance(network, nn.modules.batchnorm._BatchNorm) and not isinstance(network, nn.SyncBatchNorm):
        children = dict(network.named_children())
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        for name, child in children.items():
            converted.add_module(name, child)
        converted._forward_hooks.update(network._forward_hooks)
        network = converted
    for name, child in list(network.named_children()):
        setattr(network, name, synchronised(child))
    return network


def running_average(network: nn.Module, settings: Settings) -> Any:
    """timm's running average of weights and buffers, whose decay grows with the step; None when it is off."""
    if not settings.ema:
        return None
    from timm.utils import ModelEmaV3

    return ModelEmaV3(network, decay=settings.ema, use_warmup=True)
