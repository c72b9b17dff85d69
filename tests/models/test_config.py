import dataclasses
import tomllib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sv3d_jax.errors import WeightsError
from sv3d_jax.models.config import ImageEncoderConfig, ModelConfig, UNetConfig, VAEConfig

TRAINED = dataclasses.replace(
    ModelConfig.published("p"),
    name="mini",
    latent_factor=(0.2, 0.3, 0.25, 0.35),
    training={
        "seed": 3,
        "device": {"kind": "CPU", "cores": 2},
        "log": [{"step": 1, "loss": 2e-5}],
        "resumed": False,
    },
)

texts = st.text(st.characters(codec="utf-8"), max_size=5)
plain = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | texts
values = plain | st.lists(plain, max_size=3) | st.dictionaries(texts, plain, min_size=1, max_size=3)
records = st.dictionaries(texts, values | st.dictionaries(texts, values, min_size=1, max_size=2), max_size=4)


@pytest.mark.parametrize("config", [ModelConfig.published("u"), ModelConfig.published("p"), TRAINED])
def test_toml_restores_the_model(config):
    again = ModelConfig.from_toml(config.to_toml())
    assert (again, again.training) == (config, config.training)


@pytest.mark.parametrize("config", [ModelConfig.published("u"), TRAINED])
def test_metadata_restore_the_model(config):
    again = ModelConfig.from_metadata({"format": "pt", **config.to_metadata()})
    assert (again, again.training) == (config, config.training)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(records)
def test_any_record_of_training_survives_toml(record):
    text = dataclasses.replace(ModelConfig(), training=record).to_toml()
    assert tomllib.loads(text).get("training", {}) == record


def test_metadata_of_others_describe_no_model():
    assert ModelConfig.from_metadata({"format": "pt"}) is None


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "9" * 10_000], ids=["cut", "deep", "an endless number"])
def test_a_description_that_is_no_json_is_refused_in_own_words(text):
    metadata = dict.fromkeys(ModelConfig().to_metadata(), text)
    with pytest.raises(WeightsError, match="metadata is not JSON that can be read"):
        ModelConfig.from_metadata(metadata)


def test_fields_left_out_take_published_values():
    assert ModelConfig.from_toml("sigma_max = 80") == dataclasses.replace(ModelConfig(), sigma_max=80.0)


def test_vector_holds_noise_alone_without_cameras():
    assert ModelConfig.published("u").unet.vector_width == 256


def test_files_keep_the_first_name_of_the_image_encoder():
    wide = dataclasses.replace(ModelConfig(), image_encoder=ImageEncoderConfig(width=640))
    assert wide.to_dict()["tower"]["width"] == 640
    assert ModelConfig.from_dict({"tower": {"width": 640}}) == wide
    assert ModelConfig.from_toml(wide.to_toml()) == wide
    with pytest.raises(WeightsError, match="unknown key image_encoder"):
        ModelConfig.from_dict({"image_encoder": {}})


def test_autoencoder_of_four_levels_shrinks_eightfold():
    assert VAEConfig().downsampling == 8


@pytest.mark.parametrize(
    "text, says",
    [
        ("sigma_maxx = 3", "unknown key sigma_maxx"),
        ("[unet]\nwidth = 3", "unet: unknown key width"),
        ("unet = 3", "model: unet = 3: expected a table"),
        ("num_frames = 21.5", "model: num_frames = 21.5: expected a whole number"),
        ("num_frames = true", "model: num_frames = True: expected a whole number"),
        ("[unet]\nchannel_mult = [1, 'a']", "model: unet: channel_mult[1] = 'a': expected a whole number"),
        ("[unet]\nattention_levels = [4]", "attention_levels"),
        ("[unet]\nchannel_mult = []", "channel_mult needs one positive value per level"),
        ("variant = 'x'", "variant is"),
        ("latent_factor = [1.0, 2.0]", "latent_factor needs 1 or 4 values"),
        ("sigma_min = 3.0\nsigma_max = 2.0", "need 0 < sigma_min < sigma_max"),
        ("name = 3", "model: name = 3: expected a text"),
        ("latent_factor = 1.0", "model: latent_factor = 1.0: expected a list"),
        ("num_frames = 21\n= 3", "is not TOML that can be read: .*line 2"),
        ("num_frames = " + "9" * 10_000, "is not TOML that can be read"),
        ("training = " + "[" * 10_000, "it is nested deeper than 64 levels"),
        ("training." + "a." * 100_000 + "a = 1", "it is nested deeper than 64 levels"),
        ("num_frames = 0x" + "f" * 10_000, "is not TOML that can be read"),
    ],
)
def test_wrong_description_is_refused_by_its_field(text, says):
    with pytest.raises(WeightsError, match=says.replace("[", r"\[")):
        ModelConfig.from_toml(text)


def test_wrong_values_are_refused_in_python_too():
    with pytest.raises(ValueError, match="attention_levels"):
        UNetConfig(attention_levels=(9,))


def test_a_published_decoder_is_not_mentioned():
    second = dataclasses.replace(ModelConfig(), vae=VAEConfig(post_quant_conv=True))
    assert "post_quant_conv" not in ModelConfig().to_toml()
    assert ModelConfig.from_toml(second.to_toml()) == second
