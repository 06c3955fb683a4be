//! The closing tables.

use std::io::{self, Write};

use sepal::models::data::Dataset;
use sepal::models::features::Features;
use sepal::models::fit::FitError;
use sepal::net::{Model, Net, Normalisation, Weights};
use serde_json::json;

use crate::device::Device;
use crate::progress::Cost;

/// One row of the first table.
pub struct Row {
    pub name: String,
    pub shape: String,
    pub parameters: usize,
    pub si: Option<f64>,
    pub cross_si: Option<f64>,
    pub cost: Option<Cost>,
}

/// Test accuracy of three classifiers on one net.
#[derive(Clone, Copy)]
pub struct Accuracy {
    pub nearest: f64,
    pub linear: f64,
    pub head: f64,
}

/// What a trained net is measured on.
pub struct Judge<'a> {
    pub device: &'a Device,
    /// Training images: those that SI is measured on, and the nearest neighbour's bank.
    pub bank: Dataset,
    pub train: &'a Dataset,
    pub test: &'a Dataset,
    pub classes: u32,
    pub epochs: u16,
    pub seed: u64,
}

impl Judge<'_> {
    /// SI and cross-SI of the raw input and behind each of the layers `ends`.
    pub fn rows(
        &self,
        model: &Model<'_>,
        ends: &[usize],
        costs: &[Cost],
    ) -> Result<Vec<Row>, FitError> {
        let net = model.net;
        // The raw input: no layer has run, only the input's own scale is left out.
        let raw = Net {
            input: sepal::net::Input { normalisation: Normalisation::NONE, ..net.input },
            ..net
        };
        let none = Model { net: raw, weights: Weights::Flat(&[]) };
        let mut rows = Vec::new();
        let mut first = 0;
        for (block, &end) in std::iter::once(&0).chain(ends).enumerate() {
            let model = if end == 0 { &none } else { model };
            let bank = Features::new(self.device, model, &mut &self.bank, end)?.unit();
            let test = Features::new(self.device, model, &mut &*self.test, end)?.unit();
            let shape = net.shape(end)?;
            rows.push(Row {
                name: if end == 0 { "raw input".to_owned() } else { format!("block {block}") },
                shape: format!("{}x{}x{}", shape.c, shape.h, shape.w),
                parameters: net.params(end)? - net.params(first)?,
                si: bank.si(self.device)?.value(),
                cross_si: test.cross_si(self.device, &bank)?.value(),
                cost: costs.iter().find(|cost| cost.last == end).copied(),
            });
            first = end;
        }
        Ok(rows)
    }

    /// The nearest neighbour in the last features, a linear classifier on them, the net's head.
    pub fn accuracy(&self, model: &Model<'_>) -> Result<Accuracy, FitError> {
        let net = model.net;
        let end = net.features_end();
        let train = Features::new(self.device, model, &mut &*self.train, end)?;
        let mut test = Features::new(self.device, model, &mut &*self.test, end)?;
        let bank = Features::new(self.device, model, &mut &self.bank, end)?.unit();
        let nearest = test.clone().unit().cross_si(self.device, &bank)?.value();
        let linear =
            train.linear_accuracy(self.device, &test, self.classes, self.epochs, self.seed)?;
        let logits = Features::new(self.device, model, &mut test, net.layers.len())?;
        Ok(Accuracy { nearest: nearest.unwrap_or(0.0), linear, head: logits.accuracy() })
    }
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1}", share * 100.0))
}

/// A size as people read it.
pub fn bytes(bytes: usize) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

/// The table of blocks.
pub fn print_rows(out: &mut dyn Write, rows: &[Row], json: bool) -> io::Result<()> {
    if json {
        for row in rows {
            writeln!(
                out,
                "{}",
                json!({"event": "block", "name": row.name, "shape": row.shape,
                "parameters": row.parameters, "si_train": row.si, "cross_si": row.cross_si,
                "seconds": row.cost.map(|c| c.seconds), "bytes": row.cost.map(|c| c.bytes),
                "epochs": row.cost.map(|c| c.epochs)})
            )?;
        }
        return Ok(());
    }
    writeln!(
        out,
        "\n{:<10} {:>9} {:>10} {:>11} {:>11} {:>8} {:>9}",
        "block", "shape", "parameters", "SI train %", "cross-SI %", "seconds", "RAM"
    )?;
    for row in rows {
        let seconds = row.cost.map_or_else(|| "-".to_owned(), |c| format!("{:.1}", c.seconds));
        let ram = row.cost.map_or_else(|| "-".to_owned(), |c| bytes(c.bytes));
        writeln!(
            out,
            "{:<10} {:>9} {:>10} {:>11} {:>11} {seconds:>8} {ram:>9}",
            row.name,
            row.shape,
            row.parameters,
            percent(row.si),
            percent(row.cross_si)
        )?;
    }
    Ok(())
}

/// The table of classifiers.
pub fn print_accuracy(
    out: &mut dyn Write,
    rows: &[(&str, Accuracy)],
    json: bool,
) -> io::Result<()> {
    if !json {
        let what = "test accuracy %";
        writeln!(out, "\n{what:<22} {:>8} {:>8} {:>8}", "nearest", "linear", "head")?;
    }
    for (name, Accuracy { nearest, linear, head }) in rows {
        if json {
            writeln!(
                out,
                "{}",
                json!({"event": "accuracy", "net": name, "nearest": nearest,
                "linear": linear, "head": head})
            )?;
        } else {
            let [nearest, linear, head] = [nearest, linear, head].map(|share| share * 100.0);
            writeln!(out, "{name:<22} {nearest:>8.1} {linear:>8.1} {head:>8.1}")?;
        }
    }
    Ok(())
}
