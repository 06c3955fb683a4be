//! The closing tables.

use std::io::{self, Write};

use serde_json::json;

use crate::judge::{Accuracy, Row};
use crate::progress::Cost;

/// A share as people read it.
pub fn percent(share: Option<f64>) -> String {
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
pub fn print_rows(out: &mut dyn Write, rows: &[Row], costs: &[Cost], json: bool) -> io::Result<()> {
    let cost = |row: &Row| costs.iter().find(|cost| cost.last == row.end);
    if json {
        for row in rows {
            let cost = cost(row);
            writeln!(
                out,
                "{}",
                json!({"event": "block", "name": row.name, "shape": row.shape,
                "parameters": row.parameters, "si_train": row.si, "cross_si": row.cross_si,
                "seconds": cost.map(|c| c.seconds), "bytes": cost.map(|c| c.bytes),
                "epochs": cost.map(|c| c.epochs)})
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
        let cost = cost(row);
        let seconds = cost.map_or_else(|| "-".to_owned(), |c| format!("{:.1}", c.seconds));
        let ram = cost.map_or_else(|| "-".to_owned(), |c| bytes(c.bytes));
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

/// How many of the test set are classified rightly by the label that excites the blocks most.
pub fn print_goodness(out: &mut dyn Write, name: &str, share: f64, json: bool) -> io::Result<()> {
    match json {
        true => writeln!(out, "{}", json!({"event": "goodness", "net": name, "accuracy": share})),
        false => writeln!(out, "{:<22} {:>8.1} by goodness", name, share * 100.0),
    }
}
