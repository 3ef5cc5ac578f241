"""CMT with VoVNet V-99: voxels of 0.075 m, six 640 x 1600 images.

Published: 70.3 mAP, 72.9 NDS on nuScenes val.
"""
# ruff: noqa: C408  configs of mmengine are written with dict(), and mmengine gives _base_ its meaning

_base_ = ["./_base_/cmt.py", "./_base_/cyclic_20e.py"]

_lr = 1e-4
_voxel_size = [0.075, 0.075, 0.2]

model = dict(
    image_size=(640, 1600),
    img_backbone=dict(
        type="VoVNet",
        spec_name="V-99-eSE",
        norm_eval=True,
        frozen_stages=-1,
        input_ch=3,
        out_features=("stage4", "stage5"),
    ),
    img_neck=dict(in_channels=[768, 1024]),
    pts_voxel_layer=dict(voxel_size=_voxel_size),
    pts_middle_encoder=dict(sparse_shape=[41, 1440, 1440]),
)

_image = dict(
    H=900,
    W=1600,
    final_dim=(640, 1600),
    resize_lim=(0.94, 1.25),
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
train_dataloader = dict(batch_size=2, dataset=dict(dataset=dict(pipeline=_train_pipeline)))
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
    dict(type="CosineAnnealingLR", eta_min_ratio=8, **_base_._up),
    dict(type="CosineAnnealingLR", eta_min_ratio=1e-4, **_base_._down),
    *_base_._momentum,
]
