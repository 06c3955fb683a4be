//! What `build.rs` makes, as bytes. An image that wants some puts them where it wants them.
#![no_std]
#![forbid(unsafe_code)]

macro_rules! made {
    ($($(#[$doc:meta])* $name:ident: $file:literal;)*) => {
        $($(#[$doc])* pub const $name: [u8; include_bytes!(made!($file)).len()] =
            *include_bytes!(made!($file));)*
    };
    ($file:literal) => { concat!(env!("OUT_DIR"), "/", $file) };
}

made! {
    /// LeNet-5, trained on the bundled images: a model file.
    LENET5: "lenet5.sepal";
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
}
