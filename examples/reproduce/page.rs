//! The page of results.

use std::fmt::Write;
use std::path::Path;

use maud::{PreEscaped, html};
use pulldown_cmark::html::push_html;
use pulldown_cmark::{Options, Parser};

use crate::cells::{Cell, Scale, all, name};
use crate::program::Failure;
use crate::results::{Record, kinds, machines};
use crate::{html, plot, text};

/// Writes `results.md`, the plots, and `results.html`, which has all of them.
pub fn write(folder: &Path, records: &[Record]) -> Result<(), Failure> {
    let tables = page(records);
    text::write(&folder.join("results.md"), &tables)?;
    let plots = plot::plots(records)?;
    for (file, svg) in &plots {
        text::write(&folder.join(file), svg)?;
    }
    let (title, tables) = tables.trim_start_matches("# ").split_once('\n').unwrap_or_default();
    let mut body = String::new();
    push_html(&mut body, Parser::new_ext(tables, Options::ENABLE_TABLES));
    let body = html! {
        (PreEscaped(body))
        h2 { "Plots" }
        @for (_, svg) in &plots { (PreEscaped(svg)) }
    };
    Ok(text::write(&folder.join("results.html"), &html::page(title, &body))?)
}

/// Mean and deviation of the runs' numbers: `sqrt(sum (x - m)^2 / (n - 1))`, where there are two.
pub fn spread(numbers: &[f64]) -> (f64, Option<f64>) {
    let n = numbers.len() as f64;
    let mean = numbers.iter().sum::<f64>() / n;
    let squares: f64 = numbers.iter().map(|x| (x - mean).powi(2)).sum();
    (mean, (numbers.len() > 1).then(|| (squares / (n - 1.0)).sqrt()))
}

fn shown(numbers: &[f64], decimals: usize) -> String {
    match spread(numbers) {
        (mean, Some(deviation)) => format!("{mean:.decimals$} ± {deviation:.decimals$}"),
        (mean, None) => format!("{mean:.decimals$}"),
    }
}

fn page(records: &[Record]) -> String {
    let mut page = String::from("# The paper's tables\n");
    page.push_str(
        "\nKarimi, Kalhor and Sadeghi Tabrizi, Sci. Rep. 2024. Ours is the mean over seeds and its \
         standard deviation, their number behind it. Counted memory is the largest arena of a \
         stage with what is kept of frozen layers, and the weights. What learns by SI does so by \
         the soft nearest neighbour loss at T = 0.05, except in rows by Eq. 7, the paper's loss, and in \
         rows by centres: means of labels in the place of neighbours, behind a discarded convolution; \
         hidden dense layers learn by cross-entropy. WBC (chula) stands in for the paper's set of white blood \
         cells, which is another one.\n",
    );
    for scale in kinds(records, |r| &r.scale) {
        let own: Vec<&Record> = records.iter().filter(|r| r.scale == *scale).collect();
        for (table, title) in [
            (3, "accuracy on images, %"),
            (4, "accuracy of SimCNN, %"),
            (5, "time on CIFAR-10, minutes:seconds in the paper, CPU seconds here"),
            (8, "error rate on text, %"),
        ] {
            section(&mut page, table, title, scale, &own);
        }
    }
    page
}

/// The runs on a machine: other machines' seconds are others.
fn on<'a>(runs: &[&'a Record], machine: &str) -> Vec<&'a Record> {
    runs.iter().filter(|run| run.machine == machine).copied().collect()
}

/// CPU hours of the runs on each machine.
fn hours(runs: &[&Record], machines: &[&str]) -> String {
    let each = |&machine: &&str| {
        let hours = on(runs, machine).iter().map(|run| run.cpu_seconds).sum::<f64>() / 3600.0;
        let machine = if machine.is_empty() { "a machine without a name" } else { machine };
        format!("{hours:.2} CPU hours on {machine}")
    };
    let all = machines.iter().map(each).collect::<Vec<_>>().join(" and ");
    if machines.len() < 2 { all } else { format!("{all}, whose CPU seconds stand in this order") }
}

