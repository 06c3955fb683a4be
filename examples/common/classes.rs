//! What training samples must have to be told apart.

use sepal::models::data::Dataset;

use crate::program::Failure;
use crate::warn::warn;

/// Refuses samples that no net can learn to tell apart, and warns of a class of one. `name` is
/// where they are from.
pub fn check(name: &str, train: &Dataset) -> Result<(), Failure> {
    let counts = train.counts();
    let there = || train.names().iter().zip(&counts).filter(|(_, count)| **count > 0);
    if let (Some((class, count)), 1) = (there().next(), there().count()) {
        let all = format!("{name}: all {count} training samples are of class `{class}`");
        return Err(format!("{all}, expected 2 classes or more").into());
    }
    if there().all(|(_, count)| *count == 1) {
        let none = format!("{name}: no class has two training samples");
        return Err(format!("{none}: there is no neighbour of the same class").into());
    }
    for (class, _) in there().filter(|(_, count)| **count == 1) {
        warn(&format!("{name}: class `{class}` has one training sample: it is never an anchor"));
    }
    Ok(())
}
