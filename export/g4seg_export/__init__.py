"""Build time: checkpoints to ONNX graphs. The only package that imports diffusers or transformers."""
