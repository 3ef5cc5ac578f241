"""CMT's schedule: 20 epochs, learning rate and momentum in one cycle, GT sampling in the first 15.

A config gives the learning rate, ``optim_wrapper.optimizer.lr``, and its cycle as ratios: the peak, and the
end (1e-4). Ratios, not ``eta_min``: that is one number for all parameter groups and would undo the
multipliers of ``paramwise_cfg``; a momentum would end at 1, where CMT means 0.9 once more.
"""
# ruff: noqa: C408  configs of mmengine are written with dict()

_up = dict(begin=0, end=8, T_max=8, by_epoch=True, convert_to_iter_based=True)
_down = dict(begin=8, end=20, T_max=12, by_epoch=True, convert_to_iter_based=True)
_momentum = [
    dict(type="CosineAnnealingMomentum", eta_min_ratio=0.8947368, **_up),
    dict(type="CosineAnnealingMomentum", eta_min_ratio=1.0, **_down),
]

optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="bfloat16",
    constructor="CmtOptimWrapperConstructor",  # what mmengine's Runner is told; our loop does the same
    optimizer=dict(type="AdamW", weight_decay=0.01),
    clip_grad=dict(max_norm=35.0, norm_type=2),
)

train_cfg = dict(by_epoch=True, max_epochs=20, val_interval=20)
val_cfg = dict()
test_cfg = dict()
custom_hooks = [dict(type="DisableObjectSampleHook", disable_after_epoch=15)]
randomness = dict(seed=0)
