"""Decoder architectures built from the shared layers.

Every supported one is `decoder.Decoder` with options; `engine.config.ARCHITECTURES` names them, because the gateway
reads configurations too and has no torch.
"""
