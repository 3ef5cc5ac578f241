"""The full-size studies on generated data: nuScenes' image size, point clouds and ten classes, no nuScenes.

First ``branches_r50`` trains the branches from scratch, without the decoder, then ``pretrain_r50`` the whole
detector, each step under another plan. ``r50_generated`` fine-tunes it with a window bias in some of its six
layers. ``vov`` likewise. One GPU runs them.
"""
