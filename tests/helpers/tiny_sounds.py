"""Tiny random pipelines that make sound, in the form of tiny_pipelines.py."""

from __future__ import annotations

from typing import Any

from tests.helpers.tiny_pipelines import (
    BETAS,
    CHAT,
    LETTERS,
    T5,
    TOKENS,
    WIDTH,
    Family,
    flow,
    letter_tokenizer,
    part,
    t5_text,
    text,
    text_model,
)
from tests.helpers.tiny_videos import of_class, trained

# From here on, as many sizes a line as fit.
# fmt: off

SOUND_RATE = 16000


def roberta_tokenizer() -> Any:
    from transformers import RobertaTokenizer

    vocabulary = {token: k for k, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "<mask>", "\u0120", *LETTERS])}
    return RobertaTokenizer(vocab=vocabulary, merges=[], model_max_length=TOKENS)


def t5_tokenizer() -> Any:
    from transformers import T5Tokenizer

    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -1.0), *((letter, -2.0) for letter in LETTERS)]
    return T5Tokenizer(vocab=scores, extra_ids=0, model_max_length=TOKENS)


def contrastive_text() -> Any:
    """Of text and sound; only its text is asked."""
    from transformers import ClapAudioConfig, ClapConfig, ClapModel, ClapTextConfig

    words = ClapTextConfig(
        vocab_size=32, hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1, num_attention_heads=2,
        projection_dim=WIDTH, pad_token_id=0, max_position_embeddings=64,
    )
    waves = ClapAudioConfig(
        spec_size=8, window_size=4, num_mel_bins=8, intermediate_size=WIDTH, depths=[1, 1], num_attention_heads=[1, 1],
        num_hidden_layers=1, hidden_size=192, projection_dim=WIDTH, patch_size=2, patch_stride=2,
        patch_embed_input_channels=4,
    )
    config = ClapConfig(text_config=words.to_dict(), audio_config=waves.to_dict(), projection_dim=WIDTH)
    return ClapModel(config).eval()


def features() -> Any:
    from transformers import ClapFeatureExtractor

    return ClapFeatureExtractor(feature_size=8, hop_length=4)


