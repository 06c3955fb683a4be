//! What is shown.

use std::io::Write;

use sepal::si::Tally;
use serde_json::json;

use crate::Args;
use crate::program::Failure;

/// One number of the family.
pub struct Measure {
    name: &'static str,
    tally: Tally,
    meaning: String,
}

impl Measure {
    pub fn new(name: &'static str, tally: Tally, meaning: impl Into<String>) -> Self {
        Self { name, tally, meaning: meaning.into() }
    }
}

/// A class.
pub struct Class {
    pub name: String,
    pub samples: u32,
    pub si: Tally,
}

/// All of them.
pub struct Report {
    pub samples: usize,
    pub features: usize,
    pub unpaired: Option<usize>,
    pub measures: Vec<Measure>,
    pub classes: Vec<Class>,
}

impl Report {
    pub fn print_json(&self, args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
        let measures: Vec<_> = self
            .measures
            .iter()
            .map(|Measure { name, tally, meaning }| {
                json!({"name": name, "value": tally.value(), "anchors": tally.anchors,
                    "skipped": tally.skipped, "meaning": meaning})
            })
            .collect();
        let classes: Vec<_> = self
            .classes
            .iter()
            .map(|Class { name, samples, si }| {
                json!({"name": name, "samples": samples, "si": si.value(), "skipped": si.skipped})
            })
            .collect();
        let report = json!({"file": args.features, "samples": self.samples,
            "features": self.features, "unpaired": self.unpaired, "measures": measures,
            "classes": classes});
        Ok(writeln!(out, "{report}")?)
    }

    pub fn print_text(&self, args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
        let (file, samples, features) = (args.features.display(), self.samples, self.features);
        writeln!(out, "{file}: {samples} samples of {features} features")?;
        if let Some(unpaired) = self.unpaired {
            writeln!(
                out,
                "{unpaired} without another of their class, or without one of another class"
            )?;
        }
        writeln!(
            out,
            "\n{:<23} {:>8} {:>8} {:>8}  meaning",
            "measure", "value", "anchors", "skipped"
        )?;
        for Measure { name, tally, meaning } in &self.measures {
            let (value, Tally { anchors, skipped, .. }) = (number(*tally), tally);
            writeln!(out, "{name:<23} {value:>8} {anchors:>8} {skipped:>8}  {meaning}")?;
        }
        if !self.classes.is_empty() {
            writeln!(out, "\n{:<23} {:>8} {:>8} {:>8}", "class", "SI", "samples", "skipped")?;
        }
        for Class { name, samples, si } in &self.classes {
            let (value, skipped) = (number(*si), si.skipped);
            writeln!(out, "{name:<23} {value:>8} {samples:>8} {skipped:>8}")?;
        }
        Ok(())
    }
}

fn number(tally: Tally) -> String {
    tally.value().map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"))
}
