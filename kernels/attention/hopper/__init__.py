"""Attention for Hopper in Gluon: copies by the TMA engine, matrix products by warpgroups, each warp one role.

Imported only where Triton has Gluon; `lit_eff.kernels.attention.paths` decides who comes here.
"""
