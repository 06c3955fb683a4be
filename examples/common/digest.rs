//! What names a data set.

use sepal::format::Digest;
use sepal::models::data::{Dataset, Samples};

/// A digest of samples and labels, by which runs and models name their data.
pub fn digest(set: &Dataset) -> u64 {
    let mut digest = Digest::new();
    match set.samples() {
        Samples::U8(samples) => digest.bytes(samples),
        Samples::F32(samples) => samples.iter().for_each(|x| digest.bytes(&x.to_le_bytes())),
    }
    set.labels().iter().for_each(|label| digest.bytes(&label.to_le_bytes()));
    digest.finish()
}
