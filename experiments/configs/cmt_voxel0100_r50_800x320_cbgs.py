"""CMT with ResNet-50: voxels of 0.1 m, six 320 x 800 images.

Published: 67.9 mAP, 70.8 NDS on nuScenes val.
"""
# ruff: noqa: C408  configs of mmengine are written with dict(), and mmengine gives _base_ its meaning

_base_ = ["./_base_/cmt.py", "./_base_/cyclic_20e.py"]

_lr = 1.4e-4
_voxel_size = [0.1, 0.1, 0.2]

model = dict(
    image_size=(320, 800),
    img_backbone=dict(
        type="mmdet.ResNet",
        depth=50,
        num_stages=4,
        out_indices=(2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=True,
        with_cp=True,
        style="pytorch",
    ),
    img_neck=dict(in_channels=[1024, 2048]),
    pts_voxel_layer=dict(voxel_size=_voxel_size),
    # 108 m are 1080 voxels, not 1024: as published. What lies beyond, x or y > 48.4 m, gets no voxel.
    pts_middle_encoder=dict(sparse_shape=[41, 1024, 1024]),
)

_image = dict(
    H=900,
    W=1600,
    final_dim=(320, 800),
    resize_lim=(0.47, 0.625),
    bot_pct_lim=(0.0, 0.0),
    rot_lim=(0.0, 0.0),
    rand_flip=True,
)
_train_pipeline = [
    *_base_._load,
    *_base_._augment,
    dict(type="ResizeCropFlipImage", data_aug_conf=_image, training=True),
    *_base_._pack,
]
_test_pipeline = [
    *_base_._load,
    dict(type="ResizeCropFlipImage", data_aug_conf=_image, training=False),
    *_base_._pack_test,
]
train_dataloader = dict(batch_size=4, dataset=dict(dataset=dict(pipeline=_train_pipeline)))
val_dataloader = dict(dataset=dict(pipeline=_test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(
    optimizer=dict(lr=_lr),
    paramwise_cfg=dict(
        custom_keys={
            "img_backbone": dict(lr_mult=0.01, decay_mult=5.0),
            "img_neck": dict(lr_mult=0.1),
        }
    ),
)
param_scheduler = [
    dict(type="CosineAnnealingLR", eta_min_ratio=6, **_base_._up),
    dict(type="CosineAnnealingLR", eta_min_ratio=1e-4, **_base_._down),
    *_base_._momentum,
]
