"""Attention to cached keys, against the steps that NVIDIA's toolkit took through a cache-aware streaming encoder.

Each step gets the frames of its chunk and, for every layer, what attention and convolution were given before. The
layers are taken apart here, so that their own attention is called with a cache; all else is written out.

B batch, T frames of a step, D width
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nemo_asr.modules.conformer import ConformerEncoder
from nemo_asr.modules.conformer.attention import AttentionMask
from nemo_asr.modules.conformer.context import Window
from nemo_kernels.attention import function

CASE = "fastconformer_hybrid_streaming_bpe"
STORED_STEPS = 5


@pytest.fixture(params=["matrix", "tiles"])
def implementation(request, monkeypatch):
    first = 10**9 if request.param == "matrix" else 0
    monkeypatch.setattr(function, "TILED_FROM_KEYS", {"learning": first, "inference": first})


def convolved(conv, x, padded, past):
    """The causal convolution of x (B, T, D) after `past` (B, D, kernel - 1), and what the next step needs of it."""
    x = F.glu(conv.pointwise_conv1(x.mT), dim=1).masked_fill(padded.unsqueeze(1), 0.0)
    past_and_x = torch.cat([past, x], dim=2)
    mixed = F.silu(conv.batch_norm(conv.depthwise_conv(past_and_x).mT))
    return conv.pointwise_conv2(mixed.mT).mT, past_and_x[:, :, -past.size(2) :]


def layer_step(layer, x, mask, positions, channel, time):
    """A layer's output, and its next caches: normalised frames (B, S, D) and inputs of the convolution."""
    x = x + 0.5 * layer.feed_forward1(layer.norm_feed_forward1(x))
    frames = layer.norm_self_att(x)
    x = x + layer.self_attn(frames, mask, positions, cached=channel)
    mixed, time = convolved(layer.conv, layer.norm_conv(x), mask.padded, time)
    x = x + mixed
    x = x + 0.5 * layer.feed_forward2(layer.norm_feed_forward2(x))
    return layer.norm_out(x), torch.cat([channel, frames], dim=1)[:, -channel.size(1) :], time


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("context", [[12, 3], [12, 0]])
def test_steps_with_cached_keys_equal_nvidias(context, golden):
    stored = golden(CASE)
    name = f"ctx{context[0]}_{context[1]}"
    streaming = stored.meta["streaming"][name]["cfg"]
    encoder = ConformerEncoder(**stored.section("encoder")).eval()
    encoder.load_state_dict(stored.weights("encoder"))
    window = Window.of(context, "chunked_limited")
    past = streaming["last_channel_cache_size"]
    layers, batch, width = len(encoder.layers), 2, encoder.d_model
    channels = [torch.zeros(batch, past, width) for _ in range(layers)]
    times = [torch.zeros(batch, width, encoder.conv_padding[0]) for _ in range(layers)]
    past_len = torch.zeros(batch, dtype=torch.int64)
    for step in range(STORED_STEPS):
        arrays = {key.split(f"_s{step}_")[1]: value for key, value in stored.io.items() if f"{name}_s{step}_" in key}
        dropped = streaming["drop_extra_pre_encoded"] if step else 0
        with torch.no_grad():
            x, length = encoder.pre_encode(arrays["in_chunk"].mT, arrays["in_chunk_length"])
            x, length = encoder.pos_enc(x[:, dropped:])[0], length - dropped
            mask = AttentionMask(length, x.size(1), window, cached=past, cached_len=past_len)
            positions = encoder.pos_enc.table(past + x.size(1), x)
            for index, layer in enumerate(encoder.layers):
                x, channels[index], times[index] = layer_step(layer, x, mask, positions, channels[index], times[index])
        past_len = arrays["cache_last_channel_len"]
        assert past_len.tolist() == [min((step + 1) * streaming["valid_out_len"], past)] * batch
        torch.testing.assert_close(x.mT, arrays["encoded"], atol=2e-5, rtol=0)
        if "cache_last_channel" in arrays:
            torch.testing.assert_close(torch.stack(channels), arrays["cache_last_channel"], atol=2e-5, rtol=0)
            torch.testing.assert_close(torch.stack(times), arrays["cache_last_time"], atol=2e-5, rtol=0)
