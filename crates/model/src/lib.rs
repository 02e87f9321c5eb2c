//! Weights and arithmetic: GGUF, architectures, CPU kernels.
