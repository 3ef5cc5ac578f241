"""What several processes that train one model share: the mean of its gradients, in one collective a step."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class GradientMean:
    """Averages the gradients of all ranks, and gives all ranks the batch norms' statistics of rank 0.

    DistributedDataParallel overlaps many small collectives with the backward pass. Where a plan leaves
    parameters without gradient, it also reads from the device, after every backward pass, which these are,
    and the host can no longer launch the next arm or step in the meantime. One collective takes 1 % of a
    step of r50, and the host never waits for it.

    Statistics travel with the gradients: training writes them and does not read them, so that all ranks need
    the same ones when the model detects, and not before. A collective of their own, before the forward pass,
    would let the ranks wait for rank 0 there.

    Every rank makes its instances, and calls them, in the same order. The weights and the statistics of
    batch norms begin as those of rank 0.

    Args:
        model: on its device; batch norms that train, and are not in ``frozen``, have rank 0's statistics
            after every step.
        parameters: those that train.
        frozen: modules whose statistics never change.
    """

    def __init__(
        self, model: nn.Module, parameters: Sequence[nn.Parameter], frozen: Sequence[nn.Module] = ()
    ) -> None:
        self._parameters = list(parameters)
        self._sizes = [parameter.numel() for parameter in self._parameters]
        still = {id(module) for part in frozen for module in part.modules()}
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and id(m) not in still]
        self._norms = [norm for norm in norms if norm.track_running_stats]
        self._flags: dict[tuple[bool, ...], Tensor] = {}  # of the sets that all ranks have had at once
        for tensor in (*self._parameters, *(b for norm in self._norms for b in norm.buffers())):
            dist.broadcast(tensor.detach(), src=0)

    def average(self) -> None:
        """Replace every gradient by its mean over the ranks, and statistics by those of rank 0, in place.

        A parameter without gradient keeps none: the plan of a step decides that, so it has none on all ranks.

        Raises:
            RuntimeError: the ranks disagree about which parameters have a gradient.
        """
        has = tuple(parameter.grad is not None for parameter in self._parameters)
        like = self._parameters[0]
        parts = [
            like.new_zeros(size) if p.grad is None else p.grad.flatten()
            for p, size in zip(self._parameters, self._sizes, strict=True)
        ]
        flags = self._flags.get(has)
        if flags is None:
            flags = torch.tensor(has, dtype=like.dtype, device=like.device)
        statistics = self._statistics()
        own = [s if dist.get_rank() == 0 else torch.zeros_like(s) for s in statistics]  # the sum is rank 0's
        flat = torch.cat([*parts, flags, *own])
        flat[: sum(self._sizes) + len(has)].div_(dist.get_world_size())
        dist.all_reduce(flat)
        *means, shares, kept = torch.split(
            flat, [*self._sizes, len(has), sum(len(one) for one in statistics)]
        )
        if has not in self._flags:  # the host waits, once for every set of parameters
            self._agree(has, shares)
            self._flags[has] = flags
        grads = [p.grad for p in self._parameters if p.grad is not None]
        used = [mean for mean, one in zip(means, has, strict=True) if one]
        torch._foreach_copy_(grads, [mean.view(g.shape) for mean, g in zip(used, grads, strict=True)])
        if statistics:
            torch._foreach_copy_(statistics, torch.split(kept, [len(one) for one in statistics]))

    def _statistics(self) -> list[Tensor]:
        """Return mean and variance of the batch norms that train now; all ranks count batches alike."""
        return [
            s for n in self._norms if n.training for s in (n.running_mean, n.running_var) if s is not None
        ]

    def _agree(self, has: tuple[bool, ...], shares: Tensor) -> None:
        somewhere = [share > 0 for share in shares.tolist()]
        if somewhere != list(has):
            odd = next(i for i, one in enumerate(has) if one != somewhere[i])
            raise RuntimeError(
                f"rank {dist.get_rank()}: trained tensor {odd}, {tuple(self._parameters[odd].shape)}, has no "
                "gradient here, but on another rank; expected the same tensors on all ranks, because all of "
                "them train the same plan"
            )
