//! What `build.rs` makes, as bytes. An image that wants some puts them where it wants them.
#![no_std]
#![forbid(unsafe_code)]

macro_rules! made {
    ($($(#[$doc:meta])* $name:ident: $($file:literal),+;)*) => {
        $($(#[$doc])* pub const $name: [u8; include_bytes!(made!($($file),+)).len()] =
            *include_bytes!(made!($($file),+));)*
    };
    ($($file:literal),+) => { concat!(env!("OUT_DIR"), "/", $($file),+) };
}

made! {
    /// LeNet-5, trained on the bundled images: a model file.
    LENET5: "lenet5.sepal";
    /// The same in bytes.
    LENET5_INT8: "lenet5-int8.sepal";
    /// Its parameters alone, little-endian f32, as [`Weights::Flat`] has them.
    ///
    /// [`Weights::Flat`]: https://docs.rs/sepal-core/latest/sepal_core/net/enum.Weights.html
    WEIGHTS: "lenet5.weights";
    /// 28x28 images of the test set.
    SAMPLES: "samples";
    /// Their labels.
    LABELS: "labels";
    /// What the model makes of each on the host: ten little-endian f32.
    LOGITS: "logits";
    /// What the model in bytes makes of the first.
    LOGITS_INT8: "logits-int8";
    /// What a new user shows: images with their contrast inverted, and their labels.
    SHOWN: "shown";
    /// Their labels.
    SHOWN_LABELS: "shown-labels";
    /// More of these, to judge by.
    JUDGED: "judged";
    /// Their labels.
    JUDGED_LABELS: "judged-labels";
}

/// The nets of MLPerf Tiny with drawn weights, a sample of noise, and what the host makes of it.
pub mod tiny {
    macro_rules! net {
        ($name:ident, $file:literal $(, $int8:literal)?) => {
            #[doc = $file]
            pub mod $name {
                made! {
                    /// Its parameters alone, little-endian f32.
                    WEIGHTS: $file, ".weights";
                    /// A sample, in bytes.
                    SAMPLE: $file, ".sample";
                    /// What the parameters make of it: little-endian f32.
                    LOGITS: $file, ".logits";
                }
                $(made! {
                    /// Folded and in bytes: a model file.
                    INT8: $int8, ".sepal";
                    /// What the model in bytes makes of the sample.
                    LOGITS_INT8: $int8, ".logits";
                })?
            }
        };
    }
    net!(ds_cnn, "ds-cnn", "ds-cnn-int8");
    net!(mobilenet, "mobilenet", "mobilenet-int8");
    net!(resnet8, "resnet8");
    net!(autoencoder, "autoencoder", "autoencoder-int8");
}
