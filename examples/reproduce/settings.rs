//! The paper's tables of settings, beside those of a run.

use std::io::{self, Write};

use sepal::models::width::part;

use crate::args::Args;
use crate::cells::{Cell, SETS, Scale, all};

/// Prints Table 1, 2, 6 or 7; the others are results.
pub fn print(out: &mut dyn Write, table: u8, args: &Args) -> io::Result<()> {
    match table {
        1 | 6 => recipes(out, table, args),
        2 | 7 => sets(out, table, args),
        _ => Ok(()),
    }
}

fn row(out: &mut dyn Write, name: &str, paper: &str, ours: &str) -> io::Result<()> {
    writeln!(out, "{name:<26} {paper:>22}  {ours}")
}

fn recipes(out: &mut dyn Write, table: u8, args: &Args) -> io::Result<()> {
    let text = table == 6;
    let scale = Scale::new(args, text);
    let of = |paper: [&'static str; 2]| paper[usize::from(text)];
    row(out, &format!("Table {table}"), "paper", "here")?;
    row(out, "epochs end to end", of(["200", "15"]), &scale.end_epochs.to_string())?;
    row(out, "epochs a layer", of(["10", "3"]), &scale.epochs.to_string())?;
    let ours = if scale.sgd { "SGD" } else { "Adam; SGD end to end where the cell says so" };
    row(out, "optimiser", of(["SGD or Adam", "SGD"]), ours)?;
    row(out, "batch", of(["128", "2048"]), &scale.batch.to_string())?;
    let [adam, sgd] = scale.end_rates;
    let ours = format!(
        "blocks 0.01, a classifier on frozen features 0.001, end to end {adam} (Adam) and {sgd} (SGD)"
    );
    row(out, "initial rate", "0.01", &ours)?;
    let ours = scale.weight_decay.map_or("none".to_owned(), |decay| decay.to_string());
    row(out, "weight decay", "", &ours)?;
    if text {
        let ours = part(16, scale.width).to_string();
        row(out, "character embedding", "16", &ours)?;
    }
    row(out, "all of it", "", &scale.to_string())
}

fn sets(out: &mut dyn Write, table: u8, args: &Args) -> io::Result<()> {
    let text = table == 7;
    let scale = Scale::new(args, text);
    row(out, &format!("Table {table}"), "train/test/classes", "here")?;
    let most = |n: Option<u32>| n.map_or("all".to_owned(), |n| format!("at most {n}"));
    let ours = format!("{} / {}", most(scale.images), most(scale.test_images));
    for set in SETS.iter().filter(|set| set.text == text) {
        let paper = match set.name {
            "cifar-10" => "50000/10000/10",
            "cifar-100" => "50000/10000/100",
            "fashion-mnist" => "60000/10000/10",
            "raabin" => "10175/4339/5",
            "wbc" => "not there",
            "ag-news" => "120000/7600/4",
            _ => "560000/70000/14",
        };
        row(out, set.title, paper, &ours)?;
    }
    let cells = all().into_iter().filter(|cell: &Cell| cell.set.text == text).count();
    row(out, "cells on these", "", &cells.to_string())
}