AUDIO_LDM_2 = {
    "vae": part(
        "AutoencoderKL", block_out_channels=(8, 8), in_channels=1, out_channels=1, norm_num_groups=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ),
    **text(contrastive_text, roberta_tokenizer),
    **text(text_model("T5EncoderModel", "T5Config", **T5), t5_tokenizer, 2),
    "projection_model": of_class(
        "pipelines.audioldm2", "AudioLDM2ProjectionModel", text_encoder_dim=WIDTH, text_encoder_1_dim=WIDTH,
        langauge_model_dim=WIDTH,
    ),
    "language_model": text_model(
        "GPT2LMHeadModel", "GPT2Config", n_embd=WIDTH, n_head=2, n_layer=1, n_positions=64, vocab_size=30,
    ),
    "feature_extractor": features,
    "unet": of_class(
        "pipelines.audioldm2", "AudioLDM2UNet2DConditionModel", block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=8, sample_size=8, in_channels=4, out_channels=4, cross_attention_dim=(WIDTH, WIDTH),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ),
    "scheduler": part("DDIMScheduler", clip_sample=False, set_alpha_to_one=False, **BETAS),
    "vocoder": text_model(
        "SpeechT5HifiGan", "SpeechT5HifiGanConfig", model_in_dim=8, sampling_rate=SOUND_RATE, upsample_rates=[2, 2],
        upsample_initial_channel=16, upsample_kernel_sizes=[4, 4], resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3, 5]], normalize_before=False, initializer_range=0.3,
    ),
}
STABLE_AUDIO_3 = {
    "vae": trained(part(
        "AutoencoderSAME", audio_channels=1, patch_size=4, encoder_channels=8, encoder_c_mults=[1], encoder_strides=[2],
        encoder_transformer_depths=[1], latent_dim=4, use_differential_attention=False, dim_heads=4, ff_mult=1,
        sampling_rate=SOUND_RATE,
    )),
    **text(t5_text, letter_tokenizer),
    "duration_embedder": of_class(
        "pipelines.stable_audio_3", "StableAudio3DurationEmbedder", output_dim=WIDTH, fourier_dim=8,
    ),
    "transformer": trained(part(
        "StableAudio3DiTModel", io_channels=4, embed_dim=16, depth=1, num_heads=2, cond_token_dim=WIDTH,
        global_cond_dim=WIDTH, local_add_cond_dim=5, timestep_features_dim=8, ff_mult=1.0, num_memory_tokens=2,
        use_differential_attention=False,
    )),
    "scheduler": flow(num_train_timesteps=1),
}
LONGCAT = {
    "vae": trained(part(
        "LongCatAudioDiTVae", channels=8, c_mults=[1, 1], strides=[4, 2], latent_dim=4, encoder_latent_dim=8,
        downsampling_ratio=8, sample_rate=SOUND_RATE, act_fn="elu",
    )),
    **text(text_model("UMT5EncoderModel", "UMT5Config", **T5), t5_tokenizer),
    "transformer": trained(part(
        "LongCatAudioDiTTransformer", dit_dim=16, dit_depth=2, dit_heads=2, dit_text_dim=WIDTH, latent_dim=4,
        ff_mult=1.0,
    )),
    "scheduler": flow(invert_sigmas=True),
}
CONTRASTIVE = {  # AudioLDM and MusicLDM: the text's one embedding stands beside the time's
    "vae": AUDIO_LDM_2["vae"],
    "text_encoder": text_model(
        "ClapTextModelWithProjection", "ClapTextConfig", vocab_size=32, hidden_size=WIDTH, intermediate_size=WIDTH,
        num_hidden_layers=1, num_attention_heads=2, projection_dim=WIDTH, pad_token_id=0, max_position_embeddings=64,
    ),
    "tokenizer": roberta_tokenizer,
    "unet": part(
        "UNet2DConditionModel", block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=8, sample_size=8,
        in_channels=4, out_channels=4, cross_attention_dim=(8, 16), class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=WIDTH, class_embeddings_concat=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ),
    "scheduler": AUDIO_LDM_2["scheduler"],
    "vocoder": AUDIO_LDM_2["vocoder"],
}
MUSIC_LDM = {**CONTRASTIVE, "text_encoder": contrastive_text, "feature_extractor": features}
OOBLECK = {"encoder_hidden_size": 6, "decoder_channels": 4, "decoder_input_channels": 4, "sampling_rate": SOUND_RATE}
STABLE_AUDIO = {
    "vae": part(
        "AutoencoderOobleck", downsampling_ratios=[2, 4], channel_multiples=[1, 1], audio_channels=1, **OOBLECK,
    ),
    **text(t5_text, letter_tokenizer),
    "projection_model": of_class(
        "pipelines.stable_audio", "StableAudioProjectionModel", text_encoder_dim=WIDTH, conditioning_dim=WIDTH,
        min_value=0, max_value=32,
    ),
    "transformer": trained(part(
        "StableAudioDiTModel", sample_size=20, in_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=2, num_key_value_attention_heads=2, out_channels=4, cross_attention_dim=WIDTH,
        time_proj_dim=8, global_states_input_dim=2 * WIDTH, cross_attention_input_dim=WIDTH,
    )),
    "scheduler": part(
        "EDMDPMSolverMultistepScheduler", solver_order=1, prediction_type="v_prediction", sigma_data=1.0,
        sigma_schedule="exponential",
    ),
}
ACE = {
    "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "sliding_window": 8,
}
ACE_STEP = {  # stereo; a latent is 800 samples, of which 30 seconds are read as the timbre of silence
    "vae": part(
        "AutoencoderOobleck", downsampling_ratios=[8, 10, 10], channel_multiples=[1, 1, 1], audio_channels=2, **OOBLECK,
    ),
    "text_encoder": text_model("Qwen3Model", "Qwen3Config", **CHAT),
    "tokenizer": letter_tokenizer,
    "transformer": trained(part(
        "AceStepTransformer1DModel", num_hidden_layers=2, in_channels=12, audio_acoustic_hidden_dim=4,
        encoder_hidden_size=16, **ACE,
    )),
    "condition_encoder": trained(of_class(
        "pipelines.ace_step", "AceStepConditionEncoder", text_hidden_dim=WIDTH, timbre_hidden_dim=4,
        num_lyric_encoder_hidden_layers=1, num_timbre_encoder_hidden_layers=1, **ACE,
    )),
    "scheduler": flow(num_train_timesteps=1),
}
SOUNDS = {
    "audioldm2": Family("AudioLDM2Pipeline", AUDIO_LDM_2, call={"audio_length_in_s": 0.01, "max_new_tokens": 8}),
    "longcat-audio": Family("LongCatAudioDiTPipeline", LONGCAT, flow=True, call={"audio_duration_s": 0.01}),
    "ace-step": Family("AceStepPipeline", ACE_STEP, flow=True, call={"audio_duration": 0.2}),
    "audioldm": Family("AudioLDMPipeline", CONTRASTIVE, call={"audio_length_in_s": 0.01}),
    "stable-audio": Family("StableAudioPipeline", STABLE_AUDIO, call={"audio_end_in_s": 0.01}),
    "stable-audio-3": Family("StableAudio3Pipeline", STABLE_AUDIO_3, flow=True, call={"duration": 0.01}),
}
# These cannot be aligned, for the reason that each gives.
SILENT = {
    "musicldm": (  # diffusers 0.42 takes transformers' output for a tensor
        Family("MusicLDMPipeline", MUSIC_LDM, call={"audio_length_in_s": 0.01}), "does not run with DDIMScheduler"
    ),
}
# This one begins with a sound.
RESOUNDING = {
    "stable-audio-3-a2a": Family(
        "StableAudio3AudioToAudioPipeline", STABLE_AUDIO_3, flow=True,
        call={"duration": 0.01, "init_noise_level": 0.8, "logsnr_min": -2.0},
    ),
}

# fmt: on
