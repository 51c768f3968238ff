"""Standard attention (FlashAttention, Dao et al. 2022, Algorithm 0): the baseline that the profiler shows.

Three Triton kernels with the (T, S) scores S and weights P in HBM between them. Forward only, outside
autograd: nothing here trains. `scores`, `softmax` and `output` are the kernels, `launches` their order and
the public function, `traffic_model` the exact bytes they request.
"""

from lit_eff.kernels.attention.standard.launches import standard_attention, standard_launches

__all__ = ["standard_attention", "standard_launches"]
