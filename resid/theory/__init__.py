"""The mathematics: pure functions on real tensors, eight doors, one for each object of the papers.

`factor` near-identity factorisations (Hardt & Ma 2016, Theorem 2.1); `landscape` the risk of linear residual networks
(Theorem 2.2); `memorize` networks through finite samples (Theorem 3.2); `shortcut` networks whose shortcuts span n
layers, and `small_weights` samples memorised with small weights (Li et al. 2016); `norms` how blocks change the norms
of gradients, `conv_spectrum` singular values of convolutions, and `procrustes` the nearest norm-preserving kernel
(Zaeemzadeh et al. 2018). `targets` samples maps to try them on.
"""
