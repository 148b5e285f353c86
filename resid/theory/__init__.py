"""The mathematics: pure functions on real tensors, one module per object.

`factor` near-identity factorisations (Hardt & Ma 2016, Theorem 2.1); `landscape` the risk of linear residual networks,
its gradient and the bound without bad critical points (Theorem 2.2); `conv_spectrum` singular values of convolutions
(Zaeemzadeh et al. 2018, Theorem 3); `procrustes` the nearest norm-preserving kernel (equations 7 to 9).
"""
