"""What the tests of models share: the smallest sizes, and every way to the features."""

# The smallest model that has every part: 4 patches of 4 codes, 5 levels.
TINY = {
    "image_size": 4,
    "num_channels": 1,
    "patch_size": 2,
    "num_levels": 5,
    "hidden_size": 16,
    "num_encoder_layers": 2,
    "num_decoder_layers": 1,
    "num_attention_heads": 2,
    "code_embedding_size": 4,
    "depth_hidden_size": 8,
    "num_depth_groups": 2,
    "projection_hidden_size": 16,
    "projection_dim": 8,
}


# Every way to the features.
ENCODERS = {
    "causal": {},
    "two passes": {"encoder_attention": "two_pass"},
    "bidirectional": {"encoder_attention": "bidirectional", "generative_weight": 0},
}