fn section(page: &mut String, table: u8, title: &str, scale: &Scale, records: &[&Record]) {
    let of = |cell: &Cell| -> Vec<&Record> {
        records.iter().filter(|r| r.is_of(cell)).copied().collect()
    };
    let cells = all().into_iter().filter(|c| c.table == table || (table == 5 && c.time.is_some()));
    let cells: Vec<_> = cells.map(|cell| (of(&cell), cell)).filter(|c| !c.0.is_empty()).collect();
    let runs: Vec<&Record> = cells.iter().flat_map(|(runs, _)| runs).copied().collect();
    if runs.is_empty() {
        return;
    }
    let machines = machines(&runs);
    let mut rows = String::new();
    for (runs, cell) in &cells {
        row(&mut rows, table, cell, runs, &machines);
    }
    // Writing to a string does not fail.
    let _ = writeln!(
        page,
        "\n## Table {table}: {title}\n\n{scale}. {} runs, {}.\n",
        runs.len(),
        hours(&runs, &machines)
    );
    let mut commands = kinds(runs, |run| &*run.command);
    commands.sort_unstable();
    for command in commands {
        let _ = writeln!(page, "    {command}");
    }
    page.push_str(match table {
        5 => "\n| cell | paper | CPU s (n) | CPU s an epoch and layer | CPU s an epoch of each stage, on the first of its machines | counted MB |\n|---|---|---|---|---|---|\n",
        _ => "\n| cell | paper | ours (n) | linear | nearest | CPU s | counted MB | parameters |\n|---|---|---|---|---|---|---|---|\n",
    });
    page.push_str(&rows);
}

/// CPU seconds of a pass of each stage, from the first to the last, on the first machine that has runs:
/// whether early layers cost less than late ones.
fn stages(runs: &[&Record], machines: &[&str]) -> String {
    let mut each = machines.iter().map(|machine| on(runs, machine));
    let own = each.find(|own| !own.is_empty()).unwrap_or_default();
    let count = own.iter().map(|run| run.stages.len()).max().unwrap_or(0);
    let mean = |at: usize| {
        let stages = own.iter().filter_map(|run| run.stages.get(at));
        let each: Vec<f64> =
            stages.map(|stage| stage.cpu_seconds / f64::from(stage.epochs.max(1))).collect();
        format!("{:.2}", spread(&each).0)
    };
    (0..count).map(mean).collect::<Vec<_>>().join(", ")
}

fn row(rows: &mut String, table: u8, cell: &Cell, runs: &[&Record], machines: &[&str]) {
    let of = |f: &dyn Fn(&Record) -> f64| runs.iter().map(|r| f(r)).collect::<Vec<f64>>();
    let share = |x: f64| 100.0 * if table == 8 { 1.0 - x } else { x };
    let title = cell.strategy.title;
    let set = cell.set.title;
    let (model, n) = (name(cell.model), runs.len());
    let times = |f: &dyn Fn(&Record) -> f64, decimals| {
        let each = machines.iter().map(|machine| match &on(runs, machine)[..] {
            [] => "-".to_owned(),
            own => shown(&own.iter().map(|run| f(run)).collect::<Vec<_>>(), decimals),
        });
        each.collect::<Vec<_>>().join(" / ")
    };
    let cpu = times(&|r| r.cpu_seconds, 2);
    let bytes = runs.iter().map(|r| r.peak_bytes).max().unwrap_or(0) as f64 / 1e6;
    let _ = match table {
        5 => {
            let paper = cell.time.unwrap_or("-");
            // Stages that train more count for more.
            let each = |r: &Record| {
                let parts = r.stages.iter().map(|s| f64::from(s.epochs) * s.blocks as f64);
                r.cpu_seconds / parts.sum::<f64>().max(1.0)
            };
            let each = times(&each, 4);
            let stages = stages(runs, machines);
            writeln!(
                rows,
                "| {set}, {model}, {title} | {paper} | {cpu} ({n}) | {each} | {stages} | {bytes:.1} |"
            )
        }
        _ => {
            let paper = cell.paper.map_or("-".to_owned(), |value| format!("{value:.2}"));
            let parameters = runs.first().map_or(0, |run| run.parameters);
            let head = shown(&of(&|r| share(r.head)), 2);
            let (linear, nearest) =
                (shown(&of(&|r| share(r.linear)), 2), shown(&of(&|r| share(r.nearest)), 2));
            writeln!(
                rows,
                "| {set}, {model}, {title} | {paper} | {head} ({n}) | {linear} | {nearest} | {cpu} | {bytes:.1} | {parameters} |"
            )
        }
    };
}
